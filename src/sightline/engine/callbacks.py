"""What watches the loop. Callbacks observe: what changes the computation is an argument of the task or the loader.
The one thing a callback may do to the trainer is end it, by `trainer.should_stop = True` (after this epoch) or
`trainer.interrupt()` (after this step)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from sightline.errors import ConfigError, listing, nearest
from sightline.types import StepOutput

if TYPE_CHECKING:
    from sightline.engine.trainer import Trainer


class Callback:
    """Base of all callbacks, with the eight events; the trainer's docstring shows where each one is. An `on_...` method
    with any other name is refused when the trainer is made."""

    def on_fit_start(self, trainer: Trainer) -> None: ...
    def on_epoch_start(self, trainer: Trainer) -> None: ...
    def on_step_end(self, trainer: Trainer, output: StepOutput) -> None: ...
    def on_checkpoint(self, trainer: Trainer) -> None: ...
    def on_eval_end(self, trainer: Trainer, record: dict[str, float]) -> None: ...
    def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None: ...
    def on_exception(self, trainer: Trainer, error: BaseException) -> None: ...
    def on_fit_end(self, trainer: Trainer) -> None: ...


EVENTS = tuple(name for name in vars(Callback) if name.startswith("on_"))


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
