"""Decodes blocks of images in this process or in separate decoding processes.

For small files a thread spends as much time in Python as in the decoder, and threads share one interpreter lock;
processes do not. Decoding processes are started from a command line and import neither torch nor the user's script. So
no `if __name__ == "__main__"` is needed, and they are ready after about 0.2 seconds."""

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
"""Stands for the image's name in a stored reason, since the name (the row of a table) may change until it is read."""
READY_MARK = b"\0sightline decodes\0"
"""The first output of a decoding process. Anything before it was printed while Python started."""
_WRITE_LOCK = threading.Lock()


class DecodedBlock(NamedTuple):
    """The result of decoding a block of images.

    `bad` maps positions in the block to the reason why the image could not be read. `refused` is the position and
    message of the first image with any other error; decoding stops there."""

    stats: ImageStats
    bad: dict[int, str]
    refused: tuple[int, str] | None = None


def decode_block(images: Sequence[Any], decoder: Preprocess, pixels: Pixels) -> DecodedBlock:
    """Decodes `images` into `pixels`, uint8 [B, C, H, W].

    Each image is an input of `Preprocess.decode`, a file name, or the ImageError that reading it raised. The pixels of
    an image that cannot be read are zeros."""
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
            if decoded is not None and decoded.shape in (gray, colour):  # fewer calls: they dominate for small files
                pixels[position] = decoded if gray else decoded.transpose(2, 0, 1)
                keys[position] = content_key(decoded)
                continue
            source = Path(image) if isinstance(image, str) else image
            result = decoder.decode_with_stats(source if decoded is None else decoded, NAME_PLACEHOLDER)
            pixels[position] = result.pixels
            changed[position], keys[position] = (result.size, result.lost_colours), result.key
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
    """Writes a block to a file at `offset` bytes, from any thread. Raises OSError when the disk is full."""
    remaining = memoryview(pixels.data).cast("B")
    while remaining:
        if hasattr(os, "pwrite"):
            done = os.pwrite(file.fileno(), remaining, offset)
        else:  # Windows
            with _WRITE_LOCK:
                file.seek(offset)
                done = file.write(remaining) or 0
        remaining, offset = remaining[done:], offset + done


def serve(tasks: BinaryIO, answers: BinaryIO) -> None:
    """Runs the loop of a decoding process until `tasks` ends.

    `tasks` contains pickled messages: first the dict of a `Preprocess` and the file to write to, then the offset and
    the paths of each block. Each block is answered with its DecodedBlock, or the OSError that writing it raised."""
    values, target = pickle.load(tasks)  # noqa: S301 from the process that started this one
    decoder = Preprocess.from_dict(values)
    buffer = np.empty((0, *decoder.shape), np.uint8)  # reused for every block: new memory costs as much as copying
    with Path(target).open("r+b", buffering=0) as file:
        while True:
            try:
                offset, paths = pickle.load(tasks)  # noqa: S301
            except EOFError:
                return
            if len(paths) > len(buffer):
                buffer = np.empty((len(paths), *decoder.shape), np.uint8)
            pixels = buffer[: len(paths)]
            answer: DecodedBlock | OSError = decode_block(paths, decoder, pixels)
            try:
                write_at(file, pixels, offset)
            except OSError as error:
                answer = error
            pickle.dump(answer, answers)
            answers.flush()


def main() -> None:
    """Entry point of a decoding process. Redirects stdout to stderr, since output that a decoder prints must not be
    mixed with the answers."""
    gc.disable()  # there are no reference cycles
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    answers.write(READY_MARK)
    answers.flush()
    serve(sys.stdin.buffer, answers)


_MAX_STARTUP_OUTPUT = 1 << 16
_CRASHES = tuple(
    -getattr(signal, name) for name in ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE") if hasattr(signal, name)
)
_START = "import sys; sys.path[:] = {path!r}; from sightline.data.cache.workers import main; main()"


@dataclass(frozen=True)
class Workers:
    """The threads or processes that decode: `count` of them (None: one for each available core).

    Processes are used for `process_files` files or more, which makes their start-up time worthwhile."""

    count: int | None = None
    process_files: int = 4096

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ValueError(f"count: expected an integer >= 1, found {self.count}.")

    @property
    def threads(self) -> int:
        """The number of threads or processes."""
        return available_cores() if self.count is None else self.count

    def use_processes(self, samples: Sequence[Sample]) -> bool:
        """Whether processes decode these samples faster than threads."""
        enough = len(samples) >= self.process_files and self.threads > 1
        return enough and all(isinstance(sample.image, Path) for sample in samples)


class DecodingProcesses:
    """`count` processes that decode files. They start immediately; `begin` sets how to decode, `close` ends them."""

    def __init__(self, count: int):
        command = [sys.executable, "-P", "-W", "ignore", "-c", _START.format(path=list(map(str, sys.path)))]
        self._all: list[subprocess.Popen[bytes]] = []
        self._idle: queue.Queue[subprocess.Popen[bytes] | None] = queue.Queue()
        self._ready: set[int] = set()
        with suppress(OSError):  # no such interpreter, or the process limit is reached: threads decode instead
            for _ in range(count):
                # a separate session: Ctrl-C interrupts only this process, which then ends the others
                process = subprocess.Popen(  # noqa: S603 this interpreter
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
                )
                self._all.append(process)
        self._missing = count - len(self._all)

    def begin(self, decoder: Preprocess, target: Path) -> None:
        """Sends how to decode and the file to write to, which must already have its final size."""
        for process in self._all:
            with suppress(OSError):  # the process has ended; `decode` detects that
                _send(process, (decoder.to_dict(), str(target)))
            self._idle.put(process)
        for _ in range(self._missing):
            self._idle.put(None)

    def decode(self, paths: Sequence[str], offset: int) -> DecodedBlock | None:
        """Decodes these files into the target at `offset` bytes; returns None if no process is left for it. Called from
        as many threads as there are processes.

        Raises OSError when the disk is full, DataError naming the files when one of them crashes the decoder."""
        process = self._idle.get()
        if process is None:
            self._idle.put(None)
            return None
        try:
            _send(process, (offset, list(paths)))
            self._wait_until_ready(process)
            assert process.stdout is not None
            answer: DecodedBlock | OSError = pickle.load(process.stdout)  # noqa: S301 from a process started here
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            process.kill()
            self._idle.put(None)
            if process.wait() in _CRASHES:
                raise DataError(
                    f"One of the files from '{paths[0]}' to '{paths[-1]}' crashes the decoder (the process ended with "
                    f"signal {-process.wait()}). Remove the damaged file."
                ) from error
            return None
        self._idle.put(process)
        if isinstance(answer, OSError):
            raise answer
        return answer

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        """Skips what Python printed while the process started."""
        if process.pid in self._ready:
            return
        assert process.stdout is not None
        output = b""
        while not output.endswith(READY_MARK):
            part = process.stdout.read(1)
            if not part or len(output) > _MAX_STARTUP_OUTPUT:
                raise EOFError
            output += part
        self._ready.add(process.pid)

    def close(self) -> None:
        """Kills the processes; blocks they are decoding are lost."""
        for process in self._all:
            if process.poll() is None:
                process.kill()
        for process in self._all:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):
                    if pipe is not None:
                        pipe.close()
        # after another `begin`, `decode` returns None
        self._missing, self._all = self._missing + len(self._all), []
        self._idle = queue.Queue()


def _send(process: subprocess.Popen[bytes], message: object) -> None:
    assert process.stdin is not None
    pickle.dump(message, process.stdin)
    process.stdin.flush()
