"""Optimisers and learning-rate schedules from a class and its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from sightline import locate
from sightline.errors import ConfigError
from sightline.types import Schedule

PER_STEP = ("OneCycleLR", "CyclicLR")
"""Schedules that torch documents as stepped after every batch."""


def build_optimizer(target: Any, arguments: Mapping[str, Any], model: nn.Module, key: str) -> Optimizer:
    """`target(parameters, **arguments)` over every parameter of `model` that is trained. `key` is for messages."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ConfigError(f"{key}: the network has no parameter to train.")
    optimizer = locate.call(target, [parameters], arguments, key=key)
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"{key}._target_: made a {type(optimizer).__name__}, not a torch.optim.Optimizer.")
    needed = [p.name for p in inspect.signature(optimizer.step).parameters.values() if p.default is p.empty]
    if needed:  # LBFGS evaluates the loss several times in one step
        raise ConfigError(
            f"{key}._target_: {type(optimizer).__name__}.step() needs '{needed[0]}', a function that computes the loss "
            f"again, which a step on one batch does not have. Choose another optimiser, or train with your own task."
        )
    return optimizer


def build_schedule(
    target: Any,
    arguments: Mapping[str, Any],
    optimizer: Optimizer,
    *,
    steps_per_epoch: int,
    epochs: int,
    monitor: str,
    better: str,
    key: str,
) -> Schedule:
    """`target(optimizer, **arguments)` and when it steps.

    `interval` among the arguments ("step" or "epoch") says when; without it, the schedules torch documents so step with
    every batch. `auto` as total_steps, T_max, total_iters, epochs or steps_per_epoch is the length of the run in the
    interval's unit, as max_lr the optimiser's own learning rate. A plateau watches `monitor`, whose better direction is
    `better` ("min" or "max"); a `mode` that contradicts it is refused, since it would lower the learning rate while the
    metric improves."""
    arguments = dict(arguments)
    plateau = isinstance(target, type) and issubclass(target, ReduceLROnPlateau)
    interval = arguments.pop("interval", "step" if getattr(target, "__name__", "") in PER_STEP else "epoch")
    if interval not in ("step", "epoch") or (plateau and interval != "epoch"):
        expected = "'epoch': a plateau watches an evaluation" if plateau else "'step' or 'epoch'"
        raise ConfigError(f"{key}.interval: expected {expected}, found {interval!r}.")
    if plateau:
        if arguments.setdefault("mode", better) not in ("auto", better):
            raise ConfigError(
                f"{key}.mode: '{arguments['mode']}' contradicts the metric it watches: '{monitor}' is better when "
                f"{'lower' if better == 'min' else 'higher'}. Set mode={better}, or leave it out."
            )
        arguments["mode"] = better
    length = steps_per_epoch * epochs if interval == "step" else epochs
    known: dict[str, Any] = dict.fromkeys(("total_steps", "T_max", "total_iters"), length)
    known |= {"epochs": epochs, "steps_per_epoch": steps_per_epoch}
    known["max_lr"] = [group["lr"] for group in optimizer.param_groups]
    for argument, value in arguments.items():
        if value == "auto":
            if argument not in known:
                raise ConfigError(f"{key}.{argument}: auto is known for {', '.join(known)}; give a value.")
            arguments[argument] = known[argument]
    scheduler = locate.call(target, [optimizer], arguments, key=key)
    if not isinstance(scheduler, LRScheduler):
        raise ConfigError(f"{key}._target_: made a {type(scheduler).__name__}, not a torch learning-rate scheduler.")
    return Schedule(scheduler, interval, monitor if plateau else None)
