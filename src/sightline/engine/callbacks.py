"""Callbacks that a config can enable: early stopping, and a warning about a high first loss."""

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

_FACTOR = 2.0


@dataclass(eq=False)
class EarlyStopping(Callback):
    """Ends the run when `monitor` has not improved by more than `min_delta` for `patience` evaluations in a row.

    `better` is "min" or "max". The best value and the count are part of the checkpoint, so a resumed run stops where
    an uninterrupted one does. A NaN or infinite value counts as no improvement. `report` is called with a one-line
    message when the run is ended. Raises ConfigError at the first evaluation that does not measure `monitor`."""

    monitor: str
    better: str
    patience: int
    min_delta: float = 0.0
    report: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        if self.better not in ("min", "max"):
            raise ValueError(f"better: expected 'min' or 'max', found {self.better!r}.")

    def on_eval_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        """Compares the value with the best one, and ends the run after `patience` evaluations without improvement."""
        if self.monitor not in record:
            key = arg.stopping_monitor
            raise not_measured(key, self.monitor, record, "early stopping would never end the run")
        tracked = trainer.state.callbacks.setdefault(f"early_stopping/{self.monitor}", {"best": None, "waited": 0})
        value = record[self.monitor] * (1 if self.better == "max" else -1)
        if math.isfinite(value) and (tracked["best"] is None or value > tracked["best"] + self.min_delta):
            tracked["best"], tracked["waited"] = value, 0
            return
        tracked["waited"] += 1
        if tracked["waited"] >= self.patience and not trainer.should_stop:
            trainer.should_stop = True
            if self.report is not None:
                self.report(
                    f"stopping after epoch {trainer.state.epoch + 1}: {self.monitor} has not improved for "
                    f"{tracked['waited']} evaluations"
                )


class FirstLoss(Callback):
    """Warns if the loss of the first step is more than twice the loss of uniform predictions.

    Uniform predictions over C classes have a cross entropy of ln C; a network with a much higher first loss starts with
    confident wrong predictions. `loss` is the task's loss; `outputs` says whether the network returns "logits" or
    "probabilities"."""

    def __init__(self, loss: Callable[..., Tensor], outputs: str):
        self.loss = loss
        self.outputs = outputs

    def on_step_end(self, trainer: Trainer, output: StepOutput) -> None:
        """Checks the loss of the first step; ignores all other steps."""
        if trainer.state.step != 1 or output.output is None or output.loss is None:
            return
        try:
            classes = output.output.shape[1]
            # Logits of 0 and of ln(1/C) have the same cross entropy, but not the same loss if the loss expects
            # log-probabilities or treats each class separately. The larger loss counts.
            values = [1 / classes] if self.outputs == "probabilities" else [0.0, -math.log(classes)]
            loss = copy.deepcopy(self.loss) if isinstance(self.loss, nn.Module) else self.loss
            with torch.no_grad():
                uniform_loss = max(
                    float(loss(torch.full_like(output.output, value), output.target)) for value in values
                )
        except Exception:  # a custom loss may not accept constant outputs
            return
        first_loss = float(output.loss)
        if 0 < uniform_loss < first_loss / _FACTOR:
            warnings.warn(
                f"The loss of the first step is {first_loss:.3g}; uniform predictions over the {classes} classes would "
                f"have a loss of {uniform_loss:.3g}. The network starts with confident wrong predictions, which it has "
                f"to unlearn. Initialise its last layer with zeros or with smaller weights.",
                UserWarning,
                stacklevel=2,
            )
