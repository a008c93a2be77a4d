"""A call of `train`, put together: the learner's steps in the engine's loop, with its checkpoints."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sightline.engine.checkpoint import newest_whole, restore
from sightline.engine.checkpointing import Checkpointer, kept
from sightline.engine.hooks import clipping
from sightline.engine.runtime import Runtime
from sightline.engine.signals import StopOnSignal
from sightline.engine.termination import Terminated
from sightline.engine.trainer import Trainer
from sightline.errors import ConfigError
from sightline.learner.batchlog import BatchLog
from sightline.learner.identity import Identity, NoteChanges
from sightline.learner.leaves import ALL, BEST, LOSS_PLOT, Leaves
from sightline.learner.plan import LearnerError, Plan, direction
from sightline.learner.plots import check_plots
from sightline.learner.task import LearnerTask, batches_of
from sightline.runs.directory import Run
from sightline.runs.recorders import JsonlRecorder
from sightline.types import TrainState
from sightline.wording import reworded

if TYPE_CHECKING:
    from sightline.learner.base import BaseModel

DOOR = "learner"
_MINUTES = 10.0
_FEW = 3
_WORDS = {"run.dir": "model_dir", "`sightline resume`": "the same call of train"}
_ADVICE = "Use what it began with, or choose another model_dir; nothing is written over."
_CYCLED = ("params", "lr", "betas", "momentum", "max_momentum", "base_momentum", "max_lr", "min_lr")
"""What a schedule can change in an optimiser as it goes; where there is none that does, `Identity` compares it."""


def fit(learner: BaseModel, plan: Plan) -> None:
    """Trains, from the directory's last checkpoint on where there is one; where that is of the last epoch, the learner
    gets what it had then. When it is interrupted, raises KeyboardInterrupt, or Terminated, after the checkpoint."""
    if plan.display_metrics or plan.save_metrics:
        check_plots()
    learner.optimizer, learner.loss_fn, learner.clip_grads = plan.optimizer, plan.loss_fn, plan.clip_grads
    for split in ("train", "test", "val"):
        metrics = list(plan.metrics[split].values()) if split in plan.metrics else None
        setattr(learner, f"{split}_metrics", metrics)
    task = LearnerTask(learner, plan.metrics, plan)
    run = Run(plan.directory)
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"model_dir: '{run.path}' cannot be made: {error.strerror}.") from error
    learner.model_dir = str(run.path)
    clipped = nullcontext() if plan.optimizer is None else clipping(plan.optimizer, plan.clip_grads, plan.clip_params)
    with reworded(_WORDS), run.locked(), clipped:
        leaves = Leaves(learner, plan, run.path)
        trainer, runtime = _trainer(learner, plan, task, run, leaves)
        if trainer.state.epoch == plan.num_epochs:
            leaves.take_over(trainer.state)
            print(
                f"'{run.path}' is trained already, {plan.num_epochs} epochs; to go on with it give a larger "
                f"num_epochs, to begin anew another model_dir"
            )
            return
        run.sweep()
        learner.batch_starts = _batch_starts(learner)
        try:
            with runtime.active():
                result = trainer.fit()
        finally:
            if trainer.recorder is not None:
                with suppress(OSError):  # a full disk, which the line that was written last has told of
                    trainer.recorder.close()
            learner.batch_starts = []
    if result.interrupted:
        print(f"interrupted in epoch {result.epochs + learner.first_epoch}; train() goes on from '{run.last}'")
        raise Terminated if result.signal == signal.SIGTERM else KeyboardInterrupt


def _trainer(learner: BaseModel, plan: Plan, task: LearnerTask, run: Run, leaves: Leaves) -> tuple[Trainer, Runtime]:
    found = _newest(run)
    began = described(learner, plan)
    identity = Identity(learner, plan)
    place = None if found is None else (found[1]["step"], found[1]["epoch"])
    if found is not None:
        try:
            check_same(run, found[1], began, plan, learner)
            check_identity(run, found[1], identity)
        except LearnerError:
            if found[1]["step"] or found[1]["config"].get("door") != DOOR:
                raise
            found, began = None, described(learner, plan)
            identity.changed.clear()
            print(f"'{run.path}' holds a training without a step; it starts over with the arguments of this call")
    began |= identity.saved()
    state = TrainState(learner.model, plan.optimizer, plan.schedules(), config=began)
    split, name = plan.deciding or ("", "")
    keeper = _Keeper(
        run.last,
        run.best,
        f"{split}_{name}",
        direction(plan.metrics[split][name]) if split else "max",
        every_minutes=_MINUTES,
        about={"door": DOOR},
        save_first=found is None,
    )
    runtime = Runtime(str(learner.device), seed=began["seed"], deterministic=False)
    trainer = Trainer(
        task,
        state,
        batches_of("train_loader", plan.train_loader),
        {split: task.measured(split, loader) for split, loader in plan.evals},
        max_epochs=plan.num_epochs,
        callbacks=[
            *([BatchLog(plan.notebook_mode)] if plan.batch_log else ()),
            leaves,
            NoteChanges(identity),
            keeper,
            StopOnSignal(),  # last: it hands the signals back when all is saved
        ],
        recorder=JsonlRecorder(run.log, place),
        runtime=runtime,
        meter=task.meter,
        eval_meter=task.eval_meter,
    )
    if found is not None:
        restore(found[1], state, found[0])
    if found is not None and state.epoch < plan.num_epochs:
        print(f"going on from '{found[0]}', after {state.epoch} of {plan.num_epochs} epochs")
    return trainer, runtime


class _Keeper(Checkpointer):
    """Says nothing of loaders that cannot begin in mid-epoch: nearly all that come here are such, and it is
    documented that an epoch is then begun anew."""

    def on_fit_start(self, trainer: Trainer) -> None:
        """Saves a run's beginning."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"\w+ cannot begin in the middle of an epoch", UserWarning)
            super().on_fit_start(trainer)


