"""The user's two step functions as a task of the engine, and the meters that collect their results."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sightline.core.errors import ConfigError
from sightline.core.types import Batch, StepOutput, Task, Tensors, TrainState
from sightline.metrics.meter import Meter
from sightline.models.softmax import DoubleSoftmax


class UserSteps(Task):
    """The engine task that calls `train_step(x, y, model, optim, **kwargs)` and `test_step(x, y, model, **kwargs)`.

    Each returns (loss as a float, metrics as a dict of floats or None); `train_step` also updates the weights. Warns if
    the first training step passes probabilities to cross entropy."""

    def __init__(self, train_step: Callable[..., Any], test_step: Callable[..., Any], kwargs: Mapping[str, Any]):
        for name, step in (("train_step", train_step), ("test_step", test_step)):
            if not callable(step):
                raise ConfigError(f"{name}: expected a function, found {type(step).__name__}.")
        self._train, self._test, self._kwargs = train_step, test_step, dict(kwargs)
        self._checked = False

    def train_step(self, state: TrainState, batch: Batch) -> StepOutput:
        """Calls the user's `train_step` once."""
        if self._checked or _is_compiled(state.model):  # the check would make a compiled model compile again
            returned = self._train(batch.x, batch.y, state.model, state.optimizer, **self._kwargs)
        else:
            self._checked = True
            with DoubleSoftmax() as check:
                returned = self._train(batch.x, batch.y, state.model, state.optimizer, **self._kwargs)
            check.warn(
                "train_step passes probabilities to cross_entropy",
                "Build the network without softmax: build_classifier(params, outputs='logits').",
            )
        return _output(returned, batch, "train_step")

    def eval_step(self, state: TrainState, batch: Batch) -> StepOutput:
        """Calls the user's `test_step` once; the trainer has disabled gradients and set the model to eval mode."""
        return _output(self._test(batch.x, batch.y, state.model, **self._kwargs), batch, "test_step")

    def predict_step(self, state: TrainState, x: Tensors) -> Tensor:
        """Returns the output of the model."""
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
        description = (
            f"a {type(returned).__name__} of {len(returned)}" if isinstance(returned, tuple | list) else returned
        )
        raise ConfigError(
            f"{name} returned {description}; expected (loss, metrics): the loss as a float, and a dict of floats or "
            f"None."
        ) from error
    return StepOutput(loss, len(batch.y), metrics=values)


class TrainMeter(Meter):
    """Averages what the steps of an epoch return. `metrics`, a torchmetrics object, is reset at the start."""

    def __init__(self, metrics: Any = None):
        super().__init__()
        if hasattr(metrics, "reset"):
            metrics.reset()


class TestMeter(TrainMeter):
    """Averages what the steps of an evaluation return.

    With `by_epoch`, or if the steps return no metrics, the values that `metrics` has accumulated over all samples are
    added."""

    __test__ = False  # not a pytest test

    def __init__(self, metrics: Any = None, by_epoch: bool = True):
        super().__init__(metrics)
        self._metrics, self._by_epoch = metrics, by_epoch

    def compute(self) -> dict[str, float]:
        """Returns the mean loss, the means of the steps' metrics, and the accumulated metrics."""
        result = super().compute()
        accumulated = isinstance(self._metrics, nn.Module) and any(
            getattr(part, "update_called", False) for part in self._metrics.modules()
        )
        if accumulated and (self._by_epoch or not self.sums):
            values = self._metrics.compute()
            if not isinstance(values, Mapping):
                values = {type(self._metrics).__name__: values}
            result |= {name: float(value) for name, value in values.items() if torch.as_tensor(value).numel() == 1}
        return result
