"""Decides whether a call to `train` continues the training in a directory, and describes the differences.

Compared are the network, the loss, the optimiser, the schedule, the steps, the metrics and the loaders with their data.
Settings that only change where training runs and what it writes are not: device, worker processes, plots, logs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.core.identity import MISSING, Change, Path, describe_change, differences, set_at_path
from sightline.core.locate import current_names
from sightline.core.types import TrainState
from sightline.engine.trainer import Callback, Trainer
from sightline.learner.bytecode import python_version, reads_of
from sightline.learner.contents import MANY, Digests, has_files
from sightline.learner.description import Describer
from sightline.learner.plan import TrainArguments
from sightline.learner.state import LearnerState
from sightline.learner.task import EVAL, TRAIN, VALIDATE, find_method

VERSION = 2
_CYCLED = ("params", "lr", "betas", "momentum", "max_momentum", "base_momentum", "max_lr", "min_lr")
"""Optimiser settings that a schedule can change; `_optimizer` describes some of them if no schedule does."""
_GROUP = ("max_lr", "min_lr", "max_momentum", "base_momentum")
_LENGTHS = ("total_steps", "T_max", "total_iters")


def describe_arguments(learner: LearnerState, plan: TrainArguments) -> dict[str, Any]:
    """The settings that identify a training, as far as they are plain values."""
    groups = []
    for group in plan.optimizer.param_groups if plan.optimizer is not None else ():
        group.setdefault("initial_lr", group["lr"])  # which a schedule does not change
        groups.append({name: repr(value) for name, value in sorted(group.items()) if name not in _CYCLED})
    return {
        "seed": torch.initial_seed() % 2**63,
        "optimizer": type(plan.optimizer).__name__,
        "optimizer's settings": groups,
        "loss_fn": getattr(plan.loss_fn, "__qualname__", type(plan.loss_fn).__name__),
        "lr_scheduler": type(plan.lr_scheduler).__name__,
        **{f"{split}_metrics": list(plan.metrics.get(split, ())) for split in ("train", "test", "val")},
        "clip_grads": repr(plan.clip_grads),
        "clip_params": repr(plan.clip_params),
        "half()": learner.fp16_mode,
    }


def describe_settings(learner: LearnerState, plan: TrainArguments, digests: Digests) -> dict[str, Any]:
    """Describes everything that identifies a training except its data. `digests` is a cache, which is extended."""
    references = {"the learner": learner, "the optimizer": plan.optimizer}
    references |= {name: getattr(plan, name) for name in ("train_loader", "test_loader", "val_loader")}
    named = references | {"the network": learner.model}

    def described(value: Any, **how: Any) -> Any:
        return Describer(named, digests, **how).value(value)

    schedule, steps = plan.lr_schedule, _steps(learner)
    calls = reads_of(type(learner), [getattr(step, "__name__", "") for step in steps.values()])
    describer = Describer(named, digests)
    parts = {
        "network": Describer(references, digests, calls=calls).value(learner.model),
        "loss_fn": described(plan.loss_fn, values=True),
        "optimizer": _optimizer(learner, plan),
        "lr_schedule": None if schedule is None else {"function": described(schedule), "late": plan.lr_schedule_late},
        "lr_scheduler": None if plan.lr_scheduler is None else _scheduler(plan, named),
        "steps": {name: describer.value(step) for name, step in steps.items()},
        "input_hooks": [described(hook) for hook in learner.input_hooks],
    }
    for split, metrics in plan.metrics.items():
        parts[f"{split}_metrics"] = {name: described(metric) for name, metric in metrics.items()}
    return _plain(parts)


def describe_loaders(plan: TrainArguments, digests: Digests) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Returns (descriptions of the loaders by argument name, what cannot be compared of each).

    A dataset that two loaders share is read once."""
    loaders, unknown = {}, {}
    for split in ("train", "test", "val"):
        name = f"{split}_loader"
        loader = getattr(plan, name)
        if loader is not None:
            describer = Describer(digests=digests)
            loaders[name] = describer.loader(loader)
            unknown[name] = list(dict.fromkeys(describer.unknown))
    return _plain(loaders), unknown


