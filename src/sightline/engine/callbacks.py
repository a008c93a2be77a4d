"""What watches the loop. Callbacks observe: what changes the computation is an argument of the task or the loader.
The one thing a callback may do to the trainer is end it, by `trainer.should_stop = True` (after this epoch) or
`trainer.interrupt()` (after this step)."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from sightline.engine.checkpoint import save_checkpoint
from sightline.errors import ConfigError, NonFiniteLossError, listing, nearest
from sightline.types import StepOutput

if TYPE_CHECKING:
    from sightline.engine.trainer import Trainer


class Callback:
    """Base of all callbacks, with the seven events; the trainer's docstring shows where each one is. An `on_...` method
    with any other name is refused when the trainer is made."""

    def on_fit_start(self, trainer: Trainer) -> None: ...
    def on_epoch_start(self, trainer: Trainer) -> None: ...
    def on_step_end(self, trainer: Trainer, output: StepOutput) -> None: ...
    def on_eval_end(self, trainer: Trainer, record: dict[str, float]) -> None: ...
    def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None: ...
    def on_exception(self, trainer: Trainer, error: BaseException) -> None: ...
    def on_fit_end(self, trainer: Trainer) -> None: ...


EVENTS = tuple(name for name in vars(Callback) if name.startswith("on_"))


class Checkpointer(Callback):
    """Writes the file `last` before the first step, after every epoch and when interrupted, and the file `best` when
    `monitor` is better than ever.

    `better` is "min" or "max"; on a tie the earlier one stays. `every_steps` writes `last` within an epoch too. A model
    with a weight that has become NaN or infinite is never written, so the last good checkpoint stays."""

    def __init__(self, last: Path, best: Path, monitor: str, better: str, every_steps: int | None = None):
        self.last = last
        self.best = best
        self.monitor = monitor
        self.better = better
        if every_steps is not None:
            self.on_step_end = self._every(every_steps)  # type: ignore[method-assign]

    def on_fit_start(self, trainer: Trainer) -> None:
        """Saves a run's beginning, so that there is something to resume from whatever the first epoch meets."""
        # a mask of -inf is no accident: what is not finite before the first step may stay so
        self._meant = {name for name, value in trainer.state.model.state_dict().items() if not _finite(value)}
        if not self.last.exists():
            self._save(trainer, self.last)

    def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        """Saves; `best` first, so that `last` knows of it."""
        state = trainer.state
        value = record.get(self.monitor)
        if value is not None and math.isfinite(value):
            sign = 1 if self.better == "max" else -1
            if state.best is None or sign * value > sign * state.best:
                state.best = value
                self._save(trainer, self.best)
        self._save(trainer, self.last)

    def on_fit_end(self, trainer: Trainer) -> None:
        """Saves where the run was interrupted; a run that reached its end has been saved by its last epoch."""
        if trainer.interrupted:
            self._save(trainer, self.last)

    def _every(self, steps: int) -> Any:
        def on_step_end(trainer: Trainer, _: StepOutput) -> None:
            if trainer.state.step % steps == 0:
                trainer.check_losses()
                self._save(trainer, self.last)

        return on_step_end

    def _save(self, trainer: Trainer, path: Path) -> None:
        state = trainer.state
        weights = [*state.model.state_dict().items(), *(state.ema.state_dict().items() if state.ema else ())]
        for name, value in weights:
            if name not in self._meant and not _finite(value):
                raise NonFiniteLossError(
                    f"'{name}' holds NaN or infinite values after step {state.step}, so no checkpoint was "
                    f"written over the last good one. Try a lower learning rate."
                )
        own_state = getattr(trainer.train, "state_dict", None)
        state.loader = own_state() if own_state is not None else {}
        save_checkpoint(path, state)


def _finite(value: torch.Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


class EarlyStopping(Callback):
    """Ends the run when `monitor` has not become better by more than `min_delta` for `patience` evaluations in a row.

    `better` is "min" or "max". What it has seen is in the checkpoint, so a resumed run stops where an uninterrupted one
    does; an evaluation whose value is NaN counts as no better. `tell` is called with one line when it ends the run.
    Raises ConfigError at the first evaluation that does not measure `monitor`."""

    def __init__(
        self,
        monitor: str,
        better: str,
        patience: int,
        min_delta: float = 0.0,
        tell: Callable[[str], None] | None = None,
    ):
        self.monitor = monitor
        self.better = better
        self.patience = patience
        self.min_delta = min_delta
        self.tell = tell

    def on_eval_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        """Compares, counts, and asks for the end."""
        if self.monitor not in record:
            names = [name for name in record if name != "epoch"]
            raise ConfigError(
                f"trainer.early_stopping.monitor: the evaluation did not measure '{self.monitor}', so it would never "
                f"end the run.{nearest(self.monitor, names)} There are: {listing(names, 40)}."
            )
        seen = trainer.state.callbacks.setdefault(f"early_stopping/{self.monitor}", {"best": None, "waited": 0})
        value = record[self.monitor] * (1 if self.better == "max" else -1)
        if math.isfinite(value) and (seen["best"] is None or value > seen["best"] + self.min_delta):
            seen["best"], seen["waited"] = value, 0
            return
        seen["waited"] += 1
        if seen["waited"] >= self.patience and not trainer.should_stop:
            trainer.should_stop = True
            if self.tell is not None:
                self.tell(
                    f"stopping after epoch {trainer.state.epoch + 1}: {self.monitor} has not become better for "
                    f"{seen['waited']} evaluations"
                )


class StopOnSignal(Callback):
    """Lets SIGINT (Ctrl-C) and SIGTERM end the run between two steps, with a checkpoint; a second one ends it at once.
    Only in the main thread, the only one that Python lets handle signals."""

    def on_fit_start(self, trainer: Trainer) -> None:
        """Takes the signals over."""
        self._before: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return

        def handle(_number: int, _frame: FrameType | None) -> None:
            if trainer.interrupted:
                raise KeyboardInterrupt
            trainer.interrupt()

        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, handle)

    def on_fit_end(self, trainer: Trainer) -> None:
        """Hands the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """Hands the signals back."""
        self.on_fit_end(trainer)
