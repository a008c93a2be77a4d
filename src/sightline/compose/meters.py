"""The `module` keys about metrics -> the meters of a run, and what their numbers will be called."""

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
    """What measures a run: `train` makes the meter of an epoch, `evaluation` that of an evaluation. `measured` names
    the metrics of every split, `at_evaluation` those of evaluations alone; `better` says "min" or "max" of those that
    torchmetrics knows it of."""

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
    """The meters the config describes, for a network of this spec. `allow` limits what `module.metrics` may name, see
    `locate`; with `probe`, each of them is tried on a made-up batch, without which its names are not known.

    Raises ConfigError for a metric that cannot measure such a network, MissingExtraError without torchmetrics."""
    module = config.module
    numbers = spec.outputs == "values"
    for key, asked in (("top_k", module.top_k), ("per_class", module.per_class)):
        if asked and numbers:
            raise ConfigError(f"module.{key}: the labels are numbers and have no classes; leave it out.")
    for k in module.top_k:
        if k > len(classes):
            raise ConfigError(f"module.top_k: expected at most {len(classes)}, the number of classes, found {k}.")
    top = tuple(f"top{k}" for k in sorted(set(module.top_k)))
    measured = REGRESSION_METRICS if numbers else (*CLASSIFICATION_METRICS, *top)
    by_class = tuple(class_metric_names(classes)) if module.per_class else ()
    metrics = {}
    for name, node in module.metrics.items():
        key = f"module.metrics.{name}"
        if "/" in name:
            raise ConfigError(f"{key}: '/' stands between a metric and a class; choose another name.")
        metrics[name] = locate.instantiate(_with_classes(node, spec.num_classes, key), key=key, allow=allow)
        check_metric(metrics[name], key)
        metrics[name] = metrics[name].to(device)
    further = TorchmetricsAdapter(metrics, spec.outputs, classes)
    names, better = further.probe(spec.num_classes, device) if probe else ([], {})
    twice = sorted({*measured, *by_class} & {*metrics, *names})
    if twice:
        raise ConfigError(f"module.metrics: Sightline measures {join_names(twice)} itself; choose another name.")

    def evaluation() -> Meter:
        fresh = further.fresh() if metrics else None
        return Meter(classes, top_k=module.top_k, by_class=module.per_class, extra_metrics=fresh)

    return Meters(lambda: Meter(classes, top_k=module.top_k), evaluation, tuple(measured), (*by_class, *names), better)


def _with_classes(value: Any, count: int, key: str) -> Any:
    """A node, and every node inside it, with `auto` as the number of classes."""
    known = ("num_classes", "num_labels", "num_outputs")
    if isinstance(value, list):
        return [_with_classes(item, count, f"{key}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    filled = {}
    for name, item in value.items():
        if item == "auto" and name not in known:
            raise ConfigError(f"{key}.{name}: auto is known for {join_names(known)}; give '{name}' a value.")
        filled[name] = count if item == "auto" else _with_classes(item, count, f"{key}.{name}")
    return filled
