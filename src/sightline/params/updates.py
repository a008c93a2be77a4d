"""The dict's optimiser and schedules, with arguments that torch has taken away since dropped."""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from sightline.core import locate
from sightline.core.errors import ConfigError, join_names
from sightline.core.types import Schedule
from sightline.metrics.direction import metric_mode

_REMOVED = ("verbose",)
"""Arguments that torch had once and that changed nothing that is computed."""
_ENTRY = ("name", "class", "kwargs", "monitor", "interval")


def make_optimizer(settings: Mapping[str, Any], model: nn.Module) -> Optimizer:
    """`optim_class(parameters, learning_rate, **optim_kwargs)` over every parameter that is trained."""
    target = _found(settings["optim_class"], "params['optim_class']")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ConfigError("model: it has no parameter to train.")
    key = "params['optim_kwargs']"
    arguments = _without_removed(target, settings["optim_kwargs"], key)
    made = locate.call_target(target, [parameters, settings["learning_rate"]], arguments, key=key)
    if not isinstance(made, Optimizer):
        raise ConfigError(f"params['optim_class']: made a {type(made).__name__}, not a torch.optim.Optimizer.")
    return made


def make_schedules(
    settings: Mapping[str, Any], optimizer: Optimizer, metrics: Any = None
) -> tuple[list[str], list[Schedule]]:
    """(names, schedules) of `learning_rate_schedule`. All step once an epoch, or with `interval` "step" at every step;
    ReduceLROnPlateau with every evaluation, by `monitor`: without one, by `test_loss` in mode "min", and in mode "max"
    by the first of the test `metrics`. Raises ConfigError where the mode contradicts what is watched."""
    entries = settings["learning_rate_schedule"] or []
    if not isinstance(entries, list | tuple):
        raise ConfigError("params['learning_rate_schedule']: expected a list of dicts with 'name', 'class', 'kwargs'.")
    names: list[str] = []
    schedules = []
    for position, entry in enumerate(entries):
        key = f"params['learning_rate_schedule'][{position}]"
        if not isinstance(entry, Mapping) or "class" not in entry or set(entry) - set(_ENTRY):
            raise ConfigError(
                f"{key}: expected a dict with 'class' and, of {join_names(_ENTRY)}, others; found {entry}."
            )
        target = _found(entry["class"], f"{key}['class']")
        arguments = _without_removed(target, entry.get("kwargs"), f"{key}['kwargs']")
        made = locate.call_target(target, [optimizer], arguments, key=f"{key}['kwargs']")
        if not isinstance(made, LRScheduler):
            raise ConfigError(f"{key}['class']: made a {type(made).__name__}, not a torch learning-rate scheduler.")
        interval, monitor = entry.get("interval", "epoch"), entry.get("monitor")
        if interval not in ("epoch", "step"):
            raise ConfigError(f"{key}['interval']: expected 'epoch' or 'step', found {interval!r}.")
        if isinstance(made, ReduceLROnPlateau):
            monitor = _watched(monitor, str(made.mode), metrics, key)
        elif monitor is not None:
            raise ConfigError(f"{key}['monitor']: only ReduceLROnPlateau watches a metric; leave it out.")
        schedules.append(Schedule(made, interval, monitor))
        names.append(str(entry.get("name", type(made).__name__)))
    if len(set(names)) < len(names):
        raise ConfigError(f"params['learning_rate_schedule']: a name is there twice: {join_names(names)}.")
    return names, schedules


def _watched(monitor: str | None, mode: str, metrics: Any, key: str) -> str:
    if monitor is None:
        first = next(iter(metrics.keys()), "Accuracy") if hasattr(metrics, "keys") else "Accuracy"
        return "test_loss" if mode == "min" else f"test_{first}"
    if (metric_mode(monitor) or mode) != mode:
        raise ConfigError(
            f"{key}['kwargs']['mode']: '{mode}' contradicts what is watched: it would lower the learning rate while "
            f"'{monitor}' gets better. Set the mode to '{'max' if mode == 'min' else 'min'}'."
        )
    return monitor


def _found(target: Any, key: str) -> Any:
    found = locate.resolve(target, key=key) if isinstance(target, str) else target
    if not callable(found):
        raise ConfigError(f"{key}: expected a class, found {found!r}.")
    return found


def _without_removed(target: Any, kwargs: Any, key: str) -> dict[str, Any]:
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise ConfigError(f"{key}: expected a dict of arguments, found {kwargs!r}.")
    known = inspect.signature(target).parameters
    kept = {}
    for name, value in (kwargs or {}).items():
        if name in _REMOVED and name not in known:
            warnings.warn(
                f"{key}: torch has taken '{name}' away from {target.__name__}; it is left out. Remove it.",
                UserWarning,
                stacklevel=4,
            )
        else:
            kept[name] = value
    return kept
