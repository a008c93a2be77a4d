"""Decoded or encoded images on disk or in memory: built by several threads or processes, opened again, checked.

Files of an entry: `pixels.npy` (uint8 [N,C,H,W]) or `encoded.bin` with `offsets.npy` and `encoded_digests.npy`; and the
facts of every image, `digests.npy`, `moments.npy`, `sizes.npy`, `lost.npy`, `keys.npy`. Nothing is synced to the disk:
a file that a crash left incomplete is found by its digest, and made again."""

from __future__ import annotations

import errno
import io
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from xxhash import xxh3_64_intdigest

from sightline.data.cache import Entry, finish, reserve
from sightline.data.decode import UNREADABLE, Pixels, as_bytes, content_key, read_encoded, sample_name
from sightline.data.decoding import NAME, Block, decode_block, write_at
from sightline.data.facts import Facts, digests
from sightline.data.packed import EncodedImages
from sightline.data.parallel import cores, in_order
from sightline.data.preprocess import Preprocess
from sightline.data.processes import DecodingProcesses
from sightline.errors import DataError, ImageError, arg, offer
from sightline.files import SharedFile, sha256
from sightline.types import Sample

_BLOCK_BYTES = 1 << 21
_MANY = 4096  # files that are worth starting processes for


@dataclass(frozen=True)
class Built:
    """Images with their facts. `bad` says for a row why it could not be read, with NAME for its name; its pixels are
    zeros."""

    images: Tensor | EncodedImages
    facts: Facts
    bad: Mapping[int, str]


Progress = Callable[[int], None]


