"""The adapter for metrics of torchmetrics."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sightline.core.errors import ConfigError, RunFailedError, arg
from sightline.core.locate import import_optional


class TorchmetricsAdapter:
    """Measures one evaluation with torchmetrics objects, `Metric` or `MetricCollection`, by name.

    The metrics get probabilities float32 [B,C] and class indices [B], or, for regression, values and targets, both [B]
    if there is one value per sample. `outputs` is what the network outputs: "logits", "probabilities" or "values".
    Logits are converted, because torchmetrics decides batch by batch whether scores are logits, by any being outside
    [0, 1], and takes a batch of small logits for probabilities. `classes` names the values of metrics per class."""

    def __init__(self, metrics: Mapping[str, Any], outputs: str = "logits", classes: Sequence[str] = ()):
        self._metrics = dict(metrics)
        self._outputs = outputs
        self._classes = tuple(classes)
        self._seen = False

    def fresh(self) -> TorchmetricsAdapter:
        """Returns a copy for another evaluation, with all metrics reset."""
        copies = {name: metric.clone() for name, metric in self._metrics.items()}
        return TorchmetricsAdapter(copies, self._outputs, self._classes)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Adds one batch: the network's output [B,C] and its targets. Raises RunFailedError if a metric fails.

        Only `update` of each metric is called, as `forward` would also compute the metric of every batch."""
        self._seen = True
        prediction = output.float()
        if self._outputs == "logits" and not target.is_floating_point():
            prediction = prediction.softmax(1)
        elif self._outputs == "values" and prediction.shape == target.shape == (len(target), 1):
            prediction, target = prediction.squeeze(1), target.squeeze(1)
        for name, metric in self._metrics.items():
            try:
                with _nondeterministic():
                    metric.update(prediction, target)
            except Exception as error:  # the metric's code may raise anything
                raise RunFailedError(
                    f"{arg.metrics}.{name}: {type(metric).__name__} cannot compare outputs {_describe(prediction)} "
                    f"with targets {_describe(target)}: {error}"
                ) from error

    @torch.inference_mode()
    def compute(self) -> dict[str, float]:
        """Returns the values of all metrics by name; an empty dict before the first batch.

        The names are `name`, `name_<key>` for the members of a collection, and `name/<class>` or `name/<index>` for a
        metric of several values. Raises RunFailedError if a metric fails, ConfigError if its value is of more than one
        dimension or not a number."""
        result: dict[str, float] = {}
        for name, metric in self._metrics.items() if self._seen else ():
            try:
                value = metric.compute()
            except Exception as error:
                raise RunFailedError(f"{arg.metrics}.{name}: {type(metric).__name__} failed: {error}") from error
            result |= self._numbers(name, value, f"{arg.metrics}.{name}")
        return result

    def probe(self, count: int, device: torch.device) -> tuple[list[str], dict[str, str]]:
        """Returns the names of all values, and "min" or "max" for those whose direction torchmetrics knows.

        Measures a small random batch with `count` outputs per sample on the device. Raises ConfigError for a metric
        that fails, so that this is noticed before the first epoch."""
        random = torch.Generator().manual_seed(0)
        target = torch.arange(min(2 * count, 64)) % count  # every class, if there are at most 64
        output = torch.rand((len(target), count), generator=random)
        if self._outputs == "values":
            target = torch.rand((len(target), count), generator=random)
        output = output / output.sum(1, keepdim=True) if self._outputs == "probabilities" else output
        names: list[str] = []
        better: dict[str, str] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they would be about the random batch
            for key, metric in self._metrics.items():
                single = TorchmetricsAdapter({key: metric}, self._outputs, self._classes).fresh()
                try:
                    single.update(output.to(device), target.to(device))
                    measured = list(single.compute())
                except RunFailedError as error:
                    raise ConfigError(str(error)) from error
                names += measured
                better |= _directions(key, metric, measured)
        return names, better

    def _numbers(self, name: str, value: Any, key: str) -> dict[str, float]:
        if isinstance(value, Mapping):
            return {k: v for part, item in value.items() for k, v in self._numbers(f"{name}_{part}", item, key).items()}
        if isinstance(value, list | tuple):
            items = enumerate(value)
            return {k: v for i, item in items for k, v in self._numbers(f"{name}/{i}", item, key).items()}
        numbers = value.tolist() if isinstance(value, Tensor) else value
        if isinstance(numbers, int | float):
            return {name: float(numbers)}
        if not isinstance(value, Tensor) or value.ndim != 1 or ("/" in name and len(value) != len(self._classes)):
            found = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise ConfigError(
                f"{key}: expected a number, or one for each class, found {found} as '{name}'. Curves and tables cannot "
                f"be logged. Compute them from predictions/<split>.csv."
            )
        parts = self._classes if len(self._classes) == len(numbers) else range(len(numbers))
        return {f"{name}/{part}": float(number) for part, number in zip(parts, numbers, strict=True)}


def check_metric(made: Any, key: str) -> None:
    """Raises ConfigError if `made` is not a metric of torchmetrics; `key` names it in the message."""
    torchmetrics = import_optional("torchmetrics")
    if not isinstance(made, torchmetrics.Metric | torchmetrics.MetricCollection):
        raise ConfigError(
            f"{key}: expected a torchmetrics.Metric or MetricCollection, found a {type(made).__name__}. Name a class "
            f"of torchmetrics, or a custom class derived from torchmetrics.Metric."
        )


def _directions(key: str, metric: Any, names: Sequence[str]) -> dict[str, str]:
    """ "min" or "max" for each value whose metric defines `higher_is_better`."""
    members = {f"{key}_{part}": item for part, item in metric.items()} if hasattr(metric, "items") else {key: metric}
    known: dict[str, str] = {}
    for member, item in members.items():
        higher = getattr(item, "higher_is_better", None)
        if higher is not None:
            values = [name for name in names if name == member or name.startswith(f"{member}/")]
            known |= dict.fromkeys(values, "max" if higher else "min")
    return known


@contextmanager
def _nondeterministic() -> Iterator[None]:
    """Turns torch's deterministic algorithms off.

    With them, torchmetrics counts by comparing every value with every bin, which takes gigabytes and minutes for a
    curve. The counts are integers, so they are the same in any order."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
