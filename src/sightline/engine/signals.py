"""Signals during training: Ctrl-C and SIGTERM end it between two steps, SIGUSR1 asks for a checkpoint. And after it,
when all is saved: they end what is left at once, and SIGUSR1 is answered at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from sightline.core.errors import arg
from sightline.engine.termination import SignalDeduplicator, Terminated
from sightline.engine.trainer import Callback, Trainer

_Handler = Callable[[int, FrameType | None], None]
_WARNING = getattr(signal, "SIGUSR1", None)  # Windows has none


class StopOnSignal(Callback):
    """Lets SIGINT (Ctrl-C) and SIGTERM end the run between two steps, with a checkpoint; a second one ends it at once.
    SIGUSR1, a scheduler's warning, asks for a checkpoint after the step, and training goes on; where the program has a
    handler of its own for it, that one stays. Only in the main thread, the only one that Python lets handle signals."""

    def __init__(self) -> None:
        self._handlers = _SignalHandlers()

    def on_fit_start(self, trainer: Trainer) -> None:
        """Takes the signals over."""
        repeats = SignalDeduplicator()

        def end(number: int, _frame: FrameType | None) -> None:
            if repeats.is_duplicate(number):
                return
            if trainer.interrupted:
                raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
            if number == signal.SIGTERM:  # it has a scheduler to answer, Ctrl-C a person
                trainer.request_checkpoint()
            trainer.interrupt(number)

        def save(_number: int, _frame: FrameType | None) -> None:
            trainer.request_checkpoint()

        self._handlers.take(end, save)

    def on_fit_end(self, trainer: Trainer) -> None:
        """Hands the signals back."""
        self._handlers.hand_back()

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """Hands the signals back."""
        self._handlers.hand_back()


@contextmanager
def checkpoint_on_request(requested: Callable[[], None] | None) -> Iterator[None]:
    """For what comes after training, when all is saved: SIGUSR1 calls `requested`, and the block goes on; SIGINT and
    SIGTERM raise KeyboardInterrupt and `Terminated` in it. One that is delivered twice is one. Which handlers stay, and
    that it is for the main thread, is as with `StopOnSignal`."""
    repeats = SignalDeduplicator()

    def end(number: int, _frame: FrameType | None) -> None:
        if not repeats.is_duplicate(number):
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    def answer(number: int, _frame: FrameType | None) -> None:
        if requested is not None and not repeats.is_duplicate(number):
            requested()  # here and now: what the block is at may take longer than the scheduler waits

    handlers = _SignalHandlers()
    try:
        handlers.take(end, answer)
        yield
    finally:
        handlers.hand_back()


class _SignalHandlers:
    """The signals that are taken over, and what heard them before."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}

    def take(self, end: _Handler, warned: _Handler) -> None:
        """`end` for SIGINT and SIGTERM, `warned` for SIGUSR1 where the program has no handler of its own for it."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            self._take(number, end)
        if _WARNING is not None and signal.getsignal(_WARNING) in (signal.SIG_DFL, signal.SIG_IGN):
            self._take(_WARNING, warned)

    def _take(self, number: int, handler: _Handler) -> None:
        before = signal.getsignal(number)
        if before is not None:  # else it is not Python's, so it could not be handed back
            self._before[number] = before
            signal.signal(number, handler)

    def hand_back(self) -> None:
        """All as they were, also when one of them comes meanwhile."""
        try:
            for number, handler in self._before.items():
                signal.signal(number, handler)
        except KeyboardInterrupt:
            self.hand_back()
            raise
        self._before = {}


def requeue(command: str, run: Path, timeout: float = 60.0) -> None:
    """Runs a shell command with SIGHTLINE_RUN, the run's directory, in its environment, and waits `timeout` seconds
    for it at most. What goes wrong is reported on standard error and changes nothing else."""
    wrong = ""
    try:
        done = subprocess.run(  # noqa: S602 the user's own command
            command,
            shell=True,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "SIGHTLINE_RUN": str(run.absolute())},
            timeout=timeout,
            start_new_session=True,  # a signal for our group is not for it
        )
        if done.returncode:
            wrong = f"ended with exit code {done.returncode}"
    except subprocess.TimeoutExpired:
        wrong = f"had not ended after {timeout:g} s and was stopped"
    except (OSError, ValueError) as error:
        wrong = f"could not be started: {error}"
    if wrong:
        # nobody listens any more, or this is a signal's handler and what it came into was just writing there
        with suppress(OSError, ValueError, RuntimeError):
            where = f"sightline: {arg.requeue}: `{command}`"
            print(f"{where} {wrong}; the checkpoint is saved all the same", file=sys.stderr)
