"""The user's two functions as a task of the engine, and what measures them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sightline.core.errors import ConfigError
from sightline.core.types import Batch, StepOutput, Task, Tensors, TrainState
from sightline.metrics.meter import Meter
from sightline.models.softmax import DoubleSoftmax


class UserSteps(Task):
    """Calls `train_step(x, y, model, optim, **kwargs)` and `test_step(x, y, model, **kwargs)`; each gives (loss as a
    float, metrics as a dict of floats or None). The update is theirs. Whether the first training step puts
    probabilities into cross entropy is looked at, and warned of."""

    def __init__(self, train_step: Callable[..., Any], test_step: Callable[..., Any], kwargs: Mapping[str, Any]):
        for name, step in (("train_step", train_step), ("test_step", test_step)):
            if not callable(step):
                raise ConfigError(f"{name}: expected a function, found {type(step).__name__}.")
        self._train, self._test, self._kwargs = train_step, test_step, dict(kwargs)
        self._looked = False

    def train_step(self, state: TrainState, batch: Batch) -> StepOutput:
        """One call of the user's."""
        if self._looked or _is_compiled(state.model):  # what is compiled would be compiled once more for the look
            returned = self._train(batch.x, batch.y, state.model, state.optimizer, **self._kwargs)
        else:
            self._looked = True
            with DoubleSoftmax() as look:
                returned = self._train(batch.x, batch.y, state.model, state.optimizer, **self._kwargs)
            look.warn(
                "train_step gives probabilities to cross_entropy",
                "build_classifier(params, outputs='logits') makes the network without its softmax.",
            )
        return _output(returned, batch, "train_step")

    def eval_step(self, state: TrainState, batch: Batch) -> StepOutput:
        """One call of the user's; the trainer has switched gradients off and the model to evaluation."""
        return _output(self._test(batch.x, batch.y, state.model, **self._kwargs), batch, "test_step")

    def predict_step(self, state: TrainState, x: Tensors) -> Tensor:
        """What the model answers."""
        answer: Tensor = state.model(x)
        return answer


def _is_compiled(model: nn.Module) -> bool:
    return hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None


def _output(returned: Any, batch: Batch, name: str) -> StepOutput:
    try:
        loss, metrics = returned
        loss = loss.detach() if isinstance(loss, Tensor) else torch.scalar_tensor(loss, dtype=torch.float64)
        values = {key: float(value) for key, value in metrics.items()} if metrics else None
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        found = f"a {type(returned).__name__} of {len(returned)}" if isinstance(returned, tuple | list) else returned
        raise ConfigError(
            f"{name} returned {found}; expected (loss, metrics): the loss as a float, and a dict of floats or None."
        ) from error
    return StepOutput(loss, len(batch.y), metrics=values)


class TrainMeter(Meter):
    """Of an epoch: the means of what the steps return. `metrics`, an object of torchmetrics, is reset with it."""

    def __init__(self, metrics: Any = None):
        super().__init__()
        if hasattr(metrics, "reset"):
            metrics.reset()


class TestMeter(TrainMeter):
    """Of an evaluation: where the steps return no metrics, or none but `by_epoch`, what `metrics` has gathered over all
    of its samples."""

    __test__ = False  # no test of pytest's

    def __init__(self, metrics: Any = None, by_epoch: bool = True):
        super().__init__(metrics)
        self._metrics, self._by_epoch = metrics, by_epoch

    def compute(self) -> dict[str, float]:
        """The mean loss, the steps' own metrics, those that were gathered."""
        found = super().compute()
        gathered = isinstance(self._metrics, nn.Module) and any(
            getattr(part, "update_called", False) for part in self._metrics.modules()
        )
        if gathered and (self._by_epoch or not self.sums):
            values = self._metrics.compute()
            if not isinstance(values, Mapping):
                values = {type(self._metrics).__name__: values}
            found |= {name: float(value) for name, value in values.items() if torch.as_tensor(value).numel() == 1}
        return found
