"""Batches for the device out of a packed data set, made ahead of the step."""

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
_RANKED = 1 << 24  # four bytes each; above, the order of the list counts
_PART_BYTES = 1 << 19
_MAX_CHUNK_BATCHES = 16
_ALIGNED = 16  # float32 numbers of the 64 bytes at which memory is aligned
_GROUP = 8  # images a thread decodes before it looks for more work

_Seeded: TypeAlias = "tuple[Augmentation, int]"


class _PreparedBatch(NamedTuple):
    """Batches on their way: their images, which they are, and whether they are augmented and normalised."""

    images: Tensor
    chunk: BatchChunk
    done: bool


class BatchLoader(Loader):
    """Gathers or decodes, augments and normalises whole batches on `device`.

    An epoch visits every row once, the last batch as large as what is left; with `drop_last`, what does not fill a
    batch is left out, which in the next epoch are other rows. With `shuffle`, a single row that is left joins the batch
    before it, since normalisation over a batch of one is not defined, and the order is a function of
    (seed, epoch), and every augmentation of (seed, its position in `augment`, epoch, sample), so that no two of them
    share a random stream, even two of one kind. The sample is the row, or, for up to 16 million images that were
    packed, the place among all images when these are sorted by content, so that nothing depends on the order in which
    the data is listed. `seek` starts any epoch at any batch in constant time; an iteration without a `seek`
    before it goes on with the epoch after the last one.

    With `balanced`, for training, an epoch has as many images, but of each class that occurs as many as of any other,
    give or take one: see `BalancedOrder`. Where an image comes several times, each time is augmented in its own way.

    Of `world_size` loaders that differ in `rank` alone, each gives its part of every step: together they visit every
    row once, in the same number of steps. `batch_size` is for each of them, and the last step is shared evenly; with
    `shuffle`, what would give some of them no more than one row joins the step before it.

    `workers` threads (None: the cores there are) work up to `prefetch` batches ahead; with 0 of either, all is done
    when a batch is asked for. Small batches that are not augmented are made a few at a time, of 512 KiB of pixels at
    most, and without threads where the pixels are no more than 1 GiB. None of this changes a batch. Data of up to 1 GiB
    is kept on another device than the CPU.

    Where images are encoded and the first augmentation has `boxes`, as `RandomResizedCrop` has, the crop is taken from
    the original picture while it is decoded.

    Yields `Batch(x float32 [B,C,H,W], y int64 [B], index int64 [B])`."""

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
            raise ValueError("balanced says what an epoch of training shows; it needs shuffle=True")
        if balanced and dataset.labels.is_floating_point():
            raise ValueError("balanced needs labels that are classes, and these are numbers to predict")
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
        self._resident: Tensor | None = None  # the split's own images, on a device that is not the CPU
        fits = self.device.type != "cpu" and math.prod(dataset.shape) <= _RESIDENT_BYTES
        if fits and isinstance(dataset.images, Tensor):
            rows = slice(None) if dataset.rows is None else torch.from_numpy(dataset.rows)
            self._resident = dataset.images[rows].to(self.device)
        # what has been packed is shuffled by content, so that the order it was listed in makes no other training
        by_content = shuffle and dataset.stats is not None and len(dataset) <= _RANKED
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
        """Steps of an epoch."""
        return len(self._sampler)

    def look(self, rows: Sequence[int] | NDArray[np.int64], epoch: int = 0) -> Batch:
        """These rows of the data set as that epoch shows them (if several times, the first)."""
        samples = np.asarray(rows, np.int64)
        ranks = samples if self._ranked is None else np.argsort(self._ranked)[samples]
        return self._finish(self._prepare(BatchChunk(samples, ranks, (len(samples),), epoch), map))[0]

    def seek(self, epoch: int, batch: int = 0, position: Mapping[str, Any] | None = None) -> None:
        """Makes the next iteration epoch `epoch` from batch `batch` on."""
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
            # gathering is so much faster than a step that two threads are plenty; decoding has threads of its own
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
        """Whether batches are so quickly made that threads would only take turns with the step at Python: small ones,
        of pixels that are in memory, since all were looked at when the data was opened."""
        images = self.dataset.images
        return self._batches_per_chunk > 1 and isinstance(images, Tensor) and images.numel() <= _RESIDENT_BYTES

    def _choose_batches_per_chunk(self) -> int:
        """How many batches are made in one go. Of small ones that are only gathered and normalised, calling the
        operations and handing a batch over to another thread takes longer than the work."""
        images = self.dataset.images
        if self.device.type != "cpu" or self._steps or not isinstance(images, Tensor):
            return 1
        numbers = self.batch_size * math.prod(self.dataset.shape[1:])
        if numbers % _ALIGNED:  # the next batch would not lie in memory as the first one does
            return 1
        return max(1, min(_MAX_CHUNK_BATCHES, _PART_BYTES // numbers))

    def _prepare(self, chunk: BatchChunk, each: Callable[..., Any]) -> _PreparedBatch:
        """The batches as far as a thread ahead of the step may go: on the CPU to its end, unless a step of the
        augmentation wants the caller's own thread; for another device, to where the bytes are handed over."""
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
        parts = (whole.split_with_sizes(chunk.sizes) for whole in (images, labels, index))
        return [Batch(x, y, index=rows) for x, y, rows in zip(*parts, strict=True)]

    def _change(self, images: Tensor, chunk: BatchChunk) -> Tensor:
        if self.device.type != "cpu":
            return self._normalize(self._augmented(images, chunk.keys, chunk.epoch))
        # in parts that stay in the processor's cache, whose temporaries are small enough not to leave holes
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
        found = self._bytes.take(len(rows))
        if isinstance(images, Tensor):
            return torch.index_select(images, 0, torch.from_numpy(places), out=found)
        crops = [None] * len(rows)
        if self._crop is not None:
            boxes, seed = self._crop
            crops = boxes(keys, seed, epoch, images.sizes[places].astype(np.int64)).tolist()
        pixels = found.numpy()

        def decode(start: int) -> None:
            for at in range(start, min(start + _GROUP, len(rows))):
                pixels[at] = images.decode(int(places[at]), crops[at])

        for _ in each(decode, range(0, len(rows), _GROUP)):
            pass
        return found


def _check_sharding(count: int, batch_size: int, rank: int, world_size: int, drop_last: bool) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be one of 0 to {world_size - 1}, not {rank}")
    if 0 < count < world_size:
        raise ValueError(f"{count} images cannot be shared by {world_size} processes")
    if drop_last and count < batch_size * world_size:
        raise ValueError(f"drop_last leaves no batch of {batch_size * world_size} out of {count} images")


def augmentation_seed(seed: int, position: int) -> int:
    """The seed, 63 bits, that a loader of `seed` gives to the augmentation at that position of its list, from 0."""
    return derive_key(seed, position, "augmentation") >> 1


def _crop_while_decoding(
    dataset: PackedDataset, steps: tuple[_Seeded, ...]
) -> tuple[tuple[Callable[..., NDArray[np.int64]], int] | None, tuple[_Seeded, ...]]:
    """The boxes of a crop that decoding takes over, with its seed, and the augmentations that are left."""
    if steps and isinstance(dataset.images, EncodedImages):
        step, seed = steps[0]
        boxes = getattr(step, "boxes", None)
        if boxes is not None:
            return (boxes, seed), steps[1:]
    return None, steps
