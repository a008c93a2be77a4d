"""Building a learning-rate schedule from a class and its arguments, and `WarmupCosineLR`."""

import math
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from sightline.core import locate
from sightline.core.errors import ConfigError, arg
from sightline.core.types import Schedule

PER_STEP = ("OneCycleLR", "CyclicLR", "WarmupCosineLR")
"""Schedules that are stepped after every batch: those that torch documents so, and `WarmupCosineLR`."""


class WarmupCosineLR(LRScheduler):
    """A schedule with linear warmup and cosine decay (Loshchilov & Hutter, "SGDR", 2017), stepped after every batch.

    The learning rate rises to the optimiser's own, reached at the last warmup step, and falls to `min_factor` times it
    at the last of `total_steps`. `warmup` is a number of steps >= 1, or, below 1, a fraction of `total_steps`.

    With w warmup steps, step t (from 0) has lr (t + 1) / w up to t = w - 1. After that it has
    lr (min_factor + (1 - min_factor) (1 + cos(pi p)) / 2), where p rises from 0 to 1. Raises ValueError for an argument
    out of range."""

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
                f"total_steps: expected an integer >= 1, found {total_steps}; min_factor: expected a number in [0, 1], "
                f"found {min_factor}."
            )
        if not 0 <= warmup < total_steps or (warmup > 1 and warmup != int(warmup)):
            raise ValueError(
                f"warmup: expected a fraction in [0, 1) or an integer below total_steps ({total_steps}), found "
                f"{warmup}."
            )
        self.total_steps = total_steps
        self.warmup_steps = round(warmup * total_steps) if warmup < 1 else int(warmup)
        self.min_factor = min_factor
        super().__init__(optimizer, last_epoch)

    def factor(self, step: int) -> float:
        """Returns the factor on the optimiser's learning rate at a step, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        peak = max(self.warmup_steps - 1, 0)
        progress = min((step - peak) / max(self.total_steps - 1 - peak, 1), 1.0)
        return self.min_factor + (1 - self.min_factor) * (1 + math.cos(math.pi * progress)) / 2

    def get_lr(self) -> list[Any]:
        """Returns the learning rate of each parameter group for the next step."""
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
    """Returns `target(optimizer, **arguments)` with the interval at which it is stepped.

    `arguments` may contain `interval`, "step" or "epoch"; the default is "step" for the schedules in `PER_STEP`, else
    "epoch". The value "auto" is replaced: `total_steps`, `T_max` and `total_iters` become the length of the run in
    intervals, `epochs` and `steps_per_epoch` the numbers passed in, `max_lr` the learning rates of the optimiser's
    groups. A ReduceLROnPlateau watches `monitor`, which is better in the direction `better` ("min" or "max").

    Raises ConfigError for wrong arguments; for a single `max_lr` or `base_lr` if the groups have different learning
    rates; and for a `mode` that contradicts `better`, which would lower the learning rate while the metric improves."""
    arguments = dict(arguments)
    plateau = isinstance(target, type) and issubclass(target, ReduceLROnPlateau)
    interval = arguments.pop("interval", "step" if getattr(target, "__name__", "") in PER_STEP else "epoch")
    if interval not in ("step", "epoch") or (plateau and interval != "epoch"):
        expected = "'epoch': a plateau watches an evaluation metric" if plateau else "'step' or 'epoch'"
        raise ConfigError(f"{key}.interval: expected {expected}, found {interval!r}.")
    if plateau:
        if arguments.setdefault("mode", better) not in ("auto", better):
            raise ConfigError(
                f"{key}.mode: '{arguments['mode']}' contradicts the metric it watches: '{monitor}' is better when "
                f"{'lower' if better == 'min' else 'higher'}. Set mode={better}, or remove it."
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
                f"{key}.{argument}: the optimiser's {len(rates)} parameter groups have different learning rates "
                f"({arg.layer_decay}, {arg.head_lr}, {arg.param_groups}), which the single number {value} would "
                f"replace. {advice}."
            )
    for argument, value in arguments.items():
        if value == "auto":
            if argument not in known:
                raise ConfigError(
                    f"{key}.{argument}: auto is supported only for {', '.join(known)}. Set '{argument}' to a value."
                )
            arguments[argument] = known[argument]
    scheduler = locate.call_target(target, [optimizer], arguments, key=key)
    if not isinstance(scheduler, LRScheduler):
        found = type(scheduler).__name__
        raise ConfigError(f"{key}._target_: expected a torch learning-rate scheduler, found a {found}.")
    return Schedule(scheduler, interval, monitor if plateau else None)
