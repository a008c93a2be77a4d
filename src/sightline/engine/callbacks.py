"""Callbacks that a config can ask for: early stopping, and a warning about the first loss."""

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sightline.core.errors import arg
from sightline.core.types import StepOutput
from sightline.engine.trainer import Callback, Trainer, not_measured

_FAR = 2.0


@dataclass(eq=False)
class EarlyStopping(Callback):
    """Ends the run when `monitor` has not become better by more than `min_delta` for `patience` evaluations in a row.

    `better` is "min" or "max". What it has seen is in the checkpoint, so a resumed run stops where an uninterrupted one
    does; an evaluation whose value is NaN counts as no better. `tell` is called with one line when it ends the run.
    Raises ConfigError at the first evaluation that does not measure `monitor`."""

    monitor: str
    better: str
    patience: int
    min_delta: float = 0.0
    tell: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        if self.better not in ("min", "max"):
            raise ValueError(f"better must be 'min' or 'max', not {self.better!r}")

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
