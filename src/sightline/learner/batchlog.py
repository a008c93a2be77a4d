"""What a person sees while an epoch runs: batches done, the running loss and the training metrics."""

from __future__ import annotations

import operator
import sys
import time
from typing import TYPE_CHECKING, Any

from sightline.engine.callbacks import Callback
from sightline.engine.progress import plain_console
from sightline.types import StepOutput

if TYPE_CHECKING:
    from sightline.engine.trainer import Trainer

_OFTEN, _SELDOM = 0.25, 10.0  # seconds between two looks: where a line is drawn over, and where each is a line more


class BatchLog(Callback):
    """A bar on a terminal, a line that is written over in a notebook, a line now and then elsewhere. The values are
    read back from the device when they are shown, four times a second at most, and not for every batch."""

    def __init__(self, notebook: bool = False):
        self._console = plain_console()
        self._notebook = notebook or self._console.is_jupyter
        self._drawn = self._console.is_terminal and not self._console.is_dumb_terminal and not self._notebook
        self._every = _OFTEN if self._drawn or self._notebook else _SELDOM
        self._bar: Any = None
        self._wide = 0
        self._due, self._total = 0.0, 0

    def on_epoch_start(self, trainer: Trainer) -> None:
        """A bar of its own for each epoch."""
        self._total = operator.length_hint(trainer.train)
        self._due = time.monotonic() + self._every
        if self._drawn:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(24),
                TimeRemainingColumn(),
                TextColumn("{task.fields[said]}"),
            )
            self._bar = Progress(*columns, console=self._console, transient=True, refresh_per_second=4)
            self._task = self._bar.add_task(self._counted(trainer), total=self._total or None, said="")
            self._bar.start()

    def on_step_end(self, trainer: Trainer, output: StepOutput) -> None:
        """Shows, when it is time to."""
        if time.monotonic() >= self._due:
            self._show(trainer)
            self._due = time.monotonic() + self._every

    def on_eval_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        """The epoch's own lines come next."""
        self._end()

    def on_fit_end(self, trainer: Trainer) -> None:
        """Takes the bar away."""
        self._end()

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """Takes the bar away, so that the message stands alone."""
        self._end()

    def _show(self, trainer: Trainer) -> None:
        trainer.check_losses()
        loss, values = trainer.state.meters["train"].running()
        said = "  ".join([f"Train Loss: {loss:.4f}", *(f"Train {name}: {value:.4f}" for name, value in values.items())])
        done = self._counted(trainer)
        if self._bar is not None:
            self._bar.update(self._task, description=done, completed=trainer.state.batch, said=said)
        elif self._notebook:
            line = f"{done}  {said}"
            self._write("\r" + line.ljust(self._wide))
            self._wide = len(line)
        else:
            self._console.print(f"{done}  {said}")

    def _counted(self, trainer: Trainer) -> str:
        return f"{trainer.state.batch}/{self._total or '?'} batches"

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._wide:
            self._write("\n")
            self._wide = 0

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
