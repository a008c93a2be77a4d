"""What watches the loop. Callbacks observe: what changes the computation is an argument of the task or the loader.
The one thing a callback may do to the trainer is end it, by `trainer.should_stop = True` (after this epoch) or
`trainer.interrupt()` (after this step)."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sightline.errors import ConfigError, arg, listing, nearest
from sightline.types import StepOutput

if TYPE_CHECKING:
    from sightline.engine.trainer import Trainer

_FAR = 2.0


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
            key = arg.stopping_monitor
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


class FirstLoss(Callback):
    """Warns where the loss of the first step is more than twice that of an even answer, the same for every class, whose
    cross entropy is ln C: such a network begins sure of wrong answers. `loss` is the task's, `outputs` says whether the
    network answers with "logits" or "probabilities"."""

    def __init__(self, loss: Callable[..., Tensor], outputs: str):
        self.loss = loss
        self.outputs = outputs

    def on_step_end(self, trainer: Trainer, output: StepOutput) -> None:
        """Compares the first step, and looks at no other."""
        if trainer.state.step != 1 or output.output is None or output.loss is None:
            return
        try:
            classes = output.output.shape[1]
            # logits of 0 and those of a softmax are the same to cross entropy, but not to a loss of log-probabilities,
            # nor to one that asks about each class alone
            values = [1 / classes] if self.outputs == "probabilities" else [0.0, -math.log(classes)]
            loss = copy.deepcopy(self.loss) if isinstance(self.loss, nn.Module) else self.loss
            with torch.no_grad():
                even = max(float(loss(torch.full_like(output.output, value), output.target)) for value in values)
        except Exception:  # a loss of the user's own may take no constant answers
            return
        found = float(output.loss)
        if 0 < even < found / _FAR:
            warnings.warn(
                f"the loss of the first step is {found:.3g}, and the same answer for each of the {classes} classes "
                f"would have {even:.3g}: the network begins sure of wrong answers, and unlearns them first. Let its "
                f"last layer begin at zero or with smaller weights.",
                UserWarning,
                stacklevel=2,
            )


def not_measured(key: str, monitor: str, record: Mapping[str, float], effect: str) -> ConfigError:
    """The error for an evaluation whose record lacks the metric that `key` names; `effect` is what that leads to."""
    names = [name for name in record if name != "epoch"]
    return ConfigError(
        f"the evaluation did not measure '{monitor}', so {effect}.{nearest(monitor, names)} There are: "
        f"{listing(names, 40)}.",
        key=key,
    )
