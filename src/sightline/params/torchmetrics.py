"""torchmetrics with the constructors it had before version 0.11, and the names they gave to results.

    from sightline.params import torchmetrics

    torchmetrics.Accuracy(num_classes=10, average="macro")

takes the place of `import torchmetrics` in code of that time. A constructor that is called with `task` is today's, and
all other names are torchmetrics' own."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

from sightline.core.errors import ConfigError
from sightline.core.locate import import_optional

_OLD = ("Accuracy", "F1Score", "Precision", "Recall", "Specificity")
_WITHOUT_EFFECT = ("threshold", "mdmc_average", "multiclass", "subset_accuracy")
"""Arguments that make no difference between classes that exclude each other."""


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    if name in _OLD:
        return _maker(name)
    return _collection() if name == "MetricCollection" else getattr(import_optional("torchmetrics"), name)


@functools.cache
def _maker(name: str) -> Callable[..., Any]:
    def make(*args: Any, **kwargs: Any) -> Any:
        if "task" in kwargs or (args and isinstance(args[0], str)):
            return getattr(import_optional("torchmetrics"), name)(*args, **kwargs)
        return _made(name, *args, **kwargs)

    make.__name__, make.__doc__ = name, f"`{name}` of classes that exclude each other, with the old arguments."
    return make


def _made(
    name: str,
    num_classes: int | None = None,
    *,
    average: str = "micro",
    top_k: int | None = None,
    ignore_index: int | None = None,
    compute_on_step: bool | None = None,
    **rest: Any,
) -> Any:
    """`compute_on_step=False`: a collection of such metrics only counts when it is called, and gives an empty dict."""
    if not isinstance(num_classes, int) or isinstance(num_classes, bool):
        raise ConfigError(
            f"torchmetrics.{name}: num_classes: expected how many classes there are, found {num_classes!r}. In today's "
            f"torchmetrics this is {name}(task='multiclass', num_classes=10, average='{average}')."
        )
    dropped = [argument for argument in _WITHOUT_EFFECT if rest.pop(argument, None) is not None]
    if dropped:
        warnings.warn(f"torchmetrics.{name}: {dropped} has no effect here and is left out.", UserWarning, stacklevel=3)
    try:
        made = _named(name)(num_classes, average=average, top_k=top_k or 1, ignore_index=ignore_index, **rest)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"torchmetrics.{name}: {error}") from error
    made.counts_only = compute_on_step is False
    return made


@functools.cache
def _named(name: str) -> type[Any]:
    """A class of the old name: a collection calls a result by its metric's class."""
    base = getattr(import_optional("torchmetrics.classification"), f"Multiclass{name}")
    return type(name, (base,), {"__module__": __name__, "__doc__": base.__doc__})


@functools.cache
def _collection() -> type[Any]:
    base = import_optional("torchmetrics").MetricCollection

    def forward(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if all(getattr(metric, "counts_only", False) for metric in self.values(copy_state=False)):
            self.update(*args, **kwargs)
            return {}
        found: dict[str, Any] = base.forward(self, *args, **kwargs)
        return found

    return type("MetricCollection", (base,), {"forward": forward, "__module__": __name__, "__doc__": base.__doc__})