class _Work:
    """What both kinds of building gather from the blocks that threads or processes decode."""

    def __init__(self, samples: Sequence[Sample], decoder: Preprocess, exact: Collection[str]):
        self.samples, self.decoder, self.exact = samples, decoder, exact
        self.facts = Facts.empty(len(samples), decoder.channels)
        self.bad: dict[int, str] = {}

    def blocks(self, most: int) -> Iterator[range]:
        """The rows, in blocks of at most `most` images and about a megabyte of pixels."""
        size = max(1, min(most, _BLOCK_BYTES // int(np.prod(self.decoder.shape))))
        count = len(self.samples)
        return (range(start, min(start + size, count)) for start in range(0, count, size))

    def take(self, rows: range, block: Block) -> None:
        """Notes a block that is decoded. Raises DataError, naming the image, for one that is refused."""
        if block.refused is not None:
            position, told = block.refused
            raise DataError(told.replace(NAME, sample_name(self.samples[rows[position]])))
        found = block.facts._asdict()
        for name, kept in self.facts._asdict().items():
            kept[rows.start : rows.stop] = found[name]
        self.bad |= {rows[position]: reason for position, reason in block.bad.items()}
        check_exact(block.facts, self.samples[rows.start : rows.stop], self.decoder, self.exact)

    def built(self, images: Tensor | EncodedImages) -> Built:
        """The result."""
        return Built(images, self.facts, dict(sorted(self.bad.items())))

    def save(self, folder: Path, store: str, origin: str, **arrays: NDArray[Any]) -> None:
        """Writes all but the images, the file that makes it an entry last."""
        kept: dict[str, NDArray[Any]] = {**self.facts._asdict(), **arrays}
        for name, array in kept.items():
            np.save(folder / f"{name}.npy", array)
        sums = {name: sha256(folder / f"{name}.npy") for name in kept}
        shape = [len(self.samples), *self.decoder.shape]
        bad = {str(row): reason for row, reason in self.bad.items()}
        finish(folder, {"origin": origin, "store": store, "shape": shape, "sums": sums, "bad": bad})


def check_exact(facts: Facts, samples: Sequence[Sample], decoder: Preprocess, exact: Collection[str]) -> None:
    """Raises DataError for the first image that gave up what `exact` (see `Preprocess.decode`) asks to keep."""
    other = facts.sizes != (decoder.height, decoder.width)
    changed = {"size": other.any(1) & facts.sizes.any(1), "channels": facts.lost}
    for name in exact:
        for row in np.flatnonzero(changed[name])[:1].tolist():
            decoder.decode(samples[row].image, sample_name(samples[row]), exact)


def build_pixels(
    samples: Sequence[Sample],
    decoder: Preprocess,
    folder: Path | None,
    progress: Progress = lambda _: None,
    exact: Collection[str] = (),
    origin: str = "",
    processes: DecodingProcesses | None = None,
) -> Built:
    """Decodes every sample, into memory or into a folder of the cache. `exact` is as in `Preprocess.decode`;
    `origin` is what a list of the cache calls the entry. Many files are decoded by `processes`, or such as are started
    for them.

    Raises OSError when the folder's disk is full, DataError when memory is, or for an image that is not `exact`."""
    work = _Work(samples, decoder, exact)
    shape = (len(samples), *decoder.shape)
    images = _room(shape) if folder is None else None
    with ExitStack() as stack:
        if images is None:
            assert folder is not None
            decode = _into_file(folder / "pixels.npy", shape, work, stack, processes)
        else:
            decode = partial(_into_memory, work, images)
        for rows, block in in_order(decode, work.blocks(512), threads=cores(), ahead=4 * cores()):
            work.take(rows, block)
            progress(len(rows))
    if images is not None:
        return work.built(torch.from_numpy(images))
    assert folder is not None
    work.save(folder, "pixels", origin)
    return work.built(torch.empty(0))


def worth_processes(samples: Sequence[Sample]) -> bool:
    """Whether so many files are to be decoded that processes are sooner done with them than threads."""
    return len(samples) >= _MANY and cores() > 1 and all(isinstance(sample.image, Path) for sample in samples)


def _into_memory(work: _Work, images: Pixels, rows: range) -> tuple[range, Block]:
    found = [work.samples[row].image for row in rows]
    return rows, decode_block(found, work.decoder, images[rows.start : rows.stop])


def _into_file(
    path: Path, shape: tuple[int, ...], work: _Work, stack: ExitStack, given: DecodingProcesses | None
) -> Callable[[range], tuple[range, Block]]:
    """A function that decodes a block into its place in a file, which is made as long as it will be: it asks processes,
    where they are worth it, or does it in the thread that calls it."""
    offset = _reserve_array(path, shape)
    samples, size = work.samples, int(np.prod(shape[1:]))
    file = stack.enter_context(path.open("r+b", buffering=0))

    def decode(rows: range) -> tuple[range, Block]:
        pixels = _room((len(rows), *shape[1:]))
        block = decode_block([samples[row].image for row in rows], work.decoder, pixels)
        write_at(file, pixels, offset + rows.start * size)
        return rows, block

    if given is None and not worth_processes(samples):
        return decode
    processes = given or DecodingProcesses(cores())
    stack.callback(processes.close)  # before the folder gets its name: a file that is open may not be moved everywhere
    processes.begin(work.decoder, path)

    def ask(rows: range) -> tuple[range, Block]:
        found = processes.decode([str(samples[row].image) for row in rows], offset + rows.start * size)
        return (rows, found) if found is not None else decode(rows)

    return ask


def build_encoded(
    samples: Sequence[Sample],
    decoder: Preprocess,
    folder: Path | None,
    progress: Progress = lambda _: None,
    exact: Collection[str] = (),
    origin: str = "",
) -> Built:
    """Decodes every sample once to see that it can be, notes its facts, and keeps the encoded images in a folder of
    the cache; without one they are read from where they are each time. Errors are those of `build_pixels`."""
    work = _Work(samples, decoder, exact)

    def check(rows: range) -> tuple[range, Block, list[bytes], list[int]]:
        images: list[Any] = []
        for row in rows:
            try:
                images.append(read_encoded(samples[row].image, NAME))
            except ImageError as error:
                images.append(error)
        block = decode_block(images, decoder, _room((len(rows), *decoder.shape)))
        parts = [b""] * len(rows)
        if folder is not None:
            parts = [b"" if at in block.bad else as_bytes(image, NAME) for at, image in enumerate(images)]
        own = [image if isinstance(image, bytes) else b"" for image in images]
        return rows, block, parts, [xxh3_64_intdigest(data) for data in (own if folder is None else parts)]

    lengths, found = [0], list[int]()
    with (folder / "encoded.bin").open("xb") if folder is not None else open(os.devnull, "wb") as file:
        for rows, block, parts, part_digests in in_order(check, work.blocks(8), threads=cores(), ahead=4 * cores()):
            work.take(rows, block)
            for part in parts:
                file.write(part)
                lengths.append(len(part))
            found += part_digests
            progress(len(parts))
    encoded_digests = np.array(found, np.uint64)
    if folder is not None:
        offsets = np.cumsum(lengths, dtype=np.int64)
        work.save(folder, "encoded", origin, offsets=offsets, encoded_digests=encoded_digests)
    originals = _Originals(samples, encoded_digests, work.facts.keys)
    return work.built(EncodedImages(decoder, work.facts.sizes, originals.read, lambda row: sample_name(samples[row])))


def load_entry(
    entry: Entry,
    store: str,
    samples: Sequence[Sample],
    decoder: Preprocess,
    forget: Callable[[], None],
    *,
    check: bool = True,
) -> Built | None:
    """What an entry of the cache holds, or None when any of it is not what was written, or a file that could not be
    read then can be now. Encoded images are compared with their digest when they are read; for a damaged one `forget`
    is called and the sample itself is read. With `check=False` pixels are not compared: this process has just written
    them."""
    try:
        meta = entry.meta
        if meta["store"] != store or meta["shape"] != [len(samples), *decoder.shape]:
            return None
        if any(sha256(entry.path / f"{name}.npy") != found for name, found in meta["sums"].items()):
            return None
        arrays = {name: np.load(entry.path / f"{name}.npy", mmap_mode="r") for name in meta["sums"]}
        facts = Facts(*(arrays[name] for name in Facts._fields))
        bad = {int(row): reason for row, reason in meta["bad"].items()}
        if any(reason.startswith(UNREADABLE) and _can_be_read(samples[row]) for row, reason in bad.items()):
            return None
        if store == "pixels":
            images = _map(entry.path / "pixels.npy")
            if (
                list(images.shape) != meta["shape"]
                or images.dtype != np.uint8
                or (check and not _intact(images, facts))
            ):
                return None
            with warnings.catch_warnings():  # torch's word about arrays that may not be written to
                warnings.simplefilter("ignore")
                return Built(torch.from_numpy(images), facts, bad)
        file = SharedFile(entry.path / "encoded.bin")
        if file.size != int(arrays["offsets"][-1]):
            return None
    except Exception:  # numpy's readers raise nearly anything for a damaged header
        return None
    originals = _Originals(samples, arrays["encoded_digests"], facts.keys)
    kept = _EncodedFile(file, arrays["offsets"], originals, forget)
    encoded = EncodedImages(decoder, facts.sizes, kept.read, lambda row: sample_name(samples[row]))
    return Built(encoded, facts, bad)


class _Originals:
    """The images of samples where they are, each compared with what was packed: encoded images by the digest of their
    bytes, images without bytes by their content key."""

    def __init__(self, samples: Sequence[Sample], encoded_digests: NDArray[np.uint64], keys: NDArray[np.uint64]):
        self.digests = encoded_digests
        self._samples, self._keys = samples, keys

    def read(self, row: int) -> bytes | Pixels | Image.Image:
        """The row's image. Raises DataError, naming it, when it is not the one that was packed."""
        sample = self._samples[row]
        name = sample_name(sample)
        image = read_encoded(sample.image, name)
        if isinstance(image, bytes):
            same = xxh3_64_intdigest(image) == int(self.digests[row])
        else:
            same = content_key(image) == int(self._keys[row])
        if not same:
            raise DataError(
                f"{name} has changed since this run read it first, and a run must see the same images to its end. Put "
                f"the earlier image back and resume the run, or start a new one."
            )
        return image


class _EncodedFile:
    """`encoded.bin`: read at a place, not mapped, so that reading it does not count as the process's memory."""

    def __init__(self, file: SharedFile, offsets: NDArray[np.int64], originals: _Originals, forget: Callable[[], None]):
        self._file, self._offsets = file, offsets
        self._originals, self._forget = originals, forget

    def read(self, row: int) -> Any:
        """The row's bytes; where they are damaged, the sample's own image."""
        start, stop = self._offsets[row : row + 2].tolist()
        with suppress(OSError):
            data = self._file.read(start, stop - start)
            if xxh3_64_intdigest(data) == int(self._originals.digests[row]):
                return data
        self._forget()
        return self._originals.read(row)


def _room(shape: tuple[int, ...]) -> Pixels:
    try:
        return np.empty(shape, np.uint8)
    except (MemoryError, ValueError) as error:
        needed = np.prod(shape, dtype=np.float64) / 2**30
        raise DataError(
            f"{shape[0]:,} images of {shape[2]} x {shape[3]} need {needed:,.1f} GiB of memory, more than there is. "
            f"Set a smaller {arg.size}{offer(', or keep them with {store}=encoded')}."
        ) from error


def _reserve_array(path: Path, shape: tuple[int, ...]) -> int:
    """Makes a .npy file for a uint8 array of that shape; the offset of its first byte."""
    header = io.BytesIO()
    described: Any = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    reserve(path, header.tell() + int(np.prod(shape)))
    with path.open("r+b") as file:
        file.write(header.getvalue())
    return header.tell()


def _map(path: Path) -> NDArray[np.uint8]:
    """The array in a file, mapped privately: writable, as torch asks, without any change reaching the file. One that is
    larger than memory can only be mapped to be read."""
    try:
        found: NDArray[np.uint8] = np.load(path, mmap_mode="c")
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        found = np.load(path, mmap_mode="r")
    return found


def _intact(images: NDArray[np.uint8], facts: Facts) -> bool:
    def check(start: int) -> bool:
        block = images[start : start + 1024]
        return digests(block) == facts.digests[start : start + 1024].tobytes()

    return all(in_order(check, range(0, len(images), 1024), threads=cores(), ahead=4 * cores()))


def _can_be_read(sample: Sample) -> bool:
    try:
        read_encoded(sample.image, NAME)
    except ImageError:
        return False
    return True
