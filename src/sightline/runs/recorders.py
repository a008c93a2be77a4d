"""Recorders, which store log points: as JSON lines, as TensorBoard events, or in several recorders at once."""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from sightline.core.files import errors_name_path, parse_json, replace_non_finite, write_text
from sightline.core.types import Recorder
from sightline.runs.eventfile import EventFile

LOG, TENSORBOARD = "log.jsonl", "tensorboard"


def log_rows_before(path: Path, place: tuple[int, int]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (line, parsed row) for every line of a log that was written before the checkpoint at `place`.

    `place` is the checkpoint's (step, epoch). A line that is cut off or is not a JSON object is skipped."""
    step, epoch = place
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            row = parse_json(line)
        except ValueError:  # a killed process may leave an incomplete line
            continue
        if not isinstance(row, dict):
            continue
        ends_epoch = "train_loss" in row
        if row.get("step", 0) <= step and not (ends_epoch and row.get("epoch", 0) >= epoch):
            yield line, row


def log_points_at(path: Path, place: tuple[int, int]) -> list[dict[str, float]]:
    """Returns the values that a log has for the step of the checkpoint at `place`, a (step, epoch), one dict per line.

    `step` and `seconds` are left out; null is read as NaN."""
    return [
        {key: math.nan if value is None else value for key, value in row.items() if key not in ("step", "seconds")}
        for _, row in log_rows_before(path, place)
        if row.get("step") == place[0]
    ]


class JsonlRecorder(Recorder):
    """Writes `log.jsonl` in the run directory, one JSON object per line: `step`, `seconds` and the values.

    `seconds` counts from the creation of the recorder. A resumed run first removes the lines that the interrupted run
    wrote after its checkpoint, so that each log point occurs once. The file is opened at the first log point."""

    def __init__(self) -> None:
        self._path = Path(LOG)
        self._resumed_at: tuple[int, int] | None = None
        self._file: TextIO | None = None
        self._start = time.perf_counter()

    def start(self, directory: Path, config: Mapping[str, Any], position: tuple[int, int] | None) -> None:
        """Sets the path of the log and the (step, epoch) from which the run is resumed, if it is."""
        self._path, self._resumed_at = directory / LOG, position

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line and flushes it to the operating system, so that other processes can read it at once."""
        if self._file is None:
            self._drop_lines_after_checkpoint()
            self._file = self._path.open("a", encoding="utf-8")
        row = {"step": step, "seconds": round(time.perf_counter() - self._start, 3), **values}
        with errors_name_path(self._path):
            self._file.write(json.dumps(replace_non_finite(row), allow_nan=False) + "\n")
            self._file.flush()

    def _drop_lines_after_checkpoint(self) -> None:
        if self._resumed_at is None or not self._path.exists():
            return
        lines = [line for line, _ in log_rows_before(self._path, self._resumed_at)]
        write_text(self._path, "".join(f"{line}\n" for line in lines))

    def flush(self) -> None:
        """Syncs the log to disk, so that it survives a power failure as the checkpoint does."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file, if one is open."""
        if self._file is not None:
            self._file.close()
            self._file = None


class TensorBoardRecorder(Recorder):
    """Writes scalars for TensorBoard to `tensorboard/` in the run directory.

    A value such as `train_loss` whose name starts with one of `splits` gets the tag `loss/train`, so that all splits
    share a chart; the others get `step/NAME`. TensorBoard has no epochs, so a resumed run purges the checkpoint's step
    and all later ones, and then writes the values that `log.jsonl` has for that step again."""

    def __init__(self, splits: Sequence[str]):
        self._splits = tuple(splits)
        self._directory = Path(TENSORBOARD)
        self._resumed_at: int | None = None
        self._rewritten: list[dict[str, float]] = []
        self._file: EventFile | None = None

    def start(self, directory: Path, config: Mapping[str, Any], position: tuple[int, int] | None) -> None:
        """Reads the values that the log has for the step of the checkpoint, if the run is resumed from one."""
        self._directory = directory / TENSORBOARD
        self._resumed_at = None if position is None else position[0]
        self._rewritten = [] if position is None else log_points_at(directory / LOG, position)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one scalar per value."""
        if self._file is None:
            self._file = EventFile(self._directory, self._resumed_at)
            for earlier in self._rewritten:
                self._file.add(self._resumed_at or 0, self._tagged(earlier))
        self._file.add(step, self._tagged(values))

    def _tagged(self, values: Mapping[str, float]) -> dict[str, float]:
        tagged = {}
        for name, value in values.items():
            split, _, metric = name.partition("_")
            tagged[f"{metric}/{split}" if split in self._splits else f"step/{name}"] = value
        return tagged

    def flush(self) -> None:
        """Writes buffered scalars and syncs the file to disk."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Writes buffered scalars and closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


class CurveRecorder(TensorBoardRecorder):
    """Writes TensorBoard curves that an interface adds itself with `add`; log points of the engine are ignored.

    The file is in the directory `place`, relative to the run directory. The x axis is the step or, with `by_epoch`, the
    epoch counted from 1. A resumed run keeps the points up to the checkpoint and purges later ones."""

    def __init__(self, place: str | Path = ".", by_epoch: bool = False):
        super().__init__(())
        self._place, self._by_epoch = place, by_epoch

    def start(self, directory: Path, config: Mapping[str, Any], position: tuple[int, int] | None) -> None:
        """Prepares the file, which is created at the first point; a resumed run purges the points after `position`."""
        done = None if position is None else position[1] if self._by_epoch else position[0]
        self._file = EventFile(directory / self._place, None if done is None else done + 1)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one point to each curve; `step` is an epoch with `by_epoch`."""
        if self._file is not None:
            self._file.add(step, values)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Does nothing."""


def as_recorder(found: Any) -> Recorder:
    """Returns a caller's recorder as a `Recorder`; methods of the protocol that the object lacks do nothing.

    Raises TypeError if the object has no `log` method."""
    if isinstance(found, Recorder):
        return found
    if not callable(getattr(found, "log", None)):
        raise TypeError(
            f"the recorder {type(found).__name__} has no `log(step, values)` method. See sightline.core.types.Recorder."
        )
    recorder = _WithDefaults()
    for name in ("start", "log", "artifact", "flush", "close"):
        if callable(getattr(found, name, None)):
            setattr(recorder, name, getattr(found, name))
    return recorder


class _WithDefaults(Recorder):
    """A recorder whose methods do nothing until they are replaced with those of a caller's object."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Is replaced with the caller's method."""


class RecorderList(Recorder):
    """A recorder that passes every call on to several recorders, in order."""

    def __init__(self, *recorders: Recorder):
        self._recorders = recorders

    def start(self, directory: Path, config: Mapping[str, Any], position: tuple[int, int] | None) -> None:
        """Starts each recorder."""
        for recorder in self._recorders:
            recorder.start(directory, config, position)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Passes the log point to each recorder."""
        for recorder in self._recorders:
            recorder.log(step, values)

    def artifact(self, path: Path) -> None:
        """Passes the path to each recorder."""
        for recorder in self._recorders:
            recorder.artifact(path)

    def flush(self) -> None:
        """Flushes each recorder."""
        for recorder in self._recorders:
            recorder.flush()

    def close(self) -> None:
        """Closes every recorder, even if one of them raises."""
        with ExitStack() as stack:
            for recorder in reversed(self._recorders):
                stack.callback(recorder.close)
