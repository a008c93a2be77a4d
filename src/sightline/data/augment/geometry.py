"""Geometric augmentations of uint8 batches: random resized crop, affine transform, random erasing, cutout.

Szegedy et al., "Going Deeper with Convolutions", 2014 (crops of random area and aspect ratio); Zhong et al., "Random
Erasing Data Augmentation", 2017; DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with
Cutout", 2017. Distributions and the direction of rotation are torchvision's.

A batch gives bit for bit the same as its images one by one. Therefore no matrix product and no fused multiply-add is
used: both may round differently in the vectorised body and in the rest of an array. Random draws and the coefficients
of each image are float64 on the host; on the device, coordinates are single float32 operations and pixels are
gathered."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sightline.core.rng import uniform

Rows: TypeAlias = NDArray[np.int64]
Reals: TypeAlias = NDArray[np.float64]
Range: TypeAlias = tuple[float, float]
_TRIES = 10
_EXACT = 1 << 24  # float32 represents every integer up to this one


def map_blocks(images: Tensor, change: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """Applies `change` to the images in blocks; returns the results as uint8 [B, C, H, W].

    `change(images[rows], rows)` is called with slices of rows. On a CPU the temporary tensors of a block fit into the
    cache, which is twice as fast; on other devices they stay below 1 GB."""
    pixels = 1 << (17 if images.device.type == "cpu" else 24)
    step = max(1, pixels // max(1, images.shape[2] * images.shape[3]))
    images = images.contiguous()
    out = torch.empty_like(images)
    for start in range(0, len(images), step):
        rows = slice(start, start + step)
        out[rows] = change(images[rows], rows)
    return out


def uniform_between(bounds: Range, seed: int, epoch: int, purpose: str, index: Rows) -> Reals:
    """Returns one float64 for each sample index, uniform in [`bounds[0]`, `bounds[1]`)."""
    return bounds[0] + uniform(seed, epoch, purpose, index) * (bounds[1] - bounds[0])


def affine_matrices(
    size: tuple[int, int], angle: Reals, translate: Reals, scale: Reals, shear: Reals, centre: Reals
) -> Reals:
    """Returns the inverse matrices of torchvision's `affine`, from result to image positions: float64 [B, 2, 3].

    `size` is the (height, width) of the images. `angle` [B] is in degrees clockwise, `scale` [B] a factor. The others
    are [B, 2], as (x, y): `translate` in pixels, `shear` in degrees, and `centre`, the fixed point relative to the
    image centre, in pixels."""
    turn, (shear_x, shear_y) = np.radians(angle), np.radians(shear.T)
    a = np.cos(turn - shear_y) / np.cos(shear_y)
    b = -(a * np.tan(shear_x) + np.sin(turn))
    c = np.sin(turn - shear_y) / np.cos(shear_y)
    d = np.cos(turn) - c * np.tan(shear_x)
    fixed = centre + (np.array(size[::-1]) - 1) / 2  # from the centre of the first pixel
    from_x, from_y = (fixed + translate).T
    rows = [(d / scale, -b / scale), (-c / scale, a / scale)]
    lines = [np.stack([u, v, fixed[:, i] - u * from_x - v * from_y], axis=1) for i, (u, v) in enumerate(rows)]
    return np.stack(lines, axis=1)


def warp(images: Tensor, matrices: Reals, *, bilinear: bool) -> Tensor:
    """Transforms images, uint8 [B, C, H, W], with inverse matrices [B, 2, 3].

    Pixel (x, y) of result i is read at `matrices[i] @ (x, y, 1)` in image i: from the nearest pixel, or if `bilinear`
    interpolated between the four around it. Outside the image it is black."""
    height, width = images.shape[2:]
    stride = width + 3  # with a black border (two pixels at the far end), to which positions outside are clamped
    index_type = torch.float32 if (height + 3) * stride <= _EXACT else torch.float64
    x_axis = torch.arange(width, dtype=torch.float32, device=images.device)
    y_axis = torch.arange(height, dtype=torch.float32, device=images.device).view(-1, 1)
    edge = np.array([0, 0, 1.0 if bilinear else 1.5])  # rounding down then gives the nearest pixel
    coefficients = torch.from_numpy((matrices + edge).astype(np.float32)).to(images.device)[..., None, None]

    def _look_up(part: Tensor, rows: slice) -> Tensor:
        (xx, xy, x0), (yx, yy, y0) = (line.unbind(1) for line in coefficients[rows].unbind(1))
        x = (xx * x_axis + (xy * y_axis + x0)).clamp_(0, width + 1)
        y = (yx * x_axis + (yy * y_axis + y0)).clamp_(0, height + 1)
        left, top = x.floor(), y.floor()
        # float32 to int64 or uint8 is several times faster via int32 or int16
        index = (top.to(index_type) * stride).add_(left).to(torch.int32).long().flatten(1).unsqueeze(1)
        index = index.expand(-1, part.shape[1], -1)
        source = F.pad(part, (1, 2, 1, 2)).flatten(2)
        if not bilinear:
            return source.gather(2, index).view(part.shape)
        across, down = (distance.flatten(1).unsqueeze(1) for distance in (x.sub_(left), y.sub_(top)))
        corners = (source[:, :, skip:].gather(2, index).float() for skip in (0, 1, stride, stride + 1))
        upper, lower = _lerp(next(corners), next(corners), across), _lerp(next(corners), next(corners), across)
        return _lerp(upper, lower, down).round_().to(torch.int16).view(part.shape)

    return map_blocks(images, _look_up)


def resized_crop(images: Tensor, boxes: Rows) -> Tensor:
    """Resizes box i of image i bilinearly to the size of the image; returns uint8 [B, C, H, W].

    `boxes` is int64 [B, 4], (top, left, height, width) inside the images. Pixel centres are aligned as in Pillow, and
    the edges of a box are repeated."""
    _, channels, height, width = images.shape
    vertical, horizontal = (
        _interpolation(boxes[:, 0], boxes[:, 2], height),
        _interpolation(boxes[:, 1], boxes[:, 3], width),
    )
    top, bottom, down = (torch.from_numpy(part).to(images.device).view(-1, 1, height) for part in vertical)
    left, right, across = (torch.from_numpy(part).to(images.device).view(-1, 1, 1, width) for part in horizontal)

    def _enlarge(part: Tensor, rows: slice) -> Tensor:
        lines = part.view(-1, width)
        plane = torch.arange(0, len(lines), height, device=images.device).view(-1, channels, 1)  # first row of each
        upper, lower = (
            lines.index_select(0, (plane + line[rows]).flatten()).float().view(part.shape) for line in (top, bottom)
        )
        tall = _lerp(upper, lower, down[rows].unsqueeze(-1))
        first, second = (tall.gather(3, column[rows].expand(part.shape)) for column in (left, right))
        return _lerp(first, second, across[rows]).round_().to(torch.int16)

    return map_blocks(images, _enlarge)


def _interpolation(start: Rows, length: Rows, size: int) -> tuple[Rows, Rows, NDArray[np.float32]]:
    """Returns the two pixels around each of `size` positions along an axis, and the weight of the second pixel."""
    last = (length - 1)[:, None]
    position = np.clip((np.arange(size) + 0.5) * (length[:, None] / size) - 0.5, 0, last)
    low = position.astype(np.int64)
    high = np.minimum(low + 1, last)
    return start[:, None] + low, start[:, None] + high, (position - low).astype(np.float32)


def _lerp(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Computes first + (second - first) * weight in place. For values in 0..255 and weights in 0..1 the result is
    outside 0..255 by a rounding error at most, which rounding to an integer removes, so clamping is not needed."""
    return first.add_(second.sub_(first).mul_(weight))


