"""Session: one process's turn at a run, whichever interface asked for it and whoever owns the training step.

A session takes the directory's lock, finds its newest valid checkpoint, says whether the training that is asked for is
the one the directory holds, restores it, wires recorders and callbacks, trains, runs what comes after training, and
closes everything, whatever happens:

    with Session(run, PARAMS, ResumePolicy(finished="return")) as session:
        session.check(identity, saved_settings)      # what can be compared before the parts are built, then the rest
        session.restore(state)
        session.prepare(FitOptions(task, state, batches, evals, max_epochs=10), CheckpointPolicy(monitor="val_loss"))
        result = session.fit()

A loop that is not the engine's, such as one of Keras or plain NumPy, runs in `Session.drive`."""

from __future__ import annotations

import random
import secrets
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch

from sightline.core.errors import (
    AnotherTrainingError,
    ArtifactError,
    ConfigError,
    RunFailedError,
    SightlineError,
    arg,
    first_line,
    join_names,
    render_hint,
)
from sightline.core.identity import Change, Identity
from sightline.core.ranks import Ranks
from sightline.core.types import Batch, FitResult, Recorder, Task, TrainState
from sightline.engine.checkpoint.content import newest_valid, restore_state
from sightline.engine.checkpoint.restore import restore_with_changes
from sightline.engine.checkpoint.writer import Checkpointer, kept
from sightline.engine.driver import Driver, LoopHooks, Stateful
from sightline.engine.runtime import Runtime
from sightline.engine.signals import StopOnSignal, checkpoint_on_request
from sightline.engine.termination import Terminated, signal_number
from sightline.engine.trainer import Callback, Trainer, check_callbacks
from sightline.metrics.meter import Meter
from sightline.runs.directory import Run
from sightline.runs.environment import collect_environment
from sightline.runs.heartbeat import Heartbeat
from sightline.runs.recorders import RecorderList, as_recorder

_FEW = 3
_SMALL = ("about", "config", "step", "epoch")


@dataclass(frozen=True)
class Interface:
    """An interface, for checkpoints and messages: `name` is written into its checkpoints, `again` is how a training is
    resumed, `advice` is what to do where the directory holds another training, `without_checkpoint` where it holds one
    that cannot be resumed; `traces` are patterns of the files that show the latter."""

    name: str
    again: str
    advice: str
    without_checkpoint: str
    traces: tuple[str, ...]


@dataclass(frozen=True)
class ResumePolicy:
    """What to do with a directory that holds a run. `finished`: one whose epochs are all done is returned as it is, or
    what comes after training is done once more. `unstarted`: one without a step, of other settings, is refused or
    starts over with the new ones. `allow_drift` resumes with other settings."""

    finished: Literal["return", "repeat"] = "repeat"
    unstarted: Literal["refuse", "restart"] = "refuse"
    allow_drift: bool = False


class Position(NamedTuple):
    """Where a checkpoint stands: the updates of the run, and the epochs that are done."""

    step: int
    epoch: int


