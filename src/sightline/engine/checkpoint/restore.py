"""Resumes from a checkpoint with other settings than it was written with.

The learnt state comes from the checkpoint, the settings are the new ones. The result differs from a training with
either config alone, so this is only done on request."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sightline.core.types import Schedule, TrainState
from sightline.engine.checkpoint.content import restore_state


def restore_with_changes(
    content: Mapping[str, Any],
    state: TrainState,
    path: Path,
    *,
    keep_optimizer: bool = True,
    keep_lr: bool = True,
    batch_size: tuple[int, int] = (1, 1),
    epoch_steps: int | None = None,
) -> None:
    """Restores a state that was created with other settings; see `restore_state`.

    The optimiser's state is restored, but its settings (learning rate, weight decay …) are the new ones. With
    `keep_optimizer` False, as for another type of optimiser, its state is reset. Schedules are advanced to the current
    position on their new curve. A plateau schedule keeps its history and, with `keep_lr`, the learning rate it has
    reached. A new EMA starts with the weights.

    `batch_size` is (before, now): the position in the epoch becomes the batch of the same image, or one shortly before
    it. `epoch_steps` is the current number of steps per epoch, if known: schedules that step with every batch are then
    advanced to the current epoch and batch instead of the number of steps done.

    Raises ArtifactError if the network differs."""
    optimizer = state.optimizer
    settings = [_group_options(group) for group in optimizer.param_groups] if optimizer is not None else []
    saved = dict(content)
    if state.ema is None:
        saved["ema"] = None
    elif saved["ema"] is None:
        saved["ema"] = saved["model"]
    if state.scaler is None or saved["scaler"] is None:
        saved["scaler"] = None if state.scaler is None else state.scaler.state_dict()
    if not keep_optimizer:
        saved["optimizer"] = None
    saved["schedules"] = [schedule.scheduler.state_dict() for schedule in state.schedules]
    restore_state(saved, state, path)
    plateaus = [schedule.monitor is not None for schedule in state.schedules]
    if optimizer is not None:
        for group, options in zip(optimizer.param_groups, settings, strict=True):
            if any(plateaus) and keep_lr and keep_optimizer:
                options.pop("lr", None)
            group.update(options)
    before, now = batch_size
    state.batch = state.batch * before // now
    if epoch_steps is not None:
        state.batch = min(state.batch, epoch_steps)  # there may be fewer images now
    earlier = content["schedules"] if len(content["schedules"]) == len(plateaus) else [{}] * len(plateaus)
    for schedule, earlier_state in zip(state.schedules, earlier, strict=True):
        _fast_forward(schedule, earlier_state, state, epoch_steps)


def _group_options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _fast_forward(schedule: Schedule, saved: Mapping[str, Any], state: TrainState, epoch_steps: int | None) -> None:
    scheduler = schedule.scheduler
    if schedule.monitor is not None:
        progress = {
            name: saved[name] for name in ("best", "num_bad_epochs", "cooldown_counter", "last_epoch") if name in saved
        }
        scheduler.load_state_dict(scheduler.state_dict() | progress)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of steps before the first optimiser step
        steps = state.step if epoch_steps is None else state.epoch * epoch_steps + state.batch
        for _ in range(steps if schedule.interval == "step" else state.epoch):
            scheduler.step()
