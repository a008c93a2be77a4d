"""Progress output during training: one line per epoch and, on a terminal, a live bar."""

from __future__ import annotations

import operator
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from sightline.core.console import plain_console
from sightline.engine.trainer import Callback, Trainer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


class Progress(Callback):
    """Shows the loss, metrics, images per second and the remaining time.

    A thread draws the bar from the trainer's counters eight times per second. It adds no work to a step, and nothing is
    read back from the device."""

    def __init__(self, console: Console | None = None):
        self.console = console or plain_console()
        self.draws = not self.console.quiet and self.console.is_terminal and not self.console.is_dumb_terminal
        self._live: Any = None  # on_exception may be called before on_fit_start

    def on_fit_start(self, trainer: Trainer) -> None:
        """Starts the bar if the console is a terminal."""
        self._trainer = trainer
        self._live = None
        self._started, self._first_step = time.perf_counter(), trainer.state.step
        self._recent: deque[tuple[float, int]] = deque([(self._started, trainer.samples)], maxlen=24)
        if self.draws:
            from rich.live import Live

            self._live = Live(
                get_renderable=self._bar, console=self.console, refresh_per_second=8, transient=True, auto_refresh=True
            )
            self._live.start()

    def on_epoch_start(self, trainer: Trainer) -> None:
        """Records the start of the epoch, to compute its images per second."""
        self._epoch = (time.perf_counter(), trainer.samples)

    def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        """Prints one line with the epoch's record."""
        then, samples = self._epoch
        rate = (trainer.samples - samples) / max(time.perf_counter() - then, 1e-9)
        shown = [
            f"{name} {value:.4f}"
            for name, value in record.items()
            if name.endswith(("_loss", "_accuracy", "_mae")) or not name.startswith(("train_", *trainer.evals))
            if name != "epoch"
        ]
        width = len(str(trainer.max_epochs))
        self.console.print(
            f"epoch {trainer.state.epoch:>{width}}/{trainer.max_epochs}  {'  '.join(shown)}  {rate:,.0f} images/s"
        )

    def on_fit_end(self, trainer: Trainer) -> None:
        """Removes the bar."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """Removes the bar before the error is printed."""
        self.on_fit_end(trainer)

    def cells(self, bar: RenderableType, batches: str, rate: str, left: str) -> list[RenderableType]:
        """Returns the columns of the bar's line. `batches` says how many batches of the epoch are done."""
        trainer = self._trainer
        log, epoch = trainer.last_log, min(trainer.state.epoch + 1, trainer.max_epochs)
        names = ["loss" if "loss" in log else "train_loss"]  # a short epoch may end before the first log point
        names += [f"{split}_{metric}" for split in trainer.evals for metric in ("accuracy", "mae")]
        values = [f"{name} {log[name]:.4f}" for name in names if name in log]
        return [f"epoch {epoch}/{trainer.max_epochs}", bar, batches, *values, rate, *([left] if left else [])]

    def _bar(self) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        trainer, state = self._trainer, self._trainer.state
        now = time.perf_counter()
        self._recent.append((now, trainer.samples))
        (then, samples) = self._recent[0]
        rate = (trainer.samples - samples) / max(now - then, 1e-9)
        length = operator.length_hint(trainer.train) or None
        bar = ProgressBar(total=length, completed=state.batch, width=24, pulse=length is None)
        done, left = state.step - self._first_step, ""
        if length and done:
            steps = trainer.max_epochs * length - (state.epoch * length + state.batch)
            left = f"{_clock((now - self._started) / done * steps)} left"
        batches = f"{state.batch}/{length}" if length else f"batch {state.batch}"
        grid = Table.grid(padding=(0, 2))
        grid.add_row(*self.cells(bar, batches, f"{rate:,.0f} images/s", left))
        return grid


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