def _rectangles(
    index: Rows, seed: int, epoch: int, purpose: str, area: Rows, room: Rows, scale: Range, ratio: Range
) -> Rows:
    """Draws up to ten rectangles per image; returns the sides [B, 2] of the first that fits `room` [B, 2], or zeros.

    The area is uniform in `scale` times `area` [B], the first side divided by the second log-uniform in `ratio`."""
    logs = (math.log(ratio[0]), math.log(ratio[1]))
    result = np.zeros_like(room)
    missing = np.arange(len(index))
    for attempt in range(_TRIES):
        drawn = uniform_between(scale, seed, epoch, f"{purpose} area {attempt}", index[missing]) * area[missing]
        quotient = np.exp(uniform_between(logs, seed, epoch, f"{purpose} ratio {attempt}", index[missing]))
        sides = np.rint(np.sqrt(np.stack([drawn * quotient, drawn / quotient], axis=1))).astype(np.int64)
        fits = ((sides > 0) & (sides <= room[missing])).all(axis=1)
        result[missing[fits]] = sides[fits]
        missing = missing[~fits]
    return result


def _corners(index: Rows, seed: int, epoch: int, purpose: str, room: Rows) -> Rows:
    """Returns random (top, left) [B, 2], each uniform in 0..`room`."""
    drawn = [uniform(seed, epoch, f"{purpose} {axis}", index) for axis in ("top", "left")]
    return (np.stack(drawn, axis=1) * (room + 1)).astype(np.int64)


def _sizes(images: Tensor) -> Rows:
    """Returns the (height, width) of each image, int64 [B, 2]."""
    return np.tile(np.array(images.shape[2:], dtype=np.int64), (len(images), 1))


