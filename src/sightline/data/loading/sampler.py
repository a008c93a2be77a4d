"""Which samples an epoch shows, and in which order: every one once, or every class equally often."""

from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sightline.core.rng import Permutation, derive_key, random_bits

_BLOCK = 1 << 16
_COPY = 32  # the bits of a key below the number of the copy; no data set here has so many samples


class BatchChunk(NamedTuple):
    """Batches to make in one go: rows of the data set, what is drawn by for each of them, how many of them each batch
    has, and the epoch."""

    rows: NDArray[np.int64]
    keys: NDArray[np.int64]
    sizes: tuple[int, ...]
    epoch: int


class BalancedOrder:
    """Epochs of as many places as there are samples, in which each class that occurs has equally many, give or take
    one. `labels` is int64 [N].

    The samples of a class stand in a circle, in an order drawn from the seed, and each epoch goes on where the one
    before ended: all are shown equally often, give or take one, and those of a rare class several times an epoch. The
    places that do not come out even go round the classes in the same way. Where an epoch begins in each circle
    is a formula, so any epoch is reached in constant time; what is kept is four bytes for each sample."""

    def __init__(self, labels: NDArray[np.int64], seed: int):
        drawn = random_bits(derive_key(seed, 0, "balanced"), np.arange(len(labels)))
        self._circles = np.lexsort((drawn, labels)).astype(np.int32 if len(labels) < 1 << 31 else np.int64)
        self._sizes = np.unique(labels, return_counts=True)[1]
        self._firsts = self._sizes.cumsum() - self._sizes

    def samples_before(self, epoch: int) -> NDArray[np.int64]:
        """How many samples of each class that occurs have been shown before this epoch."""
        classes = len(self._sizes)
        each, rest = divmod(len(self._circles), max(1, classes))
        return epoch * each + (epoch * rest + np.arange(classes)[::-1]) // max(1, classes)

    def take(self, places: NDArray[np.int64], epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The samples at these places of an epoch that has class after class, and what to draw by for each: the number
        of the sample where it is shown for the first time in the epoch, else one that no other sample has."""
        samples_before = self.samples_before(epoch)
        shares = self.samples_before(epoch + 1) - samples_before
        ends = shares.cumsum()
        group = np.searchsorted(ends, places, side="right")
        turn = places - (ends - shares)[group]
        size = self._sizes[group]
        samples = self._circles[self._firsts[group] + (samples_before[group] + turn) % size].astype(np.int64)
        return samples, samples + (turn // size << _COPY)


class Sampler:
    """The batches of every epoch, as rows of a data set of `count` samples, and one rank's part of them.

    What is left after the whole steps is a step of its own where it gives every rank `min_rank_samples` samples, and
    else joins the step before it; with `drop_last` it is left out. `ranked` is the row of each sample when these are
    sorted in an order of their own; without it they stand as they are listed. `balance` is the class of each row,
    int64, where epochs are to be `BalancedOrder`."""

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
        whole, rest = divmod(count, self._global_batch_size)
        own = rest >= min_rank_samples * world_size or (rest > 0 and whole == 0)
        self._steps = whole if drop_last else whole + own
        self._shown = whole * self._global_batch_size if drop_last else count
        self._seed, self._shuffle = seed, shuffle
        self._ranked, self._balanced = ranked, None
        if balance is not None:
            self._balanced = BalancedOrder(balance if ranked is None else balance[ranked], seed)
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        """Steps of an epoch."""
        return self._steps

    def chunks(self, epoch: int, first: int, batches: int = 1) -> Iterator[BatchChunk]:
        """This rank's batches from batch `first` on, up to so many in a chunk. The order is worked out a block at a
        time: memory stays flat."""
        steps, global_batch_size = len(self), self._global_batch_size
        block = max(1, _BLOCK // global_batch_size // batches) * batches
        for begin in range(first, steps, block):
            end = min(begin + block, steps)
            low, high = begin * global_batch_size, self._shown if end == steps else end * global_batch_size
            rows, keys = self._order(epoch, low, high)
            starts = [*range(0, (end - begin) * global_batch_size, global_batch_size), high - low]
            if self._world_size > 1:
                rank_slices = [self._rank_slice(start, stop) for start, stop in pairwise(starts)]
                rows, keys = (np.concatenate([whole[part] for part in rank_slices]) for whole in (rows, keys))
                starts = [0, *accumulate(part.stop - part.start for part in rank_slices)]
            for at in range(0, end - begin, batches):
                cuts = starts[at : at + batches + 1]
                part = slice(cuts[0], cuts[-1])
                yield BatchChunk(rows[part], keys[part], tuple(stop - start for start, stop in pairwise(cuts)), epoch)

    def _order(self, epoch: int, low: int, high: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows at places `low` to `high` of the epoch, and their keys."""
        if not self._shuffle:
            rows = np.arange(low, high)
            return rows, rows
        samples = Permutation(self._count, derive_key(self._seed, epoch, "order"))[low:high]
        samples, keys = (samples, samples) if self._balanced is None else self._balanced.take(samples, epoch)
        return samples if self._ranked is None else self._ranked[samples].astype(np.int64), keys

    def _rank_slice(self, start: int, stop: int) -> slice:
        """This rank's part of a step."""
        part, more = divmod(stop - start, self._world_size)
        begin = start + self._rank * part + min(self._rank, more)
        return slice(begin, begin + part + (self._rank < more))
