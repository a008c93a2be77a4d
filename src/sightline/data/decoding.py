"""Blocks of images -> pixels and facts, in this process or in one that does nothing else.

Nothing here imports torch: such a process is at work after a fifth of a second."""

from __future__ import annotations

import gc
import os
import pickle
import sys
import threading
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from sightline.data.decode import Pixels, content_key, plain_jpeg
from sightline.data.facts import Facts
from sightline.data.preprocess import Preprocess
from sightline.errors import DataError, ImageError

NAME = "\0"
"""Stands for an image's name in a reason that is kept: the row of a table may be another tomorrow."""
MARK = b"\0sightline decodes\0"
"""What a decoding process says first; what stands before it was printed while Python started."""
_ONE_AT_A_TIME = threading.Lock()


class Block(NamedTuple):
    """The facts of a block of images; by their places in it, why some could not be read (`bad`), and the first that
    is not to be decoded at all (`refused`)."""

    facts: Facts
    bad: dict[int, str]
    refused: tuple[int, str] | None = None


def decode_block(images: Sequence[Any], decoder: Preprocess, pixels: Pixels) -> Block:
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
            picture = plain_jpeg(image)
            if picture is not None and picture.shape in (gray, colour):  # for small files, calls are what costs
                pixels[position] = picture if gray else picture.transpose(2, 0, 1)
                keys[position] = content_key(picture)
                continue
            given = Path(image) if isinstance(image, str) else image
            found = decoder.decode_noting(given if picture is None else picture, NAME)
            pixels[position] = found.pixels
            changed[position], keys[position] = (found.size, found.lost_colours), found.key
        except ImageError as error:
            bad[position] = str(error)
            pixels[position] = 0
            changed[position] = ((0, 0), False)
        except DataError as error:
            return Block(Facts.of(pixels[:0]), bad, (position, str(error)))
    facts = Facts.of(pixels)
    for position, (size, lost) in changed.items():
        facts.sizes[position], facts.lost[position] = size, lost
    facts.keys[:] = keys
    return Block(facts, bad)


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
    of its pixels, until there are no more. Each is answered with its Block, or the OSError that writing it raised."""
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
            answer: Block | OSError = decode_block(paths, decoder, pixels)
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
    answers.write(MARK)
    answers.flush()
    serve(sys.stdin.buffer, answers)
