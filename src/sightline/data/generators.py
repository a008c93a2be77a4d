"""The global generators that other people's transforms draw from: torch's on the CPU, `random`, numpy's old one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_STAND_IN = np.random.MT19937(0)


@contextmanager
def preserved() -> Iterator[None]:
    """Puts them back as they were. Inside, numpy's is another one, which is to be seeded: to exchange it takes a
    thirtieth of the time that copying its state there and back does."""
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


def seed_all(key: int) -> None:
    """Seeds each of them with 64 bits, or as many of them as it takes."""
    torch.default_generator.manual_seed(key)
    random.seed(key)
    np.random.seed(key >> 32)  # noqa: NPY002 the legacy generator is what transforms draw from
