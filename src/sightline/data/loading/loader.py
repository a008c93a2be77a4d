"""Loads batches from a packed dataset onto the device, ahead of the training step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sightline.core.parallel import available_cores, freeze_torch_thread_count, map_in_order, thread_pool
from sightline.core.rng import derive_key
from sightline.core.types import Augmentation, Batch, Loader
from sightline.data.cache.dataset import EncodedImages, PackedDataset
from sightline.data.images.preprocess import Preprocess
from sightline.data.loading.buffers import BufferPool
from sightline.data.loading.sampler import BatchChunk, Sampler

_RESIDENT_BYTES = 1 << 30
_MAX_RANKED = 1 << 24  # ranks take four bytes per sample; larger datasets are shuffled by row instead of by content
_PART_BYTES = 1 << 19
_MAX_CHUNK_BATCHES = 16
_ALIGNED = 16  # float32 values in 64 bytes, the alignment of memory
_GROUP = 8  # images that a thread decodes per task

_Seeded: TypeAlias = "tuple[Augmentation, int]"


class _PreparedBatch(NamedTuple):
    """The images of a chunk of batches, and whether they are already augmented and normalised (`done`)."""

    images: Tensor
    chunk: BatchChunk
    done: bool


class BatchLoader(Loader):
    """Gathers or decodes batches of a packed dataset, augments them and normalises them on `device`.

    Yields `Batch(x float32 [B, C, H, W], y int64 [B], index int64 [B])`; for regression y is float32 [B, 1]. An epoch
    contains every row once; the last batch contains the remaining rows. With `drop_last`, rows that do not fill a batch
    are left out, and with `shuffle` these are other rows in each epoch. `seek` starts any epoch at any batch in
    constant time; an iteration without `seek` continues with the next epoch.

    With `shuffle`, the order is a function of (seed, epoch), and a single remaining row joins the batch before it,
    since batch normalisation is not defined for one row. Every augmentation is a function of (seed, its position in
    `augment`, epoch, sample), so that no two augmentations share a random stream. The sample is the row. When
    shuffling a packed dataset of up to 16 million images, it is the rank of the image by content instead, so that
    nothing depends on the order in which the data is listed.

    With `balanced`, for training, an epoch has the same number of images, but equally many of each class that occurs,
    give or take one: see `BalancedOrder`. Repetitions of an image are augmented differently.

    Of `world_size` loaders that differ only in `rank`, each yields its part of every step: together they visit every
    row once, in the same number of steps. `batch_size` is per loader, and the last step is shared evenly. With
    `shuffle`, a last step that has fewer than two rows for some rank joins the step before it.

    `workers` threads (None: one per available core) prepare up to `prefetch` batches ahead; if either is 0, batches are
    prepared when requested. Small batches without augmentation are prepared together, up to 512 KiB of pixels, and
    without threads if the pixels of the dataset are at most 1 GiB. None of this changes a batch. On another device than
    the CPU, pixels of up to 1 GiB are kept in its memory.

    If images are encoded and the first augmentation has `boxes`, as `RandomResizedCrop` does, the crop is taken from
    the original image during decoding."""

    def __init__(
        self,
        dataset: PackedDataset,
        preprocess: Preprocess,
        batch_size: int,
        *,
        shuffle: bool = False,
        balanced: bool = False,
        drop_last: bool = False,
        augment: Sequence[Augmentation] = (),
        seed: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        workers: int | None = None,
        prefetch: int = 2,
    ):
        _check_sharding(len(dataset), batch_size, rank, world_size, drop_last)
        if balanced and not shuffle:
            raise ValueError("balanced: balanced=True is for training and needs shuffle=True.")
        if balanced and dataset.labels.is_floating_point():
            raise ValueError("balanced: balanced=True needs class labels, but the labels are numbers (regression).")
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.augment = tuple(augment)
        self.seed = seed
        self.device = torch.device(device)
        self.rank, self.world_size = rank, world_size
        self.workers = available_cores() if workers is None else workers
        self.prefetch = prefetch
        self._normalize = preprocess.normalizer(self.device)
        self._bytes, self._floats = BufferPool(dataset.shape[1:], np.uint8), BufferPool(dataset.shape[1:], np.float32)
        self._labels = dataset.labels.to(self.device)
        self._resident: Tensor | None = None  # the images of the split, on a device that is not the CPU
        fits = self.device.type != "cpu" and math.prod(dataset.shape) <= _RESIDENT_BYTES
        if fits and isinstance(dataset.images, Tensor):
            rows = slice(None) if dataset.rows is None else torch.from_numpy(dataset.rows)
            self._resident = dataset.images[rows].to(self.device)
        # a packed dataset is shuffled by content, so that training does not depend on the order of the source
        by_content = shuffle and dataset.stats is not None and len(dataset) <= _MAX_RANKED
        self._ranked = dataset.canonical().astype(np.int32) if by_content else None
        self._sampler = Sampler(
            len(dataset),
            batch_size,
            seed=seed,
            shuffle=shuffle,
            ranked=self._ranked,
            balance=dataset.labels.numpy() if balanced else None,
            rank=rank,
            world_size=world_size,
            min_rank_samples=2 if shuffle and batch_size > 1 else 1,
            drop_last=drop_last,
        )
        seeded = tuple((step, augmentation_seed(seed, place)) for place, step in enumerate(self.augment))
        self._crop, self._steps = _crop_while_decoding(dataset, seeded)
        self._batches_per_chunk = self._choose_batches_per_chunk()
        self._epoch, self._batch = 0, 0

    def __len__(self) -> int:
        """The number of steps in an epoch."""
        return len(self._sampler)

    def look(self, rows: Sequence[int] | NDArray[np.int64], epoch: int = 0) -> Batch:
        """Returns a batch of these rows as augmented in that epoch; for a repeated row, as the first time."""
        samples = np.asarray(rows, np.int64)
        ranks = samples if self._ranked is None else np.argsort(self._ranked)[samples]
        return self._finish(self._prepare(BatchChunk(samples, ranks, (len(samples),), epoch), map))[0]

    def seek(self, epoch: int, batch: int = 0, position: Mapping[str, Any] | None = None) -> None:
        """Makes the next iteration start epoch `epoch` at batch `batch`. `position` is not used."""
        self._epoch, self._batch = epoch, batch

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = self._epoch, self._batch
        self._epoch, self._batch = epoch + 1, 0
        chunks = self._sampler.chunks(epoch, first, self._batches_per_chunk)
        if self._resident is not None or not self.workers or not self.prefetch or self._is_cheap():
            for chunk in chunks:
                yield from self._finish(self._prepare(chunk, map))
            return
        encoded = isinstance(self.dataset.images, EncodedImages)
        decoders = thread_pool(self.workers) if encoded else None
        each: Callable[..., Any] = map if decoders is None else decoders.map
        try:
            # gathering is much faster than a step, so two threads are enough; decoding has separate threads
            with closing(
                map_in_order(
                    lambda chunk: self._prepare(chunk, each),
                    chunks,
                    threads=min(self.workers, 2),
                    max_pending=1 + math.ceil(self.prefetch / self._batches_per_chunk),
                )
            ) as ready:
                for prepared in ready:
                    yield from self._finish(prepared)
        finally:
            if decoders is not None:
                decoders.shutdown(wait=True, cancel_futures=True)
                freeze_torch_thread_count()

    def _is_cheap(self) -> bool:
        """Whether batches are prepared so fast that threads would only compete with the step for the interpreter: small
        batches of pixels that are in memory, since all were read when the dataset was opened."""
        images = self.dataset.images
        return self._batches_per_chunk > 1 and isinstance(images, Tensor) and images.numel() <= _RESIDENT_BYTES

    def _choose_batches_per_chunk(self) -> int:
        """Returns how many batches are prepared together. For small batches that are only gathered and normalised,
        calling the operations and passing a batch to another thread takes longer than the work itself."""
        images = self.dataset.images
        if self.device.type != "cpu" or self._steps or not isinstance(images, Tensor):
            return 1
        values = self.batch_size * math.prod(self.dataset.shape[1:])
        if values % _ALIGNED:  # the second batch would not be aligned in memory
            return 1
        return max(1, min(_MAX_CHUNK_BATCHES, _PART_BYTES // values))

    def _prepare(self, chunk: BatchChunk, each: Callable[..., Any]) -> _PreparedBatch:
        """Prepares batches as far as a thread ahead of the step can: on the CPU completely, unless an augmentation must
        run in the consumer's thread; for another device, up to the transfer of the bytes."""
        if self._resident is not None:
            rows = torch.from_numpy(chunk.rows).to(self.device)
            return _PreparedBatch(self._resident.index_select(0, rows), chunk, False)
        images = self._read(chunk, each)
        if self.device.type != "cpu":
            return _PreparedBatch(images.pin_memory() if self.device.type == "cuda" else images, chunk, False)
        if not all(getattr(step, "threaded", True) for step, _ in self._steps):
            return _PreparedBatch(images, chunk, False)
        return _PreparedBatch(self._change(images, chunk), chunk, True)

    def _finish(self, prepared: _PreparedBatch) -> list[Batch]:
        images, chunk, done = prepared
        index = torch.from_numpy(chunk.rows).to(self.device)
        if not done:
            images = self._change(images.to(self.device, non_blocking=self.device.type == "cuda"), chunk)
        labels = self._labels.index_select(0, index)
        if len(chunk.sizes) == 1:
            return [Batch(images, labels, index=index)]
        parts = (tensor.split_with_sizes(chunk.sizes) for tensor in (images, labels, index))
        return [Batch(x, y, index=rows) for x, y, rows in zip(*parts, strict=True)]

    def _change(self, images: Tensor, chunk: BatchChunk) -> Tensor:
        if self.device.type != "cpu":
            return self._normalize(self._augmented(images, chunk.keys, chunk.epoch))
        # in parts that fit the CPU cache, with temporaries too small to fragment memory
        out = self._floats.take(len(chunk.rows))
        size = max(1, _PART_BYTES // max(1, images[:1].numel()))
        for start in range(0, len(chunk.rows), size):
            part = slice(start, start + size)
            self._normalize(self._augmented(images[part], chunk.keys[part], chunk.epoch), out[part])
        return out

    def _augmented(self, images: Tensor, keys: NDArray[np.int64], epoch: int) -> Tensor:
        for step, seed in self._steps:
            images = step(images, keys, seed, epoch)
        return images

    def _read(self, chunk: BatchChunk, each: Callable[..., Any]) -> Tensor:
        rows, keys, _, epoch = chunk
        images, places = self.dataset.images, self.dataset.places(rows)
        out = self._bytes.take(len(rows))
        if isinstance(images, Tensor):
            return torch.index_select(images, 0, torch.from_numpy(places), out=out)
        crops = [None] * len(rows)
        if self._crop is not None:
            boxes, seed = self._crop
            crops = boxes(keys, seed, epoch, images.sizes[places].astype(np.int64)).tolist()
        pixels = out.numpy()

        def decode(start: int) -> None:
            for at in range(start, min(start + _GROUP, len(rows))):
                pixels[at] = images.decode(int(places[at]), crops[at])

        for _ in each(decode, range(0, len(rows), _GROUP)):
            pass
        return out


def _check_sharding(count: int, batch_size: int, rank: int, world_size: int, drop_last: bool) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size: expected an integer >= 1, found {batch_size}.")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank: expected an integer in [0, {world_size - 1}], found {rank}.")
    if 0 < count < world_size:
        raise ValueError(f"{count} images are too few for {world_size} processes; expected at least one per process.")
    if drop_last and count < batch_size * world_size:
        raise ValueError(f"drop_last: {count} images do not fill one step of {batch_size * world_size}.")


def augmentation_seed(seed: int, position: int) -> int:
    """Returns the 63-bit seed that a loader of `seed` uses for the augmentation at `position` (from 0) of its list."""
    return derive_key(seed, position, "augmentation") >> 1


def _crop_while_decoding(
    dataset: PackedDataset, steps: tuple[_Seeded, ...]
) -> tuple[tuple[Callable[..., NDArray[np.int64]], int] | None, tuple[_Seeded, ...]]:
    """Returns the `boxes` method and seed of a crop to apply during decoding, if any, and the other augmentations."""
    if steps and isinstance(dataset.images, EncodedImages):
        step, seed = steps[0]
        boxes = getattr(step, "boxes", None)
        if boxes is not None:
            return (boxes, seed), steps[1:]
    return None, steps
