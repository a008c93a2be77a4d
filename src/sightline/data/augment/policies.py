"""Augmentation policies without a search: `TrivialAugment` (Müller and Hutter, "TrivialAugment: Tuning-free Yet
State-of-the-Art Data Augmentation", 2021, the wide space) and `RandAugment` (Cubuk et al., "RandAugment: Practical
Automated Data Augmentation with a Reduced Search Space", 2020).

Operations, strengths and signs are torchvision's, as is its default of the nearest pixel and black outside; images are
uint8 [B,C,H,W], C 1 or 3. The images that drew one operation are changed together."""

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
_SIGNED = slice(1, 10)  # those that go either way
_COLOUR: tuple[Callable[[Tensor, Reals], Tensor], ...] = (  # from "brightness" on
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
    """What the magnitudes 0..30 mean for each of `OPERATIONS`, float64 [14,31], from nothing up to: `shear` as a
    tangent, `translate` (x, y) in pixels, `rotate` in degrees, `blend` for the four factors 1 ± it, `bits` to take
    away, and a threshold of 255 to 0. The last two of the operations have no strength."""
    tops = (0.0, shear, shear, *translate, rotate, *[blend] * 4)
    # torch's float32 steps, which torchvision takes its values from: a place can depend on the last bit
    rows = [torch.linspace(0.0, top, BINS) for top in tops]
    rows.append((8 - torch.arange(BINS) / ((BINS - 1) / bits)).round())
    rows.append(torch.linspace(1.0, 0.0, BINS).double() * 255)
    table = np.stack([row.double().numpy() for row in rows] + [np.zeros(BINS)] * 2)
    table[3:5] = np.trunc(table[3:5])  # whole pixels
    return table


def apply_operations(images: Tensor, operation: Rows, strength: Reals) -> Tensor:
    """uint8 [B,C,H,W] -> the same: `OPERATIONS[operation[i]]` on image i with `strength[i]`, as `strength_table` has
    it, and negative for the other way; both are [B]."""
    order = np.argsort(operation, kind="stable")
    # side by side, those of one operation are a slice; index_select is far faster than its opposite, index_copy
    out = images.index_select(0, torch.from_numpy(order).to(images.device))
    operation, strength = operation[order], strength[order]
    begins = np.searchsorted(operation, np.arange(len(OPERATIONS) + 1)).tolist()
    moved = slice(begins[_GEOMETRIC.start], begins[_GEOMETRIC.stop])
    out[moved] = _apply_geometric(out[moved], operation[moved], strength[moved])
    for number, change in enumerate(_COLOUR, start=_GEOMETRIC.stop):
        chosen = slice(begins[number], begins[number + 1])
        out[chosen] = map_blocks(out[chosen], _each(change, strength[chosen]))
    return out.index_select(0, torch.from_numpy(np.argsort(order)).to(images.device))


def _each(change: Callable[[Tensor, Reals], Tensor], strength: Reals) -> Callable[[Tensor, slice], Tensor]:
    return lambda part, rows: change(part, strength[rows])


def _apply_geometric(images: Tensor, operation: Rows, strength: Reals) -> Tensor:
    """The geometric operations, all of which are one look-up with a matrix for each image."""
    shear_x, shear_y, move_x, move_y, angle = (
        np.where(operation == number, strength, 0.0) for number in range(_GEOMETRIC.start, _GEOMETRIC.stop)
    )
    height, width = images.shape[2:]
    shear = np.stack([shear_x, shear_y], axis=1)
    # shears keep the upper left corner in place, rotations the centre
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
    """An operation [B] for each image, and its strength [B] in `table` at `magnitude` [B], with its sign."""
    operation = integers(seed, epoch, f"{purpose} operation", index, 0, len(OPERATIONS) - 1)
    signed = np.zeros(len(OPERATIONS), dtype=bool)
    signed[_SIGNED] = True
    negative = signed[operation] & (uniform(seed, epoch, f"{purpose} sign", index) < 0.5)
    strength = table[operation, magnitude]
    return operation, np.where(negative, -strength, strength)


@dataclass(frozen=True)
class TrivialAugment:
    """One of `OPERATIONS` for each image, with one of 31 magnitudes, all equally likely: shear up to 0.99, translate
    32 pixels, rotate 135 degrees, factors of brightness, color, contrast and sharpness 0.01..1.99, posterize to 2 bits,
    solarize from 0."""

    def __call__(self, images: Tensor, index: Rows, seed: int, epoch: int) -> Tensor:
        """uint8 [B,C,H,W] -> the same."""
        table = strength_table(shear=0.99, translate=(32.0, 32.0), rotate=135.0, blend=0.99, bits=6)
        magnitude = integers(seed, epoch, "trivialaugment magnitude", index, 0, BINS - 1)
        return apply_operations(images, *_draw_operations(index, seed, epoch, "trivialaugment", table, magnitude))


@dataclass(frozen=True)
class RandAugment:
    """`num_ops` of `OPERATIONS`, one after the other, for each image, all with `magnitude`, 0..30. 30 is shear 0.3,
    translate 150/331 of the side, rotate 30 degrees, factors 0.1..1.9, posterize to 4 bits, solarize from 0."""

    num_ops: int = 2
    magnitude: int = 9

    def __post_init__(self) -> None:
        if not 0 <= self.magnitude < BINS:
            raise ValueError(f"RandAugment: magnitude is 0 to {BINS - 1}, not {self.magnitude}")

    def __call__(self, images: Tensor, index: Rows, seed: int, epoch: int) -> Tensor:
        """uint8 [B,C,H,W] -> the same."""
        height, width = images.shape[2:]
        reach = (150.0 / 331.0 * width, 150.0 / 331.0 * height)
        table = strength_table(shear=0.3, translate=reach, rotate=30.0, blend=0.9, bits=4)
        magnitude = np.full(len(index), self.magnitude)
        for turn in range(self.num_ops):
            images = apply_operations(
                images, *_draw_operations(index, seed, epoch, f"randaugment {turn}", table, magnitude)
            )
        return images
