"""Runs one call of `train`: the learner's steps in the engine's training loop, with `model_dir` as run directory."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import Tensor

from sightline.core.errors import AnotherTrainingError, argument_names
from sightline.core.identity import Change, Identity
from sightline.core.locate import import_optional
from sightline.core.ranks import Ranks
from sightline.core.types import TrainState
from sightline.engine.runtime import Runtime
from sightline.engine.step_hooks import clip_in_step
from sightline.engine.termination import Terminated
from sightline.learner.batchlog import BatchLog
from sightline.learner.identity import NoteChanges, TrainingDescription
from sightline.learner.outputs import ALL, BEST, LOSS_PLOT, OutputsCallback
from sightline.learner.plan import LearnerError, TrainArguments, direction
from sightline.learner.state import LearnerState
from sightline.learner.task import LearnerTask, batches_of
from sightline.runs.directory import Run
from sightline.runs.recorders import CurveRecorder, JsonlRecorder
from sightline.session import CheckpointPolicy, FitOptions, Interface, ResumePolicy, SavedRun, Session

_ADVICE = "Restore the original settings to resume, or choose another model_dir to start over; nothing is overwritten."
INTERFACE = Interface(
    name="learner",
    again="the same call to train",
    advice=_ADVICE,
    without_checkpoint="Choose another model_dir; nothing is overwritten.",
    traces=(f"{ALL}/*.pth", f"{BEST}/*.pth", LOSS_PLOT.format("*")),
)
ARGUMENT_NAMES: dict[str, str | None] = {"directory": "model_dir", "max_epochs": "num_epochs", "weights": None}


def fit(learner: LearnerState, plan: TrainArguments) -> None:
    """Trains until `plan.num_epochs`, resuming from the newest checkpoint of the directory if there is one.

    If that checkpoint is of the last epoch, only restores the learner. When interrupted, raises KeyboardInterrupt, or
    Terminated for SIGTERM, after writing a checkpoint."""
    if plan.display_metrics or plan.save_metrics:
        import_optional("matplotlib.figure")  # fails now if it is missing, not after the first epoch
    learner.optimizer, learner.loss_fn, learner.clip_grads = plan.optimizer, plan.loss_fn, plan.clip_grads
    for split in ("train", "test", "val"):
        metrics = list(plan.metrics[split].values()) if split in plan.metrics else None
        setattr(learner, f"{split}_metrics", metrics)
    run = Run(plan.directory)
    learner.model_dir = str(run.path)
    task = LearnerTask(learner, plan.metrics, plan)
    clipping = (
        nullcontext() if plan.optimizer is None else clip_in_step(plan.optimizer, plan.clip_grads, plan.clip_params)
    )
    policy = ResumePolicy(finished="return", unstarted="restart")
    # a single process: the learner's callbacks may change the training and write files
    with (
        _translate_errors(),
        argument_names(ARGUMENT_NAMES),
        Session(run, INTERFACE, policy, report=print, ranks=Ranks()) as session,
        clipping,
    ):
        curves = [] if plan.tensorboard_log is None else [CurveRecorder(plan.tensorboard_log, by_epoch=True)]
        outputs = OutputsCallback(learner, plan, run.path, *curves)
        description = _check_resumable(session, learner, plan)
        state = TrainState(learner.model, plan.optimizer, plan.schedules(), config=description.saved())
        state.meters["train"] = task.meter()
        session.restore(state)
        if session.finished(state, plan.num_epochs):
            outputs.take_over(state)
            return
        if session.saved is not None:
            print(f"Resuming from '{session.saved.path}', after {state.epoch} of {plan.num_epochs} epochs.")
        training = FitOptions(
            task,
            state,
            batches_of("train_loader", plan.train_loader),
            {split: task.measured(split, loader) for split, loader in plan.evals},
            max_epochs=plan.num_epochs,
            runtime=Runtime(str(learner.device), seed=description.arguments["seed"], deterministic=False),
            meter=task.meter,
            eval_meter=task.eval_meter,
            writers=[*([BatchLog(plan.notebook_mode)] if plan.batch_log else ()), outputs, NoteChanges(description)],
            recorders=[JsonlRecorder(), *curves],
        )
        session.prepare(training, _checkpoint_policy(plan, save_first=session.saved is None))
        result = session.fit()
    if result.interrupted:
        print(f"Interrupted in epoch {result.epochs + learner.first_epoch}; train() resumes from '{run.last}'.")
        raise Terminated if result.signal == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Turns the error for a directory that holds another training into a LearnerError."""
    try:
        yield
    except AnotherTrainingError as error:
        raise LearnerError(str(error)) from error


def _checkpoint_policy(plan: TrainArguments, save_first: bool) -> CheckpointPolicy:
    """The best checkpoint is chosen by the deciding metric.

    Most loaders cannot resume in the middle of an epoch; that is documented, so there is no warning."""
    split, name = plan.deciding or ("", "")
    mode = direction(plan.metrics[split][name]) if split else "max"
    return CheckpointPolicy(f"{split}_{name}", mode, save_first=save_first, warn=False)


def _check_resumable(session: Session, learner: LearnerState, plan: TrainArguments) -> TrainingDescription:
    """Returns the description of this training, after comparing it with the one in the directory.

    Raises AnotherTrainingError if they differ. Prints once what could not be compared."""
    description = TrainingDescription(learner, plan)
    saved, arguments = session.saved, description.arguments
    if saved is None:
        return description
    arguments["seed"] = saved.config["seed"]
    session.check(Identity(arguments), {name: saved.config[name] for name in arguments if name in saved.config})
    session.settle(_shape_changes(saved, learner))
    done = saved.position.epoch
    if done > plan.num_epochs:
        raise LearnerError(
            f"num_epochs: expected an integer >= {done}, the epochs already done in '{session.run.path}', found "
            f"{plan.num_epochs}. Increase num_epochs, which is the total, or choose another model_dir to start over; "
            f"nothing is overwritten."
        )
    changes, notes = description.compare(saved.config, done)
    session.settle(changes)
    if session.saved is None:  # the training starts over
        return TrainingDescription(learner, plan)
    if notes:
        print(f"Not compared with the training in '{session.run.path}': {'; '.join(notes)}")
    return description


def _shape_changes(saved: SavedRun, learner: LearnerState) -> list[Change]:
    """The first tensor of the network whose shape differs from the checkpoint."""
    before, now = (
        {key: list(value.shape) for key, value in state.items() if isinstance(value, Tensor)}
        for state in (saved.content["model"], learner.model.state_dict())
    )
    return Identity({"network": {"@parameters": now}}).compare({"network": {"@parameters": before}})[:1]
