"""Where log points go: a JSON line, TensorBoard, several at once."""

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
    """The lines of a log, and what they say, that were written before a checkpoint at (step, epoch)."""
    step, epoch = place
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            row = parse_json(line)
        except ValueError:  # cut off in the middle
            continue
        if not isinstance(row, dict):
            continue
        of_an_epoch = "train_loss" in row
        if row.get("step", 0) <= step and not (of_an_epoch and row.get("epoch", 0) >= epoch):
            yield line, row


def log_points_at(path: Path, place: tuple[int, int]) -> list[dict[str, float]]:
    """What a log says of the very step of a checkpoint at (step, epoch), as it was recorded."""
    return [
        {key: math.nan if value is None else value for key, value in row.items() if key not in ("step", "seconds")}
        for _, row in log_rows_before(path, place)
        if row.get("step") == place[0]
    ]


class JsonlRecorder(Recorder):
    """`log.jsonl` in the run's directory, one JSON object a line: `step`, the seconds since the run began, and the
    values. A resumed run first drops what the interrupted one wrote after the checkpoint, so that each log point is
    there once. The file is touched at the first log point."""

    def __init__(self) -> None:
        self._path = Path(LOG)
        self._resumed_at: tuple[int, int] | None = None
        self._file: TextIO | None = None
        self._start = time.perf_counter()

    def start(self, directory: Path, config: Mapping[str, Any], position: tuple[int, int] | None) -> None:
        """Notes where the file is, and from where on the run records."""
        self._path, self._resumed_at = directory / LOG, position

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line and hands it to the system, so that a reader beside the run sees it."""
        if self._file is None:
            self._drop_what_comes_again()
            self._file = self._path.open("a", encoding="utf-8")
        row = {"step": step, "seconds": round(time.perf_counter() - self._start, 3), **values}
        with errors_name_path(self._path):
            self._file.write(json.dumps(replace_non_finite(row), allow_nan=False) + "\n")
            self._file.flush()

    def _drop_what_comes_again(self) -> None:
        if self._resumed_at is None or not self._path.exists():
            return
        kept = [line for line, _ in log_rows_before(self._path, self._resumed_at)]
        write_text(self._path, "".join(f"{line}\n" for line in kept))

    def flush(self) -> None:
        """Brings what was logged to the disk, so that it outlives a power cut as the checkpoint does."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


class TensorBoardRecorder(Recorder):
    """Scalars for TensorBoard in the run's directory `tensorboard`: `loss/train`, `accuracy/val` and so on, so that
    `splits` share a chart.

    A resumed run makes TensorBoard forget the points of the checkpoint's step and all after it, for TensorBoard knows
    no epochs; the values of that step which `log.jsonl` keeps are written once more."""

    def __init__(self, splits: Sequence[str]):
        self._splits = tuple(splits)
        self._directory = Path(TENSORBOARD)
        self._resumed_at: int | None = None
        self._again: list[dict[str, float]] = []
        self._file: EventFile | None = None

    def start(self, directory: Path, config: Mapping[str, Any], position: tuple[int, int] | None) -> None:
        """Reads what the log says of the step of the checkpoint."""
        self._directory = directory / TENSORBOARD
        self._resumed_at = None if position is None else position[0]
        self._again = [] if position is None else log_points_at(directory / LOG, position)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar for each value."""
        if self._file is None:
            self._file = EventFile(self._directory, self._resumed_at)
            for earlier in self._again:
                self._file.add(self._resumed_at or 0, self._tagged(earlier))
        self._file.add(step, self._tagged(values))

    def _tagged(self, values: Mapping[str, float]) -> dict[str, float]:
        tagged = {}
        for name, value in values.items():
            split, _, metric = name.partition("_")
            tagged[f"{metric}/{split}" if split in self._splits else f"step/{name}"] = value
        return tagged

    def flush(self) -> None:
        """Brings what was logged to the disk, too."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Writes what is still in memory, and closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


class CurveRecorder(TensorBoardRecorder):
    """Curves that an interface draws itself, by `add`, in `place` within the run's directory; the points that the
    engine logs are not drawn. They are over updates or, `by_epoch`, over epochs from 1. A resumed run keeps those of
    the checkpoint and draws later ones again."""

    def __init__(self, place: str | Path = ".", by_epoch: bool = False):
        super().__init__(())
        self._place, self._by_epoch = place, by_epoch

    def start(self, directory: Path, config: Mapping[str, Any], position: tuple[int, int] | None) -> None:
        """Notes from where on points come again. The file is begun at the first point."""
        done = None if position is None else position[1] if self._by_epoch else position[0]
        self._file = EventFile(directory / self._place, None if done is None else done + 1)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """One point of each curve."""
        if self._file is not None:
            self._file.add(step, values)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Draws nothing."""


def as_recorder(found: Any) -> Recorder:
    """What a caller passed in as a recorder, with every method of the protocol: those of an object that has only some
    of them do nothing. Raises TypeError for one without `log`."""
    if isinstance(found, Recorder):
        return found
    if not callable(getattr(found, "log", None)):
        raise TypeError(
            f"the recorder {type(found).__name__} has no `log(step, values)`; see sightline.core.types.Recorder."
        )
    made = _WithDefaults()
    for name in ("start", "log", "artifact", "flush", "close"):
        if callable(getattr(found, name, None)):
            setattr(made, name, getattr(found, name))
    return made


class _WithDefaults(Recorder):
    """The methods that a caller's object lacks."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The caller's."""


class RecorderList(Recorder):
    """Passes everything on to several recorders, in their order."""

    def __init__(self, *recorders: Recorder):
        self._recorders = recorders

    def start(self, directory: Path, config: Mapping[str, Any], position: tuple[int, int] | None) -> None:
        """Starts each."""
        for recorder in self._recorders:
            recorder.start(directory, config, position)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """To each, in order."""
        for recorder in self._recorders:
            recorder.log(step, values)

    def artifact(self, path: Path) -> None:
        """To each."""
        for recorder in self._recorders:
            recorder.artifact(path)

    def flush(self) -> None:
        """Those that keep something back write it."""
        for recorder in self._recorders:
            recorder.flush()

    def close(self) -> None:
        """Closes each, also where one fails."""
        with ExitStack() as stack:
            for recorder in reversed(self._recorders):
                stack.callback(recorder.close)
