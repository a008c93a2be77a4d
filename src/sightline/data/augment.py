"""Batched augmentations of uint8 images, each a pure function of (batch, seed, epoch, sample index)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sightline.random import integers, uniform


class Augmentation(Protocol):
    """Maps uint8 [B,C,H,W] to the same shape and type. `index` is int64 [B], the rows of the data set: row i of the
    result depends on image i, the seed, the epoch and `index[i]` alone, not on its neighbours in the batch."""

    def __call__(self, images: Tensor, index: NDArray[np.int64], seed: int, epoch: int) -> Tensor: ...


@dataclass(frozen=True)
class Flip:
    """Mirrors each image with probability `p`, left to right, or upside down with `vertical`."""

    p: float = 0.5
    vertical: bool = False

    def __call__(self, images: Tensor, index: NDArray[np.int64], seed: int, epoch: int) -> Tensor:
        """uint8 [B,C,H,W] -> the same."""
        chosen = uniform(seed, epoch, "vertical flip" if self.vertical else "flip", index) < self.p
        mask = torch.from_numpy(chosen).to(images.device).view(-1, 1, 1, 1)
        return torch.where(mask, images.flip(2 if self.vertical else 3), images)


@dataclass(frozen=True)
class ShiftCrop:
    """Moves each image by up to `pixels` in each direction and fills with black: pad by `pixels`, crop at random
    (the CIFAR augmentation of He et al., "Deep Residual Learning", 2015, section 4.2)."""

    pixels: int = 4

    def __call__(self, images: Tensor, index: NDArray[np.int64], seed: int, epoch: int) -> Tensor:
        """uint8 [B,C,H,W] -> the same."""
        height, width = images.shape[2:]
        reach = self.pixels
        down = torch.from_numpy(integers(seed, epoch, "shift down", index, 0, 2 * reach)).to(images.device)
        right = torch.from_numpy(integers(seed, epoch, "shift right", index, 0, 2 * reach)).to(images.device)
        windows = F.pad(images, (reach,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        return windows[torch.arange(len(images), device=images.device), :, down, right]


def standard(flip: float = 0.0, vertical_flip: float = 0.0, shift: int = 0) -> list[Augmentation]:
    """The augmentations that are switched on, in the order they are applied."""
    steps: list[Augmentation] = []
    if flip:
        steps.append(Flip(flip))
    if vertical_flip:
        steps.append(Flip(vertical_flip, vertical=True))
    if shift:
        steps.append(ShiftCrop(shift))
    return steps
