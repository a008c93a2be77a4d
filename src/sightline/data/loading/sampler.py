"""Which samples an epoch contains, and in which order: each sample once, or each class equally often."""

from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sightline.core.rng import Permutation, derive_key, random_bits

_BLOCK = 1 << 16
_COPY = 32  # a key has the sample in its lower 32 bits, which no dataset here exceeds, and the repetition above


class BatchChunk(NamedTuple):
    """Batches to prepare together.

    `rows` are their rows of the dataset, `keys` the numbers that the augmentations of each row are drawn by (both int64
    [N]), `sizes` the number of rows in each batch."""

    rows: NDArray[np.int64]
    keys: NDArray[np.int64]
    sizes: tuple[int, ...]
    epoch: int


class BalancedOrder:
    """Epochs of N samples in which each class that occurs has equally many, give or take one. `labels` is int64 [N].

    The samples of a class form a circle, in an order drawn from the seed, and each epoch continues where the previous
    one ended. So all samples of a class are shown equally often, give or take one, and those of a rare class several
    times per epoch. If N is not a multiple of the number of classes, the additional places rotate among the classes in
    the same way. The start of an epoch in each circle is a formula, so any epoch is reached in constant time. Memory is
    four bytes per sample."""

    def __init__(self, labels: NDArray[np.int64], seed: int):
        random_order = random_bits(derive_key(seed, 0, "balanced"), np.arange(len(labels)))
        self._circles = np.lexsort((random_order, labels)).astype(np.int32 if len(labels) < 1 << 31 else np.int64)
        self._sizes = np.unique(labels, return_counts=True)[1]
        self._firsts = self._sizes.cumsum() - self._sizes

    def samples_before(self, epoch: int) -> NDArray[np.int64]:
        """Returns how many samples of each class that occurs are shown before this epoch."""
        classes = len(self._sizes)
        each, rest = divmod(len(self._circles), max(1, classes))
        return epoch * each + (epoch * rest + np.arange(classes)[::-1]) // max(1, classes)

    def take(self, places: NDArray[np.int64], epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the samples at these places of an epoch that is sorted by class, and the key of each.

        The key is the sample itself where it occurs in the epoch for the first time, and a number that no other sample
        has for each repetition."""
        samples_before = self.samples_before(epoch)
        shares = self.samples_before(epoch + 1) - samples_before
        ends = shares.cumsum()
        group = np.searchsorted(ends, places, side="right")
        turn = places - (ends - shares)[group]
        size = self._sizes[group]
        samples = self._circles[self._firsts[group] + (samples_before[group] + turn) % size].astype(np.int64)
        return samples, samples + (turn // size << _COPY)


class Sampler:
    """The batches of every epoch, as rows of a dataset of `count` samples, and one rank's part of them.

    The samples that remain after the full steps form a separate step if there are `min_rank_samples` for every rank;
    otherwise they join the step before. With `drop_last` they are left out. `ranked` is the row of each sample, if the
    samples are sorted in another order than the rows; without it, sample i is row i. `balance` is the class of each
    row, int64 [count], for epochs in `BalancedOrder`."""

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        ranked: NDArray[np.int32] | None = None,
        balance: NDArray[np.int64] | None = None,
        rank: int = 0,
        world_size: int = 1,
        min_rank_samples: int = 1,
        drop_last: bool = False,
    ):
        self._count, self._global_batch_size = count, batch_size * world_size
        full_steps, rest = divmod(count, self._global_batch_size)
        is_separate = rest >= min_rank_samples * world_size or (rest > 0 and full_steps == 0)
        self._steps = full_steps if drop_last else full_steps + is_separate
        self._shown = full_steps * self._global_batch_size if drop_last else count
        self._seed, self._shuffle = seed, shuffle
        self._ranked, self._balanced = ranked, None
        if balance is not None:
            self._balanced = BalancedOrder(balance if ranked is None else balance[ranked], seed)
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        """The number of steps in an epoch."""
        return self._steps

    def chunks(self, epoch: int, first: int, batches: int = 1) -> Iterator[BatchChunk]:
        """Yields this rank's batches from batch `first` on, up to `batches` in a chunk. The order is computed in
        blocks, so that memory use does not grow with the dataset."""
        steps, global_batch_size = len(self), self._global_batch_size
        block = max(1, _BLOCK // global_batch_size // batches) * batches
        for begin in range(first, steps, block):
            end = min(begin + block, steps)
            low, high = begin * global_batch_size, self._shown if end == steps else end * global_batch_size
            rows, keys = self._order(epoch, low, high)
            starts = [*range(0, (end - begin) * global_batch_size, global_batch_size), high - low]
            if self._world_size > 1:
                rank_slices = [self._rank_slice(start, stop) for start, stop in pairwise(starts)]
                rows, keys = (np.concatenate([array[part] for part in rank_slices]) for array in (rows, keys))
                starts = [0, *accumulate(part.stop - part.start for part in rank_slices)]
            for at in range(0, end - begin, batches):
                cuts = starts[at : at + batches + 1]
                part = slice(cuts[0], cuts[-1])
                yield BatchChunk(rows[part], keys[part], tuple(stop - start for start, stop in pairwise(cuts)), epoch)

    def _order(self, epoch: int, low: int, high: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the rows at places `low` to `high` of the epoch, and their keys."""
        if not self._shuffle:
            rows = np.arange(low, high)
            return rows, rows
        samples = Permutation(self._count, derive_key(self._seed, epoch, "order"))[low:high]
        samples, keys = (samples, samples) if self._balanced is None else self._balanced.take(samples, epoch)
        return samples if self._ranked is None else self._ranked[samples].astype(np.int64), keys

    def _rank_slice(self, start: int, stop: int) -> slice:
        """Returns this rank's part of a step."""
        size, rest = divmod(stop - start, self._world_size)
        begin = start + self._rank * size + min(self._rank, rest)
        return slice(begin, begin + size + (self._rank < rest))
