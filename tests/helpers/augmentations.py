"""Checks that every augmentation must pass, and random batches for them."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from sightline.core.types import Augmentation

SEED = st.integers(0, 2**40)
EPOCH = st.integers(0, 1000)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, NDArray[np.int64]]:
    count, channels = draw(st.integers(0, 9)), draw(st.sampled_from([1, 3]))
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    low, high = draw(st.sampled_from([(0, 256), (90, 140), (7, 8)]))
    images = random.integers(low, high, (count, channels, height, width), dtype=np.uint8)
    return torch.from_numpy(images), random.permutation(10_000)[:count].astype(np.int64)


def check(step: Augmentation, images: Tensor, index: NDArray[np.int64], seed: int, epoch: int) -> None:
    """Checks dtype, shape, and that an image's result depends on the image, its index, the seed and the epoch only."""
    before, rows, state = images.clone(), index.copy(), torch.get_rng_state()
    result = step(images, index, seed, epoch)
    assert result.dtype == torch.uint8
    assert result.shape == images.shape
    assert torch.equal(images, before)
    assert np.array_equal(index, rows)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(step(images, index, seed, epoch), result)
    for position in range(len(images)):
        part = slice(position, position + 1)
        assert torch.equal(step(images[part], index[part], seed, epoch), result[part])
    order = torch.arange(len(images) - 1, -1, -1)
    assert torch.equal(step(images[order], index[order.numpy()], seed, epoch)[order], result)
    laid_out = images.to(memory_format=torch.channels_last)  # the same pixels in another memory layout
    assert torch.equal(step(laid_out, index, seed, epoch), result)


def check_draws(step: Augmentation, count: int = 16) -> None:
    """Another epoch and another seed make other images."""
    images, index = random_images(count, 3, 20, 20), np.arange(count)
    first = step(images, index, 0, 0)
    assert not torch.equal(step(images, index, 0, 1), first)
    assert not torch.equal(step(images, index, 1, 0), first)


def random_images(count: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.integers(0, 256, (count, channels, height, width), dtype=np.uint8))
