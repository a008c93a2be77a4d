"""Counter-based randomness: every draw is a pure function of (seed, epoch, sample index, purpose).

There is no generator state to save, so a draw depends neither on batch size, worker count or world size, nor on what
was drawn before it. The mixing function is SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
Generators", 2014) with Stafford's variant-13 constants. The shuffle is a Feistel network over the bits of an index
(Luby and Rackoff, 1988) confined to 0..n-1 by cycle walking (Black and Rogaway, 2002): position i of an epoch's order
is computed separately, so an order costs no memory and any epoch can start at any batch.

Transforms of other libraries draw from global generators instead: torch's on the CPU, `random`, and NumPy's legacy one.
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
    """Returns a 64-bit key for one purpose in one epoch. Equal arguments give equal keys on every platform."""
    key = 0
    for word in (seed, epoch, zlib.crc32(purpose.encode())):
        z = (key + word * _GOLDEN + _GOLDEN) & _MASK
        z = ((z ^ (z >> 30)) * _M1) & _MASK
        z = ((z ^ (z >> 27)) * _M2) & _MASK
        key = z ^ (z >> 31)
    return key


def random_bits(key: int, index: NDArray[np.int64] | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Returns 64 uniform random bits for each entry of `index`, as uint64 of the same shape."""
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
    """Returns a float64 in [0, 1) for each sample index, with 53 random bits."""
    return (random_bits(derive_key(seed, epoch, purpose), index) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(seed: int, epoch: int, purpose: str, index: NDArray[np.int64], low: int, high: int) -> NDArray[np.int64]:
    """Returns an int64 in [low, high] (both ends included) for each sample index."""
    return low + (uniform(seed, epoch, purpose, index) * (high - low + 1)).astype(np.int64)


class Permutation:
    """A pseudo-random permutation of 0..n-1. `Permutation(n, key)[start:stop]` computes only that slice, as int64."""

    def __init__(self, n: int, key: int):
        if n < 0:
            raise ValueError(f"n: expected an integer >= 0, found {n}")
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
        x = self._permute(x, rounds)
        outside = np.flatnonzero(x >= self.n)
        while len(outside):  # cycle walking: every cycle returns to a value below n
            x[outside] = self._permute(x[outside], rounds)
            outside = outside[x[outside] >= self.n]
        return x

    def _rounds(self, count: int) -> list[tuple[_Half, _Half]]:
        """Returns the two functions of each round, which map one half to the bits that are XORed into the other half.

        A function is a lookup table if that has at most `count` entries, the number of values to look up."""

        def function(key: int, bits_in: int, bits_out: int) -> _Half:
            mask = np.uint64((1 << bits_out) - 1)
            if count >> bits_in:
                return (random_bits(key, np.arange(1 << bits_in)) & mask).astype(np.int64).take
            return lambda half: (random_bits(key, half) & mask).astype(np.int64)

        return [
            (function(key_low, self._high, self._low), function(key_high, self._low, self._high))
            for key_low, key_high in zip(self._keys[::2], self._keys[1::2], strict=True)
        ]

    def _permute(self, x: NDArray[np.int64], rounds: list[tuple[_Half, _Half]]) -> NDArray[np.int64]:
        low, high = x & ((1 << self._low) - 1), x >> self._low
        for to_low, to_high in rounds:
            low ^= to_low(high)
            high ^= to_high(low)
        return (high << self._low) | low


@contextmanager
def fork_rng() -> Iterator[None]:
    """Restores the global generators of torch (CPU), `random` and NumPy at the end of the block.

    Within the block NumPy uses a separate generator, which must be seeded: replacing the generator takes a thirtieth of
    the time of saving and restoring its state."""
    import torch

    states = torch.get_rng_state(), random.getstate()
    previous = np.random.get_bit_generator()  # type: ignore[attr-defined]
    nested_state = np.random.get_state() if previous is _STAND_IN else None  # noqa: NPY002
    np.random.set_bit_generator(_STAND_IN)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        if nested_state is None:
            np.random.set_bit_generator(previous)  # type: ignore[attr-defined]
        else:
            np.random.set_state(nested_state)  # noqa: NPY002


def seed_global_generators(key: int) -> None:
    """Seeds the global generators of torch (CPU) and `random` with a 64-bit key, and NumPy's with its upper 32 bits."""
    import torch

    torch.default_generator.manual_seed(key)
    random.seed(key)
    np.random.seed(key >> 32)  # noqa: NPY002 transforms draw from the legacy generator
