"""One call of `train`: the learner's steps in the engine's loop, in a session on `model_dir`."""

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

_ADVICE = "Use what it began with to resume it, or choose another model_dir to start over; nothing is overwritten."
INTERFACE = Interface(
    name="learner",
    again="the same call of train",
    advice=_ADVICE,
    without_checkpoint="Choose another model_dir; nothing is overwritten.",
    traces=(f"{ALL}/*.pth", f"{BEST}/*.pth", LOSS_PLOT.format("*")),
)
ARGUMENT_NAMES: dict[str, str | None] = {"directory": "model_dir", "max_epochs": "num_epochs", "weights": None}


def fit(learner: LearnerState, plan: TrainArguments) -> None:
    """Trains, from the directory's newest checkpoint on where there is one; where that is of the last epoch, the
    learner gets what it had then. When it is interrupted, raises KeyboardInterrupt, or Terminated, after the
    checkpoint."""
    if plan.display_metrics or plan.save_metrics:
        import_optional("matplotlib.figure")  # now, and not after the first epoch
    learner.optimizer, learner.loss_fn, learner.clip_grads = plan.optimizer, plan.loss_fn, plan.clip_grads
    for split in ("train", "test", "val"):
        metrics = list(plan.metrics[split].values()) if split in plan.metrics else None
        setattr(learner, f"{split}_metrics", metrics)
    run = Run(plan.directory)
    learner.model_dir = str(run.path)
    task = LearnerTask(learner, plan.metrics, plan)
    clipped = (
        nullcontext() if plan.optimizer is None else clip_in_step(plan.optimizer, plan.clip_grads, plan.clip_params)
    )
    policy = ResumePolicy(finished="return", unstarted="restart")
    # one process trains: the learner's callbacks change the training and write files at once
    with (
        _translate_errors(),
        argument_names(ARGUMENT_NAMES),
        Session(run, INTERFACE, policy, ranks=Ranks()) as session,
        clipped,
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
    """A directory that holds another training is a wrong argument."""
    try:
        yield
    except AnotherTrainingError as error:
        raise LearnerError(str(error)) from error


def _checkpoint_policy(plan: TrainArguments, save_first: bool) -> CheckpointPolicy:
    """The best model is that of the deciding metric. Nearly all loaders that come here cannot begin in the middle of
    an epoch, which is documented, so nobody is warned of it."""
    split, name = plan.deciding or ("", "")
    mode = direction(plan.metrics[split][name]) if split else "max"
    return CheckpointPolicy(f"{split}_{name}", mode, save_first=save_first, warn=False)


def _check_resumable(session: Session, learner: LearnerState, plan: TrainArguments) -> TrainingDescription:
    """What makes this training the one it is; raises AnotherTrainingError where the directory holds another one. Prints
    once what could not be compared."""
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
            f"model_dir: the training in '{session.run.path}' has done {done} epochs, and num_epochs, the number of "
            f"all epochs, is {plan.num_epochs}. {_ADVICE}"
        )
    changes, notes = description.compare(saved.config, done)
    session.settle(changes)
    if session.saved is None:  # it starts over
        return TrainingDescription(learner, plan)
    if notes:
        print(f"Not compared with the training in '{session.run.path}': {'; '.join(notes)}")
    return description


def _shape_changes(saved: SavedRun, learner: LearnerState) -> list[Change]:
    """The first tensor of the network that has another shape."""
    was, now = (
        {key: list(value.shape) for key, value in state.items() if isinstance(value, Tensor)}
        for state in (saved.content["model"], learner.model.state_dict())
    )
    return Identity({"network": {"@parameters": now}}).compare({"network": {"@parameters": was}})[:1]
