"""torchmetrics with the constructors and result names that it had before version 0.11.

    from sightline.params import torchmetrics

    torchmetrics.Accuracy(num_classes=10, average="macro")

This import replaces `import torchmetrics` in code of that time. A constructor called with `task` is the current one,
and all other names are those of the installed torchmetrics."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

from sightline.core.errors import ConfigError, join_names
from sightline.core.locate import import_optional

_OLD = ("Accuracy", "F1Score", "Precision", "Recall", "Specificity")
_WITHOUT_EFFECT = ("threshold", "mdmc_average", "multiclass", "subset_accuracy")
"""Old arguments that have no effect on multiclass metrics."""


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    if name in _OLD:
        return _constructor(name)
    return _collection_class() if name == "MetricCollection" else getattr(import_optional("torchmetrics"), name)


@functools.cache
def _constructor(name: str) -> Callable[..., Any]:
    def make(*args: Any, **kwargs: Any) -> Any:
        if "task" in kwargs or (args and isinstance(args[0], str)):
            return getattr(import_optional("torchmetrics"), name)(*args, **kwargs)
        return _make_metric(name, *args, **kwargs)

    make.__name__, make.__doc__ = name, f"Multiclass `{name}` with the arguments of torchmetrics before 0.11."
    return make


def _make_metric(
    name: str,
    num_classes: int | None = None,
    *,
    average: str = "micro",
    top_k: int | None = None,
    ignore_index: int | None = None,
    compute_on_step: bool | None = None,
    **rest: Any,
) -> Any:
    """Creates a multiclass metric from old arguments.

    With `compute_on_step=False`, a collection of these metrics only accumulates when called, and returns an empty
    dict. Raises ConfigError for invalid arguments."""
    if not isinstance(num_classes, int) or isinstance(num_classes, bool):
        raise ConfigError(
            f"torchmetrics.{name}: num_classes: expected an integer, the number of classes, found {num_classes!r}. In "
            f"current torchmetrics, write {name}(task='multiclass', num_classes=10, average='{average}')."
        )
    dropped = [argument for argument in _WITHOUT_EFFECT if rest.pop(argument, None) is not None]
    if dropped:
        warnings.warn(
            f"torchmetrics.{name}: {join_names(dropped)} has no effect on multiclass metrics and is ignored.",
            UserWarning,
            stacklevel=3,
        )
    try:
        metric = _metric_class(name)(num_classes, average=average, top_k=top_k or 1, ignore_index=ignore_index, **rest)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"torchmetrics.{name}: {error}") from error
    metric.counts_only = compute_on_step is False
    return metric


@functools.cache
def _metric_class(name: str) -> type[Any]:
    """A multiclass metric class with the old name, because a collection names results by the metric's class."""
    base = getattr(import_optional("torchmetrics.classification"), f"Multiclass{name}")
    return type(name, (base,), {"__module__": __name__, "__doc__": base.__doc__})


@functools.cache
def _collection_class() -> type[Any]:
    base = import_optional("torchmetrics").MetricCollection

    def forward(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if all(getattr(metric, "counts_only", False) for metric in self.values(copy_state=False)):
            self.update(*args, **kwargs)
            return {}
        values: dict[str, Any] = base.forward(self, *args, **kwargs)
        return values

    return type("MetricCollection", (base,), {"forward": forward, "__module__": __name__, "__doc__": base.__doc__})
