"""Runs a training loop that is not the engine's, with the engine's events, so that callbacks work for it."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sightline.core.errors import ArtifactError, RunFailedError
from sightline.core.types import FitResult, Recorder, TrainState
from sightline.engine.trainer import EVENTS, Callback, callbacks_for

_STATE_FILE = "state"


class Stateful(Protocol):
    """What a loop of somebody else's trains. `save` writes a file, or a directory, at `path`; `load` reads what `save`
    wrote."""

    def save(self, path: Path) -> None: ...
    def load(self, path: Path) -> None: ...


class LoopHooks(Protocol):
    """What a loop calls. `position` is where it begins: (updates, epochs) that are done."""

    @property
    def position(self) -> tuple[int, int]: ...
    @property
    def should_stop(self) -> bool: ...
    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def epoch_end(self, record: Mapping[str, float]) -> None: ...


class Driver:
    """A loop with the attributes of `Trainer` that callbacks read, and its events: `on_fit_start`, `on_epoch_start`,
    `on_eval_end` and `on_epoch_end` with each record, `on_fit_end`, `on_exception`. It is the loop's `LoopHooks`.

    Checkpoints are those of whole epochs: in the middle of one, nobody but the loop knows its state."""

    def __init__(self, state: Stateful, config: dict[str, Any], max_epochs: int):
        self.state = TrainState(_SavedFiles(state), config=config)
        self.max_epochs = max_epochs
        self.callbacks: Sequence[Callback] = ()
        self.recorder: Recorder | None = None
        self.train: Any = None
        self.evals: dict[str, Any] = {}
        self.last_log: dict[str, float] = {}
        self.samples = 0
        self.phase = ""
        self.interrupted = False
        self.interrupted_by: int | None = None
        self._in_epoch = self._checkpoint_requested = False

    @property
    def position(self) -> tuple[int, int]:
        """(updates, epochs) that are done."""
        return self.state.step, self.state.epoch

    def loader_position(self) -> None:
        """In the middle of an epoch, nobody but the loop knows where it is."""

    @property
    def should_stop(self) -> bool:
        """Whether the loop is to return: after a signal at once, for a callback after the epoch."""
        return self.interrupted or self.state.stopped or self.state.epoch >= self.max_epochs

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        """What a callback asks for."""
        self.state.stopped = value

    def interrupt(self, signal_number: int | None = None) -> None:
        """As `Trainer.interrupt`."""
        self.interrupted_by, self.interrupted = signal_number, True

    def request_checkpoint(self) -> None:
        """As `Trainer.request_checkpoint`; what is saved already is what there is to save until the epoch ends."""
        self._checkpoint_requested = True

    def check_losses(self) -> None:
        """There are none on the device."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Values of one step; `step` counts the updates of the run."""
        self._ensure_epoch_started()
        self.state.step = step
        self.state.batch += 1
        self._log_values({"epoch": self.state.epoch, **{name: float(value) for name, value in values.items()}})
        self._emit_requested_checkpoint()

    def epoch_end(self, record: Mapping[str, float]) -> None:
        """The values of an epoch that is done, and a checkpoint. A loop that logs no steps counts an epoch as one."""
        if not self._in_epoch:
            self.state.step += 1
        self._ensure_epoch_started()
        whole: dict[str, float] = {"epoch": self.state.epoch, **{name: float(value) for name, value in record.items()}}
        self._emit("on_eval_end", whole)
        self.state.epoch += 1
        self.state.batch = 0
        self.state.history.append(whole)
        self._log_values(whole)
        self._in_epoch = False
        files = self.state.model
        assert isinstance(files, _SavedFiles)
        with files.read_once():
            self._emit("on_epoch_end", whole)
        self._emit_requested_checkpoint()
        self.state.batch = 1  # from here on the loop is in an epoch, whether it logs its steps or not

    def run(self, loop: Callable[[LoopHooks], None]) -> FitResult:
        """Calls the loop, from where the state is."""
        self._handlers = {event: callbacks_for(self.callbacks, event) for event in EVENTS}
        try:
            self._emit("on_fit_start")
            self.state.batch = 1
            if not self.should_stop:
                loop(self)
            self._emit_requested_checkpoint()
            self._emit("on_fit_end")
        except BaseException as error:
            for handler in self._handlers["on_exception"]:
                try:
                    handler(self, error)
                except Exception as another:  # the others clean up all the same
                    error.add_note(f"While that was handled: {type(another).__name__}: {another}")
            raise
        return self.result()

    def result(self) -> FitResult:
        """As it is now."""
        state = self.state
        number = self.interrupted_by if self.interrupted else None
        return FitResult(state.history, state.epoch, state.step, state.best, self.interrupted, number)

    def _ensure_epoch_started(self) -> None:
        if not self._in_epoch:
            self._in_epoch = True
            self._emit("on_epoch_start")

    def _emit_requested_checkpoint(self) -> None:
        if self._checkpoint_requested:
            self._checkpoint_requested = False
            self._emit("on_checkpoint")

    def _log_values(self, values: dict[str, float]) -> None:
        self.last_log |= values
        if self.recorder is not None:
            self.recorder.log(self.state.step, values)

    def _emit(self, event: str, *args: Any) -> None:
        for handler in self._handlers[event]:
            handler(self, *args)


class _SavedFiles(nn.Module):
    """What a `Stateful` saves, as the state of a module: each file as uint8 [bytes], by its path."""

    def __init__(self, state: Stateful):
        super().__init__()
        self._stateful = state
        self._read: dict[str, Tensor] | None = None
        self._once = False

    @contextmanager
    def read_once(self) -> Iterator[None]:
        """For a block in which the state does not change."""
        self._once = True
        try:
            yield
        finally:
            self._once, self._read = False, None

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """All files."""
        if self._read is not None:
            return self._read
        with tempfile.TemporaryDirectory() as directory:
            place = Path(directory, _STATE_FILE)
            self._stateful.save(place)
            files = sorted(path for path in Path(directory).rglob("*") if path.is_file())
            if not files:
                raise RunFailedError(f"{type(self._stateful).__name__}.save wrote nothing at the path it was given.")
            found = {
                path.relative_to(directory).as_posix(): torch.from_numpy(np.fromfile(path, dtype=np.uint8))
                for path in files
            }
        self._read = found if self._once else None
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Writes the files, and has them loaded."""
        with tempfile.TemporaryDirectory() as directory:
            for name, content in state_dict.items():
                path = Path(directory, name)
                if not path.resolve().is_relative_to(Path(directory).resolve()):
                    raise ArtifactError(f"the checkpoint holds a file '{name}', which is outside of its directory.")
                path.parent.mkdir(parents=True, exist_ok=True)
                content.numpy().tofile(path)
            self._stateful.load(Path(directory, _STATE_FILE))
