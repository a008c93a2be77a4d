"""The global generators that other people's transforms draw from: torch's on the CPU, `random`, numpy's old one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def preserved() -> Iterator[None]:
    """Puts them back as they were."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002


def seed_all(key: int) -> None:
    """Seeds each of them with 64 bits, or as many of them as it takes."""
    torch.default_generator.manual_seed(key)
    random.seed(key)
    np.random.seed(key >> 32)  # noqa: NPY002 the legacy generator is what transforms draw from
