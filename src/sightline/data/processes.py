"""Processes that decode small files. A thread spends as long in Python as in the decoder there, and threads take turns
at Python; processes do not. They are started by name and import neither torch nor the user's script, so no
`if __name__ == "__main__"` is needed."""

from __future__ import annotations

import pickle
import queue
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sightline.data.decoding import Block
from sightline.data.preprocess import Preprocess
from sightline.errors import DataError

_START = "import sys; sys.path[:] = {path!r}; from sightline.data.decoding import main; main()"


class DecodingProcesses:
    """`count` processes that decode files. They are started at once, told by `begin` what to do, and to be closed."""

    def __init__(self, count: int):
        command = [sys.executable, "-P", "-W", "ignore", "-c", _START.format(path=sys.path)]
        self._all: list[subprocess.Popen[bytes]] = []
        self._idle: queue.Queue[subprocess.Popen[bytes]] = queue.Queue()
        try:
            for _ in range(count):
                # a session of its own: Ctrl-C is for the one who asked, who then closes its end
                process = subprocess.Popen(  # noqa: S603 this interpreter
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
                )
                self._all.append(process)
        except BaseException:
            self.close()
            raise

    def begin(self, decoder: Preprocess, target: Path) -> None:
        """How to decode, and the file to write to, which is as long as it will be."""
        for process in self._all:
            _send(process, (decoder.to_dict(), str(target)))
            self._idle.put(process)

    def decode(self, paths: Sequence[str], offset: int) -> Block:
        """Decodes these files into the target at `offset`. Called by as many threads as there are processes.

        Raises OSError when the disk is full, DataError naming the files when one of them crashes its decoder."""
        process = self._idle.get()
        try:
            _send(process, (offset, list(paths)))
            assert process.stdout is not None
            answer: Block | OSError = pickle.load(process.stdout)  # noqa: S301 from a process of our own
        except (EOFError, BrokenPipeError) as error:
            raise DataError(
                f"a process that decodes images ended with code {process.wait()} at one of the files from "
                f"'{paths[0]}' to '{paths[-1]}'; take the damaged one away."
            ) from error
        finally:
            self._idle.put(process)
        if isinstance(answer, OSError):
            raise answer
        return answer

    def close(self) -> None:
        """Ends the processes; what they are doing is lost."""
        for process in self._all:
            process.kill()
        for process in self._all:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):
                    if pipe is not None:
                        pipe.close()


def _send(process: subprocess.Popen[bytes], message: object) -> None:
    assert process.stdin is not None
    pickle.dump(message, process.stdin)
    process.stdin.flush()
