"""Augmentation policies that need no search: `TrivialAugment` and `RandAugment`.

Müller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", 2021 (the wide space); Cubuk et
al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space", 2020.

Operations, strengths and signs are torchvision's, with its defaults of nearest-pixel sampling and black outside. Images
are uint8 [B, C, H, W], C 1 or 3. All images of a batch that drew the same operation are processed together."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sightline.core.rng import integers, uniform
from sightline.data.augment.colour import (
    autocontrast,
    brightness,
    contrast,
    equalize,
    posterize,
    saturation,
    sharpness,
    solarize,
)
from sightline.data.augment.geometry import Reals, Rows, affine_matrices, map_blocks, warp

BINS = 31
OPERATIONS = (
    "identity",
    "shear x",
    "shear y",
    "translate x",
    "translate y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
_GEOMETRIC = slice(1, 6)
_SIGNED = slice(1, 10)  # operations whose strength may be negative
_COLOUR: tuple[Callable[[Tensor, Reals], Tensor], ...] = (  # the operations from "brightness" on
    lambda images, strength: brightness(images, 1 + strength),
    lambda images, strength: saturation(images, 1 + strength),
    lambda images, strength: contrast(images, 1 + strength),
    lambda images, strength: sharpness(images, 1 + strength),
    lambda images, strength: posterize(images, strength.astype(np.int64)),
    solarize,
    lambda images, strength: autocontrast(images),
    lambda images, strength: equalize(images),
)


def strength_table(shear: float, translate: tuple[float, float], rotate: float, blend: float, bits: int) -> Reals:
    """Returns the strength of each of `OPERATIONS` at the magnitudes 0..30, float64 [14, 31].

    The arguments are the strengths at magnitude 30: `shear` as a tangent, `translate` (x, y) in pixels, `rotate` in
    degrees, `blend` as the distance of the four factors from 1, and `bits` as the number of bits that posterize
    removes. The threshold of solarize falls from 255 to 0. Identity, autocontrast and equalize have no strength."""
    limits = (0.0, shear, shear, *translate, rotate, *[blend] * 4)
    # float32 steps computed by torch, as in torchvision: a pixel position can depend on the last bit
    rows = [torch.linspace(0.0, limit, BINS) for limit in limits]
    rows.append((8 - torch.arange(BINS) / ((BINS - 1) / bits)).round())
    rows.append(torch.linspace(1.0, 0.0, BINS).double() * 255)
    table = np.stack([row.double().numpy() for row in rows] + [np.zeros(BINS)] * 2)
    table[3:5] = np.trunc(table[3:5])  # translations in full pixels
    return table


def apply_operations(images: Tensor, operation: Rows, strength: Reals) -> Tensor:
    """Applies `OPERATIONS[operation[i]]` with `strength[i]` to image i; returns uint8 [B, C, H, W].

    `operation` and `strength` are [B]. Strengths are as in `strength_table`, negative for the opposite direction."""
    order = np.argsort(operation, kind="stable")
    # sorted, the images of one operation are a slice; index_select is far faster than index_copy
    out = images.index_select(0, torch.from_numpy(order).to(images.device))
    operation, strength = operation[order], strength[order]
    starts = np.searchsorted(operation, np.arange(len(OPERATIONS) + 1)).tolist()
    moved = slice(starts[_GEOMETRIC.start], starts[_GEOMETRIC.stop])
    out[moved] = _apply_geometric(out[moved], operation[moved], strength[moved])
    for number, change in enumerate(_COLOUR, start=_GEOMETRIC.stop):
        chosen = slice(starts[number], starts[number + 1])
        out[chosen] = map_blocks(out[chosen], _with_strength(change, strength[chosen]))
    return out.index_select(0, torch.from_numpy(np.argsort(order)).to(images.device))


def _with_strength(change: Callable[[Tensor, Reals], Tensor], strength: Reals) -> Callable[[Tensor, slice], Tensor]:
    return lambda part, rows: change(part, strength[rows])


def _apply_geometric(images: Tensor, operation: Rows, strength: Reals) -> Tensor:
    """Applies the geometric operations together: one `warp` with a matrix for each image."""
    shear_x, shear_y, move_x, move_y, angle = (
        np.where(operation == number, strength, 0.0) for number in range(_GEOMETRIC.start, _GEOMETRIC.stop)
    )
    height, width = images.shape[2:]
    shear = np.stack([shear_x, shear_y], axis=1)
    # shears keep the upper left corner fixed, rotations the centre
    centre = np.where(shear.any(axis=1, keepdims=True), (-width / 2, -height / 2), 0.0)
    matrices = affine_matrices(
        (height, width),
        -angle,  # counter-clockwise
        np.stack([move_x, move_y], axis=1),
        np.ones(len(images)),
        np.degrees(np.arctan(shear)),
        centre,
    )
    return warp(images, matrices, bilinear=False)


def _draw_operations(
    index: Rows, seed: int, epoch: int, purpose: str, table: Reals, magnitude: Rows
) -> tuple[Rows, Reals]:
    """Draws an operation [B] for each image; returns it with its signed strength [B], from `table` at `magnitude`."""
    operation = integers(seed, epoch, f"{purpose} operation", index, 0, len(OPERATIONS) - 1)
    signed = np.zeros(len(OPERATIONS), dtype=bool)
    signed[_SIGNED] = True
    negative = signed[operation] & (uniform(seed, epoch, f"{purpose} sign", index) < 0.5)
    strength = table[operation, magnitude]
    return operation, np.where(negative, -strength, strength)


@dataclass(frozen=True)
class TrivialAugment:
    """Applies one random operation of `OPERATIONS` to each image, with one of 31 magnitudes, all equally likely.

    The strongest are: shear 0.99, translate 32 pixels, rotate 135 degrees, factors 0.01 or 1.99 of brightness, color,
    contrast and sharpness, posterize to 2 bits, solarize with threshold 0."""

    def __call__(self, images: Tensor, index: Rows, seed: int, epoch: int) -> Tensor:
        """Returns the augmented images, uint8 [B, C, H, W]."""
        table = strength_table(shear=0.99, translate=(32.0, 32.0), rotate=135.0, blend=0.99, bits=6)
        magnitude = integers(seed, epoch, "trivialaugment magnitude", index, 0, BINS - 1)
        return apply_operations(images, *_draw_operations(index, seed, epoch, "trivialaugment", table, magnitude))


@dataclass(frozen=True)
class RandAugment:
    """Applies `num_ops` random operations of `OPERATIONS` to each image in sequence, all with `magnitude` (0..30).

    Magnitude 30 is: shear 0.3, translate 150/331 of the side, rotate 30 degrees, factors 0.1 or 1.9, posterize to 4
    bits, solarize with threshold 0. Raises ValueError for a magnitude out of range."""

    num_ops: int = 2
    magnitude: int = 9

    def __post_init__(self) -> None:
        if not 0 <= self.magnitude < BINS:
            raise ValueError(f"RandAugment: magnitude: expected an integer in [0, {BINS - 1}], found {self.magnitude}.")

    def __call__(self, images: Tensor, index: Rows, seed: int, epoch: int) -> Tensor:
        """Returns the augmented images, uint8 [B, C, H, W]."""
        height, width = images.shape[2:]
        reach = (150.0 / 331.0 * width, 150.0 / 331.0 * height)
        table = strength_table(shear=0.3, translate=reach, rotate=30.0, blend=0.9, bits=4)
        magnitude = np.full(len(index), self.magnitude)
        for turn in range(self.num_ops):
            images = apply_operations(
                images, *_draw_operations(index, seed, epoch, f"randaugment {turn}", table, magnitude)
            )
        return images
