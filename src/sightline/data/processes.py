"""Processes that decode small files. A thread spends as long in Python as in the decoder there, and threads take turns
at Python; processes do not. They are started by name and import neither torch nor the user's script, so no
`if __name__ == "__main__"` is needed."""

from __future__ import annotations

import pickle
import queue
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sightline.data.decoding import MARK, Block
from sightline.data.preprocess import Preprocess
from sightline.errors import DataError

_PATIENCE = 1 << 16
_CRASHES = tuple(
    -getattr(signal, name) for name in ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE") if hasattr(signal, name)
)
_START = "import sys; sys.path[:] = {path!r}; from sightline.data.decoding import main; main()"


class DecodingProcesses:
    """`count` processes that decode files. They are started at once, told by `begin` what to do, and to be closed."""

    def __init__(self, count: int):
        command = [sys.executable, "-P", "-W", "ignore", "-c", _START.format(path=list(map(str, sys.path)))]
        self._all: list[subprocess.Popen[bytes]] = []
        self._idle: queue.Queue[subprocess.Popen[bytes] | None] = queue.Queue()
        self._greeted: set[int] = set()
        with suppress(OSError):  # no interpreter of that name, or no more processes: the threads do it
            for _ in range(count):
                # a session of its own: Ctrl-C is for the one who asked, who then closes its end
                process = subprocess.Popen(  # noqa: S603 this interpreter
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
                )
                self._all.append(process)
        self._missing = count - len(self._all)

    def begin(self, decoder: Preprocess, target: Path) -> None:
        """How to decode, and the file to write to, which is as long as it will be."""
        for process in self._all:
            with suppress(OSError):  # it has ended already; whoever asks it will see
                _send(process, (decoder.to_dict(), str(target)))
            self._idle.put(process)
        for _ in range(self._missing):
            self._idle.put(None)

    def decode(self, paths: Sequence[str], offset: int) -> Block | None:
        """Decodes these files into the target at `offset`, or None where there is no process to do it (any more).
        Called by as many threads as there are processes.

        Raises OSError when the disk is full, DataError naming the files when one of them crashes its decoder."""
        process = self._idle.get()
        if process is None:
            self._idle.put(None)
            return None
        try:
            _send(process, (offset, list(paths)))
            self._greet(process)
            assert process.stdout is not None
            answer: Block | OSError = pickle.load(process.stdout)  # noqa: S301 from a process of our own
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            process.kill()
            self._idle.put(None)
            if process.wait() in _CRASHES:
                raise DataError(
                    f"one of the files from '{paths[0]}' to '{paths[-1]}' crashes its decoder (the process ended with "
                    f"signal {-process.wait()}); take the damaged one away."
                ) from error
            return None
        self._idle.put(process)
        if isinstance(answer, OSError):
            raise answer
        return answer

    def _greet(self, process: subprocess.Popen[bytes]) -> None:
        """Passes over what Python printed while it started."""
        if process.pid in self._greeted:
            return
        assert process.stdout is not None
        heard = b""
        while not heard.endswith(MARK):
            part = process.stdout.read(1)
            if not part or len(heard) > _PATIENCE:
                raise EOFError
            heard += part
        self._greeted.add(process.pid)

    def close(self) -> None:
        """Ends the processes; what they are doing is lost."""
        for process in self._all:
            if process.poll() is None:
                process.kill()
        for process in self._all:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):
                    if pipe is not None:
                        pipe.close()
        # from now on there are none to ask
        self._missing, self._all = self._missing + len(self._all), []
        self._idle = queue.Queue()


def _send(process: subprocess.Popen[bytes], message: object) -> None:
    assert process.stdin is not None
    pickle.dump(message, process.stdin)
    process.stdin.flush()
