"""Builds and loads packed images, decoded or encoded, in memory or in the files of a cache entry.

Files of an entry: `pixels.npy` (uint8 [N, C, H, W]) or `encoded.bin` with `offsets.npy` and `encoded_digests.npy`; and
the statistics of every image: `digests.npy`, `moments.npy`, `sizes.npy`, `lost.npy`, `keys.npy`. Nothing is synced to
the disk: a file that is incomplete after a crash is detected by its digest, and built again."""

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
    """Images with their statistics. `bad` maps the rows of images that could not be read to the reason, with
    NAME_PLACEHOLDER for the name; their pixels are zeros."""

    images: Tensor | EncodedImages
    stats: ImageStats
    bad: Mapping[int, str]


Progress = Callable[[int], None]


class _EntryBuilder:
    """Collects the statistics and errors of decoded blocks, for `build_pixels` and `build_encoded`."""

    def __init__(self, samples: Sequence[Sample], decoder: Preprocess, exact: Collection[str], workers: Workers):
        self.samples, self.decoder, self.exact, self.workers = samples, decoder, exact, workers
        self.stats = ImageStats.zeros(len(samples), decoder.channels)
        self.bad: dict[int, str] = {}

    def blocks(self, most: int) -> Iterator[range]:
        """Returns the rows in blocks of at most `most` images and 2 MiB of pixels, but at least one image."""
        size = max(1, min(most, _BLOCK_BYTES // int(np.prod(self.decoder.shape))))
        count = len(self.samples)
        return (range(start, min(start + size, count)) for start in range(0, count, size))

    def take(self, rows: range, block: DecodedBlock) -> None:
        """Adds a decoded block. Raises DataError, naming the image, if one was refused."""
        if block.refused is not None:
            position, reason = block.refused
            raise DataError(reason.replace(NAME_PLACEHOLDER, sample_name(self.samples[rows[position]])))
        block_stats = block.stats._asdict()
        for name, array in self.stats._asdict().items():
            array[rows.start : rows.stop] = block_stats[name]
        self.bad |= {rows[position]: reason for position, reason in block.bad.items()}
        check_preserved(block.stats, self.samples[rows.start : rows.stop], self.decoder, self.exact)

    def built(self, images: Tensor | EncodedImages) -> PackedImages:
        """Returns the packed images."""
        return PackedImages(images, self.stats, dict(sorted(self.bad.items())))

    def save(self, folder: Path, store: str, origin: str, **arrays: NDArray[Any]) -> None:
        """Writes all files of the entry except the images, with `meta.json` last."""
        saved: dict[str, NDArray[Any]] = {**self.stats._asdict(), **arrays}
        for name, array in saved.items():
            np.save(folder / f"{name}.npy", array)
        sums = {name: sha256(folder / f"{name}.npy") for name in saved}
        shape = [len(self.samples), *self.decoder.shape]
        bad = {str(row): reason for row, reason in self.bad.items()}
        commit_entry(folder, {"origin": origin, "store": store, "shape": shape, "sums": sums, "bad": bad})


def check_preserved(stats: ImageStats, samples: Sequence[Sample], decoder: Preprocess, exact: Collection[str]) -> None:
    """Raises DataError for the first image that lost what `exact` names (see `Preprocess.decode`)."""
    differs = stats.sizes != (decoder.height, decoder.width)
    changed = {"size": differs.any(1) & stats.sizes.any(1), "channels": stats.lost}
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
    """Decodes every sample to pixels, in memory or, if `folder` is not None, into the files of a cache entry.

    With a folder, the returned images are empty: open the entry with `load_entry`. `exact` is as in
    `Preprocess.decode`; `origin` is the name in cache listings. Many files are decoded by `processes`, or by processes
    started here. Raises OSError when the disk is full, DataError when memory is full or an image is not `exact`."""
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
    sources = [work.samples[row].image for row in rows]
    return rows, decode_block(sources, work.decoder, images[rows.start : rows.stop])


def _make_file_decoder(
    path: Path, shape: tuple[int, ...], work: _EntryBuilder, stack: ExitStack, started: DecodingProcesses | None
) -> Callable[[range], tuple[range, DecodedBlock]]:
    """Creates a file of the final size and returns a function that decodes a block into it, in a decoding process if
    that is faster, otherwise in the calling thread."""
    offset = _reserve_array(path, shape)
    samples, size = work.samples, int(np.prod(shape[1:]))
    file = stack.enter_context(path.open("r+b", buffering=0))

    def decode(rows: range) -> tuple[range, DecodedBlock]:
        pixels = _empty_pixels((len(rows), *shape[1:]))
        block = decode_block([samples[row].image for row in rows], work.decoder, pixels)
        write_at(file, pixels, offset + rows.start * size)
        return rows, block

    if started is None and not work.workers.use_processes(samples):
        return decode
    processes = started or DecodingProcesses(work.workers.threads)
    stack.callback(processes.close)  # before the folder is renamed: some systems do not move open files
    processes.begin(work.decoder, path)

    def decode_in_process(rows: range) -> tuple[range, DecodedBlock]:
        block = processes.decode([str(samples[row].image) for row in rows], offset + rows.start * size)
        return (rows, block) if block is not None else decode(rows)

    return decode_in_process


def build_encoded(
    samples: Sequence[Sample],
    decoder: Preprocess,
    folder: Path | None,
    progress: Progress = lambda _: None,
    exact: Collection[str] = (),
    origin: str = "",
    workers: Workers = Workers(),
) -> PackedImages:
    """Decodes every sample once to check it and compute its statistics, and keeps the encoded images.

    They are kept in `folder`, as the files of a cache entry; without one, they are read from the source on each access.
    Raises as `build_pixels` does."""
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
        sources = [image if isinstance(image, bytes) else b"" for image in images]
        return rows, block, parts, [xxh3_64_intdigest(data) for data in (sources if folder is None else parts)]

    lengths, all_digests = [0], list[int]()
    with (folder / "encoded.bin").open("xb") if folder is not None else open(os.devnull, "wb") as file:
        for rows, block, parts, part_digests in map_in_order(
            check, work.blocks(8), threads=workers.threads, max_pending=4 * workers.threads
        ):
            work.take(rows, block)
            for part in parts:
                file.write(part)
                lengths.append(len(part))
            all_digests += part_digests
            progress(len(parts))
    encoded_digests = np.array(all_digests, np.uint64)
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
    """Loads the images of a cache entry; returns None if the entry is damaged or out of date.

    It is out of date if an image that could not be read when it was built can be read now. Encoded images are checked
    against their digest on each access; if one is damaged, `invalidate` is called and the sample's source is read.
    `check=False` skips checking the pixels, for an entry that this process has just written."""
    try:
        meta = entry.meta
        if meta["store"] != store or meta["shape"] != [len(samples), *decoder.shape]:
            return None
        if any(sha256(entry.path / f"{name}.npy") != expected for name, expected in meta["sums"].items()):
            return None
        arrays = {name: np.load(entry.path / f"{name}.npy", mmap_mode="r") for name in meta["sums"]}
        stats = ImageStats(*(arrays[name] for name in ImageStats._fields))
        bad = {int(row): reason for row, reason in meta["bad"].items()}
        read_errors = (READ_ERROR, READ_ERROR.lower())  # lower case in entries of earlier versions
        if any(reason.startswith(read_errors) and _can_be_read(samples[row]) for row, reason in bad.items()):
            return None
        if store == "pixels":
            images = _memory_map(entry.path / "pixels.npy")
            if (
                list(images.shape) != meta["shape"]
                or images.dtype != np.uint8
                or (check and not _digests_match(images, stats))
            ):
                return None
            with warnings.catch_warnings():  # torch warns about read-only arrays
                warnings.simplefilter("ignore")
                return PackedImages(torch.from_numpy(images), stats, bad)
        file = SharedFile(entry.path / "encoded.bin")
        if file.size != int(arrays["offsets"][-1]):
            return None
    except Exception:  # NumPy's readers raise many exception types for a damaged header
        return None
    originals = _OriginalImages(samples, arrays["encoded_digests"], stats.keys)
    encoded_file = _EncodedFile(file, arrays["offsets"], originals, invalidate)
    encoded = EncodedImages(decoder, stats.sizes, encoded_file.read, lambda row: sample_name(samples[row]))
    return PackedImages(encoded, stats, bad)


class _OriginalImages:
    """Reads images from their sources and checks that they equal the packed ones: encoded images by the digest of
    their bytes, images without bytes by their content key."""

    def __init__(self, samples: Sequence[Sample], encoded_digests: NDArray[np.uint64], keys: NDArray[np.uint64]):
        self.digests = encoded_digests
        self._samples, self._keys = samples, keys

    def read(self, row: int) -> bytes | Pixels | Image.Image:
        """Returns the image of a row. Raises DataError, naming it, if it is not the one that was packed."""
        sample = self._samples[row]
        name = sample_name(sample)
        image = read_source(sample.image, name)
        if isinstance(image, bytes):
            same = xxh3_64_intdigest(image) == int(self.digests[row])
        else:
            same = content_key(image) == int(self._keys[row])
        if not same:
            raise DataError(
                f"{name} has changed since this run first read it; a run needs the same images until its end. "
                f"Restore the original file and resume the run, or start a new one."
            )
        return image


class _EncodedFile:
    """Reads images from `encoded.bin` by offset. The file is not memory-mapped, so that reading it does not count as
    memory of the process."""

    def __init__(
        self, file: SharedFile, offsets: NDArray[np.int64], originals: _OriginalImages, invalidate: Callable[[], None]
    ):
        self._file, self._offsets = file, offsets
        self._originals, self._invalidate = originals, invalidate

    def read(self, row: int) -> Any:
        """Returns the encoded bytes of a row; if they are damaged, the image from its source."""
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
            f"{shape[0]:,} images of {shape[2]} x {shape[3]} need {needed:,.1f} GiB of memory, more than is available. "
            f"Set a smaller {arg.size}{render_hint(', or {store}=encoded')}."
        ) from error


def _reserve_array(path: Path, shape: tuple[int, ...]) -> int:
    """Creates a .npy file for a uint8 array of that shape; returns the offset of the array's first byte."""
    header = io.BytesIO()
    fields: Any = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, fields)
    preallocate(path, header.tell() + int(np.prod(shape)))
    with path.open("r+b") as file:
        file.write(header.getvalue())
    return header.tell()


def _memory_map(path: Path) -> NDArray[np.uint8]:
    """Maps the array in a file copy-on-write: writable, as torch requires, but changes do not reach the file. An array
    larger than memory is mapped read-only."""
    try:
        array: NDArray[np.uint8] = np.load(path, mmap_mode="c")
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        array = np.load(path, mmap_mode="r")
    return array


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
