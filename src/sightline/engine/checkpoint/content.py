"""TrainState <-> file. Atomic, sealed with a checksum, and loadable with `weights_only`: no pickled code."""

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.core.errors import ArtifactError, arg
from sightline.core.types import TrainState
from sightline.engine.checkpoint.file import UnreadableError, has_checksum, load_checksummed, save_checksummed

FORMAT = 2
_READS = (1, 2)  # 1 had no seal, no kind and nothing about the run
_KEYS = ("model", "optimizer", "schedules", "ema", "scaler", "meters", "config")
_KINDS: dict[str, type] = {
    **dict.fromkeys(("model", "meters", "config", "callbacks", "loader", "about"), dict),
    **dict.fromkeys(("schedules", "history"), list),
    **dict.fromkeys(("epoch", "step", "batch"), int),
    "stopped": bool,
}
_COUNTERS = ("epoch", "step", "batch", "best", "stopped", "callbacks", "history", "loader")


def checkpoint_content(state: TrainState, kind: str = "last", about: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All of `state` as it is now, in copies on the CPU: training may go on while it is written.

    `kind` is what the file is for, "last" to go on from or "best" to export; `about` says where it comes from."""
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
    """About how large a checkpoint of this content is, in bytes."""
    if isinstance(content, Tensor):
        return content.nbytes
    if isinstance(content, Mapping):
        return sum(64 + content_bytes(value) for value in content.values())
    if isinstance(content, list | tuple):
        return sum(16 + content_bytes(value) for value in content)
    return len(content) if isinstance(content, str | bytes) else 16


def save_checkpoint(path: Path, state: TrainState) -> None:
    """Writes all of `state`; a reader sees the old file or the new one, never a part."""
    save_checksummed(path, checkpoint_content(state))


def load_checkpoint(path: Path, state: TrainState) -> None:
    """`restore_state` of a file."""
    restore_state(read_checkpoint(path), state, path)


def restore_state(content: Mapping[str, Any], state: TrainState, path: Path) -> None:
    """Puts what was read from `path` into `state`, whose model, optimiser and schedules are made of the same config.

    Raises ArtifactError when it is of another network or optimiser, and where only one of the two has an average or a
    scaler."""
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
        for name, saved in content["meters"].items():
            state.meters[name].load_state_dict(saved)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ArtifactError(f"'{path}' belongs to another network, optimiser or schedule: {error}") from error
    for name in _COUNTERS:
        setattr(state, name, content[name])


def load_weights(path: Path, model: torch.nn.Module) -> dict[str, Any]:
    """Only the weights of a checkpoint that are evaluated: their average where it has one, else the model's. Gives the
    whole content."""
    content = read_checkpoint(path)
    try:
        model.load_state_dict(content["ema"] or content["model"])
    except RuntimeError as error:
        raise ArtifactError(f"'{path}' belongs to another network: {error}") from error
    return content


def newest_valid(paths: Iterable[Path], tell: Callable[[str], None]) -> tuple[Path, dict[str, Any]]:
    """The first of `paths`, newest first, that is whole, and its content. Each one before it is damaged: it is renamed
    to `<name>.damaged`, and `tell` is called with a line that says so.

    Raises ArtifactError when none is whole, and for one that is whole and cannot be read, such as a later format."""
    there = [path for path in paths if path.exists()]
    for path, older in zip(there, [*there[1:], None], strict=True):
        try:
            return path, read_checkpoint(path)
        except DamagedCheckpointError as error:
            if older is None:
                raise
            aside = path.with_name(f"{path.name}.damaged")
            path.replace(aside)
            tell(f"{error} It is kept as '{aside.name}'; going on from '{older.name}', the one before it.")
    raise ArtifactError("there is no checkpoint.")


class DamagedCheckpointError(ArtifactError):
    """A checkpoint that is not whole: cut off, changed, or no checkpoint at all."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The file's content, on the CPU, after a check of its checksum and its format. Raises ArtifactError, a
    DamagedCheckpointError where the file is not whole."""
    try:
        content = load_checksummed(path, numpy_globals())
    except UnreadableError:
        raise
    except ArtifactError as error:
        raise DamagedCheckpointError(str(error)) from error.__cause__
    version = content.get("format") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise ArtifactError(f"'{path}' is of format {version}; this version of Sightline reads formats up to {FORMAT}.")
    whole = version in _READS and all(key in content for key in (*_KEYS, *_COUNTERS))
    whole = whole and all(isinstance(content.get(key, kind()), kind) for key, kind in _KINDS.items())
    if not whole or (version != 1 and not has_checksum(path)):
        raise DamagedCheckpointError(
            f"'{path}' is no checkpoint of Sightline, or a damaged one: parts of it are missing."
        )
    read: dict[str, Any] = {"kind": None, "about": {}} | content
    return read


def numpy_globals() -> list[Any]:
    """What numpy's arrays and numbers are made of: plain values, in which loaders keep their place."""
    core = (np._core if hasattr(np, "_core") else np.core).multiarray  # NumPy 2, NumPy 1
    kinds = [kind for kind in vars(np.dtypes).values() if isinstance(kind, type) and issubclass(kind, np.dtype)]
    return [np.ndarray, np.dtype, core._reconstruct, core.scalar, *kinds]


def _check_length(path: Path, scheduler: Any, saved: Mapping[str, Any]) -> None:
    """A schedule that knows its end cannot be lengthened halfway: its learning rates so far were another curve's."""
    for name in ("total_steps", "T_max", "total_iters"):
        if name in saved and saved[name] != getattr(scheduler, name, saved[name]):
            raise ArtifactError(
                f"'{path}' was trained with a {type(scheduler).__name__} of {name} {saved[name]}, which cannot become "
                f"{getattr(scheduler, name)} halfway. Keep {arg.max_epochs}, or start a new run with the new length."
            )


def _copied(value: Any, seen: dict[Any, Tensor]) -> Any:
    """Copies of all tensors and containers; a tensor that is there twice, as tied weights are, stays one."""
    if isinstance(value, Tensor):
        place = (value.device, value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
        if place not in seen or not value.data_ptr():
            seen[place] = value.detach().to("cpu", copy=True)
        return seen[place]
    if isinstance(value, dict):
        made = copy.copy(value)  # with the versions that a network's state has beside its tensors
        for key, item in value.items():
            made[key] = _copied(item, seen)
        return made
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_copied(item, seen) for item in value)
    return copy.deepcopy(value)
