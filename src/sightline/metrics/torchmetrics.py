"""Metrics of torchmetrics, fed batch by batch."""

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
    """torchmetrics objects by name, `Metric` or `MetricCollection`; this one measures one evaluation, `fresh` makes the
    next.

    They are given what they are made for: probabilities float32 [B,C] and class indices [B], or values and targets, [B]
    where there is one for each sample. Not logits: torchmetrics tells these from probabilities batch by batch, by
    whether any is outside 0 to 1, and takes a batch of small logits for probabilities. `outputs` says what the network
    answers: "logits", "probabilities" or "values"."""

    def __init__(self, metrics: Mapping[str, Any], outputs: str = "logits", classes: Sequence[str] = ()):
        self._metrics = dict(metrics)
        self._outputs = outputs
        self._classes = tuple(classes)
        self._seen = False

    def fresh(self) -> TorchmetricsAdapter:
        """The same metrics with nothing measured yet."""
        copies = {name: metric.clone() for name, metric in self._metrics.items()}
        return TorchmetricsAdapter(copies, self._outputs, self._classes)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Takes one batch. Of each metric `update` alone is called: `forward` would compute every batch by itself."""
        self._seen = True
        answer = output.float()
        if self._outputs == "logits" and not target.is_floating_point():
            answer = answer.softmax(1)
        elif self._outputs == "values" and answer.shape == target.shape == (len(target), 1):
            answer, target = answer.squeeze(1), target.squeeze(1)
        for name, metric in self._metrics.items():
            try:
                with _counting():
                    metric.update(answer, target)
            except Exception as error:  # whatever the metric's own code raises is about these arguments
                raise RunFailedError(
                    f"{arg.metrics}.{name}: {type(metric).__name__} cannot compare answers {_describe(answer)} with "
                    f"targets {_describe(target)}: {error}"
                ) from error

    @torch.inference_mode()
    def compute(self) -> dict[str, float]:
        """The numbers of every metric: `name`, `name_key` of a collection, `name/<class>` or `name/0` of one that gives
        several. Nothing before the first batch."""
        found: dict[str, float] = {}
        for name, metric in self._metrics.items() if self._seen else ():
            try:
                value = metric.compute()
            except Exception as error:
                raise RunFailedError(f"{arg.metrics}.{name}: {type(metric).__name__} failed: {error}") from error
            found |= self._numbers(name, value, f"{arg.metrics}.{name}")
        return found

    def probe(self, count: int, device: torch.device) -> tuple[list[str], dict[str, str]]:
        """(the names of all numbers, "min" or "max" for those of which it is known), by measuring a small made-up batch
        of `count` numbers a sample on the device. Raises ConfigError for a metric that cannot, before a first epoch is
        spent on it."""
        random = torch.Generator().manual_seed(0)
        target = torch.arange(min(2 * count, 64)) % count  # every class, if they are not many
        output = torch.rand((len(target), count), generator=random)
        if self._outputs == "values":
            target = torch.rand((len(target), count), generator=random)
        output = output / output.sum(1, keepdim=True) if self._outputs == "probabilities" else output
        names: list[str] = []
        better: dict[str, str] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about made-up numbers
            for key, metric in self._metrics.items():
                one = TorchmetricsAdapter({key: metric}, self._outputs, self._classes).fresh()
                try:
                    one.update(output.to(device), target.to(device))
                    found = list(one.compute())
                except RunFailedError as error:
                    raise ConfigError(str(error)) from error
                names += found
                better |= _directions(key, metric, found)
        return names, better

    def _numbers(self, name: str, value: Any, key: str) -> dict[str, float]:
        if isinstance(value, Mapping):
            return {k: v for part, item in value.items() for k, v in self._numbers(f"{name}_{part}", item, key).items()}
        if isinstance(value, list | tuple):
            parts = enumerate(value)
            return {k: v for i, item in parts for k, v in self._numbers(f"{name}/{i}", item, key).items()}
        numbers = value.tolist() if isinstance(value, Tensor) else value
        if isinstance(numbers, int | float):
            return {name: float(numbers)}
        if not isinstance(value, Tensor) or value.ndim != 1 or ("/" in name and len(value) != len(self._classes)):
            found = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise ConfigError(
                f"{key}: expected a number, or one for each class, found {found} as '{name}'. A curve or a table is no "
                f"value of a log; work it out from predictions/<split>.csv."
            )
        of = self._classes if len(self._classes) == len(numbers) else range(len(numbers))
        return {f"{name}/{part}": float(number) for part, number in zip(of, numbers, strict=True)}


def check_metric(made: Any, key: str) -> None:
    """Raises ConfigError for what is no metric of torchmetrics."""
    torchmetrics = import_optional("torchmetrics")
    if not isinstance(made, torchmetrics.Metric | torchmetrics.MetricCollection):
        raise ConfigError(
            f"{key}: expected a torchmetrics.Metric or MetricCollection, found a {type(made).__name__}. Name a class "
            f"of torchmetrics, or one of your own that is derived from torchmetrics.Metric."
        )


def _directions(key: str, metric: Any, names: Sequence[str]) -> dict[str, str]:
    """What torchmetrics knows of the direction of each number."""
    parts = {f"{key}_{part}": one for part, one in metric.items()} if hasattr(metric, "items") else {key: metric}
    known: dict[str, str] = {}
    for part, one in parts.items():
        higher = getattr(one, "higher_is_better", None)
        if higher is not None:
            mine = [name for name in names if name == part or name.startswith(f"{part}/")]
            known |= dict.fromkeys(mine, "max" if higher else "min")
    return known


@contextmanager
def _counting() -> Iterator[None]:
    """Without torch's deterministic algorithms: under them torchmetrics counts by comparing every value with every bin,
    which takes gigabytes and minutes for a curve. What an update counts are whole numbers, the same in any order."""
    was, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warned)


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
