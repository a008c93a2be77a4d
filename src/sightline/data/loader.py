"""Batches for the device out of a packed data set."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from sightline.data.augment import Augmentation
from sightline.data.packed import PackedDataset
from sightline.data.preprocess import Preprocess
from sightline.random import Permutation, derive
from sightline.types import Batch

_RESIDENT_BYTES = 1 << 30
_BLOCK = 1 << 16


class BatchLoader:
    """Gathers, augments and normalises whole batches on `device`.

    An epoch visits every row once, the last batch as large as what is left. With `shuffle`, the order is a function of
    (seed, epoch); so is every augmentation of (seed, epoch, row). `seek` starts any epoch at any batch in constant
    time; an iteration without a `seek` before it goes on with the epoch after the last one.

    Yields `Batch(x float32 [B,C,H,W], y int64 [B], index int64 [B])`. Data of up to 1 GiB is kept on the device."""

    def __init__(
        self,
        dataset: PackedDataset,
        preprocess: Preprocess,
        batch_size: int,
        *,
        shuffle: bool = False,
        augment: Sequence[Augmentation] = (),
        seed: int = 0,
        device: torch.device | str = "cpu",
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.augment = tuple(augment)
        self.seed = seed
        self.device = torch.device(device)
        self._normalize = preprocess.normalizer(self.device)
        resident = dataset.images.nbytes <= _RESIDENT_BYTES
        self._images = dataset.images.to(self.device) if resident else dataset.images
        self._labels = dataset.labels.to(self.device)
        self._epoch, self._batch = 0, 0

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.batch_size)

    def seek(self, epoch: int, batch: int = 0) -> None:
        """Makes the next iteration epoch `epoch` from batch `batch` on."""
        self._epoch, self._batch = epoch, batch

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = self._epoch, self._batch
        self._epoch, self._batch = epoch + 1, 0
        size = self.batch_size
        for start, rows in self._blocks(epoch, first * size):
            for at in range(start, start + len(rows), size):
                yield self._gather(rows[at - start : at - start + size], epoch)

    def _blocks(self, epoch: int, start: int) -> Iterator[tuple[int, np.ndarray[tuple[int], np.dtype[np.int64]]]]:
        """The epoch's order from position `start` on, a whole number of batches at a time: memory stays flat."""
        order = Permutation(len(self.dataset), derive(self.seed, epoch, "order")) if self.shuffle else None
        block = max(1, _BLOCK // self.batch_size) * self.batch_size
        for at in range(start, len(self.dataset), block):
            stop = min(at + block, len(self.dataset))
            yield at, (np.arange(at, stop) if order is None else order[at:stop])

    def _gather(self, rows: np.ndarray[tuple[int], np.dtype[np.int64]], epoch: int) -> Batch:
        index = torch.from_numpy(rows)
        on_device = index.to(self.device)
        images = self._images.index_select(0, index.to(self._images.device)).to(self.device, non_blocking=True)
        for step in self.augment:
            images = step(images, rows, self.seed, epoch)
        return Batch(self._normalize(images), self._labels.index_select(0, on_device), index=on_device)
