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
    """One JSON object a line: `step`, the seconds since the run began, and the values. A run that goes on from step `n`
    drops what an interrupted one had written after it, so that each step stands there once."""

    def __init__(self, path: Path, resume_step: int | None = None):
        if resume_step is not None and path.exists():
            rows = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
            kept = [line for line in rows if json.loads(line)["step"] <= resume_step]
            write_text(path, "".join(f"{line}\n" for line in kept))
        self._path = path
        self._file: TextIO | None = (
            None  # opened at the first log point: an assembly that never trains leaves none open
        )
        self._start = time.perf_counter()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line and hands it to the system, so that a reader beside the run sees it."""
        row = {"step": step, "seconds": round(time.perf_counter() - self._start, 3), **values}
        if self._file is None:
            self._file = self._path.open("a", encoding="utf-8")
        self._file.write(json.dumps(finite(row), allow_nan=False) + "\n")
        self._file.flush()

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
        """One scalar for each value."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._directory), purge_step=self._purge_step)
        for name, value in values.items():
            split, _, metric = name.partition("_")
            self._writer.add_scalar(f"{metric}/{split}" if split in self._splits else f"step/{name}", value, step)

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
