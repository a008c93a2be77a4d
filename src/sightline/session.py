"""Session: trains in a locked run directory, with checkpoints, logs and signals, for every interface.

A session locks the directory, finds its newest valid checkpoint, checks that the requested training is the one in the
directory, restores it, connects recorders and callbacks, trains, runs what follows training, and closes everything even
after an error:

    with Session(run, PARAMS, ResumePolicy(finished="return")) as session:
        session.check(identity, saved_settings)      # what can be compared before the parts are built, then the rest
        session.restore(state)
        session.prepare(FitOptions(task, state, batches, evals, max_epochs=10), CheckpointPolicy(monitor="val_loss"))
        result = session.fit()

A custom loop, such as one in Keras or plain NumPy, runs in `Session.drive`."""

from __future__ import annotations

import random
import secrets
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
from sightline.core.log import logger
from sightline.core.ranks import Ranks
from sightline.core.types import Batch, FitResult, Recorder, Task, TrainState
from sightline.engine.checkpoint.content import DamagedCheckpointError, newest_valid, restore_state
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
    """The name and the message texts of an interface (config, learner or params).

    `name` is written into its checkpoints. `again` says how a training is resumed. `advice` says what to do if the
    directory holds another training, and `without_checkpoint` if it holds one that cannot be resumed. `traces` are glob
    patterns of files that show that a training was there."""

    name: str
    again: str
    advice: str
    without_checkpoint: str
    traces: tuple[str, ...]


@dataclass(frozen=True)
class ResumePolicy:
    """What to do with a directory that already holds a run.

    `finished`: a run whose epochs are all done is returned unchanged, or what follows training is repeated.
    `unstarted`: a run without any steps and with other settings is refused, or starts over with the new settings.
    `allow_drift` resumes a run although settings have changed."""

    finished: Literal["return", "repeat"] = "repeat"
    unstarted: Literal["refuse", "restart"] = "refuse"
    allow_drift: bool = False


class Position(NamedTuple):
    """The position of a checkpoint: the number of updates and of finished epochs of the run."""

    step: int
    epoch: int