def described(learner: BaseModel, plan: Plan) -> dict[str, Any]:
    """What makes a training the one it is, as far as it can be said in plain values."""
    groups = []
    for group in plan.optimizer.param_groups if plan.optimizer is not None else ():
        group.setdefault("initial_lr", group["lr"])  # which a schedule leaves alone
        groups.append({name: repr(value) for name, value in sorted(group.items()) if name not in _CYCLED})
    return {
        "door": DOOR,
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


def check_same(run: Run, content: Mapping[str, Any], began: dict[str, Any], plan: Plan, learner: BaseModel) -> None:
    """Raises LearnerError when the checkpoint is of another training, or further than this one goes. Takes over its
    seed."""
    then = content["config"]
    if then.get("door") != DOOR:
        raise LearnerError(f"model_dir: '{run.path}' holds a run that train() did not begin. Choose another model_dir.")
    began["seed"] = then["seed"]
    for name, now in began.items():
        if then.get(name) != now:
            raise LearnerError(
                f"model_dir: '{run.path}' holds a training whose {name} was {_told(then.get(name))}; now it is "
                f"{_told(now)}. {_ADVICE}"
            )
    shapes = [
        {key: tuple(value.shape) for key, value in state.items() if isinstance(value, Tensor)}
        for state in (content["model"], learner.model.state_dict())
    ]
    if shapes[0] != shapes[1]:
        differs = next(key for key in {**shapes[0], **shapes[1]} if shapes[0].get(key) != shapes[1].get(key))
        raise LearnerError(
            f"model_dir: '{run.path}' holds a training of another network: '{differs}' was "
            f"{shapes[0].get(differs, 'not there')}; now it is {shapes[1].get(differs, 'not there')}. {_ADVICE}"
        )
    if content["epoch"] > plan.num_epochs:
        raise LearnerError(
            f"model_dir: the training in '{run.path}' has done {content['epoch']} epochs, and num_epochs, the number "
            f"of all epochs, is {plan.num_epochs}. {_ADVICE}"
        )


def check_identity(run: Run, content: Mapping[str, Any], identity: Identity) -> None:
    """Raises LearnerError with what differs from the training of the checkpoint, and prints once what could not be
    compared."""
    differing, notes = identity.compare(content["config"], content["epoch"])
    if differing:
        more = f"; and {len(differing) - _FEW} more" if len(differing) > _FEW else ""
        raise LearnerError(
            f"model_dir: '{run.path}' holds another training. {'; '.join(differing[:_FEW])}{more}. {_ADVICE}"
        )
    if notes:
        print(f"not compared with the training in '{run.path}': {'; '.join(notes)}")


def _newest(run: Run) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint. Raises LearnerError where there are models and none: another program's, perhaps."""
    files = kept(run.last)
    if files:
        return newest_whole(files, print)
    for pattern in (f"{ALL}/*.pth", f"{BEST}/*.pth", LOSS_PLOT.format("*")):
        there = next(run.path.glob(pattern), None)
        if there is not None:
            raise LearnerError(
                f"model_dir: there is '{there}' of another training, without the checkpoint it could be gone on from. "
                f"Choose another model_dir; nothing is written over."
            )
    return None


def _batch_starts(learner: BaseModel) -> list[Any]:
    first = learner.first_epoch
    starts: list[Any] = []
    if learner.overrides("on_batch_start"):
        starts.append(lambda epoch, batch: learner.on_batch_start(epoch + first, batch + first))
    added = learner.added.get("batch_start", ())
    starts.extend(lambda epoch, batch, call=call: call(epoch + 1, batch + 1) for call in added)
    return starts


def _told(value: Any) -> str:
    return ", ".join(map(_told, value)) or "none" if isinstance(value, list) else str(value)
