"""Builds the meters that a config's metric keys describe, and determines the names of their metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sightline.config.schema import TrainConfig
from sightline.core import locate
from sightline.core.errors import ConfigError, join_names
from sightline.metrics.meter import CLASSIFICATION_METRICS, REGRESSION_METRICS, Meter
from sightline.metrics.scores import class_metric_names
from sightline.metrics.torchmetrics import TorchmetricsAdapter, check_metric
from sightline.models.spec import ModelSpec


@dataclass(frozen=True)
class Meters:
    """The meters of a run.

    `train` creates the meter of a training epoch, `evaluation` the meter of an evaluation. `measured` are the names of
    the metrics of every split, `at_evaluation` of those that only evaluations have. `better` maps the metrics for which
    torchmetrics knows it to "min" or "max"."""

    train: Callable[[], Meter]
    evaluation: Callable[[], Meter]
    measured: tuple[str, ...]
    at_evaluation: tuple[str, ...]
    better: Mapping[str, str]


def build_meters(
    config: TrainConfig,
    spec: ModelSpec,
    classes: Sequence[str],
    device: torch.device,
    *,
    allow: Sequence[str] | None = None,
    probe: bool = True,
) -> Meters:
    """Builds the meters that the config describes for a network with this `spec` and these class names.

    `allow` limits the names that `module.metrics` may use, see `locate.resolve`. With `probe`, each metric is run on a
    small artificial batch to find the names of its results; without it, `at_evaluation` and `better` lack them. Raises
    ConfigError for a metric that does not suit the network, and MissingExtraError if torchmetrics is not installed."""
    module = config.module
    regression = spec.outputs == "values"
    for key, enabled in (("top_k", module.top_k), ("per_class", module.per_class)):
        if enabled and regression:
            raise ConfigError(f"module.{key}: the labels are numbers, so there are no classes. Remove the key.")
    for k in module.top_k:
        if k > len(classes):
            raise ConfigError(f"module.top_k: expected at most {len(classes)}, the number of classes, found {k}.")
    top = tuple(f"top{k}" for k in sorted(set(module.top_k)))
    measured = REGRESSION_METRICS if regression else (*CLASSIFICATION_METRICS, *top)
    by_class = tuple(class_metric_names(classes)) if module.per_class else ()
    metrics = {}
    for name, node in module.metrics.items():
        key = f"module.metrics.{name}"
        if "/" in name:
            raise ConfigError(f"{key}: '/' is reserved for the metrics of single classes. Choose another name.")
        metrics[name] = locate.instantiate(_with_classes(node, spec.num_classes, key), key=key, allow=allow)
        check_metric(metrics[name], key)
        metrics[name] = metrics[name].to(device)
    adapter = TorchmetricsAdapter(metrics, spec.outputs, classes)
    names, better = adapter.probe(spec.num_classes, device) if probe else ([], {})
    reserved = sorted({*measured, *by_class} & {*metrics, *names})
    if reserved:
        raise ConfigError(f"module.metrics: Sightline itself measures {join_names(reserved)}. Choose another name.")

    def evaluation() -> Meter:
        extra_metrics = adapter.fresh() if metrics else None
        return Meter(classes, top_k=module.top_k, by_class=module.per_class, extra_metrics=extra_metrics)

    return Meters(lambda: Meter(classes, top_k=module.top_k), evaluation, tuple(measured), (*by_class, *names), better)


def _with_classes(value: Any, count: int, key: str) -> Any:
    """Returns a node in which `auto` is replaced by the number of classes, also in nested nodes."""
    supported = ("num_classes", "num_labels", "num_outputs")
    if isinstance(value, list):
        return [_with_classes(item, count, f"{key}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    filled = {}
    for name, item in value.items():
        if item == "auto" and name not in supported:
            raise ConfigError(
                f"{key}.{name}: auto is supported only for {join_names(supported)}. Set '{name}' to a value."
            )
        filled[name] = count if item == "auto" else _with_classes(item, count, f"{key}.{name}")
    return filled
