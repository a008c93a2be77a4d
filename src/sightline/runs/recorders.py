"""Where log points go: a JSON line, TensorBoard, several at once."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from sightline.files import finite, write_text
from sightline.types import Recorder


class JsonlRecorder:
    """One JSON object a line: `step`, the seconds since the run began, and the values. A run that goes on, from a
    checkpoint at (`step`, `epoch`), first drops what an interrupted one had written after it, so that each log point
    stands there once. The file is touched at the first log point: an assembly that never trains leaves it alone."""

    def __init__(self, path: Path, resumed_at: tuple[int, int] | None = None):
        self._path = path
        self._resumed_at = resumed_at
        self._file: TextIO | None = None
        self._start = time.perf_counter()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line and hands it to the system, so that a reader beside the run sees it."""
        if self._file is None:
            self._drop_what_comes_again()
            self._file = self._path.open("a", encoding="utf-8")
        row = {"step": step, "seconds": round(time.perf_counter() - self._start, 3), **values}
        self._file.write(json.dumps(finite(row), allow_nan=False) + "\n")
        self._file.flush()

    def _drop_what_comes_again(self) -> None:
        if self._resumed_at is None or not self._path.exists():
            return
        step, epoch = self._resumed_at
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # cut off in the middle
                continue
            of_an_epoch = "train_loss" in row
            if row.get("step", 0) <= step and not (of_an_epoch and row.get("epoch", 0) >= epoch):
                kept.append(line)
        write_text(self._path, "".join(f"{line}\n" for line in kept))

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


class TensorBoardRecorder:
    """Scalars for TensorBoard, `loss/train`, `accuracy/val` and so on, so that splits share a chart."""

    def __init__(self, directory: Path, splits: Sequence[str], resume_step: int | None = None):
        self._splits = tuple(splits)
        self._directory = directory
        self._purge_step = None if resume_step is None else resume_step + 1
        self._writer: Any = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar for each value, all in one record: a fifth of the time of one record each."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._directory), purge_step=self._purge_step)
        scalars = []
        for name, value in values.items():
            split, _, metric = name.partition("_")
            tag = f"{metric}/{split}" if split in self._splits else f"step/{name}"
            scalars.append(Summary.Value(tag=tag, simple_value=value))
        self._writer.file_writer.add_summary(Summary(value=scalars), step)

    def close(self) -> None:
        """Writes what is still in memory."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class Tee:
    """Hands every log point to several recorders."""

    def __init__(self, *recorders: Recorder):
        self._recorders = recorders

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """To each, in order."""
        for recorder in self._recorders:
            recorder.log(step, values)

    def close(self) -> None:
        """Closes each."""
        for recorder in self._recorders:
            recorder.close()
