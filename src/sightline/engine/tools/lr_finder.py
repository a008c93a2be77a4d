"""The learning-rate finder: records the loss of a short training whose learning rate grows with every step.

The test is Smith's ("Cyclical Learning Rates for Training Neural Networks", 2017, section 3.3). The exponential growth,
the smoothed loss, the stop at four times the best loss and the valley suggestion are as in fastai (Howard and Gugger,
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
"""The weight of the previous value in the moving average of the loss, as in fastai."""
_TAIL, _LEAST = 5, 5  # steps ignored at the end; points that a suggestion needs


@dataclass(frozen=True)
class LRCurve:
    """The learning rate and the loss of each step of the finder, in order.

    `losses` are the losses of the batches, `smoothed` is their bias-corrected moving average (Kingma and Ba, "Adam",
    2015, section 3). `diverged` is True if the finder stopped early because the loss grew or was not finite.

    `valley` and `steepest` are two suggested learning rates, None if the loss hardly ever falls. As in fastai, both
    ignore the first tenth and the last five steps."""

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
        """The suggested learning rate: `valley`, fastai's default, which is less sensitive to noise than `steepest`."""
        return self.valley

    @property
    def fall(self) -> float:
        """The largest fall of the smoothed loss, relative to its value before the fall.

        If it is near 0, a suggestion means little. The first tenth of the steps, where the average is noisy, is
        ignored."""
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
    """Trains `steps` steps with learning rates that grow exponentially from `low` to `high`, and returns the curve.

    Everything is restored afterwards, even after an error; see `Snapshot`. The steps are `task.train_step` on the
    loader's batches, from the position of the state on, seeded as in the trainer, over as many epochs as needed. If
    parameter groups have different learning rates, their ratios are kept. The search ends early if the smoothed loss
    is above `stop_factor` times its minimum, or if a loss is NaN or infinite. `on_step` is called with the number of
    steps done, the learning rate and the smoothed loss.

    Raises ValueError for invalid arguments, DataError for a generator or a loader without batches, ConfigError if there
    is no learning rate to vary, and NonFiniteLossError if the first loss is NaN or infinite."""
    check_range(low, high, steps, stop_factor)
    if isinstance(train, Iterator):
        raise DataError(
            "The learning-rate finder would use up the batches of a generator, which cannot be restored. Pass a "
            "DataLoader or a list, which can be iterated again."
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
    """Raises ValueError if the arguments of `find_lr` are out of range."""
    if not 0 < low < high < math.inf:
        raise ValueError(f"expected 0 < low < high, found low={low} and high={high}")
    if steps < 2 or not stop_factor > 1:
        raise ValueError(f"expected steps >= 2 and stop_factor > 1, found steps={steps}, stop_factor={stop_factor}")


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
    if not state.model.training:  # as in the trainer: else submodules keep their modes
        state.model.train()
    task.begin_epoch(state)  # once only, since unfreezing layers later would cause a jump in the curve
    with closing(_batches(train, state, runtime)) as batches:
        for lr, batch in zip(lrs, batches, strict=False):
            for group, factor in groups:
                _set_lr(group, lr * factor)
            runtime.reseed(state.step)
            loss = _loss_value(task.train_step(state, batch).loss)
            state.step += 1
            if not math.isfinite(loss):
                if not losses:
                    raise NonFiniteLossError(
                        f"The training loss is {loss} at the first step, with a learning rate of {lr:.3g}, so no "
                        f"learning rate will help. Check the data for extreme values, the network and the loss."
                    )
                return LRCurve(used, losses, smoothed, diverged=True)
            average = BETA * average + (1 - BETA) * loss
            used.append(lr)
            losses.append(loss)
            smoothed.append(average / (1 - BETA ** len(used)))
            if on_step is not None:
                on_step(len(used), lr, smoothed[-1])
            # a multiple of a negative loss is not a worse loss, so there is no early stop below zero
            if smoothed[-1] > stop_factor * min(smoothed) > 0:
                return LRCurve(used, losses, smoothed, diverged=True)
    return LRCurve(used, losses, smoothed)


def _batches(train: Loader, state: TrainState, runtime: Runtime) -> Generator[Batch]:
    """Yields batches without end, from the position of the state on, in the order of the trainer."""
    first = state.batch
    for epoch in itertools.count(state.epoch):
        runtime.reseed(epoch, "loader")
        if first and state.loader:
            train.seek(epoch, first, state.loader)
        else:
            train.seek(epoch, first)
        iterator = iter(train)
        count = 0
        try:
            for batch in iterator:
                count += 1
                yield batch
        finally:
            if hasattr(iterator, "close"):  # stop prefetching now, not at garbage collection
                iterator.close()
        if not count and not first:
            raise DataError(f"The training data yielded no batches in epoch {epoch}.")
        first = 0


def _groups(state: TrainState) -> list[tuple[dict[str, Any], float]]:
    """Returns each parameter group with its learning rate as a multiple of the optimiser's learning rate.

    Compares the highest learning rates of a schedule, since its first ones may be 0."""
    if state.optimizer is None:
        raise ConfigError("There is no optimiser, so there is no learning rate to find.")
    groups: list[dict[str, Any]] = state.optimizer.param_groups
    max_rates = [group.get("max_lr", group.get("initial_lr", group.get("lr"))) for group in groups]
    for schedule in state.schedules:  # CyclicLR does not store them in the groups
        max_rates = getattr(schedule.scheduler, "max_lrs", max_rates)
    rates = [float(value) for value in max_rates if value is not None]
    if len(rates) < len(groups):
        raise ConfigError(
            f"The optimiser {type(state.optimizer).__name__} computes its learning rate itself: its parameter groups "
            f"have no 'lr' to find."
        )
    base = state.optimizer.defaults.get("lr")
    base = float(base) if base is not None else 0.0
    reference = base if base > 0 and any(math.isclose(base, rate) for rate in rates) else max(rates)
    if reference <= 0:
        raise ConfigError("Every parameter group has a learning rate of 0, so nothing is trained.")
    return [(group, rate / reference) for group, rate in zip(groups, rates, strict=True)]


def _set_lr(group: dict[str, Any], lr: float) -> None:
    if isinstance(group["lr"], torch.Tensor):  # a captured or compiled step refers to this tensor
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def _loss_value(loss: torch.Tensor | None) -> float:
    if loss is None:
        raise ConfigError("The task's train_step returned no loss. Return StepOutput(loss=…).")
    return float(loss)


def _valley(lrs: Sequence[float], losses: Sequence[float]) -> float | None:
    """Returns the learning rate in the middle of the longest valley; None if it is too short.

    A valley is a sequence of losses, gaps allowed, each below the previous one. Its start is counted back from its end
    by its number of points, so that a few low losses far to the left do not count."""
    length, end = 0, 0
    tails: list[float] = []  # per length, the highest last loss of a falling sequence, negated
    for position, loss in enumerate(losses):
        place = bisect_left(tails, -loss)
        tails[place : place + 1] = [-loss]
        if place + 1 > length:
            length, end = place + 1, position
    return lrs[end + 1 - length + length // 2] if length >= _LEAST else None


def _steepest(lrs: Sequence[float], losses: Sequence[float]) -> float | None:
    """Returns the learning rate at which the loss falls fastest per step; None if it does not fall."""
    slopes = [after - before for before, after in zip(losses, losses[2:], strict=False)]
    if len(slopes) < _LEAST or min(slopes) >= 0:
        return None
    return lrs[slopes.index(min(slopes)) + 1]
