"""Going on from a checkpoint with other settings than it was written under: what was learnt is the checkpoint's, the
settings are the new ones. This makes another training than either config alone, so it is only done when asked for."""

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
    """`restore_state` for a state that was made with other settings.

    The optimiser's state is kept, its settings (learning rate, weight decay …) are the new ones; with `keep_optimizer`
    False, as for another kind, it begins anew. Schedules are brought to where the run is, on their new curve; a plateau
    keeps what it has seen, and, with `keep_lr`, the learning rate it has come to. An average of the weights that is new
    begins with the weights. `batch_size` is (before, now): the place in the epoch is the same image, or one shortly
    before it. `epoch_steps` is how many steps an epoch has now, where that is known: schedules by step are brought to
    that place in training, not to that many steps. Raises ArtifactError when the network is another."""
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
        for group, own in zip(optimizer.param_groups, settings, strict=True):
            if any(plateaus) and keep_lr and keep_optimizer:
                own.pop("lr", None)
            group.update(own)
    before, now = batch_size
    state.batch = state.batch * before // now
    if epoch_steps is not None:
        state.batch = min(state.batch, epoch_steps)  # fewer pictures, fewer batches
    earlier = content["schedules"] if len(content["schedules"]) == len(plateaus) else [{}] * len(plateaus)
    for schedule, then in zip(state.schedules, earlier, strict=True):
        _fast_forward(schedule, then, state, epoch_steps)


def _group_options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _fast_forward(schedule: Schedule, then: Mapping[str, Any], state: TrainState, epoch_steps: int | None) -> None:
    scheduler = schedule.scheduler
    if schedule.monitor is not None:
        seen = {
            name: then[name] for name in ("best", "num_bad_epochs", "cooldown_counter", "last_epoch") if name in then
        }
        scheduler.load_state_dict(scheduler.state_dict() | seen)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of steps before the optimiser's, which were another object's
        steps = state.step if epoch_steps is None else state.epoch * epoch_steps + state.batch
        for _ in range(steps if schedule.interval == "step" else state.epoch):
            scheduler.step()