@dataclass(frozen=True)
class SavedRun:
    """The newest valid checkpoint of a run: its file and what is in it."""

    path: Path
    content: Mapping[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """What the training was made from, as its interface wrote it."""
        found: dict[str, Any] = self.content["config"]
        return found

    @property
    def position(self) -> Position:
        """Where it stands."""
        return Position(self.content["step"], self.content["epoch"])

    @property
    def interface(self) -> str:
        """The name of the interface that wrote it. Earlier versions did not note it; their configs tell them apart."""
        named: str | None = self.content["about"].get("interface")
        return named or ("learner" if "door" in self.config else "params" if "params" in self.config else "config")


@dataclass(frozen=True)
class CheckpointPolicy:
    """When checkpoints are written and which are kept, see `Checkpointer`. `requested` is called after one that was
    asked for; `warn` says whether to warn of a loader that cannot begin in the middle of an epoch."""

    monitor: str
    mode: str = "max"
    every_steps: int | None = None
    every_minutes: float | None = 10.0
    keep: int = 2
    keep_every: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    requested: Callable[[], None] | None = None
    save_first: bool = False
    warn: bool = True


@dataclass(frozen=True)
class FitOptions:
    """What is trained, and for how long: the arguments of `Trainer`. `callbacks` run in every process and may change
    the training; `writers` write files or print, before the checkpoint that says so: rank 0 alone has them; `observers`
    do after it."""

    task: Task
    state: TrainState
    batches: Iterable[Batch]
    evals: Mapping[str, Iterable[Batch]]
    max_epochs: int
    eval_every: int | Callable[[int], bool] = 1
    log_every: int = 50
    divergence_threshold: float | None = None
    runtime: Runtime | None = None
    meter: Callable[[], Meter] = Meter
    eval_meter: Callable[[], Meter] | None = None
    callbacks: Sequence[Callback] = ()
    writers: Sequence[Callback] = ()
    observers: Sequence[Callback] = ()
    recorders: Sequence[Recorder] = ()


class Session:
    """One process's turn at a run. `run` is the directory to train in, made where it is missing; None for one that
    `create` makes when all else is ready. Entered, it holds the directory's lock, and `saved` is the newest valid
    checkpoint, or None where training begins.

    `report` is called with what the session did, a line each; `warn`, which writes to standard error by default, with
    what it found wrong and could make up for, such as a damaged checkpoint. `ranks` are by default those of the
    environment: rank 0 locks, writes and chooses the checkpoint, the others read it. Without `signals`, Ctrl-C and
    SIGTERM are left to the caller.

    Entering raises ArtifactError when another process trains there, when no checkpoint is valid, and when the directory
    holds files of a training that no checkpoint belongs to."""

    def __init__(
        self,
        run: Run | None,
        interface: Interface,
        resume: ResumePolicy | None = None,
        *,
        report: Callable[[str], None] = print,
        warn: Callable[[str], None] | None = None,
        ranks: Ranks | None = None,
        signals: bool = True,
    ):
        self.interface = interface
        self.policy = resume or ResumePolicy()
        self.ranks = Ranks.from_environment() if ranks is None else ranks
        self.signals = signals
        self.saved: SavedRun | None = None
        self.checkpointer: Checkpointer | None = None
        self.heartbeat: Heartbeat | None = None
        self._run = run
        self._new = run is None
        self._report = report if self.ranks.is_writer else _say_nothing
        self._warn = warn or (lambda line: print(f"sightline: {line}", file=sys.stderr))
        self._id: str | None = None
        self._restarted = self._trained = False
        self._stack = ExitStack()
        self._trainer: Trainer | Driver | None = None
        self._recorder: RecorderList | None = None

    @property
    def run(self) -> Run:
        """The run's directory."""
        if self._run is None:
            raise RuntimeError("the session has no directory yet: call create first")
        return self._run

    @property
    def new(self) -> bool:
        """Whether the run's directory is one that `create` makes."""
        return self._new

    @property
    def id(self) -> str:
        """The name that this run alone has, whatever its directory is called."""
        noted = None if self.saved is None else self.saved.content["about"].get("id")
        self._id = self._id or self.run.id or noted or secrets.token_hex(8)
        return self._id

    @property
    def trainer(self) -> Trainer:
        """What `prepare` made."""
        trainer = self._trainer
        if isinstance(trainer, Trainer):
            return trainer
        raise RuntimeError("there is no trainer yet: call prepare first")

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if self._run is not None:
                self._open(self._run, stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the recorders, and lets go of the lock."""
        with ExitStack() as stack:
            stack.callback(self._stack.close)
            self._close_recorder()

    def create(self, parent: str | Path, name: str | None, default: str, fill: Callable[[Run], None]) -> Run:
        """Makes the directory of a new run, see `Run.create`, and holds its lock. Raises ConfigError on a rank that
        asks for another one than rank 0."""
        wanted = f"{parent}/{name or default}"
        made = self.ranks.broadcast(lambda: [wanted, str(Run.create(parent, name, default, fill, self._stack).path)])
        with self.ranks.barrier():
            self._check_wanted(wanted, made[0])
        self._run = Run(Path(made[1]))
        return self._run

    def _open(self, run: Run, stack: ExitStack) -> None:
        mine = str(run.path.absolute())
        theirs, chosen = self.ranks.broadcast(lambda: (mine, self._choose(run, stack)))
        with self.ranks.barrier():  # all have read it before rank 0 writes the next one
            self._check_wanted(mine, theirs)
            if chosen is not None and self.saved is None:
                path, content = newest_valid([run.checkpoints / chosen], self._warn)
                self.saved = SavedRun(path, content)
        if self.saved is not None and self.saved.interface != self.interface.name:
            raise AnotherTrainingError(
                f"'{run.path}' holds a run that another interface, {self.saved.interface}, "
                f"began. Choose another {arg.directory}."
            )

    def _check_wanted(self, mine: str, theirs: str) -> None:
        if mine != theirs:
            raise ConfigError(
                f"{arg.directory}: rank {self.ranks.rank} asks for '{mine}' and rank 0 for '{theirs}'. The processes "
                f"of a run share its directory; for runs of their own, start them without RANK and WORLD_SIZE."
            )

    def _choose(self, run: Run, stack: ExitStack) -> str | None:
        """Takes the lock and reads the newest valid checkpoint. The name of its file, None where there is none."""
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{arg.directory}: cannot make the directory '{run.path}': {error.strerror}.") from error
        stack.enter_context(run.locked())
        files = [*kept(run.last), *sorted(run.checkpoints.glob("epoch-*.ckpt"), reverse=True)]
        if not files:
            traces = [path for trace in self.interface.traces for path in run.path.glob(trace)]
            found = sorted(str(path.relative_to(run.path)) for path in traces)
            if found:
                raise AnotherTrainingError(
                    f"'{run.path}' holds a training without a checkpoint to resume from: "
                    f"{join_names(found, _FEW)}. {self.interface.without_checkpoint.format(run=run.path)}"
                )
            return None
        path, content = newest_valid(files, self._warn)
        check_own(run, path, content)
        self.saved = SavedRun(path, content)
        return path.name

    def check(
        self,
        identity: Identity,
        saved: Mapping[str, Any],
        what: str = "another training",
        detail: Callable[[], str] = str,
    ) -> list[Change]:
        """What has changed since `saved`, the settings that were written when the run began. May be called in stages:
        with the settings before the parts are built, with the data when it is open.

        Raises AnotherTrainingError for settings that may not change, unless the policy allows it; `what` is what the
        directory then holds, `detail` more to say of it. A training without a step starts over where the policy says
        so: then `saved` of the session is None."""
        return self.settle(identity.compare(saved), what, detail)

    def settle(
        self, changes: Sequence[Change], what: str = "another training", detail: Callable[[], str] = str
    ) -> list[Change]:
        """As `check`, for changes that were found already."""
        fixed = [change for change in changes if not change.free]
        if not fixed or self.policy.allow_drift or self._restarted:
            return list(changes)
        if self.policy.unstarted == "restart" and self.saved is not None and not self.saved.position.step:
            self.saved, self._restarted = None, True
            self._report(f"'{self.run.path}' holds a training without a step; it starts over with these settings.")
            return []
        shown = "; ".join(map(str, fixed[:_FEW]))
        more = f"; and {len(fixed) - _FEW} more" if len(fixed) > _FEW else ""
        free = join_names(dict.fromkeys(change.key for change in changes if change.free))
        raise AnotherTrainingError(
            f"'{self.run.path}' holds {what}: {shown}{more}.{detail()}"
            f"{f' {free} may change.' if free else ''} {self.interface.advice.format(run=self.run.path)}"
        )

    def restore(self, state: TrainState, **changed: Any) -> Position | None:
        """Fills the state from the checkpoint, where there is one; gives where that stands. `changed` are arguments of
        `restore_with_changes`, for a state that was made with other settings."""
        if self.saved is None:
            return None
        if changed:
            restore_with_changes(self.saved.content, state, self.saved.path, **changed)
        else:
            restore_state(self.saved.content, state, self.saved.path)
        return Position(state.step, state.epoch)

    def finished(self, state: TrainState, max_epochs: int) -> bool:
        """Whether the run has nothing left to train and the policy returns such a run; that is reported."""
        done = self.saved is not None and self.policy.finished == "return"
        if not done or state.batch or (state.epoch < max_epochs and not state.stopped):
            return False
        self._report(
            f"Training in '{self.run.path}' is already finished ({state.epoch} epochs). Increase "
            f"{arg.max_epochs} to continue, or set another {arg.directory}."
        )
        return True

    def prepare(self, training: FitOptions, checkpoints: CheckpointPolicy) -> Trainer:
        """Makes the trainer, with the checkpointer, the heartbeat, the recorders and the signals around it."""
        callbacks = self._callbacks(training, training.state, checkpoints)
        self._trainer = Trainer(
            training.task,
            training.state,
            training.batches,
            training.evals,
            max_epochs=training.max_epochs,
            eval_every=training.eval_every,
            callbacks=callbacks,
            recorder=self._recorder,
            log_every=training.log_every,
            divergence_threshold=training.divergence_threshold,
            runtime=training.runtime,
            meter=training.meter,
            eval_meter=training.eval_meter,
        )
        return self._trainer

    def fit(
        self, on_finish: Sequence[Callable[[FitResult], None]] = (), begin: Callable[[], None] | None = None
    ) -> FitResult:
        """Trains to the end, then calls `on_finish` with the result, unless training was interrupted. `begin` is called
        before the first step, on rank 0: what a run writes when it really begins.

        An error gets a note with the place and the last good checkpoint."""
        trainer = self.trainer
        with preserve_process_state(), trainer.runtime.active():
            return self._fit(trainer.fit, on_finish, begin)

    def drive(
        self,
        loop: Callable[[LoopHooks], None],
        state: Stateful,
        *,
        max_epochs: int,
        checkpoints: CheckpointPolicy,
        config: Mapping[str, Any] | None = None,
        callbacks: Sequence[Callback] = (),
        recorders: Sequence[Recorder] = (),
        on_finish: Sequence[Callable[[FitResult], None]] = (),
    ) -> FitResult:
        """Runs a loop that is not the engine's, with the run's directory, checkpoints, logs, heartbeat and signals
        around it. `loop` is called with `LoopHooks`: it begins at `position`, calls `log` after a step and `epoch_end`
        after an epoch, and returns when `should_stop` says so.

        `state` is saved into the checkpoint after each epoch, and loaded from it before the loop begins: for a resumed
        run to equal an uninterrupted one, it must hold all that the next epoch depends on, random generators too.
        `config` goes into the checkpoints, for `check`."""
        check_callbacks(callbacks)
        driver = Driver(state, dict(config or {}), max_epochs)
        if self.saved is not None:
            restore_state(self.saved.content, driver.state, self.saved.path)
            if self.saved.content["about"].get("max_epochs", max_epochs) < max_epochs:
                driver.state.stopped = False  # what ended it is to be asked again
        if self.finished(driver.state, max_epochs):
            result = driver.result()
            result.run = self.run.path
            return result
        training = _Driven(callbacks, recorders)
        # nobody but the loop could begin in the middle of an epoch, so there is nothing to warn of
        checkpoints = replace(checkpoints, about={**checkpoints.about, "max_epochs": max_epochs}, warn=False)
        driver.callbacks = self._callbacks(training, driver.state, checkpoints)
        driver.recorder = self._recorder
        self._trainer = driver
        with preserve_process_state():
            return self._fit(lambda: driver.run(loop), on_finish, None)

    def artifact(self, path: Path) -> None:
        """Passes a file or directory that the run has made to the recorders."""
        if self._recorder is not None:
            self._recorder.artifact(path)

    def last_good(self) -> str:
        """Where to resume from, as a sentence."""
        step = None if self.checkpointer is None else self.checkpointer.saved_step
        if step is None and self.saved is not None:
            step = self.saved.position.step
        if step is None:
            return "No checkpoint was written yet."
        return (
            f"The last good checkpoint, of step {step}, is '{self.run.last}'; {self.interface.again} resumes from it."
        )

    def place(self) -> str:
        """Where training is."""
        if self._trainer is None:
            return "the beginning"
        if self._trained:
            return "what comes after training"
        state = self._trainer.state
        return f"epoch {state.epoch}, batch {state.batch} (step {state.step + 1})"

    def _callbacks(
        self, training: FitOptions | _Driven, state: TrainState, checkpoints: CheckpointPolicy
    ) -> tuple[Callback, ...]:
        """All callbacks, in the order they are called: what may change the state, what an epoch writes, the checkpoint
        that says the epoch is done, what shows it, and last the signals, which are handed back when all is saved."""
        stop = [StopOnSignal()] if self.signals else []
        if not self.ranks.is_writer:
            return (*training.callbacks, *stop)
        self._recorder = RecorderList(*map(as_recorder, training.recorders))
        position = Position(state.step, state.epoch) if self.saved is not None or self._restarted else None
        self._recorder.start(self.run.path, state.config, position)
        self.checkpointer = Checkpointer(
            self.run.last,
            self.run.best,
            checkpoints.monitor,
            checkpoints.mode,
            checkpoints.every_steps,
            every_minutes=checkpoints.every_minutes,
            keep=checkpoints.keep,
            keep_every=checkpoints.keep_every,
            about={"interface": self.interface.name, "id": self.id, "run": self.run.path.name}
            | dict(checkpoints.about),
            flush=self._recorder.flush,
            requested=checkpoints.requested,
            save_first=checkpoints.save_first,
            warn=checkpoints.warn,
        )
        self.heartbeat = Heartbeat(self.run.path)
        return (*training.callbacks, *training.writers, self.checkpointer, *training.observers, self.heartbeat, *stop)

    def _fit(
        self,
        train: Callable[[], FitResult],
        on_finish: Sequence[Callable[[FitResult], None]],
        begin: Callable[[], None] | None,
    ) -> FitResult:
        requested = None if self.checkpointer is None else self.checkpointer.requested
        if self.saved is not None:  # what was restored need not stay in memory a second time
            self.saved = SavedRun(self.saved.path, {name: self.saved.content[name] for name in _SMALL})
        try:
            if self.ranks.is_writer:
                self._begin(begin)
            result = train()
            self._trained, result.run = True, self.run.path
            if self.ranks.is_writer and not result.interrupted:
                with checkpoint_on_request(requested) if self.signals else nullcontext():
                    self._finish(result, on_finish, requested)
        except Exception as error:
            if not (self._trained and isinstance(error, SightlineError)):  # that says what to do by itself
                error.add_note(f"In {self.place()}. {self.last_good()}")
            raise
        finally:
            with checkpoint_on_request(requested) if self.signals else nullcontext():
                self._close_recorder()  # a recorder of the user's own may take its time
        return result

    def _begin(self, begin: Callable[[], None] | None) -> None:
        try:
            self.run.sweep()
            if not self.run.environment.exists():
                self.run.write_json(self.run.environment, collect_environment() | {"id": self.id})
            if begin is not None:
                begin()
        except OSError as error:
            raise RunFailedError(
                f"{arg.directory}: cannot write to '{self.run.path}': {first_line(error)}. Make room, or "
                f"choose another {arg.directory}."
            ) from error

    def _finish(
        self, result: FitResult, on_finish: Sequence[Callable[[FitResult], None]], requested: Callable[[], None] | None
    ) -> None:
        """What comes after training: all is saved, so that whatever ends it is made up for by a resume."""
        try:
            with self.heartbeat.measuring() if self.heartbeat is not None else nullcontext():
                for finish in on_finish:
                    finish(result)
        except KeyboardInterrupt as error:
            result.interrupted, result.signal = True, signal_number(error)
            if isinstance(error, Terminated) and requested is not None:
                requested()

    def _close_recorder(self) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            with suppress(OSError):  # a full disk, which the checkpoint has reported
                recorder.close()


@dataclass(frozen=True)
class _Driven:
    """The callbacks and recorders around a loop that is not the engine's."""

    callbacks: Sequence[Callback]
    recorders: Sequence[Recorder]
    writers: Sequence[Callback] = ()
    observers: Sequence[Callback] = ()


def check_own(run: Run, path: Path, content: Mapping[str, Any]) -> None:
    """Raises ArtifactError for a checkpoint that another run wrote."""
    about = content["about"]
    found = about.get("id")
    if found is not None and run.id is not None and found != run.id:
        raise ArtifactError(
            f"'{path}' belongs to another run, '{about.get('run')}': it was copied here. Resume that one"
            f"{render_hint(', or begin a run from its weights with {weights}=the file')}."
        )


def _say_nothing(line: str) -> None:
    """For the ranks that do not report."""


_guard = threading.Lock()
_sessions = 0
_kept: ExitStack | None = None


@contextmanager
def preserve_process_state() -> Iterator[None]:
    """Puts back, at the end of the block, what training sets for the whole process: the global generators of Python,
    NumPy and torch, and torch's settings. Of blocks that overlap, in several threads, the last one does."""
    global _sessions, _kept  # noqa: PLW0603 it is about the process
    with _guard:
        if not _sessions:
            _kept = _process_state()
        _sessions += 1
    try:
        yield
    finally:
        with _guard:
            _sessions -= 1
            if not _sessions and _kept is not None:
                _kept.close()
                _kept = None


def _process_state() -> ExitStack:
    """A stack that puts all of it back when it is closed."""
    stack = ExitStack()
    stack.callback(random.setstate, random.getstate())
    stack.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002 what users' code draws from
    stack.callback(torch.set_rng_state, torch.get_rng_state())
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        stack.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
    stack.callback(torch.set_num_threads, torch.get_num_threads())
    stack.callback(setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    stack.callback(setattr, torch.utils.deterministic, "fill_uninitialized_memory", fill)
    stack.callback(
        torch.use_deterministic_algorithms,
        torch.are_deterministic_algorithms_enabled(),
        warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    return stack
