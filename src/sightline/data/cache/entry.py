"""Decoded or encoded images on disk or in memory: built by several threads or processes, opened again, checked.

Files of an entry: `pixels.npy` (uint8 [N,C,H,W]) or `encoded.bin` with `offsets.npy` and `encoded_digests.npy`; and the
stats of every image, `digests.npy`, `moments.npy`, `sizes.npy`, `lost.npy`, `keys.npy`. Nothing is synced to the disk:
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

from sightline.core.errors import DataError, ImageError, arg, render_hint
from sightline.core.files import SharedFile, sha256
from sightline.core.parallel import available_cores, map_in_order
from sightline.data.cache.dataset import EncodedImages
from sightline.data.cache.directory import CacheEntry, commit_entry, preallocate
from sightline.data.cache.workers import (
    NAME_PLACEHOLDER,
    DecodedBlock,
    DecodingProcesses,
    Workers,
    decode_block,
    write_at,
)
from sightline.data.images.decode import READ_ERROR, Pixels, read_source, sample_name, to_encoded_bytes
from sightline.data.images.digest import ImageStats, content_key, digests
from sightline.data.images.preprocess import Preprocess
from sightline.data.records import Sample

_BLOCK_BYTES = 1 << 21


@dataclass(frozen=True)
class PackedImages:
    """Images with their stats. `bad` says for a row why it could not be read, with NAME_PLACEHOLDER for its name; its
    pixels are zeros."""

    images: Tensor | EncodedImages
    stats: ImageStats
    bad: Mapping[int, str]


Progress = Callable[[int], None]


class _EntryBuilder:
    """What both kinds of building gather from the blocks that threads or processes decode."""

    def __init__(self, samples: Sequence[Sample], decoder: Preprocess, exact: Collection[str], workers: Workers):
        self.samples, self.decoder, self.exact, self.workers = samples, decoder, exact, workers
        self.stats = ImageStats.zeros(len(samples), decoder.channels)
        self.bad: dict[int, str] = {}

    def blocks(self, most: int) -> Iterator[range]:
        """The rows, in blocks of at most `most` images and about a megabyte of pixels."""
        size = max(1, min(most, _BLOCK_BYTES // int(np.prod(self.decoder.shape))))
        count = len(self.samples)
        return (range(start, min(start + size, count)) for start in range(0, count, size))

    def take(self, rows: range, block: DecodedBlock) -> None:
        """Notes a block that is decoded. Raises DataError, naming the image, for one that is refused."""
        if block.refused is not None:
            position, reason = block.refused
            raise DataError(reason.replace(NAME_PLACEHOLDER, sample_name(self.samples[rows[position]])))
        found = block.stats._asdict()
        for name, kept in self.stats._asdict().items():
            kept[rows.start : rows.stop] = found[name]
        self.bad |= {rows[position]: reason for position, reason in block.bad.items()}
        check_preserved(block.stats, self.samples[rows.start : rows.stop], self.decoder, self.exact)

    def built(self, images: Tensor | EncodedImages) -> PackedImages:
        """The result."""
        return PackedImages(images, self.stats, dict(sorted(self.bad.items())))

    def save(self, folder: Path, store: str, origin: str, **arrays: NDArray[Any]) -> None:
        """Writes all but the images, the file that makes it an entry last."""
        kept: dict[str, NDArray[Any]] = {**self.stats._asdict(), **arrays}
        for name, array in kept.items():
            np.save(folder / f"{name}.npy", array)
        sums = {name: sha256(folder / f"{name}.npy") for name in kept}
        shape = [len(self.samples), *self.decoder.shape]
        bad = {str(row): reason for row, reason in self.bad.items()}
        commit_entry(folder, {"origin": origin, "store": store, "shape": shape, "sums": sums, "bad": bad})


def check_preserved(stats: ImageStats, samples: Sequence[Sample], decoder: Preprocess, exact: Collection[str]) -> None:
    """Raises DataError for the first image that gave up what `exact` (see `Preprocess.decode`) asks to keep."""
    other = stats.sizes != (decoder.height, decoder.width)
    changed = {"size": other.any(1) & stats.sizes.any(1), "channels": stats.lost}
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
    workers: Workers = Workers(),
) -> PackedImages:
    """Decodes every sample, into memory or into a folder of the cache. `exact` is as in `Preprocess.decode`;
    `origin` is what a list of the cache calls the entry. Many files are decoded by `processes`, or such as are started
    for them.

    Raises OSError when the folder's disk is full, DataError when memory is, or for an image that is not `exact`."""
    work = _EntryBuilder(samples, decoder, exact, workers)
    shape = (len(samples), *decoder.shape)
    images = _empty_pixels(shape) if folder is None else None
    with ExitStack() as stack:
        if images is None:
            assert folder is not None
            decode = _make_file_decoder(folder / "pixels.npy", shape, work, stack, processes)
        else:
            decode = partial(_decode_into_memory, work, images)
        for rows, block in map_in_order(
            decode, work.blocks(512), threads=workers.threads, max_pending=4 * workers.threads
        ):
            work.take(rows, block)
            progress(len(rows))
    if images is not None:
        return work.built(torch.from_numpy(images))
    assert folder is not None
    work.save(folder, "pixels", origin)
    return work.built(torch.empty(0))


