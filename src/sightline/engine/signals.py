"""Signal handlers for the time during and after training.

During training, SIGINT (Ctrl-C) and SIGTERM end the run between two steps, and SIGUSR1 requests a checkpoint. After
training, when everything is saved, SIGINT and SIGTERM raise at once, and SIGUSR1 is handled at once."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from sightline.core.errors import arg
from sightline.core.log import logger
from sightline.engine.termination import SignalDeduplicator, Terminated
from sightline.engine.trainer import Callback, Trainer

_Handler = Callable[[int, FrameType | None], None]
_WARNING = getattr(signal, "SIGUSR1", None)  # not available on Windows


class StopOnSignal(Callback):
    """Ends the run with a checkpoint on SIGINT (Ctrl-C) or SIGTERM, and saves a checkpoint on SIGUSR1.

    SIGINT and SIGTERM end the run between two steps; a second signal ends it at once. SIGUSR1, which schedulers send
    as a warning, requests a checkpoint after the current step, and training continues. A handler that the program
    already has for SIGUSR1 is kept. Has no effect outside the main thread, because Python handles signals only
    there."""

    def __init__(self) -> None:
        self._handlers = _SignalHandlers()

    def on_fit_start(self, trainer: Trainer) -> None:
        """Installs the signal handlers."""
        repeats = SignalDeduplicator()

        def end(number: int, _frame: FrameType | None) -> None:
            if repeats.is_duplicate(number):
                return
            if trainer.interrupted:
                raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
            if number == signal.SIGTERM:  # usually from a scheduler; the request also runs run.requeue
                trainer.request_checkpoint()
            trainer.interrupt(number)

        def save(_number: int, _frame: FrameType | None) -> None:
            trainer.request_checkpoint()

        self._handlers.install(end, save)

    def on_fit_end(self, trainer: Trainer) -> None:
        """Restores the previous signal handlers."""
        self._handlers.restore()

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """Restores the previous signal handlers."""
        self._handlers.restore()


@contextmanager
def checkpoint_on_request(requested: Callable[[], None] | None) -> Iterator[None]:
    """Handles signals in a block that runs after training, when everything is saved.

    SIGUSR1 calls `requested`, and the block continues. SIGINT raises KeyboardInterrupt in the block, SIGTERM
    `Terminated`. A signal that is delivered twice counts once. As with `StopOnSignal`, an existing handler for SIGUSR1
    is kept, and there is no effect outside the main thread."""
    repeats = SignalDeduplicator()

    def end(number: int, _frame: FrameType | None) -> None:
        if not repeats.is_duplicate(number):
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    def save(number: int, _frame: FrameType | None) -> None:
        if requested is not None and not repeats.is_duplicate(number):
            requested()  # at once, since the block may take longer than the scheduler waits

    handlers = _SignalHandlers()
    try:
        handlers.install(end, save)
        yield
    finally:
        handlers.restore()


class _SignalHandlers:
    """Installs signal handlers and restores the ones they replaced."""

    def __init__(self) -> None:
        self._previous: dict[int, Any] = {}

    def install(self, end: _Handler, warned: _Handler) -> None:
        """Installs `end` for SIGINT and SIGTERM, and `warned` for SIGUSR1 unless the program has a handler for it."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            self._install(number, end)
        if _WARNING is not None and signal.getsignal(_WARNING) in (signal.SIG_DFL, signal.SIG_IGN):
            self._install(_WARNING, warned)

    def _install(self, number: int, handler: _Handler) -> None:
        previous = signal.getsignal(number)
        if previous is not None:  # None: not installed from Python, so it could not be restored
            self._previous[number] = previous
            signal.signal(number, handler)

    def restore(self) -> None:
        """Restores all previous handlers, even if a signal arrives meanwhile."""
        try:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
        except KeyboardInterrupt:
            self.restore()
            raise
        self._previous = {}


def requeue(command: str, run: Path, timeout: float = 60.0) -> None:
    """Runs a shell command with the run directory in the environment variable SIGHTLINE_RUN.

    Waits at most `timeout` seconds for it. A failure is logged as a warning and has no other effect."""
    failure = ""
    try:
        completed = subprocess.run(  # noqa: S602 the user configured this command
            command,
            shell=True,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "SIGHTLINE_RUN": str(run.absolute())},
            timeout=timeout,
            start_new_session=True,  # signals for this process group do not reach the command
        )
        if completed.returncode:
            failure = f"failed with exit code {completed.returncode}"
    except subprocess.TimeoutExpired:
        failure = f"did not end within {timeout:g} s and was stopped"
    except (OSError, ValueError) as error:
        failure = f"could not be started: {error}"
    if failure:
        # standard error may be closed, or this signal handler may have interrupted a write to it
        with suppress(OSError, ValueError, RuntimeError):
            logger.warning(f"{arg.requeue}: `{command}` {failure}. The checkpoint is saved.")
