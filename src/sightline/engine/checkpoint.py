"""TrainState <-> file. Atomic, and loadable with `weights_only`: no pickled code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sightline.errors import ArtifactError
from sightline.files import atomic_write
from sightline.types import TrainState

FORMAT = 1


def save_checkpoint(path: Path, state: TrainState) -> None:
    """Writes all of `state`; a reader sees the old file or the new one, never a part."""
    content = {
        "format": FORMAT,
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict() if state.optimizer else None,
        "schedules": [schedule.scheduler.state_dict() for schedule in state.schedules],
        "ema": state.ema.state_dict() if state.ema else None,
        "scaler": state.scaler.state_dict() if state.scaler else None,
        "epoch": state.epoch,
        "step": state.step,
        "batch": state.batch,
        "best": state.best,
        "stopped": state.stopped,
        "meters": {name: meter.state_dict() for name, meter in state.meters.items()},
        "callbacks": state.callbacks,
        "history": state.history,
        "config": state.config,
        "loader": state.loader,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        torch.save(content, file)


def load_checkpoint(path: Path, state: TrainState) -> None:
    """Puts a saved state into `state`, whose model, optimiser and schedules are made of the same config.

    Raises ArtifactError when the file is missing, damaged, or of another network or optimiser, and where only one of
    the two has an average or a scaler."""
    content = read_checkpoint(path)
    for name, what in (("ema", "an average of the weights"), ("scaler", "a gradient scaler")):
        if (content[name] is None) != (getattr(state, name) is None):
            has, lacks = ("the state", f"'{path}'") if content[name] is None else (f"'{path}'", "the state")
            raise ArtifactError(
                f"{has} has {what} and {lacks} has none: they belong to different trainings. Go on with the settings, "
                f"or the task, that the run began with."
            )
    try:
        state.model.load_state_dict(content["model"])
        if state.optimizer is not None and content["optimizer"] is not None:
            state.optimizer.load_state_dict(content["optimizer"])
        for schedule, saved in zip(state.schedules, content["schedules"], strict=True):
            _check_length(path, schedule.scheduler, saved)
            schedule.scheduler.load_state_dict(saved)
        for name in ("ema", "scaler"):
            if content[name] is not None:
                getattr(state, name).load_state_dict(content[name])
    except (RuntimeError, ValueError, KeyError) as error:
        raise ArtifactError(f"'{path}' belongs to another network, optimiser or schedule: {error}") from error
    for name in ("epoch", "step", "batch", "best", "stopped", "callbacks", "history", "loader"):
        setattr(state, name, content[name])
    for name, saved in content["meters"].items():
        state.meters[name].load_state_dict(saved)


def load_weights(path: Path, model: torch.nn.Module) -> None:
    """Only the weights of a checkpoint that are evaluated: their average where it has one, else the model's."""
    content = read_checkpoint(path)
    model.load_state_dict(content["ema"] or content["model"])


def _check_length(path: Path, scheduler: Any, saved: Mapping[str, Any]) -> None:
    """A schedule that knows its end cannot be lengthened halfway: its learning rates so far were another curve's."""
    for name in ("total_steps", "T_max", "total_iters"):
        if name in saved and saved[name] != getattr(scheduler, name, saved[name]):
            raise ArtifactError(
                f"'{path}' was trained with a {type(scheduler).__name__} of {name} {saved[name]}, which cannot become "
                f"{getattr(scheduler, name)} halfway. Keep trainer.max_epochs, or start a new run with the new length."
            )


def numpy_values() -> list[Any]:
    """What numpy's arrays and numbers are made of: plain values, in which loaders keep their place."""
    core = np._core.multiarray  # type: ignore[attr-defined]
    kinds = [kind for kind in vars(np.dtypes).values() if isinstance(kind, type) and issubclass(kind, np.dtype)]
    return [np.ndarray, np.dtype, core._reconstruct, core.scalar, *kinds]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The file's content, on the CPU, after a check of its format."""
    if not path.is_file():
        raise ArtifactError(f"there is no checkpoint '{path}'.")
    try:
        with torch.serialization.safe_globals(numpy_values()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ArtifactError(f"'{path}' is no checkpoint, or a damaged one: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ArtifactError(f"'{path}' is no checkpoint of format {FORMAT}.")
    return content
