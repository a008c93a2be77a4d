"""Creates the optimiser and the schedules of the dict; arguments that torch has removed are dropped."""

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
"""Arguments that torch has removed and that never affected a result."""
_ENTRY = ("name", "class", "kwargs", "monitor", "interval")


def make_optimizer(settings: Mapping[str, Any], model: nn.Module) -> Optimizer:
    """Creates `optim_class(parameters, learning_rate, **optim_kwargs)` over all trainable parameters.

    Raises ConfigError for invalid settings, and for a model without trainable parameters."""
    target = _resolve_class(settings["optim_class"], "params['optim_class']")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ConfigError("model: it has no trainable parameters.")
    key = "params['optim_kwargs']"
    arguments = _without_removed(target, settings["optim_kwargs"], key)
    optimizer = locate.call_target(target, [parameters, settings["learning_rate"]], arguments, key=key)
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(
            f"params['optim_class']: expected a torch.optim.Optimizer, found a {type(optimizer).__name__}."
        )
    return optimizer


def make_schedules(
    settings: Mapping[str, Any], optimizer: Optimizer, metrics: Any = None
) -> tuple[list[str], list[Schedule]]:
    """Creates the schedules of `learning_rate_schedule`; returns (names, schedules).

    A schedule steps once per epoch, or with `interval` "step" at every step. ReduceLROnPlateau steps at every
    evaluation and watches `monitor`; the default is `test_loss` in mode "min", and the first of the test `metrics` in
    mode "max". Raises ConfigError for an invalid entry, and for a mode that contradicts `monitor`."""
    entries = settings["learning_rate_schedule"] or []
    if not isinstance(entries, list | tuple):
        raise ConfigError("params['learning_rate_schedule']: expected a list of dicts with 'name', 'class', 'kwargs'.")
    names: list[str] = []
    schedules = []
    for position, entry in enumerate(entries):
        key = f"params['learning_rate_schedule'][{position}]"
        if not isinstance(entry, Mapping) or "class" not in entry or set(entry) - set(_ENTRY):
            raise ConfigError(
                f"{key}: expected a dict with 'class' and no other keys than {join_names(_ENTRY)}, found {entry}."
            )
        target = _resolve_class(entry["class"], f"{key}['class']")
        arguments = _without_removed(target, entry.get("kwargs"), f"{key}['kwargs']")
        schedule = locate.call_target(target, [optimizer], arguments, key=f"{key}['kwargs']")
        if not isinstance(schedule, LRScheduler):
            raise ConfigError(
                f"{key}['class']: expected a torch learning-rate scheduler, found a {type(schedule).__name__}."
            )
        interval, monitor = entry.get("interval", "epoch"), entry.get("monitor")
        if interval not in ("epoch", "step"):
            raise ConfigError(f"{key}['interval']: expected 'epoch' or 'step', found {interval!r}.")
        if isinstance(schedule, ReduceLROnPlateau):
            monitor = _monitor(monitor, str(schedule.mode), metrics, key)
        elif monitor is not None:
            raise ConfigError(f"{key}['monitor']: only ReduceLROnPlateau watches a metric. Remove this key.")
        schedules.append(Schedule(schedule, interval, monitor))
        names.append(str(entry.get("name", type(schedule).__name__)))
    if len(set(names)) < len(names):
        raise ConfigError(f"params['learning_rate_schedule']: names must be unique, found {join_names(names)}.")
    return names, schedules


def _monitor(monitor: str | None, mode: str, metrics: Any, key: str) -> str:
    if monitor is None:
        first = next(iter(metrics.keys()), "Accuracy") if hasattr(metrics, "keys") else "Accuracy"
        return "test_loss" if mode == "min" else f"test_{first}"
    if (metric_mode(monitor) or mode) != mode:
        raise ConfigError(
            f"{key}['kwargs']['mode']: '{mode}' contradicts the monitor; it would lower the learning rate while "
            f"'{monitor}' improves. Set the mode to '{'max' if mode == 'min' else 'min'}'."
        )
    return monitor


def _resolve_class(target: Any, key: str) -> Any:
    resolved = locate.resolve(target, key=key) if isinstance(target, str) else target
    if not callable(resolved):
        raise ConfigError(f"{key}: expected a class, found {resolved!r}.")
    return resolved


def _without_removed(target: Any, kwargs: Any, key: str) -> dict[str, Any]:
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise ConfigError(f"{key}: expected a dict of arguments, found {kwargs!r}.")
    known = inspect.signature(target).parameters
    arguments = {}
    for name, value in (kwargs or {}).items():
        if name in _REMOVED and name not in known:
            warnings.warn(
                f"{key}: torch has removed '{name}' from {target.__name__}; it is ignored. Remove it.",
                UserWarning,
                stacklevel=4,
            )
        else:
            arguments[name] = value
    return arguments
