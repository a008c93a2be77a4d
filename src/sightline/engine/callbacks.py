"""What watches the loop. Callbacks observe: what changes the computation is an argument of the task or the loader.
The one thing a callback may do to the trainer is end it, by `trainer.should_stop = True` (after this epoch) or
`trainer.interrupt()` (after this step)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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
        if better not in ("min", "max"):
            raise ValueError(f"better must be 'min' or 'max', not {better!r}")
        self.monitor = monitor
        self.better = better
        self.patience = patience
        self.min_delta = min_delta
        self.tell = tell

    def on_eval_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        """Compares, counts, and asks for the end."""
        if self.monitor not in record:
            key = "trainer.early_stopping.monitor"
            raise not_measured(key, self.monitor, record, "it would never end the run")
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


def not_measured(key: str, monitor: str, record: Mapping[str, float], effect: str) -> ConfigError:
    """The error for an evaluation whose record lacks the metric that `key` names; `effect` is what that leads to."""
    names = [name for name in record if name != "epoch"]
    return ConfigError(
        f"{key}: the evaluation did not measure '{monitor}', so {effect}.{nearest(monitor, names)} There are: "
        f"{listing(names, 40)}."
    )
