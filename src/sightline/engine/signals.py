"""Signals during training: Ctrl-C and SIGTERM end it between two steps, SIGUSR1 asks for a checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from sightline.engine.callbacks import Callback
from sightline.engine.termination import Repeats, Terminated

if TYPE_CHECKING:
    from sightline.engine.trainer import Trainer

_WARNING = getattr(signal, "SIGUSR1", None)  # Windows has none
_PATIENCE = 60.0


class StopOnSignal(Callback):
    """Lets SIGINT (Ctrl-C) and SIGTERM end the run between two steps, with a checkpoint; a second one ends it at once.
    SIGUSR1, a scheduler's warning, asks for a checkpoint after the step, and training goes on; where the program has a
    handler of its own for it, that one stays. Only in the main thread, the only one that Python lets handle signals."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}

    def on_fit_start(self, trainer: Trainer) -> None:
        """Takes the signals over."""
        if threading.current_thread() is not threading.main_thread():
            return
        repeats = Repeats()

        def end(number: int, _frame: FrameType | None) -> None:
            if repeats.is_same(number):
                return
            if trainer.interrupted:
                raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
            if number == signal.SIGTERM:  # it has a scheduler to answer, Ctrl-C a person
                trainer.request_checkpoint()
            trainer.interrupt(number)

        def save(_number: int, _frame: FrameType | None) -> None:
            trainer.request_checkpoint()

        for number in (signal.SIGINT, signal.SIGTERM):
            self._take(number, end)
        if _WARNING is not None and signal.getsignal(_WARNING) in (signal.SIG_DFL, signal.SIG_IGN):
            self._take(_WARNING, save)

    def _take(self, number: int, handler: Any) -> None:
        before = signal.getsignal(number)
        if before is not None:  # else it is not Python's, so it could not be handed back
            self._before[number] = before
            signal.signal(number, handler)

    def on_fit_end(self, trainer: Trainer) -> None:
        """Hands the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """Hands the signals back."""
        self.on_fit_end(trainer)


def requeue(command: str, run: Path) -> None:
    """Runs a shell command with SIGHTLINE_RUN, the run's directory, in its environment, and waits a minute for it at
    most. What goes wrong is told on standard error and changes nothing else."""
    wrong = ""
    try:
        done = subprocess.run(  # noqa: S602 the user's own command
            command,
            shell=True,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "SIGHTLINE_RUN": str(run.absolute())},
            timeout=_PATIENCE,
            start_new_session=True,  # a signal for our group is not for it
        )
        if done.returncode:
            wrong = f"ended with exit code {done.returncode}"
    except subprocess.TimeoutExpired:
        wrong = f"had not ended after {_PATIENCE:g} s and was stopped"
    except (OSError, ValueError) as error:
        wrong = f"could not be started: {error}"
    if wrong:
        with suppress(OSError, ValueError):  # nobody listens any more
            print(f"sightline: run.requeue: `{command}` {wrong}; the checkpoint is saved all the same", file=sys.stderr)
