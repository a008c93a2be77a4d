"""Runs an external training loop with the engine's events, so that callbacks work for it."""

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
    """The state of an external training loop, which can be saved to disk and loaded again.

    `save` writes a file or a directory at `path`; `load` reads the files that `save` wrote."""

    def save(self, path: Path) -> None: ...
    def load(self, path: Path) -> None: ...


class LoopHooks(Protocol):
    """The methods that an external training loop calls.

    `position` is (updates, epochs) already done; the loop starts from there."""

    @property
    def position(self) -> tuple[int, int]: ...
    @property
    def should_stop(self) -> bool: ...
    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def epoch_end(self, record: Mapping[str, float]) -> None: ...


class Driver:
    """Runs an external training loop and emits the events of `Trainer` for it.

    It is the `LoopHooks` that the loop calls, and has the attributes of `Trainer` that callbacks read. It emits
    `on_fit_start`, `on_epoch_start`, `on_eval_end` and `on_epoch_end` with each record, `on_checkpoint` on request,
    `on_fit_end` and `on_exception`. Checkpoints are possible only at the end of an epoch, because within an epoch only
    the loop knows its position."""

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
        """The (updates, epochs) already done."""
        return self.state.step, self.state.epoch

    def loader_position(self) -> None:
        """Always None: within an epoch only the loop knows its position."""

    @property
    def should_stop(self) -> bool:
        """Whether the loop must return. True after a signal, after a callback's request, or after the last epoch."""
        return self.interrupted or self.state.stopped or self.state.epoch >= self.max_epochs

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        """Stores a callback's request in the state."""
        self.state.stopped = value

    def interrupt(self, signal_number: int | None = None) -> None:
        """Makes `should_stop` True; see `Trainer.interrupt`."""
        self.interrupted_by, self.interrupted = signal_number, True

    def request_checkpoint(self) -> None:
        """Requests `on_checkpoint` after the step, as `Trainer.request_checkpoint` does."""
        self._checkpoint_requested = True

    def check_losses(self) -> None:
        """Does nothing: the loop does not keep losses on the device."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Records the values of one step. `step` is the number of updates of the run so far."""
        self._ensure_epoch_started()
        self.state.step = step
        self.state.batch += 1
        self._log_values({"epoch": self.state.epoch, **{name: float(value) for name, value in values.items()}})
        self._emit_requested_checkpoint()

    def epoch_end(self, record: Mapping[str, float]) -> None:
        """Records the values of a finished epoch. For a loop that logs no steps, an epoch counts as one step."""
        if not self._in_epoch:
            self.state.step += 1
        self._ensure_epoch_started()
        values: dict[str, float] = {"epoch": self.state.epoch, **{name: float(value) for name, value in record.items()}}
        self._emit("on_eval_end", values)
        self.state.epoch += 1
        self.state.batch = 0
        self.state.history.append(values)
        self._log_values(values)
        self._in_epoch = False
        files = self.state.model
        assert isinstance(files, _SavedFiles)
        with files.read_once():
            self._emit("on_epoch_end", values)
        self._emit_requested_checkpoint()
        self.state.batch = 1  # the next epoch starts here, even if the loop does not log its steps

    def run(self, loop: Callable[[LoopHooks], None]) -> FitResult:
        """Calls `loop` with these hooks, which report the current position, and returns the result."""
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
                except Exception as another:  # the remaining handlers must still run
                    error.add_note(f"While handling this error: {type(another).__name__}: {another}")
            raise
        return self.result()

    def result(self) -> FitResult:
        """The result so far."""
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
    """The files that a `Stateful` saves, as a module's state dict of path -> content (uint8 [bytes])."""

    def __init__(self, state: Stateful):
        super().__init__()
        self._stateful = state
        self._read: dict[str, Tensor] | None = None
        self._once = False

    @contextmanager
    def read_once(self) -> Iterator[None]:
        """Saves the files at most once within the block, in which the state must not change."""
        self._once = True
        try:
            yield
        finally:
            self._once, self._read = False, None

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """Returns the content of every saved file. Raises RunFailedError if `save` wrote none."""
        if self._read is not None:
            return self._read
        with tempfile.TemporaryDirectory() as directory:
            self._stateful.save(Path(directory, _STATE_FILE))
            files = sorted(path for path in Path(directory).rglob("*") if path.is_file())
            if not files:
                raise RunFailedError(f"{type(self._stateful).__name__}.save wrote no file at the path passed to it.")
            contents = {
                path.relative_to(directory).as_posix(): torch.from_numpy(np.fromfile(path, dtype=np.uint8))
                for path in files
            }
        self._read = contents if self._once else None
        return contents

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Writes the files and loads them. Raises ArtifactError for a path outside the checkpoint's directory."""
        with tempfile.TemporaryDirectory() as directory:
            for name, content in state_dict.items():
                path = Path(directory, name)
                if not path.resolve().is_relative_to(Path(directory).resolve()):
                    raise ArtifactError(f"The checkpoint contains a file '{name}' outside its own directory.")
                path.parent.mkdir(parents=True, exist_ok=True)
                content.numpy().tofile(path)
            self._stateful.load(Path(directory, _STATE_FILE))
