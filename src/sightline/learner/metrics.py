"""Metrics of the learner: sums over samples, kept on the device until their value is read."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sightline.learner.plan import LearnerError, LearnerMetric, direction

_EMPTY = "the batch is empty; expected at least one sample."


class Metric:
    """Base class of metrics that are means over samples.

    A subclass implements `__compute__(predictions, targets)`, which returns the sum over the samples of a batch as a
    tensor or number. The metric's value is the total since `reset` divided by the number of samples.

    Several outputs form a list or tuple; each output counts its samples separately. `better` is "max" or "min"; with
    None, the metric's name decides. Only `getValue` reads back from the device."""

    better: str | None = None

    def __init__(self, name: str):
        self.name = name
        self.history: list[float] = []
        self._sum: Any = 0.0
        self._count = 0

    def reset(self) -> None:
        """Discards all samples so far."""
        self._sum, self._count = 0.0, 0

    def update(self, predictions: Any, targets: Any, batch_first: bool = True) -> None:
        """Adds a batch. Samples are along the first dimension, or along the last if `batch_first` is False."""
        with torch.no_grad():
            value = self.__compute__(predictions, targets)
        several = isinstance(predictions, list | tuple)
        if isinstance(value, Tensor):
            # float32 counts exactly only up to 2**24; MPS has no float64
            value = value.detach().double() if value.device.type != "mps" else value.detach().float()
        self._sum = self._sum + value
        self._count += batch_size(predictions, batch_first) * (len(predictions) if several else 1)

    def getValue(self) -> float:  # noqa: N802 the published name
        """Returns the value over all samples since `reset`; NaN if there are none."""
        total = self._sum.sum().item() if isinstance(self._sum, Tensor) else self._sum
        return float(total) / self._count if self._count else float("nan")

    def add_history(self) -> None:
        """Appends the current value to `history`."""
        self.history.append(self.getValue())

    def __compute__(self, predictions: Any, targets: Any) -> Any:
        raise NotImplementedError(
            f"{type(self).__name__} has no __compute__(self, predictions, targets), the sum over a batch. Define it."
        )


class _PerOutputMetric(Metric):
    """A metric defined for one output; the sums of several outputs are added."""

    def __compute__(self, predictions: Any, targets: Any) -> Any:
        if isinstance(predictions, list | tuple):
            return sum(self.__compute__(*pair) for pair in zip(predictions, targets, strict=True))
        return self._batch_sum(predictions, targets)

    def _batch_sum(self, predictions: Tensor, targets: Tensor) -> Tensor:
        raise NotImplementedError


class Accuracy(_PerOutputMetric):
    """Top-k accuracy: the share of samples whose label is among the `topK` classes with the highest scores.

    Outputs are scores [N, C], targets class indices [N]."""

    better = "max"

    def __init__(self, name: str = "Accuracy", topK: int = 1):  # noqa: N803 the published name
        super().__init__(name)
        self.topK = topK

    def _batch_sum(self, predictions: Tensor, targets: Tensor) -> Tensor:
        _check_shapes(self, predictions, targets, self.topK)
        label = targets.reshape(-1)
        if self.topK == 1:
            return (predictions.argmax(1) == label).sum()
        return (predictions.topk(self.topK, 1).indices == label.unsqueeze(1)).sum()


class MeanConfidenceScore(_PerOutputMetric):
    """The mean probability of the label, counted as 0 if it is not among the `topK` classes with the highest scores.

    Outputs are scores [N, C], targets class indices [N]. `apply_softmax` converts logits to probabilities."""

    better = "max"

    def __init__(self, name: str = "MeanConfidenceScore", topK: int = 1, apply_softmax: bool = True):  # noqa: N803
        super().__init__(name)
        self.topK = topK
        self.apply_softmax = apply_softmax

    def _batch_sum(self, predictions: Tensor, targets: Tensor) -> Tensor:
        _check_shapes(self, predictions, targets, self.topK)
        probabilities = predictions.float().softmax(1) if self.apply_softmax else predictions.float()
        label = targets.reshape(-1, 1)
        among = (predictions.topk(self.topK, 1).indices == label).any(1, keepdim=True)
        return (probabilities.gather(1, label.long()) * among).sum()