def _decode_into_memory(work: _EntryBuilder, images: Pixels, rows: range) -> tuple[range, DecodedBlock]:
    found = [work.samples[row].image for row in rows]
    return rows, decode_block(found, work.decoder, images[rows.start : rows.stop])


def _make_file_decoder(
    path: Path, shape: tuple[int, ...], work: _EntryBuilder, stack: ExitStack, given: DecodingProcesses | None
) -> Callable[[range], tuple[range, DecodedBlock]]:
    """A function that decodes a block into its place in a file, which is made as long as it will be: it asks processes,
    where they are worth it, or does it in the thread that calls it."""
    offset = _reserve_array(path, shape)
    samples, size = work.samples, int(np.prod(shape[1:]))
    file = stack.enter_context(path.open("r+b", buffering=0))

    def decode(rows: range) -> tuple[range, DecodedBlock]:
        pixels = _empty_pixels((len(rows), *shape[1:]))
        block = decode_block([samples[row].image for row in rows], work.decoder, pixels)
        write_at(file, pixels, offset + rows.start * size)
        return rows, block

    if given is None and not work.workers.use_processes(samples):
        return decode
    processes = given or DecodingProcesses(work.workers.threads)
    stack.callback(processes.close)  # before the folder gets its name: a file that is open may not be moved everywhere
    processes.begin(work.decoder, path)

    def ask(rows: range) -> tuple[range, DecodedBlock]:
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
    workers: Workers = Workers(),
) -> PackedImages:
    """Decodes every sample once to see that it can be, notes its stats, and keeps the encoded images in a folder of
    the cache; without one they are read from where they are each time. Errors are those of `build_pixels`."""
    work = _EntryBuilder(samples, decoder, exact, workers)

    def check(rows: range) -> tuple[range, DecodedBlock, list[bytes], list[int]]:
        images: list[Any] = []
        for row in rows:
            try:
                images.append(read_source(samples[row].image, NAME_PLACEHOLDER))
            except ImageError as error:
                images.append(error)
        block = decode_block(images, decoder, _empty_pixels((len(rows), *decoder.shape)))
        parts = [b""] * len(rows)
        if folder is not None:
            parts = [
                b"" if at in block.bad else to_encoded_bytes(image, NAME_PLACEHOLDER) for at, image in enumerate(images)
            ]
        own = [image if isinstance(image, bytes) else b"" for image in images]
        return rows, block, parts, [xxh3_64_intdigest(data) for data in (own if folder is None else parts)]

    lengths, found = [0], list[int]()
    with (folder / "encoded.bin").open("xb") if folder is not None else open(os.devnull, "wb") as file:
        for rows, block, parts, part_digests in map_in_order(
            check, work.blocks(8), threads=workers.threads, max_pending=4 * workers.threads
        ):
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
    originals = _OriginalImages(samples, encoded_digests, work.stats.keys)
    return work.built(EncodedImages(decoder, work.stats.sizes, originals.read, lambda row: sample_name(samples[row])))


