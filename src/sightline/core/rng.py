"""Counter-based randomness: every draw is a pure function of (seed, epoch, sample index, purpose).

There is no generator state to save, so a draw depends neither on batch size, worker count or world size, nor on what
was drawn before it. The mixing function is SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
Generators", 2014) with Stafford's variant-13 constants. The shuffle is a Feistel network over the bits of an index
(Luby and Rackoff, 1988) confined to 0..n-1 by cycle walking (Black and Rogaway, 2002): position i of an epoch's order
is computed on its own, so an order costs no memory and any epoch can begin at any batch.

Transforms of other libraries draw from global generators instead: torch's on the CPU, `random` and NumPy's legacy one.
`fork_rng` and `seed_global_generators` make those draws a function of a key as well."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

_Half: TypeAlias = Callable[[NDArray[np.int64]], NDArray[np.int64]]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_M1 = 0xBF58476D1CE4E5B9
_M2 = 0x94D049BB133111EB
_ROUNDS = 6
_STAND_IN = np.random.MT19937(0)


def derive_key(seed: int, epoch: int, purpose: str) -> int:
    """A 64-bit key for one use of randomness in one epoch; equal arguments give equal keys on every platform."""
    key = 0
    for word in (seed, epoch, zlib.crc32(purpose.encode())):
        z = (key + word * _GOLDEN + _GOLDEN) & _MASK
        z = ((z ^ (z >> 30)) * _M1) & _MASK
        z = ((z ^ (z >> 27)) * _M2) & _MASK
        key = z ^ (z >> 31)
    return key


def random_bits(key: int, index: NDArray[np.int64] | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """64 uniform bits for each entry of `index`, element by element."""
    z = index.astype(np.uint64)  # a copy, changed in place below; unsigned arithmetic wraps silently in arrays
    z *= np.uint64(_GOLDEN)
    z += np.uint64(key)
    z ^= z >> np.uint64(30)
    z *= np.uint64(_M1)
    z ^= z >> np.uint64(27)
    z *= np.uint64(_M2)
    z ^= z >> np.uint64(31)
    return z


def uniform(seed: int, epoch: int, purpose: str, index: NDArray[np.int64]) -> NDArray[np.float64]:
    """One float64 in [0, 1) for each sample index, with 53 random bits."""
    return (random_bits(derive_key(seed, epoch, purpose), index) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(seed: int, epoch: int, purpose: str, index: NDArray[np.int64], low: int, high: int) -> NDArray[np.int64]:
    """One int64 in [low, high] (both ends included) for each sample index."""
    return low + (uniform(seed, epoch, purpose, index) * (high - low + 1)).astype(np.int64)


class Permutation:
    """A pseudo-random order of 0..n-1 that is computed where it is looked at: `Permutation(n, key)[start:stop]`."""

    def __init__(self, n: int, key: int):
        if n < 0:
            raise ValueError(f"a permutation needs a length of at least 0, not {n}")
        self.n = n
        width = max(2, (n - 1).bit_length())
        self._low = width // 2
        self._high = width - self._low
        self._keys = [derive_key(key, round_, "feistel") for round_ in range(2 * _ROUNDS)]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, part: slice) -> NDArray[np.int64]:
        start, stop, step = part.indices(self.n)
        x = np.arange(start, stop, step)
        rounds = self._rounds(len(x))
        x = self._round_trip(x, rounds)
        outside = np.flatnonzero(x >= self.n)
        while len(outside):  # a walk along a cycle of the larger permutation always comes back below n
            x[outside] = self._round_trip(x[outside], rounds)
            outside = outside[x[outside] >= self.n]
        return x

    def _rounds(self, count: int) -> list[tuple[_Half, _Half]]:
        """What each round adds to the lower half for the upper one, and the other way round; as tables where one has
        fewer entries than there are numbers to look up."""

        def function(key: int, given: int, wanted: int) -> _Half:
            mask = np.uint64((1 << wanted) - 1)
            if count >> given:
                return (random_bits(key, np.arange(1 << given)) & mask).astype(np.int64).take
            return lambda half: (random_bits(key, half) & mask).astype(np.int64)

        return [
            (function(key_low, self._high, self._low), function(key_high, self._low, self._high))
            for key_low, key_high in zip(self._keys[::2], self._keys[1::2], strict=True)
        ]

    def _round_trip(self, x: NDArray[np.int64], rounds: list[tuple[_Half, _Half]]) -> NDArray[np.int64]:
        low, high = x & ((1 << self._low) - 1), x >> self._low
        for to_low, to_high in rounds:
            low ^= to_low(high)
            high ^= to_high(low)
        return (high << self._low) | low


@contextmanager
def fork_rng() -> Iterator[None]:
    """Puts them back as they were. Inside, numpy's is another one, which is to be seeded: to exchange it takes a
    thirtieth of the time that copying its state there and back does."""
    import torch

    states = torch.get_rng_state(), random.getstate()
    own = np.random.get_bit_generator()  # type: ignore[attr-defined]
    nested = np.random.get_state() if own is _STAND_IN else None  # noqa: NPY002
    np.random.set_bit_generator(_STAND_IN)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        if nested is None:
            np.random.set_bit_generator(own)  # type: ignore[attr-defined]
        else:
            np.random.set_state(nested)  # noqa: NPY002


def seed_global_generators(key: int) -> None:
    """Seeds each of them with 64 bits, or as many of them as it takes."""
    import torch

    torch.default_generator.manual_seed(key)
    random.seed(key)
    np.random.seed(key >> 32)  # noqa: NPY002 the legacy generator is what transforms draw from