class MSE(_PerOutputMetric):
    """The mean squared error. A sample of several values counts with their mean."""

    better = "min"

    def __init__(self, name: str = "MSE"):
        super().__init__(name)

    def _batch_sum(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return _sum_of_sample_means(_difference(self, predictions, targets).square())


class MAE(_PerOutputMetric):
    """The mean absolute error. A sample of several values counts with their mean."""

    better = "min"

    def __init__(self, name: str = "MAE"):
        super().__init__(name)

    def _batch_sum(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return _sum_of_sample_means(_difference(self, predictions, targets).abs())


def batch_size(value: Any, batch_first: bool = True) -> int:
    """Returns the number of samples in a batch, from the first tensor in it, at any depth.

    Raises LearnerError for an empty batch, and if its first item is not a tensor or array with a batch dimension."""
    while isinstance(value, list | tuple | Mapping):
        if not value:
            raise LearnerError(_EMPTY)
        value = next(iter(value.values())) if isinstance(value, Mapping) else value[0]
    shape = getattr(value, "shape", None)
    if not shape:
        description = "a single number" if shape is not None else f"a {type(value).__name__}"
        raise LearnerError(f"the first item of a batch is {description}; expected a tensor [batch, ...].")
    count = int(shape[0 if batch_first else -1])
    if not count:
        raise LearnerError(_EMPTY)
    return count


def is_better(metric: LearnerMetric, value: float, best: float | None) -> bool:
    """Whether `value` is better than `best`. Without a `best`, every value except NaN is."""
    if value != value:  # noqa: PLR0124 NaN
        return False
    return best is None or (value < best if direction(metric) == "min" else value > best)


def metric_state(metric: LearnerMetric) -> dict[str, Any]:
    """Returns the accumulated state of a metric as plain values and tensors, for a checkpoint."""
    if hasattr(metric, "state_dict"):
        return dict(metric.state_dict())
    return {name: value for name, value in vars(metric).items() if name != "history" and _is_serializable(value)}


def load_metric_state(metric: LearnerMetric, state: Mapping[str, Any]) -> None:
    """Restores a metric from the result of `metric_state`."""
    if hasattr(metric, "load_state_dict"):
        metric.load_state_dict(state)
    else:
        vars(metric).update(state)


def _is_serializable(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_serializable(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str | int) and _is_serializable(item) for key, item in value.items())
    return value is None or type(value) in (bool, int, float, str) or isinstance(value, Tensor)


def _check_shapes(metric: Any, predictions: Tensor, targets: Tensor, k: int) -> None:
    if predictions.ndim != 2 or targets.numel() != len(predictions):
        raise LearnerError(
            f"{type(metric).__name__}: expected scores [batch, classes] and class indices [batch], found "
            f"{list(predictions.shape)} and {list(targets.shape)}."
        )
    if not 1 <= k <= predictions.shape[1]:
        raise LearnerError(
            f"{type(metric).__name__}: topK={k} is out of range; the network has {predictions.shape[1]} classes."
        )


def _difference(metric: Any, predictions: Tensor, targets: Tensor) -> Tensor:
    """The elementwise difference, without broadcasting: [N, 1] minus [N] would be [N, N]."""
    if predictions.shape != targets.shape:
        if predictions.numel() != targets.numel() or len(predictions) != len(targets):
            raise LearnerError(
                f"{type(metric).__name__}: the predictions are {list(predictions.shape)} and the targets "
                f"{list(targets.shape)}; they must have the same shape."
            )
        targets = targets.reshape(predictions.shape)
    return predictions.float() - targets.float()


def _sum_of_sample_means(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1).mean(1).sum()