@dataclass(frozen=True)
class SavedRun:
    """The newest valid checkpoint of a run: its file and its content."""

    path: Path
    content: Mapping[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """The settings of the training, as its interface wrote them."""
        config: dict[str, Any] = self.content["config"]
        return config

    @property
    def position(self) -> Position:
        """The position of the checkpoint in the run."""
        return Position(self.content["step"], self.content["epoch"])

    @property
    def interface(self) -> str:
        """The name of the interface that wrote it. Earlier versions did not save it, but their configs differ."""
        name: str | None = self.content["about"].get("interface")
        return name or ("learner" if "door" in self.config else "params" if "params" in self.config else "config")


@dataclass(frozen=True)
class CheckpointPolicy:
    """When checkpoints are written and which are kept, see `Checkpointer`.

    `requested` is called after a checkpoint that was requested. `warn` enables the warning about a loader that cannot
    start in the middle of an epoch."""

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
    """What is trained and for how long: the arguments of `Trainer`.

    `callbacks` run in every process and may change the training. `writers` and `observers` write files or print, on
    rank 0 only: `writers` before the checkpoint of an epoch, `observers` after it."""

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
    """A context manager that locks a run directory, loads its newest valid checkpoint, and trains in it.

    `run` is the directory to train in, which is created if it is missing, or None for one that `create` makes once
    everything else is ready. Within the block the session holds the lock of the directory, and `saved` is the newest
    valid checkpoint, or None for a new training.

    `report` is called with a line for each thing that the session did. By default it is logged. `ranks` defaults to the
    ranks of the environment: rank 0 locks, writes and chooses the checkpoint, and the others read it. With
    `signals=False`, the caller handles Ctrl-C and SIGTERM.

    Entering raises ArtifactError if another process trains in the directory, if no checkpoint is valid, or if the
    directory holds files of a training without a checkpoint."""

    def __init__(
        self,
        run: Run | None,
        interface: Interface,
        resume: ResumePolicy | None = None,
        *,
        report: Callable[[str], None] = logger.info,
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
        self._report = report if self.ranks.is_writer else _ignore
        self._id: str | None = None
        self._restarted = self._trained = False
        self._stack = ExitStack()
        self._trainer: Trainer | Driver | None = None
        self._recorder: RecorderList | None = None

    @property
    def run(self) -> Run:
        """The run directory. Raises RuntimeError before `create`."""
        if self._run is None:
            raise RuntimeError("the session has no run directory yet: call create first")
        return self._run

    @property
    def new(self) -> bool:
        """Whether `create` makes the run directory."""
        return self._new

    @property
    def id(self) -> str:
        """The unique id of the run, independent of the name of its directory."""
        saved_id = None if self.saved is None else self.saved.content["about"].get("id")
        self._id = self._id or self.run.id or saved_id or secrets.token_hex(8)
        return self._id

    @property
    def trainer(self) -> Trainer:
        """The trainer that `prepare` made. Raises RuntimeError before that."""
        trainer = self._trainer
        if isinstance(trainer, Trainer):
            return trainer
        raise RuntimeError("the session has no trainer yet: call prepare first")

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if self._run is not None:
                self._open(self._run, stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the recorders and releases the lock."""
        with ExitStack() as stack:
            stack.callback(self._stack.close)
            self._close_recorder()

    def create(self, parent: str | Path, name: str | None, default: str, fill: Callable[[Run], None]) -> Run:
        """Creates and locks the directory of a new run, see `Run.create`. Raises ConfigError on a rank that requests
        another directory than rank 0."""
        wanted = f"{parent}/{name or default}"
        created = self.ranks.broadcast(lambda: [wanted, str(Run.create(parent, name, default, fill, self._stack).path)])
        with self.ranks.barrier():
            self._check_same_directory(wanted, created[0])
        self._run = Run(Path(created[1]))
        return self._run

    def _open(self, run: Run, stack: ExitStack) -> None:
        wanted = str(run.path.absolute())
        wanted_by_rank_0, chosen = self.ranks.broadcast(lambda: (wanted, self._choose(run, stack)))
        with self.ranks.barrier():  # rank 0 writes the next checkpoint only after all ranks have read this one
            self._check_same_directory(wanted, wanted_by_rank_0)
            if chosen is not None and self.saved is None:
                path, content = newest_valid([run.checkpoints / chosen])
                self.saved = SavedRun(path, content)
        if self.saved is not None and self.saved.interface != self.interface.name:
            raise AnotherTrainingError(
                f"'{run.path}' holds a run of another interface, {self.saved.interface}. Choose another "
                f"{arg.directory}."
            )

    def _check_same_directory(self, wanted: str, wanted_by_rank_0: str) -> None:
        if wanted != wanted_by_rank_0:
            raise ConfigError(
                f"{arg.directory}: rank {self.ranks.rank} uses '{wanted}', but rank 0 uses '{wanted_by_rank_0}'. The "
                f"processes of a run share its directory. For separate runs, start them without RANK and WORLD_SIZE."
            )

    def _choose(self, run: Run, stack: ExitStack) -> str | None:
        """Takes the lock and loads the newest valid checkpoint. Returns its file name, or None if there is none."""
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{arg.directory}: cannot create the directory '{run.path}': {error.strerror}."
            ) from error
        stack.enter_context(run.locked())
        logger.debug("locked '%s'", run.path)
        files = [*kept(run.last), *sorted(run.checkpoints.glob("epoch-*.ckpt"), reverse=True)]
        if not files:
            traces = [path for trace in self.interface.traces for path in run.path.glob(trace)]
            names = sorted(str(path.relative_to(run.path)) for path in traces)
            if names:
                raise AnotherTrainingError(
                    f"'{run.path}' holds a training without a checkpoint to resume from: "
                    f"{join_names(names, _FEW)}. {self.interface.without_checkpoint.format(run=run.path)}"
                )
            return None
        try:
            path, content = newest_valid(files)
        except DamagedCheckpointError as error:  # none of them is valid
            advice = self.interface.without_checkpoint.format(run=run.path)
            raise DamagedCheckpointError(f"{error} {advice}") from error
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
        """Returns what has changed since `saved`, the settings that were written when the run started.

        May be called in stages: with the settings before the parts are built, and with the data once it is open. Raises
        AnotherTrainingError for changes that are not allowed, unless the policy allows them. In its message `what`
        names what the directory holds; a sentence that `detail` returns is shown instead of the changes. A training
        without any steps starts over if the policy says so; the session's `saved` is then None."""
        return self.settle(identity.compare(saved), what, detail)

    def settle(
        self, changes: Sequence[Change], what: str = "another training", detail: Callable[[], str] = str
    ) -> list[Change]:
        """Like `check`, for changes that are already known."""
        fixed = [change for change in changes if not change.free]
        if not fixed or self.policy.allow_drift or self._restarted:
            return list(changes)
        if self.policy.unstarted == "restart" and self.saved is not None and not self.saved.position.step:
            self.saved, self._restarted = None, True
            self._report(f"'{self.run.path}' holds a training without any steps. It starts over with these settings.")
            return []
        shown = "; ".join(map(str, fixed[:_FEW]))
        more = f"; and {len(fixed) - _FEW} more" if len(fixed) > _FEW else ""
        free = join_names(dict.fromkeys(change.key for change in changes if change.free))
        details = detail()
        raise AnotherTrainingError(
            f"'{self.run.path}' holds {what}{f'.{details}' if details else f': {shown}{more}.'}"
            f"{f' {free} may change.' if free else ''} {self.interface.advice.format(run=self.run.path)}"
        )

    def restore(self, state: TrainState, **changed: Any) -> Position | None:
        """Restores the state from the checkpoint and returns its position, or None without a checkpoint. `changed` are
        arguments of `restore_with_changes`, for a state that was built with other settings."""
        if self.saved is None:
            return None
        if changed:
            restore_with_changes(self.saved.content, state, self.saved.path, **changed)
        else:
            restore_state(self.saved.content, state, self.saved.path)
        return Position(state.step, state.epoch)

    def finished(self, state: TrainState, max_epochs: int) -> bool:
        """Returns whether the run has nothing left to train and the policy is to return it; then reports that."""
        done = self.saved is not None and self.policy.finished == "return"
        if not done or state.batch or (state.epoch < max_epochs and not state.stopped):
            return False
        self._report(
            f"Training in '{self.run.path}' is already finished ({state.epoch} epochs). Increase "
            f"{arg.max_epochs} to continue, or set another {arg.directory}."
        )
        return True

    def prepare(self, training: FitOptions, checkpoints: CheckpointPolicy) -> Trainer:
        """Builds the trainer with its checkpointer, heartbeat, recorders and signal handling."""
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
        """Trains to the end, then calls `on_finish` with the result, unless training was interrupted.

        `begin` is called on rank 0 before the first step, to write the files of a run only once it really starts. An
        exception gets a note with the position and the last good checkpoint."""
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
        """Runs a custom training loop with the run directory, checkpoints, logs, heartbeat and signals of a session.

        `loop` is called with `LoopHooks`: it starts at `position`, calls `log` after a step and `epoch_end` after an
        epoch, and returns when `should_stop` is true.

        `state` is saved into the checkpoint after each epoch, and loaded from it before the loop starts. For a resumed
        run to equal an uninterrupted one, it must hold everything that the next epoch depends on, including random
        generators. `config` is saved in the checkpoints, for `check`."""
        check_callbacks(callbacks)
        driver = Driver(state, dict(config or {}), max_epochs)
        if self.saved is not None:
            restore_state(self.saved.content, driver.state, self.saved.path)
            if self.saved.content["about"].get("max_epochs", max_epochs) < max_epochs:
                driver.state.stopped = False  # a callback that stopped the run decides again
        if self.finished(driver.state, max_epochs):
            result = driver.result()
            result.run = self.run.path
            return result
        training = _Driven(callbacks, recorders)
        # only the loop itself could start in the middle of an epoch, so there is nothing to warn about
        checkpoints = replace(checkpoints, about={**checkpoints.about, "max_epochs": max_epochs}, warn=False)
        driver.callbacks = self._callbacks(training, driver.state, checkpoints)
        driver.recorder = self._recorder
        self._trainer = driver
        with preserve_process_state():
            return self._fit(lambda: driver.run(loop), on_finish, None)

    def artifact(self, path: Path) -> None:
        """Passes a file or directory that the run has completed to the recorders."""
        if self._recorder is not None:
            self._recorder.artifact(path)

    def last_good(self) -> str:
        """Returns a sentence that says where to resume from."""
        step = None if self.checkpointer is None else self.checkpointer.saved_step
        if step is None and self.saved is not None:
            step = self.saved.position.step
        if step is None:
            return "No checkpoint was written yet."
        return (
            f"The last good checkpoint, of step {step}, is '{self.run.last}'; {self.interface.again} resumes from it."
        )

    def place(self) -> str:
        """Returns the current position of the training, for messages."""
        if self._trainer is None:
            return "the setup"
        if self._trained:
            return "the steps after training"
        state = self._trainer.state
        return f"epoch {state.epoch}, batch {state.batch} (step {state.step + 1})"

    def _callbacks(
        self, training: FitOptions | _Driven, state: TrainState, checkpoints: CheckpointPolicy
    ) -> tuple[Callback, ...]:
        """Returns all callbacks in the order in which they are called.

        First those that may change the state, then those that write files, the checkpointer, those that show the epoch,
        and last the signal handling, which ends when everything is saved."""
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
        if self.saved is not None:  # do not hold the restored content in memory twice
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
            if not (self._trained and isinstance(error, SightlineError)):  # its message says what to do
                error.add_note(f"In {self.place()}. {self.last_good()}")
            raise
        finally:
            with checkpoint_on_request(requested) if self.signals else nullcontext():
                self._close_recorder()  # a custom recorder may take long
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
                f"{arg.directory}: cannot write to '{self.run.path}': {first_line(error)}. Free some space, or "
                f"choose another {arg.directory}."
            ) from error

    def _finish(
        self, result: FitResult, on_finish: Sequence[Callable[[FitResult], None]], requested: Callable[[], None] | None
    ) -> None:
        """Runs what follows training. Everything is saved by then, so a resume repeats it after an interruption."""
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
            with suppress(OSError):  # such as a full disk, which the checkpointer has reported
                recorder.close()


@dataclass(frozen=True)
class _Driven:
    """The callbacks and recorders of a custom loop."""

    callbacks: Sequence[Callback]
    recorders: Sequence[Recorder]
    writers: Sequence[Callback] = ()
    observers: Sequence[Callback] = ()


def check_own(run: Run, path: Path, content: Mapping[str, Any]) -> None:
    """Raises ArtifactError for a checkpoint that another run wrote."""
    about = content["about"]
    writer = about.get("id")
    if writer is not None and run.id is not None and writer != run.id:
        raise ArtifactError(
            f"'{path}' belongs to another run, '{about.get('run')}', and was copied here. Resume that run"
            f"{render_hint(', or start a new run from its weights with {weights}=the file')}."
        )


def _ignore(line: str) -> None:
    """The `report` of ranks that do not report."""


_process_state_lock = threading.Lock()
_active_blocks = 0
_saved_process_state: ExitStack | None = None


@contextmanager
def preserve_process_state() -> Iterator[None]:
    """Restores at the end of the block what training sets for the entire process.

    These are the global generators of Python, NumPy and torch, and settings of torch. If blocks overlap in several
    threads, the last one to end restores them."""
    global _active_blocks, _saved_process_state  # noqa: PLW0603 one state per process
    with _process_state_lock:
        if not _active_blocks:
            _saved_process_state = _process_state()
        _active_blocks += 1
    try:
        yield
    finally:
        with _process_state_lock:
            _active_blocks -= 1
            if not _active_blocks and _saved_process_state is not None:
                _saved_process_state.close()
                _saved_process_state = None


def _process_state() -> ExitStack:
    """Returns a stack that restores the current process state when it is closed."""
    stack = ExitStack()
    stack.callback(random.setstate, random.getstate())
    stack.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002 users' code draws from this generator
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
