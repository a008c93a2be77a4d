"""What a person sees while an epoch runs: batches done, the running loss and the training metrics."""

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
    """The engine's bar on a terminal, one for each epoch; a line that is written over in a notebook, a line now and
    then elsewhere. The values are read back from the device when they are shown, four times a second at most, and not
    for every batch. `every` is the number of seconds between two lines (None: 0.25 where a line is written over, 10
    where each is a new one)."""

    def __init__(self, notebook: bool = False, every: float | None = None):
        super().__init__()
        self._notebook = notebook or self.console.is_jupyter
        self.draws = self.draws and not self._notebook
        self._every = (0.25 if self.draws or self._notebook else 10.0) if every is None else every
        self._values = ""
        self._wide = 0

    def on_fit_start(self, trainer: Trainer) -> None:
        """Nothing: each epoch has a bar of its own."""

    def on_epoch_start(self, trainer: Trainer) -> None:
        """Starts the bar."""
        self._values = ""
        self._due = time.monotonic() + self._every
        super().on_fit_start(trainer)

    def on_step_end(self, trainer: Trainer, output: StepOutput) -> None:
        """Shows the values, when it is time to."""
        if time.monotonic() < self._due:
            return
        loss, metrics = running(trainer)
        values = [("Loss", loss), *metrics.items()]
        self._values = "  ".join(f"Train {name}: {value:.4f}" for name, value in values)
        if self._live is not None:
            self._live.refresh()
        else:
            self._write(f"{self._done()}  {self._values}")
        self._due = time.monotonic() + self._every

    def on_eval_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        """Ends the bar or the line: the epoch's own lines come next."""
        self.on_fit_end(trainer)

    def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        """Nothing: the learner prints the record."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """Takes the bar away, and ends the line."""
        super().on_fit_end(trainer)
        if self._wide:
            print(flush=True)
            self._wide = 0

    def cells(self, bar: RenderableType, batches: str, rate: str, left: str) -> list[RenderableType]:
        """The batches of the epoch, the bar, the time left, and the values that were read last, cut to the line."""
        from rich.text import Text

        return [self._done(), bar, left, Text(self._values, no_wrap=True, overflow="ellipsis")]

    def _done(self) -> str:
        trainer = self._trainer
        return f"{trainer.state.batch}/{operator.length_hint(trainer.train) or '?'} batches"

    def _write(self, line: str) -> None:
        if self._notebook:
            sys.stdout.write("\r" + line.ljust(self._wide))
            sys.stdout.flush()
            self._wide = len(line)
        else:
            self.console.print(line)
