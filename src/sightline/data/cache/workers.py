"""Decodes blocks of images: in this process, or in processes that do nothing else.

For small files a thread spends as long in Python as in the decoder, and threads take turns at Python; processes do not.
They are started by name and import neither torch nor the user's script, so no `if __name__ == "__main__"` is needed,
and they are at work after a fifth of a second."""

import gc
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from sightline.core.errors import DataError, ImageError
from sightline.core.parallel import available_cores
from sightline.data.images.decode import Pixels, try_decode_jpeg
from sightline.data.images.digest import ImageStats, content_key
from sightline.data.images.preprocess import Preprocess
from sightline.data.records import Sample

NAME_PLACEHOLDER = "\0"
"""Stands for an image's name in a reason that is kept: the row of a table may be another tomorrow."""
READY_MARK = b"\0sightline decodes\0"
"""What a decoding process says first; what stands before it was printed while Python started."""
_ONE_AT_A_TIME = threading.Lock()


class DecodedBlock(NamedTuple):
    """The stats of a block of images; by their places in it, why some could not be read (`bad`), and the first that
    is not to be decoded at all (`refused`)."""

    stats: ImageStats
    bad: dict[int, str]
    refused: tuple[int, str] | None = None


def decode_block(images: Sequence[Any], decoder: Preprocess, pixels: Pixels) -> DecodedBlock:
    """Decodes `images` (each as `Preprocess.decode` takes it, a file's name, or the ImageError that reading it raised)
    into `pixels` uint8 [B,C,H,W]. The pixels of one that cannot be read are zeros."""
    shape = (decoder.height, decoder.width)
    gray = decoder.keeps_size and decoder.channels == 1 and shape
    colour = decoder.keeps_size and decoder.channels == 3 and (*shape, 3)
    bad: dict[int, str] = {}
    changed: dict[int, tuple[tuple[int, int], bool]] = {}
    keys = np.zeros(len(images), np.uint64)
    for position, image in enumerate(images):
        try:
            if isinstance(image, ImageError):
                raise image
            decoded = try_decode_jpeg(image)
            if decoded is not None and decoded.shape in (gray, colour):  # for small files, calls are what costs
                pixels[position] = decoded if gray else decoded.transpose(2, 0, 1)
                keys[position] = content_key(decoded)
                continue
            given = Path(image) if isinstance(image, str) else image
            found = decoder.decode_with_stats(given if decoded is None else decoded, NAME_PLACEHOLDER)
            pixels[position] = found.pixels
            changed[position], keys[position] = (found.size, found.lost_colours), found.key
        except ImageError as error:
            bad[position] = str(error)
            pixels[position] = 0
            changed[position] = ((0, 0), False)
        except DataError as error:
            return DecodedBlock(ImageStats.from_images(pixels[:0]), bad, (position, str(error)))
    stats = ImageStats.from_images(pixels)
    for position, (size, lost) in changed.items():
        stats.sizes[position], stats.lost[position] = size, lost
    stats.keys[:] = keys
    return DecodedBlock(stats, bad)


def write_at(file: FileIO, pixels: Pixels, offset: int) -> None:
    """Writes all of a block at a place of a file, from any thread. Raises OSError when the disk is full."""
    left = memoryview(pixels.data).cast("B")
    while left:
        if hasattr(os, "pwrite"):
            done = os.pwrite(file.fileno(), left, offset)
        else:  # Windows
            with _ONE_AT_A_TIME:
                file.seek(offset)
                done = file.write(left) or 0
        left, offset = left[done:], offset + done


def serve(tasks: BinaryIO, answers: BinaryIO) -> None:
    """The life of a process that decodes: how, and which file to write to; then blocks of paths, each with the offset
    of its pixels, until there are no more. Each is answered with its DecodedBlock, or the OSError that writing it
    raised."""
    how, target = pickle.load(tasks)  # noqa: S301 from the process that started this one
    decoder = Preprocess.from_dict(how)
    room = np.empty((0, *decoder.shape), np.uint8)  # used for every block: fresh memory costs as much as copying
    with Path(target).open("r+b", buffering=0) as file:
        while True:
            try:
                offset, paths = pickle.load(tasks)  # noqa: S301
            except EOFError:
                return
            if len(paths) > len(room):
                room = np.empty((len(paths), *decoder.shape), np.uint8)
            pixels = room[: len(paths)]
            answer: DecodedBlock | OSError = decode_block(paths, decoder, pixels)
            try:
                write_at(file, pixels, offset)
            except OSError as error:
                answer = error
            pickle.dump(answer, answers)
            answers.flush()


def main() -> None:
    """Serves the process that started this one. What a decoder prints must not end up among the answers."""
    gc.disable()  # nothing here is in a cycle
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    answers.write(READY_MARK)
    answers.flush()
    serve(sys.stdin.buffer, answers)


_PATIENCE = 1 << 16
_CRASHES = tuple(
    -getattr(signal, name) for name in ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE") if hasattr(signal, name)
)
_START = "import sys; sys.path[:] = {path!r}; from sightline.data.cache.workers import main; main()"


@dataclass(frozen=True)
class Workers:
    """What decodes: `count` threads (None: one for each core), or as many processes for `process_files` files and more,
    which is when they are worth the time they take to start."""

    count: int | None = None
    process_files: int = 4096

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ValueError(f"count must be at least 1, not {self.count}")

    @property
    def threads(self) -> int:
        """The number of threads or processes."""
        return available_cores() if self.count is None else self.count

    def use_processes(self, samples: Sequence[Sample]) -> bool:
        """Whether processes decode these samples sooner than threads."""
        enough = len(samples) >= self.process_files and self.threads > 1
        return enough and all(isinstance(sample.image, Path) for sample in samples)


class DecodingProcesses:
    """`count` processes that decode files. They start at once, `begin` says how to decode, and `close` ends them."""

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

    def decode(self, paths: Sequence[str], offset: int) -> DecodedBlock | None:
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
            answer: DecodedBlock | OSError = pickle.load(process.stdout)  # noqa: S301 from a process of our own
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
        while not heard.endswith(READY_MARK):
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
