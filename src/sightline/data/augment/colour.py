"""Colour operations on uint8 batches [B,C,H,W], C 1 or 3, with a strength for each image, and `ColorJitter`.

They are torchvision's on uint8 tensors. A result can be one level off where the exact value lies within float32's
rounding of an integer: torchvision blends with a fused multiply-add, which may round differently in the vectorised
body and in the rest of an array; here every step is rounded by itself, so that a batch gives, to the bit, what its
images give one by one. Sums are of integers small enough to be exact in any order. The functions may give back the
very images they are given, and are at their best with blocks that fit a cache."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sightline.data.augment.geometry import Reals, Rows, map_blocks, uniform_between

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601, in torchvision's digits


def brightness(images: Tensor, factor: Reals) -> Tensor:
    """Multiplies every pixel by `factor` [B] of at least 0: 0 is black, 1 the image."""
    return _cut(images.float().mul_(_scalars(factor, images)))


def contrast(images: Tensor, factor: Reals) -> Tensor:
    """Blends with the mean of the image's luma: a `factor` [B] of 0 is that gray, 1 the image, more is stronger."""
    pixels = images.float()
    total = _luma(pixels).sum(3).long().sum(2)  # float32 is exact for a line of up to 65793 pixels
    count = torch.tensor(float(images.shape[2] * images.shape[3]), device=images.device)
    mean = (total.float() / count)[..., None, None]
    return _cut(pixels.mul_(_scalars(factor, images)).add_(mean * _scalars(1 - factor, images)))


def saturation(images: Tensor, factor: Reals) -> Tensor:
    """Blends with the luma of each pixel: a `factor` [B] of 0 is gray, 1 the image, more is stronger. A gray image
    stays as it is."""
    if images.shape[1] == 1:
        return images
    pixels = images.float()
    gray = _luma(pixels).mul_(_scalars(1 - factor, images))
    return _cut(pixels.mul_(_scalars(factor, images)).add_(gray))


def sharpness(images: Tensor, factor: Reals) -> Tensor:
    """Blends with a smoothed image: a `factor` [B] of 0 is smooth, 1 the image, more is sharper. The outermost pixels
    stay as they are; so does an image of less than three pixels on a side."""
    height, width = images.shape[2:]
    if min(height, width) < 3:
        return images
    out = images.clone(memory_format=torch.contiguous_format)
    flat = out.flatten(2)  # the lines end to end: long runs are faster, and what wraps around is an outermost pixel
    inner = slice(width + 1, -width - 1)
    wide = flat.to(torch.int16)
    across = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    total = across[:, :, : -2 * width] + across[:, :, width:-width] + across[:, :, 2 * width :]
    total += 4 * wide[:, :, inner]
    smooth = total.float().mul_(1 / 13).round_()  # no thirteenth is near a half: float32 rounds them rightly
    own = flat[:, :, inner].float()
    flat[:, :, inner] = _cut(smooth.sub_(own).mul_(_scalars(1 - factor, images).squeeze(3)).add_(own))
    out[..., 0], out[..., -1] = images[..., 0], images[..., -1]
    return out


def posterize(images: Tensor, bits: Rows) -> Tensor:
    """Keeps the highest `bits` [B], 0..8, of every pixel."""
    mask = (0xFF00 >> bits).astype(np.uint8)  # the low byte
    return images & torch.from_numpy(mask).to(images.device).view(-1, 1, 1, 1)


def solarize(images: Tensor, threshold: Reals) -> Tensor:
    """Inverts every pixel of at least `threshold` [B], 0..255, in float32."""
    least = torch.from_numpy(np.ceil(threshold.astype(np.float32)).astype(np.uint8)).to(images.device).view(-1, 1, 1, 1)
    chosen = torch.maximum(images, least) == images  # `>=` with a broadcast byte is not vectorised, this is
    return images ^ chosen.view(torch.uint8).neg_()


def autocontrast(images: Tensor) -> Tensor:
    """Stretches each channel so that its darkest pixel is 0 and its brightest 255; one of a single value stays."""
    pixels = images.float()
    darkest, brightest = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    single = darkest == brightest
    scale = brightest.sub_(darkest).mul_(1 / 255).masked_fill_(single, 1)
    return _cut(pixels.sub_(darkest.masked_fill_(single, 0)).div_(scale))


def equalize(images: Tensor) -> Tensor:
    """Gives each channel a flat histogram, as Pillow does; a channel stays that has less than 255 pixels of other than
    its brightest value."""
    planes = images.flatten(2)
    count, channels, pixels = planes.shape
    first = torch.arange(0, count * channels * 256, 256, dtype=torch.int32, device=images.device)
    bins = planes.to(torch.int32).add_(first.view(count, channels, 1)).flatten()
    histogram = torch.bincount(bins, minlength=256 * len(first)).view(count, channels, 256)
    step = (pixels - histogram.gather(2, planes.amax(2, keepdim=True).long())).div_(255, rounding_mode="floor")
    below = histogram.cumsum(2) - histogram
    # the division of floats is several times faster than that of integers, and as exact while they are this small
    exact = torch.float32 if pixels < 1 << 23 else torch.float64
    table = _cut((below + step // 2).to(exact).div_(step.clamp(min=1)))
    stays = (step == 0).to(torch.uint8)
    table.mul_(1 - stays).add_(torch.arange(256, dtype=torch.uint8, device=images.device) * stays)
    return table.gather(2, planes.long()).view(images.shape)


def _scalars(values: Reals, images: Tensor) -> Tensor:
    """float32 [B,1,1,1] on the images' device."""
    return torch.from_numpy(values.astype(np.float32)).to(images.device).view(-1, 1, 1, 1)


def _cut(values: Tensor) -> Tensor:
    """Floats, which are changed, cut to 0..255 and rounded down to uint8; by way of int16 is four times faster."""
    return values.clamp_(0, 255).to(torch.int16).to(torch.uint8)


def _luma(pixels: Tensor) -> Tensor:
    """float32 [B,C,H,W] -> [B,1,H,W]: the luma of each pixel, rounded down."""
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = (pixels[:, i : i + 1] * weight for i, weight in enumerate(_LUMA))
    return red.add_(green).add_(blue).floor_()


@dataclass(frozen=True)
class ColorJitter:
    """Changes brightness, then contrast, then saturation, each by a factor uniform in 1 - value .. 1 + value, but not
    below 0. Zero leaves that one out; a gray image has no saturation to change."""

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __call__(self, images: Tensor, index: Rows, seed: int, epoch: int) -> Tensor:
        """uint8 [B,C,H,W] -> the same."""
        steps = ((brightness, self.brightness), (contrast, self.contrast), (saturation, self.saturation))
        drawn = [
            (change, uniform_between((max(0.0, 1 - reach), 1 + reach), seed, epoch, f"jitter {change.__name__}", index))
            for change, reach in steps
            if reach
        ]

        def jitter(part: Tensor, rows: slice) -> Tensor:
            for change, factor in drawn:
                part = change(part, factor[rows])
            return part

        return map_blocks(images, jitter)
