"""The learning-rate finder: a short training whose learning rate grows from step to step, and what its loss says.

The test is Smith's ("Cyclical Learning Rates for Training Neural Networks", 2017, section 3.3); growing exponentially,
smoothing the loss, stopping at four times the best and reading off a valley are as in fastai (Howard and Gugger,
"fastai: A Layered API for Deep Learning", 2020, and its `LRFinder`)."""

import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch

from sightline.core.errors import ConfigError, DataError, NonFiniteLossError
from sightline.core.types import Batch, Loader, Task, TrainState
from sightline.engine.iterable_loader import as_loader
from sightline.engine.runtime import Runtime
from sightline.engine.tools.snapshot import Snapshot
from sightline.engine.trainer import check_task

BETA = 0.98
"""How much of the smoothed loss stays from step to step, as in fastai."""
_TAIL, _LEAST = 5, 5


@dataclass(frozen=True)
class LRCurve:
    """The loss of each step and the learning rate it was taken with, in order: `losses` as they came, `smoothed` as a
    bias-corrected moving average (Kingma and Ba, "Adam", 2015, section 3). `diverged` says that the loss grew until
    the finder stopped early.

    `valley` and `steepest` are two readings of it, None where the loss hardly ever falls. Like fastai, both leave out
    the first tenth and the last five steps."""

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]
    diverged: bool = False
    valley: float | None = field(init=False)
    steepest: float | None = field(init=False)

    def __post_init__(self) -> None:
        part = slice(len(self.lrs) // 10, max(0, len(self.lrs) - _TAIL))
        lrs, losses = self.lrs[part], self.smoothed[part]
        object.__setattr__(self, "valley", _valley(lrs, losses))
        object.__setattr__(self, "steepest", _steepest(lrs, losses))

    @property
    def suggestion(self) -> float | None:
        """The one to train with: the valley, fastai's default, which noise moves less than the steepest place."""
        return self.valley

    @property
    def fall(self) -> float:
        """The largest fall of the smoothed loss, as a part of where it began; near 0, a suggestion means little. The
        first tenth is left out here too: an average of few steps is noise."""
        most, highest = 0.0, -math.inf
        for loss in self.smoothed[len(self.smoothed) // 10 :]:
            highest = max(highest, loss)
            most = max(most, (highest - loss) / abs(highest) if highest else 0.0)
        return most


def find_lr(
    task: Task,
    state: TrainState,
    train: Iterable[Batch],
    *,
    low: float = 1e-7,
    high: float = 10.0,
    steps: int = 100,
    stop_factor: float = 4.0,
    runtime: Runtime | None = None,
    on_step: Callable[[int, float, float], None] | None = None,
) -> LRCurve:
    """Trains `steps` steps with learning rates from `low` to `high`, each the same multiple of the one before, and
    leaves everything as it was, whatever happens: see `Snapshot`.

    The steps are `task.train_step` on the loader's batches from where the state stands on, seeded as the trainer seeds
    them, for as many epochs as it takes. The learning rate is the optimiser's own; where parameter groups have several,
    they keep their ratios. It ends early when the smoothed loss is above `stop_factor` times its lowest, or a loss is
    NaN or infinite. `on_step` is called with the steps done, the learning rate and the smoothed loss.

    Raises ValueError for impossible arguments, NonFiniteLossError when the first loss is NaN or infinite already."""
    check_range(low, high, steps, stop_factor)
    if isinstance(train, Iterator):
        raise DataError(
            "the learning-rate finder would use up the batches of a generator, which cannot be put back; "
            "give a loader or a list, something whose iter() begins anew."
        )
    groups = _groups(state)
    loader = as_loader(train)
    snapshot = Snapshot(state, task, loader)
    try:
        check_task(task)
        task.setup(state)
        lrs = (low * (high / low) ** (number / (steps - 1)) for number in range(steps))
        return _search(task, state, loader, groups, lrs, stop_factor, runtime or Runtime("cpu"), on_step)
    finally:
        snapshot.restore()


def check_range(low: float, high: float, steps: int, stop_factor: float) -> None:
    """Raises ValueError for what cannot be searched."""
    if not 0 < low < high < math.inf:
        raise ValueError(f"expected 0 < low < high, found low={low} and high={high}")
    if steps < 2 or not stop_factor > 1:
        raise ValueError(f"expected steps of at least 2 and a stop_factor above 1, found {steps} and {stop_factor}")


def _search(
    task: Task,
    state: TrainState,
    train: Loader,
    groups: Sequence[tuple[dict[str, Any], float]],
    lrs: Iterable[float],
    stop_factor: float,
    runtime: Runtime,
    on_step: Callable[[int, float, float], None] | None,
) -> LRCurve:
    used: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    average = 0.0
    if not state.model.training:  # as the trainer does: what is frozen within stays frozen
        state.model.train()
    task.begin_epoch(state)  # once: what a later epoch unfreezes would put a step into the curve
    with closing(_batches(train, state, runtime)) as batches:
        for lr, batch in zip(lrs, batches, strict=False):
            for group, factor in groups:
                _set_lr(group, lr * factor)
            runtime.reseed(state.step)
            loss = _number(task.train_step(state, batch).loss)
            state.step += 1
            if not math.isfinite(loss):
                if not losses:
                    raise NonFiniteLossError(
                        f"the training loss is {loss} at the very first step, with a learning rate of {lr:.3g}: no "
                        f"learning rate will help. Check the data for extreme values, the network and the loss."
                    )
                return LRCurve(used, losses, smoothed, diverged=True)
            average = BETA * average + (1 - BETA) * loss
            used.append(lr)
            losses.append(loss)
            smoothed.append(average / (1 - BETA ** len(used)))
            if on_step is not None:
                on_step(len(used), lr, smoothed[-1])
            # a loss below zero, as some have, has no multiple that is worse: there the fall alone is measured
            if smoothed[-1] > stop_factor * min(smoothed) > 0:
                return LRCurve(used, losses, smoothed, diverged=True)
    return LRCurve(used, losses, smoothed)


def _batches(train: Loader, state: TrainState, runtime: Runtime) -> Generator[Batch]:
    """Batches without end, from the state's place on, in the trainer's order."""
    first = state.batch
    for epoch in itertools.count(state.epoch):
        runtime.reseed(epoch, "loader")
        if first and state.loader:
            train.seek(epoch, first, state.loader)
        else:
            train.seek(epoch, first)
        found = iter(train)
        count = 0
        try:
            for batch in found:
                count += 1
                yield batch
        finally:
            if hasattr(found, "close"):  # what loads ahead is to stop now, not when it is collected
                found.close()
        if not count and not first:
            raise DataError(f"the training data gave no batch in epoch {epoch}.")
        first = 0


def _groups(state: TrainState) -> list[tuple[dict[str, Any], float]]:
    """Each parameter group with its learning rate as a multiple of the optimiser's own.

    A schedule has set the groups to where it begins, which may be 0; what they will rise to is what is compared."""
    if state.optimizer is None:
        raise ConfigError("there is no optimiser, so there is no learning rate to find.")
    groups: list[dict[str, Any]] = state.optimizer.param_groups
    found = [group.get("max_lr", group.get("initial_lr", group.get("lr"))) for group in groups]
    for schedule in state.schedules:  # CyclicLR keeps them to itself
        found = getattr(schedule.scheduler, "max_lrs", found)
    rates = [float(value) for value in found if value is not None]
    if len(rates) < len(groups):
        raise ConfigError(
            f"the optimiser {type(state.optimizer).__name__} works out its learning rate itself: its parameter groups "
            f"have no 'lr' to find."
        )
    own = state.optimizer.defaults.get("lr")
    own = float(own) if own is not None else 0.0
    one = own if own > 0 and any(math.isclose(own, rate) for rate in rates) else max(rates)
    if one <= 0:
        raise ConfigError("every parameter group has a learning rate of 0: nothing is trained.")
    return [(group, rate / one) for group, rate in zip(groups, rates, strict=True)]


def _set_lr(group: dict[str, Any], lr: float) -> None:
    if isinstance(group["lr"], torch.Tensor):  # of a captured or compiled step, which has read the tensor itself
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def _number(loss: torch.Tensor | None) -> float:
    if loss is None:
        raise ConfigError(
            "the task's train_step hands back no loss, so there is nothing to look at: StepOutput(loss=…)."
        )
    return float(loss)


def _valley(lrs: Sequence[float], losses: Sequence[float]) -> float | None:
    """The learning rate in the middle of the longest valley: the longest run of losses, gaps allowed, each below the
    one before. It begins as many points before its end as it has, so that a few lucky ones far to the left do not
    count."""
    length, end = 0, 0
    tails: list[float] = []  # of every length, the highest last loss a falling run can have, negated
    for position, loss in enumerate(losses):
        place = bisect_left(tails, -loss)
        tails[place : place + 1] = [-loss]
        if place + 1 > length:
            length, end = place + 1, position
    return lrs[end + 1 - length + length // 2] if length >= _LEAST else None


def _steepest(lrs: Sequence[float], losses: Sequence[float]) -> float | None:
    """The learning rate where the loss falls fastest; steps are equal in the logarithm of the learning rate."""
    slopes = [after - before for before, after in zip(losses, losses[2:], strict=False)]
    if len(slopes) < _LEAST or min(slopes) >= 0:
        return None
    return lrs[slopes.index(min(slopes)) + 1]