class TrainingDescription:
    """One call to `train` as plain values, which are compared with those in the config of a checkpoint.

    `arguments` are plain values by name; `settings` and `loaders` are descriptions. Arrays of more than `large` bytes
    are read only once."""

    def __init__(self, learner: LearnerState, plan: TrainArguments, large: int = 16 << 20):
        self._learner, self._plan = learner, plan
        digests: Digests = {}
        self.arguments = describe_arguments(learner, plan)
        self.settings = describe_settings(learner, plan, digests)
        self._large = {key: entry for key, entry in digests.items() if _is_large(entry[0], large)}
        self.loaders, self.unknown = describe_loaders(plan, digests)
        # reading large arrays, many small arrays or long containers again at every epoch would be slow, so changes to
        # them in place are not noticed
        is_small = sum(size for entry in digests.values() if (size := _bytes(entry[0])) <= large) <= large
        self._known = {key: entry for key, entry in digests.items() if _is_large(entry[0], large if is_small else -1)}
        self.changed: dict[Path, Any] = {}

    def saved(self) -> dict[str, Any]:
        """Returns the entries for a checkpoint's config; long ones are JSON strings, which are cheap to copy."""
        description = {
            "version": VERSION,
            "python": python_version(),
            "num_epochs": self._plan.num_epochs,
            "parts": self.settings | self.loaders,
        }
        changed = [[*path, value] for path, value in self.changed.items()]
        return self.arguments | {"identity": json.dumps(description), "changed": json.dumps(changed)}

    def compare(self, config: Mapping[str, Any], epoch: int) -> tuple[list[Change], list[str]]:
        """Compares with the `config` of a checkpoint, in which `epoch` epochs are done.

        Returns (the differences, descriptions of what could not be compared)."""
        then = current_names(json.loads(config.get("identity", "{}")))
        if then.get("version") != VERSION:
            return [], ["network, loss, schedule and data (the checkpoint's version did not record them)"]
        for *path, value in json.loads(config.get("changed", "[]")):
            self.changed[tuple(path)] = value
        notes = [f"{name}: {text}" for name, texts in self.unknown.items() for text in texts]
        same_python = then["python"] == python_version()
        if not same_python:
            notes.append(f"the code of functions and classes ({then['python']} then, {python_version()} now)")
        differing = []
        now = self.settings | self.loaders
        for name in now:
            if name not in then["parts"]:
                notes.append(name)
                continue
            for path, was, value in list(differences(then["parts"][name], now[name], (name,), same_python)):
                if path[0] == "lr_scheduler" and _longer(then["parts"][name], now[name]):
                    continue  # raises an error later, when the checkpoint is restored
                if path == ("lr_schedule",) and was is None and epoch == then["num_epochs"] < self._plan.num_epochs:
                    notes.append(f"lr_schedule (there was none up to epoch {epoch})")
                elif path not in self.changed:
                    differing.append(Change(path, was, value))
                else:
                    if self.changed[path] != value:
                        notes.append(f"{describe_change(path, was, value)} (training changes it)")
                    parts = self.settings if name in self.settings else self.loaders
                    set_at_path(parts, path, was)  # keeps the value that training started with
        return differing, notes

    def note_changes(self) -> None:
        """Adds to `changed` what training has changed since the call started; the next call does not compare it.

        Examples are a lowered dropout rate, unfrozen layers and a stronger transform."""
        now = describe_settings(self._learner, self._plan, dict(self._large))
        now |= describe_loaders(self._plan, dict(self._known))[0]
        for path, _, value in differences(self.settings | self.loaders, now):
            self.changed[path] = None if value is MISSING else value


class NoteChanges(Callback):
    """Records in the config of checkpoints what training itself changed.

    It must run after the learner's callbacks and before the checkpointer."""

    def __init__(self, description: TrainingDescription):
        self._description = description

    def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        """Records changes before the epoch's checkpoint is written."""
        self._note(trainer.state)

    def on_checkpoint(self, trainer: Trainer) -> None:
        """Records changes before a requested checkpoint is written."""
        self._note(trainer.state)

    def on_fit_end(self, trainer: Trainer) -> None:
        """Records changes before the checkpoint of an interrupted training is written."""
        self._note(trainer.state)

    def _note(self, state: TrainState) -> None:
        self._description.note_changes()
        state.config |= self._description.saved()


def _optimizer(learner: LearnerState, plan: TrainArguments) -> Any:
    """The class of the optimiser, the parameters in each group, and the momentum if no schedule changes it.

    The other settings are part of `describe_arguments`."""
    optimizer = plan.optimizer
    if optimizer is None:
        return None
    names = {id(value): name for name, value in learner.model.named_parameters()}
    if isinstance(plan.loss_fn, nn.Module):
        names |= {id(value): f"loss_fn.{name}" for name, value in plan.loss_fn.named_parameters()}
    describer = Describer()
    description = describer.object(optimizer)
    groups = []
    for group in optimizer.param_groups:
        parameters = [names.get(id(value), "a parameter of none") for value in group["params"]]
        cycled = plan.lr_scheduler is not None and "max_momentum" in group
        momentum = {} if cycled else {name: group[name] for name in ("momentum", "betas") if name in group}
        groups.append({"count": len(parameters), "parameters": describer.value(parameters)} | describer.value(momentum))
    return description | {"groups": groups}


def _scheduler(plan: TrainArguments, named: Mapping[str, object]) -> Any:
    description = Describer(named).value(plan.lr_scheduler)
    groups = plan.optimizer.param_groups if plan.optimizer is not None else ()
    rates = [{name: group[name] for name in _GROUP if name in group} for group in groups]
    return description | {"groups": Describer().value(rates)}


def _steps(learner: LearnerState) -> dict[str, Any]:
    """The step methods that the learner defines, by name."""
    methods = {
        name: find_method(learner, *spellings)
        for name, spellings in (("train", TRAIN), ("eval", EVAL), ("val", VALIDATE))
    }
    return {name: step for name, step in methods.items() if step is not None}


def _bytes(value: Any) -> int:
    """The size of an array in bytes; 0 for any other object."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return value.nbytes if isinstance(value, np.ndarray) else 0


def _is_large(value: Any, more_than: int) -> bool:
    """Whether reading a value at every epoch would be slow: an array of more bytes, a long container, or files."""
    if isinstance(value, Tensor | np.ndarray):
        return _bytes(value) > more_than
    return not hasattr(value, "__len__") or len(value) > MANY or has_files(value)


def _longer(was: Any, now: Any) -> bool:
    """Whether a schedule of fixed length has a different length."""
    kinds = [(description or {}).get("@settings", {}) for description in (was, now)]
    return any(kinds[0].get(name) != kinds[1].get(name) for name in _LENGTHS)


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """Converts a description to the form in which a checkpoint returns it."""
    plain: dict[str, Any] = json.loads(json.dumps(value))
    return plain