def _fill_black(images: Tensor, first: Rows, end: Rows) -> Tensor:
    """Blackens a rectangle of each image, from (top, left) `first` [B, 2] to before (bottom, right) `end` [B, 2]."""
    positions = [np.arange(size) for size in images.shape[2:]]
    outside = [(at < first[:, i, None]) | (at >= end[:, i, None]) for i, at in enumerate(positions)]
    down, across = (torch.from_numpy(part).to(images.device) for part in outside)
    keep = down[:, None, :, None] | across[:, None, None, :]
    return images * keep  # a multiplication of bytes is far faster than a masked fill


@dataclass(frozen=True)
class RandomResizedCrop:
    """Crops a random region of each image and resizes it to the size of the image.

    The area of the region is uniform in `scale`, as a fraction of the image area; its width divided by its height is
    log-uniform in `ratio`. If none of ten draws fits, it is the largest central region with a ratio in `ratio`."""

    scale: Range = (0.08, 1.0)
    ratio: Range = (3 / 4, 4 / 3)

    def boxes(self, index: Rows, seed: int, epoch: int, sizes: Rows) -> Rows:
        """Returns the regions to crop, int64 [B, 4] as (top, left, height, width), for images of `sizes`, int64 [B, 2]
        as (height, width)."""
        height, width = sizes[:, 0], sizes[:, 1]
        turned = _rectangles(index, seed, epoch, "crop", height * width, sizes[:, ::-1], self.scale, self.ratio)
        longest = np.rint(np.stack([width / self.ratio[0], height * self.ratio[1]], axis=1))
        failed = turned[:, :1] == 0
        sides = np.where(failed, np.clip(longest, 1, sizes).astype(np.int64), turned[:, ::-1])
        room = sizes - sides
        return np.hstack([np.where(failed, room // 2, _corners(index, seed, epoch, "crop", room)), sides])

    def __call__(self, images: Tensor, index: Rows, seed: int, epoch: int) -> Tensor:
        """Returns the augmented images, uint8 [B, C, H, W]."""
        return resized_crop(images, self.boxes(index, seed, epoch, _sizes(images)))


@dataclass(frozen=True)
class Affine:
    """A random affine transform of each image about its centre.

    Shears along x by up to `shear` degrees either way, scales by a factor in `scale` and rotates by up to `degrees`
    either way; then shifts by up to the fraction `translate` of each side, rounded to pixels. Bilinear, black
    outside."""

    degrees: float = 0.0
    translate: float = 0.0
    scale: Range = (1.0, 1.0)
    shear: float = 0.0

    def __call__(self, images: Tensor, index: Rows, seed: int, epoch: int) -> Tensor:
        """Returns the augmented images, uint8 [B, C, H, W]."""
        height, width = images.shape[2:]
        reaches = (self.degrees, self.translate * width, self.translate * height, self.shear)
        angle, x, y, shear = (
            uniform_between((-reach, reach), seed, epoch, f"affine {what}", index)
            for what, reach in zip(("angle", "x", "y", "shear"), reaches, strict=True)
        )
        scale = uniform_between(self.scale, seed, epoch, "affine scale", index)
        move, tilt = np.rint(np.stack([x, y], axis=1)), np.stack([shear, np.zeros_like(shear)], axis=1)
        matrices = affine_matrices((height, width), angle, move, scale, tilt, np.zeros_like(tilt))
        return warp(images, matrices, bilinear=True)


@dataclass(frozen=True)
class Erase:
    """Random erasing: blackens a random rectangle of each image with probability `p`.

    The area is uniform in `scale`, as a fraction of the image area; the height divided by the width is log-uniform in
    `ratio`. Both sides are smaller than those of the image. If none of ten draws fits, the image is unchanged."""

    p: float = 0.5
    scale: Range = (0.02, 0.33)
    ratio: Range = (0.3, 3.3)

    def __call__(self, images: Tensor, index: Rows, seed: int, epoch: int) -> Tensor:
        """Returns the augmented images, uint8 [B, C, H, W]."""
        sizes = _sizes(images)
        sides = _rectangles(index, seed, epoch, "erase", sizes.prod(axis=1), sizes - 1, self.scale, self.ratio)
        corner = _corners(index, seed, epoch, "erase", sizes - sides)
        sides[uniform(seed, epoch, "erase", index) >= self.p] = 0
        return _fill_black(images, corner, corner + sides)


@dataclass(frozen=True)
class Cutout:
    """Blackens a square of `size` x `size` pixels with a random centre in the image, clipped at the image edges."""

    size: int

    def __call__(self, images: Tensor, index: Rows, seed: int, epoch: int) -> Tensor:
        """Returns the augmented images, uint8 [B, C, H, W]."""
        corner = _corners(index, seed, epoch, "cutout", _sizes(images) - 1) - self.size // 2
        return _fill_black(images, corner, corner + self.size)
