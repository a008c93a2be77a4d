"""Saves a `TrainState` to a checkpoint file and restores it. Files have a checksum and contain no pickled code."""

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.core.errors import ArtifactError, arg
from sightline.core.log import logger
from sightline.core.types import TrainState
from sightline.engine.checkpoint.file import UnreadableError, has_checksum, load_checksummed, save_checksummed

FORMAT = 2
_READS = (1, 2)  # format 1 has no checksum, kind or description of the run
_KEYS = ("model", "optimizer", "schedules", "ema", "scaler", "meters", "config")
_KINDS: dict[str, type] = {
    **dict.fromkeys(("model", "meters", "config", "callbacks", "loader", "about"), dict),
    **dict.fromkeys(("schedules", "history"), list),
    **dict.fromkeys(("epoch", "step", "batch"), int),
    "stopped": bool,
}
_COUNTERS = ("epoch", "step", "batch", "best", "stopped", "callbacks", "history", "loader")


def checkpoint_content(state: TrainState, kind: str = "last", about: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the complete state as a dict of copies on the CPU, so that training may continue while it is written.

    `kind` is the purpose of the file: "last" to resume from, "best" to export. `about` describes the run."""
    content = {
        "format": FORMAT,
        "kind": kind,
        "about": dict(about or {}),
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict() if state.optimizer else None,
        "schedules": [schedule.scheduler.state_dict() for schedule in state.schedules],
        "ema": state.ema.state_dict() if state.ema else None,
        "scaler": state.scaler.state_dict() if state.scaler else None,
        "meters": {name: meter.state_dict() for name, meter in state.meters.items()},
        "config": state.config,
        **{name: getattr(state, name) for name in _COUNTERS},
    }
    copied: dict[str, Any] = _copied(content, {})
    return copied


def content_bytes(content: Any) -> int:
    """Estimates the size in bytes of a checkpoint with this content."""
    if isinstance(content, Tensor):
        return content.nbytes
    if isinstance(content, Mapping):
        return sum(64 + content_bytes(value) for value in content.values())
    if isinstance(content, list | tuple):
        return sum(16 + content_bytes(value) for value in content)
    return len(content) if isinstance(content, str | bytes) else 16


def save_checkpoint(path: Path, state: TrainState) -> None:
    """Writes the complete state to a file, atomically: a reader sees either the old file or the new one."""
    save_checksummed(path, checkpoint_content(state))


def load_checkpoint(path: Path, state: TrainState) -> None:
    """Reads a checkpoint file and restores `state` from it; see `restore_state`."""
    restore_state(read_checkpoint(path), state, path)


def restore_state(content: Mapping[str, Any], state: TrainState, path: Path) -> None:
    """Restores `state` from `content`, which was read from `path`. Both must come from the same config.

    Raises ArtifactError if the network, optimiser or schedules differ, or if only one of the two has an EMA or a
    gradient scaler."""
    for name, what in (("ema", "an EMA of the weights"), ("scaler", "a gradient scaler")):
        if (content[name] is None) != (getattr(state, name) is None):
            has, lacks = ("The state", f"'{path}'") if content[name] is None else (f"'{path}'", "the state")
            raise ArtifactError(
                f"{has} has {what}, but {lacks} has none: they belong to different trainings. Resume with the settings "
                f"or the task that the run was started with."
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
        for name, saved in content["meters"].items():
            state.meters[name].load_state_dict(saved)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ArtifactError(f"'{path}' belongs to another network, optimiser or schedule: {error}") from error
    for name in _COUNTERS:
        setattr(state, name, content[name])


def load_weights(path: Path, model: torch.nn.Module) -> dict[str, Any]:
    """Loads the EMA of a checkpoint into `model`, or the weights if there is no EMA, and returns the full content.

    Raises ArtifactError if the weights belong to another network."""
    content = read_checkpoint(path)
    try:
        model.load_state_dict(content["ema"] or content["model"])
    except RuntimeError as error:
        raise ArtifactError(f"'{path}' belongs to another network: {error}") from error
    return content


def newest_valid(paths: Iterable[Path]) -> tuple[Path, dict[str, Any]]:
    """Returns the first valid checkpoint of `paths`, which are sorted from newest to oldest, and its content.

    A damaged checkpoint before it is renamed to `<name>.damaged`, and a warning is logged. Raises
    ArtifactError if none is valid, or if one is not damaged but cannot be read, such as a later format."""
    existing = [path for path in paths if path.exists()]
    for path, older in zip(existing, [*existing[1:], None], strict=True):
        try:
            return path, read_checkpoint(path)
        except DamagedCheckpointError as error:
            if older is None:
                raise
            renamed = path.with_name(f"{path.name}.damaged")
            path.replace(renamed)
            logger.warning(
                f"{error} It was renamed to '{renamed.name}'. Resuming from the previous one, '{older.name}'."
            )
    raise ArtifactError("No checkpoint was found.")


class DamagedCheckpointError(ArtifactError):
    """A checkpoint file that is truncated, changed, or not a checkpoint."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Checks the checksum and format of a file and returns its content, with tensors on the CPU.

    Raises DamagedCheckpointError if the file is damaged, and ArtifactError if it is of a later format or cannot be
    read."""
    try:
        content = load_checksummed(path, numpy_globals())
    except UnreadableError:
        raise
    except ArtifactError as error:
        raise DamagedCheckpointError(str(error)) from error.__cause__
    version = content.get("format") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise ArtifactError(f"'{path}' is of format {version}; this version of Sightline reads formats up to {FORMAT}.")
    complete = version in _READS and all(key in content for key in (*_KEYS, *_COUNTERS))
    complete = complete and all(isinstance(content.get(key, kind()), kind) for key, kind in _KINDS.items())
    if not complete or (version != 1 and not has_checksum(path)):
        raise DamagedCheckpointError(
            f"'{path}' is not a checkpoint of Sightline or is damaged: parts of it are missing."
        )
    read: dict[str, Any] = {"kind": None, "about": {}} | content
    return read


def numpy_globals() -> list[Any]:
    """Returns the types that pickled numpy arrays and scalars refer to. Loaders may store these in their position."""
    core = (np._core if hasattr(np, "_core") else np.core).multiarray  # NumPy 2, NumPy 1
    kinds = [kind for kind in vars(np.dtypes).values() if isinstance(kind, type) and issubclass(kind, np.dtype)]
    return [np.ndarray, np.dtype, core._reconstruct, core.scalar, *kinds]


def _check_length(path: Path, scheduler: Any, saved: Mapping[str, Any]) -> None:
    """Raises ArtifactError if the length of a schedule has changed, because its learning rates so far would differ."""
    for name in ("total_steps", "T_max", "total_iters"):
        if name in saved and saved[name] != getattr(scheduler, name, saved[name]):
            raise ArtifactError(
                f"'{path}' was trained with a {type(scheduler).__name__} of {name} {saved[name]}, which cannot be "
                f"changed to {getattr(scheduler, name)} by resuming. Keep {arg.max_epochs}, or start a new run with "
                f"the new length."
            )


def _copied(value: Any, seen: dict[Any, Tensor]) -> Any:
    """Copies all tensors and containers. A tensor that occurs twice, as tied weights do, is copied once."""
    if isinstance(value, Tensor):
        memory = (value.device, value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
        if memory not in seen or not value.data_ptr():
            seen[memory] = value.detach().to("cpu", copy=True)
        return seen[memory]
    if isinstance(value, dict):
        copied = copy.copy(value)  # includes the `_metadata` of a network's state dict
        for key, item in value.items():
            copied[key] = _copied(item, seen)
        return copied
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_copied(item, seen) for item in value)
    return copy.deepcopy(value)
