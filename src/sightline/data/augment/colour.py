"""Colour operations on uint8 batches [B, C, H, W] (C 1 or 3) with a strength per image, and `ColorJitter`.

The operations are torchvision's on uint8 tensors. A result can differ by one level if the exact value is within
float32 rounding of an integer: torchvision blends with a fused multiply-add, which may round differently in the
vectorised body and in the rest of an array. Here every step is rounded separately, so that a batch gives bit for bit
the same as its images one by one. Sums are of integers small enough to be exact in any order. The functions may return
the input tensor itself, and are fastest with blocks that fit the CPU cache."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sightline.data.augment.geometry import Reals, Rows, map_blocks, uniform_between

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601, in torchvision's digits


def brightness(images: Tensor, factor: Reals) -> Tensor:
    """Multiplies each image by its `factor` [B], a number >= 0: 0 gives black, 1 the original image."""
    return _to_uint8(images.float().mul_(_scalars(factor, images)))


def contrast(images: Tensor, factor: Reals) -> Tensor:
    """Blends each image with its mean luma: a `factor` [B] of 0 gives uniform gray, 1 the original image, and more a
    stronger contrast."""
    pixels = images.float()
    total = _luma(pixels).sum(3).long().sum(2)  # float32 is exact for a line of up to 65793 pixels
    count = torch.tensor(float(images.shape[2] * images.shape[3]), device=images.device)
    mean = (total.float() / count)[..., None, None]
    return _to_uint8(pixels.mul_(_scalars(factor, images)).add_(mean * _scalars(1 - factor, images)))


def saturation(images: Tensor, factor: Reals) -> Tensor:
    """Blends each pixel with its luma: a `factor` [B] of 0 gives gray, 1 the original image, and more stronger colours.
    Gray images are returned unchanged."""
    if images.shape[1] == 1:
        return images
    pixels = images.float()
    gray = _luma(pixels).mul_(_scalars(1 - factor, images))
    return _to_uint8(pixels.mul_(_scalars(factor, images)).add_(gray))


def sharpness(images: Tensor, factor: Reals) -> Tensor:
    """Blends each image with a smoothed copy: a `factor` [B] of 0 gives the smoothed image, 1 the original image, and
    more a sharper one. The outermost pixels, and images with a side below 3 pixels, are unchanged."""
    height, width = images.shape[2:]
    if min(height, width) < 3:
        return images
    out = images.clone(memory_format=torch.contiguous_format)
    flat = out.flatten(2)  # rows joined end to end: long runs are faster, and only outermost pixels wrap around
    inner = slice(width + 1, -width - 1)
    values = flat.to(torch.int16)
    across = values[:, :, :-2] + values[:, :, 1:-1] + values[:, :, 2:]
    total = across[:, :, : -2 * width] + across[:, :, width:-width] + across[:, :, 2 * width :]
    total += 4 * values[:, :, inner]
    smooth = total.float().mul_(1 / 13).round_()  # no multiple of 1/13 is close to .5, so float32 rounds correctly
    original = flat[:, :, inner].float()
    flat[:, :, inner] = _to_uint8(smooth.sub_(original).mul_(_scalars(1 - factor, images).squeeze(3)).add_(original))
    out[..., 0], out[..., -1] = images[..., 0], images[..., -1]
    return out


def posterize(images: Tensor, bits: Rows) -> Tensor:
    """Keeps the highest `bits` of every pixel; `bits` is int64 [B], 0..8."""
    mask = (0xFF00 >> bits).astype(np.uint8)  # keeps the low byte
    return images & torch.from_numpy(mask).to(images.device).view(-1, 1, 1, 1)


def solarize(images: Tensor, threshold: Reals) -> Tensor:
    """Inverts every pixel that is at least `threshold` [B], 0..255, which is rounded to float32."""
    least = torch.from_numpy(np.ceil(threshold.astype(np.float32)).astype(np.uint8)).to(images.device).view(-1, 1, 1, 1)
    chosen = torch.maximum(images, least) == images  # `>=` with a broadcast byte is not vectorised, this is
    return images ^ chosen.view(torch.uint8).neg_()


def autocontrast(images: Tensor) -> Tensor:
    """Stretches each channel to 0..255, from its darkest to its brightest pixel. A constant channel is unchanged."""
    pixels = images.float()
    darkest, brightest = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    constant = darkest == brightest
    scale = brightest.sub_(darkest).mul_(1 / 255).masked_fill_(constant, 1)
    return _to_uint8(pixels.sub_(darkest.masked_fill_(constant, 0)).div_(scale))


def equalize(images: Tensor) -> Tensor:
    """Equalises the histogram of each channel, as Pillow does. A channel is unchanged if fewer than 255 of its pixels
    differ from its brightest value."""
    planes = images.flatten(2)
    count, channels, pixels = planes.shape
    first = torch.arange(0, count * channels * 256, 256, dtype=torch.int32, device=images.device)
    bins = planes.to(torch.int32).add_(first.view(count, channels, 1)).flatten()
    histogram = torch.bincount(bins, minlength=256 * len(first)).view(count, channels, 256)
    step = (pixels - histogram.gather(2, planes.amax(2, keepdim=True).long())).div_(255, rounding_mode="floor")
    below = histogram.cumsum(2) - histogram
    # dividing floats is several times faster than dividing integers, and as exact for values this small
    exact = torch.float32 if pixels < 1 << 23 else torch.float64
    table = _to_uint8((below + step // 2).to(exact).div_(step.clamp(min=1)))
    unchanged = (step == 0).to(torch.uint8)
    table.mul_(1 - unchanged).add_(torch.arange(256, dtype=torch.uint8, device=images.device) * unchanged)
    return table.gather(2, planes.long()).view(images.shape)


def _scalars(values: Reals, images: Tensor) -> Tensor:
    """Returns one value per image as float32 [B, 1, 1, 1] on the images' device."""
    return torch.from_numpy(values.astype(np.float32)).to(images.device).view(-1, 1, 1, 1)


def _to_uint8(values: Tensor) -> Tensor:
    """Clamps floats to 0..255 in place and rounds them down to uint8; converting via int16 is four times faster."""
    return values.clamp_(0, 255).to(torch.int16).to(torch.uint8)


def _luma(pixels: Tensor) -> Tensor:
    """Returns the luma of each pixel, rounded down: float32 [B, C, H, W] -> [B, 1, H, W]."""
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = (pixels[:, i : i + 1] * weight for i, weight in enumerate(_LUMA))
    return red.add_(green).add_(blue).floor_()


@dataclass(frozen=True)
class ColorJitter:
    """Changes brightness, contrast and saturation, in this order, each by a random factor per image.

    A factor is uniform from max(0, 1 - value) to 1 + value. A value of 0 turns that change off. The saturation of gray
    images does not change."""

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __call__(self, images: Tensor, index: Rows, seed: int, epoch: int) -> Tensor:
        """Returns the augmented images, uint8 [B, C, H, W]."""
        steps = ((brightness, self.brightness), (contrast, self.contrast), (saturation, self.saturation))
        changes = [
            (change, uniform_between((max(0.0, 1 - reach), 1 + reach), seed, epoch, f"jitter {change.__name__}", index))
            for change, reach in steps
            if reach
        ]

        def jitter(part: Tensor, rows: slice) -> Tensor:
            for change, factor in changes:
                part = change(part, factor[rows])
            return part

        return map_blocks(images, jitter)
