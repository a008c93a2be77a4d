"""Learning-rate schedules from a class and its arguments, and `WarmupCosineLR`."""

import math
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from sightline.core import locate
from sightline.core.errors import ConfigError, arg
from sightline.core.types import Schedule

PER_STEP = ("OneCycleLR", "CyclicLR", "WarmupCosineLR")
"""Schedules that torch documents as stepped after every batch, and ours."""


class WarmupCosineLR(LRScheduler):
    """A learning rate for every step of a run of `total_steps`: up in a straight line to the optimiser's own, which the
    last of the warm-up steps has, then down half a cosine (Loshchilov & Hutter, "SGDR", 2017) to `min_factor` times it
    at the last step. `warmup` is a share of the run below 1, or a number of steps from 1 on.

    With w warm-up steps, step t (from 0) has lr (t + 1) / w up to t = w - 1, and from there, with p running from 0 to
    1, lr (min_factor + (1 - min_factor) (1 + cos(pi p)) / 2). Raises ValueError for a number out of its range."""

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup: float = 0.05,
        min_factor: float = 0.0,
        last_epoch: int = -1,
    ):
        if total_steps < 1 or not 0 <= min_factor <= 1:
            raise ValueError(
                f"total_steps must be at least 1, not {total_steps}, and min_factor between 0 and 1, not {min_factor}"
            )
        if not 0 <= warmup < total_steps or (warmup > 1 and warmup != int(warmup)):
            raise ValueError(
                f"warmup must be a share of the run below 1 or a number of steps below its {total_steps}, not {warmup}"
            )
        self.total_steps = total_steps
        self.warmup_steps = round(warmup * total_steps) if warmup < 1 else int(warmup)
        self.min_factor = min_factor
        super().__init__(optimizer, last_epoch)

    def factor(self, step: int) -> float:
        """What the optimiser's learning rate is multiplied by at a step, from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        top = max(self.warmup_steps - 1, 0)
        part = min((step - top) / max(self.total_steps - 1 - top, 1), 1.0)
        return self.min_factor + (1 - self.min_factor) * (1 + math.cos(math.pi * part)) / 2

    def get_lr(self) -> list[Any]:
        """The learning rate of each group at the step that comes."""
        return [rate * self.factor(self.last_epoch) for rate in self.base_lrs]


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
    interval's unit, as max_lr the optimiser's own learning rate; a number there is refused where the groups of the
    optimiser have several, which it would make one. A plateau watches `monitor`, whose better direction is
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
    known["max_lr"] = rates = [group["lr"] for group in optimizer.param_groups]
    for argument in ("max_lr", "base_lr"):
        value = arguments.get(argument)
        if isinstance(value, int | float) and len({float(rate) for rate in rates}) > 1:
            advice = "Set it to auto" if argument == "max_lr" else f"Give a list of {len(rates)} numbers"
            raise ConfigError(
                f"{key}.{argument}: the optimiser's {len(rates)} parameter groups have learning rates of their own "
                f"({arg.layer_decay}, {arg.head_lr}, {arg.param_groups}), which one number, {value}, would undo. "
                f"{advice}."
            )
    for argument, value in arguments.items():
        if value == "auto":
            if argument not in known:
                raise ConfigError(f"{key}.{argument}: auto is known for {', '.join(known)}; give a value.")
            arguments[argument] = known[argument]
    scheduler = locate.call_target(target, [optimizer], arguments, key=key)
    if not isinstance(scheduler, LRScheduler):
        raise ConfigError(f"{key}._target_: made a {type(scheduler).__name__}, not a torch learning-rate scheduler.")
    return Schedule(scheduler, interval, monitor if plateau else None)