def load_entry(
    entry: CacheEntry,
    store: str,
    samples: Sequence[Sample],
    decoder: Preprocess,
    invalidate: Callable[[], None],
    *,
    check: bool = True,
) -> PackedImages | None:
    """What an entry of the cache holds, or None when any of it is not what was written, or a file that could not be
    read then can be now. Encoded images are compared with their digest when they are read; for a damaged one
    `invalidate` is called and the sample itself is read. With `check=False` pixels are not compared: this process has
    just written them."""
    try:
        meta = entry.meta
        if meta["store"] != store or meta["shape"] != [len(samples), *decoder.shape]:
            return None
        if any(sha256(entry.path / f"{name}.npy") != found for name, found in meta["sums"].items()):
            return None
        arrays = {name: np.load(entry.path / f"{name}.npy", mmap_mode="r") for name in meta["sums"]}
        stats = ImageStats(*(arrays[name] for name in ImageStats._fields))
        bad = {int(row): reason for row, reason in meta["bad"].items()}
        if any(reason.startswith(READ_ERROR) and _can_be_read(samples[row]) for row, reason in bad.items()):
            return None
        if store == "pixels":
            images = _memory_map(entry.path / "pixels.npy")
            if (
                list(images.shape) != meta["shape"]
                or images.dtype != np.uint8
                or (check and not _digests_match(images, stats))
            ):
                return None
            with warnings.catch_warnings():  # torch's word about arrays that may not be written to
                warnings.simplefilter("ignore")
                return PackedImages(torch.from_numpy(images), stats, bad)
        file = SharedFile(entry.path / "encoded.bin")
        if file.size != int(arrays["offsets"][-1]):
            return None
    except Exception:  # numpy's readers raise nearly anything for a damaged header
        return None
    originals = _OriginalImages(samples, arrays["encoded_digests"], stats.keys)
    kept = _EncodedFile(file, arrays["offsets"], originals, invalidate)
    encoded = EncodedImages(decoder, stats.sizes, kept.read, lambda row: sample_name(samples[row]))
    return PackedImages(encoded, stats, bad)


class _OriginalImages:
    """The images of samples where they are, each compared with what was packed: encoded images by the digest of their
    bytes, images without bytes by their content key."""

    def __init__(self, samples: Sequence[Sample], encoded_digests: NDArray[np.uint64], keys: NDArray[np.uint64]):
        self.digests = encoded_digests
        self._samples, self._keys = samples, keys

    def read(self, row: int) -> bytes | Pixels | Image.Image:
        """The row's image. Raises DataError, naming it, when it is not the one that was packed."""
        sample = self._samples[row]
        name = sample_name(sample)
        image = read_source(sample.image, name)
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

    def __init__(
        self, file: SharedFile, offsets: NDArray[np.int64], originals: _OriginalImages, invalidate: Callable[[], None]
    ):
        self._file, self._offsets = file, offsets
        self._originals, self._invalidate = originals, invalidate

    def read(self, row: int) -> Any:
        """The row's bytes; where they are damaged, the sample's own image."""
        start, stop = self._offsets[row : row + 2].tolist()
        with suppress(OSError):
            data = self._file.read(start, stop - start)
            if xxh3_64_intdigest(data) == int(self._originals.digests[row]):
                return data
        self._invalidate()
        return self._originals.read(row)


def _empty_pixels(shape: tuple[int, ...]) -> Pixels:
    try:
        return np.empty(shape, np.uint8)
    except (MemoryError, ValueError) as error:
        needed = np.prod(shape, dtype=np.float64) / 2**30
        raise DataError(
            f"{shape[0]:,} images of {shape[2]} x {shape[3]} need {needed:,.1f} GiB of memory, more than there is. "
            f"Set a smaller {arg.size}{render_hint(', or keep them with {store}=encoded')}."
        ) from error


def _reserve_array(path: Path, shape: tuple[int, ...]) -> int:
    """Makes a .npy file for a uint8 array of that shape; the offset of its first byte."""
    header = io.BytesIO()
    described: Any = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    preallocate(path, header.tell() + int(np.prod(shape)))
    with path.open("r+b") as file:
        file.write(header.getvalue())
    return header.tell()


def _memory_map(path: Path) -> NDArray[np.uint8]:
    """The array in a file, mapped privately: writable, as torch asks, without any change reaching the file. One that is
    larger than memory can only be mapped to be read."""
    try:
        found: NDArray[np.uint8] = np.load(path, mmap_mode="c")
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        found = np.load(path, mmap_mode="r")
    return found


def _digests_match(images: NDArray[np.uint8], stats: ImageStats) -> bool:
    def check(start: int) -> bool:
        block = images[start : start + 1024]
        return digests(block) == stats.digests[start : start + 1024].tobytes()

    return all(
        map_in_order(check, range(0, len(images), 1024), threads=available_cores(), max_pending=4 * available_cores())
    )


def _can_be_read(sample: Sample) -> bool:
    try:
        read_source(sample.image, NAME_PLACEHOLDER)
    except ImageError:
        return False
    return True
