"""The progress display of an epoch: batches done, mean loss and training metrics."""

from __future__ import annotations

import operator
import sys
import time
from typing import TYPE_CHECKING

from sightline.core.types import StepOutput
from sightline.engine.progress import Progress
from sightline.engine.trainer import Trainer
from sightline.learner.task import running

if TYPE_CHECKING:
    from rich.console import RenderableType


class BatchLog(Progress):
    """Shows the progress of each epoch: a bar on a terminal, one rewritten line in a notebook, or else single lines.

    Values are read back from the device only when they are shown, at most four times a second. `every` is the time
    between two updates in seconds; by default 0.25, or 10 where each update is a new line."""

    def __init__(self, notebook: bool = False, every: float | None = None):
        super().__init__()
        self._notebook = notebook or self.console.is_jupyter
        self.draws = self.draws and not self._notebook
        self._every = (0.25 if self.draws or self._notebook else 10.0) if every is None else every
        self._values = ""
        self._line_width = 0

    def on_fit_start(self, trainer: Trainer) -> None:
        """Does nothing; each epoch has its own bar."""

    def on_epoch_start(self, trainer: Trainer) -> None:
        """Starts the bar of the epoch."""
        self._values = ""
        self._next_update = time.monotonic() + self._every
        super().on_fit_start(trainer)

    def on_step_end(self, trainer: Trainer, output: StepOutput) -> None:
        """Shows the values, if `every` seconds have passed."""
        if time.monotonic() < self._next_update:
            return
        loss, metrics = running(trainer)
        values = [("Loss", loss), *metrics.items()]
        self._values = "  ".join(f"Train {name}: {value:.4f}" for name, value in values)
        if self._live is not None:
            self._live.refresh()
        else:
            self._write(f"{self._done()}  {self._values}")
        self._next_update = time.monotonic() + self._every

    def on_eval_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        """Ends the bar or line, because the epoch's result lines follow."""
        self.on_fit_end(trainer)

    def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        """Does nothing; the learner prints the record."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """Removes the bar and ends the line."""
        super().on_fit_end(trainer)
        if self._line_width:
            print(flush=True)
            self._line_width = 0

    def cells(self, bar: RenderableType, batches: str, rate: str, left: str) -> list[RenderableType]:
        """The cells of the bar: batches done, bar, time left and the last values, cut to the width of the line."""
        from rich.text import Text

        return [self._done(), bar, left, Text(self._values, no_wrap=True, overflow="ellipsis")]

    def _done(self) -> str:
        trainer = self._trainer
        return f"{trainer.state.batch}/{operator.length_hint(trainer.train) or '?'} batches"

    def _write(self, line: str) -> None:
        if self._notebook:
            sys.stdout.write("\r" + line.ljust(self._line_width))
            sys.stdout.flush()
            self._line_width = len(line)
        else:
            self.console.print(line)
