"""Random flips and shifts of uint8 batches, each a pure function of (batch, seed, epoch, sample index)."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sightline.core.rng import integers, uniform


@dataclass(frozen=True)
class Flip:
    """Flips each image with probability `p`: left to right, or upside down if `vertical`."""

    p: float = 0.5
    vertical: bool = False

    def __call__(self, images: Tensor, index: NDArray[np.int64], seed: int, epoch: int) -> Tensor:
        """Returns the augmented images, uint8 [B, C, H, W]."""
        chosen = uniform(seed, epoch, "vertical flip" if self.vertical else "flip", index) < self.p
        # selecting complete images from both versions is several times as fast as a choice per pixel
        rows = torch.from_numpy(np.arange(len(index)) + chosen * len(index)).to(images.device)
        return torch.cat((images, images.flip(2 if self.vertical else 3))).index_select(0, rows)


@dataclass(frozen=True)
class ShiftCrop:
    """Shifts each image by up to `pixels` in each direction and fills with black.

    Pads by `pixels` and crops at a random position: the CIFAR augmentation of He et al., "Deep Residual Learning",
    2015, section 4.2."""

    pixels: int = 4

    def __call__(self, images: Tensor, index: NDArray[np.int64], seed: int, epoch: int) -> Tensor:
        """Returns the augmented images, uint8 [B, C, H, W]."""
        reach = self.pixels
        down = integers(seed, epoch, "shift down", index, 0, 2 * reach)
        right = integers(seed, epoch, "shift right", index, 0, 2 * reach)
        padded = F.pad(images, (reach,) * 4)
        if images.device.type == "cpu":
            return _windows(padded, down, right, *images.shape[2:])
        windows = padded.unfold(2, images.shape[2], 1).unfold(3, images.shape[3], 1)
        rows = torch.arange(len(images), device=images.device)
        return windows[rows, :, torch.from_numpy(down).to(rows.device), torch.from_numpy(right).to(rows.device)]


def _windows(padded: Tensor, down: NDArray[np.int64], right: NDArray[np.int64], height: int, width: int) -> Tensor:
    """Returns the window of each image that starts at (down, right), uint8 [B, C, height, width].

    A row of a window is one element of `width` bytes in an array whose elements start one byte apart. So a row is one
    copy, which is three times as fast as copying pixel by pixel."""
    images, channels, lines, line = padded.shape
    if not padded.numel():
        return padded[:, :, :height, :width]
    pixels = padded.numpy().reshape(-1)
    segments = np.ndarray((pixels.size - width + 1,), f"V{width}", pixels.data, strides=(1,))
    first = np.arange(images * channels).reshape(images, channels, 1) * (lines * line) + np.arange(height) * line
    rows = segments[(first + (down * line + right)[:, None, None]).reshape(-1)]
    return torch.from_numpy(rows.view(np.uint8).reshape(images, channels, height, width))
