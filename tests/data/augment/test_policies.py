"""TrivialAugment and RandAugment: equal to torchvision's, with the right draws, each image independent of others."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from helpers.augmentations import random_images
from sightline.data.augment import policies
from sightline.data.augment.policies import OPERATIONS, RandAugment, TrivialAugment, apply_operations, strength_table

WIDE = strength_table(shear=0.99, translate=(32.0, 32.0), rotate=135.0, blend=0.99, bits=6)
GEOMETRIC = OPERATIONS[1:6]
SIGNED = OPERATIONS[1:10]


def torchvision_operation(operation: str) -> Callable[[Tensor, float], Tensor]:
    """The function by which torchvision's policies apply an operation to one image."""
    F = importlib.import_module("torchvision.transforms.v2.functional")

    def affine(image: Tensor, **changed: Any) -> Tensor:
        return F.affine(image, **{"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], **changed})

    def degrees(tangent: float) -> float:
        return math.degrees(math.atan(tangent))

    return {
        "identity": lambda image, by: image,
        "shear x": lambda image, by: affine(image, shear=[degrees(by), 0.0], center=[0, 0]),
        "shear y": lambda image, by: affine(image, shear=[0.0, degrees(by)], center=[0, 0]),
        "translate x": lambda image, by: affine(image, translate=[int(by), 0]),
        "translate y": lambda image, by: affine(image, translate=[0, int(by)]),
        "rotate": F.rotate,
        "brightness": lambda image, by: F.adjust_brightness(image, 1 + by),
        "color": lambda image, by: F.adjust_saturation(image, 1 + by),
        "contrast": lambda image, by: F.adjust_contrast(image, 1 + by),
        "sharpness": lambda image, by: F.adjust_sharpness(image, 1 + by),
        "posterize": lambda image, by: F.posterize(image, int(by)),
        "solarize": F.solarize,
        "autocontrast": lambda image, by: F.autocontrast(image),
        "equalize": lambda image, by: F.equalize(image),
    }[operation]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_equals_torchvisions_at_every_strength(operation: str, channels: int) -> None:
    number = OPERATIONS.index(operation)
    by = WIDE[number]
    if operation in SIGNED:
        by = np.concatenate([by, -by])
    images = random_images(len(by), channels, 40, 36)
    results = apply_operations(images, np.full(len(by), number), by)
    reference, different = torchvision_operation(operation), 0.0
    for image, result, strength in zip(images, results, by.tolist(), strict=True):
        expected = reference(image, strength)
        if operation not in GEOMETRIC:
            assert (result.int() - expected.int()).abs().max() <= 1  # see the tests of the operation
        different += (result != expected).float().mean().item() / len(by)
    # where a position is midway between two pixels, the last bit of float32 decides
    assert different <= 0.005


def test_strengths_equal_torchvisions() -> None:
    transforms = importlib.import_module("torchvision.transforms.v2")
    random = strength_table(shear=0.3, translate=(150 / 331 * 50, 150 / 331 * 40), rotate=30.0, blend=0.9, bits=4)
    for table, policy in ((WIDE, transforms.TrivialAugmentWide), (random, transforms.RandAugment)):
        space = policy._AUGMENTATION_SPACE
        assert [name.lower() for name in space] == [name.replace(" ", "") for name in OPERATIONS]
        for operation, row, (magnitudes, signed) in zip(OPERATIONS, table, space.values(), strict=True):
            assert signed == (operation in SIGNED)
            values = magnitudes(31, 40, 50)
            if values is not None:
                values = [float(value) for value in values]
                if operation == "solarize":
                    values = [255 * value for value in values]
                if operation.startswith("translate"):
                    values = [int(value) for value in values]
                assert row.tolist() == values


def test_only_the_rows_that_drew_an_operation_are_changed() -> None:
    images = random_images(60, 3, 12, 11)
    operation = np.random.default_rng(0).integers(0, 14, 60)
    by = WIDE[operation, 20]
    result = apply_operations(images, operation, by)
    for number in range(14):
        rows = np.flatnonzero(operation == number)
        assert len(rows)
        assert torch.equal(result[rows], apply_operations(images[rows], operation[rows], by[rows]))
    assert torch.equal(result[operation == 0], images[operation == 0])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """The arguments that the policies pass to `apply_operations`, which is replaced."""
    calls = []

    def record(images: Tensor, operation: NDArray[np.int64], strength: NDArray[np.float64]) -> Tensor:
        calls.append((operation, strength))
        return images

    monkeypatch.setattr(policies, "apply_operations", record)
    return calls


Drawn = list[tuple[NDArray[np.int64], NDArray[np.float64]]]


def test_trivial_augment_draws_every_operation_and_every_magnitude_equally_often(drawn: Drawn) -> None:
    count = 14 * 31 * 60
    TrivialAugment()(torch.empty((count, 1, 1, 1), dtype=torch.uint8), np.arange(count), 0, 0)
    ((operation, strength),) = drawn
    share = count / 14
    assert (np.abs(np.bincount(operation, minlength=14) - share) < 5 * math.sqrt(share)).all()
    for number, name in enumerate(OPERATIONS):
        strengths, row = strength[operation == number], WIDE[number]
        assert set(np.abs(strengths)) == set(np.abs(row))
        if name in SIGNED:
            moved = strengths[strengths != 0]
            assert abs((moved < 0).mean() - 0.5) < 0.07
        for value, expected in zip(*np.unique(row, return_counts=True), strict=True):
            times = (np.abs(strengths) == value).sum()
            assert abs(times - expected * share / 31) < 6 * math.sqrt(expected * share / 31) + 1


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_rand_augment_draws_its_operations_independently_and_keeps_its_magnitude(drawn: Drawn, magnitude: int) -> None:
    RandAugment(3, magnitude)(torch.empty((5000, 1, 40, 50), dtype=torch.uint8), np.arange(5000), 0, 0)
    assert len(drawn) == 3
    table = strength_table(shear=0.3, translate=(150 / 331 * 50, 150 / 331 * 40), rotate=30.0, blend=0.9, bits=4)
    for operation, strength in drawn:
        assert (np.abs(np.bincount(operation, minlength=14) - 5000 / 14) < 5 * math.sqrt(5000 / 14)).all()
        assert np.array_equal(np.abs(strength), np.abs(table[operation, magnitude]))
    for one in range(3):
        same = (drawn[one][0] == drawn[one - 1][0]).mean()
        assert abs(same - 1 / 14) < 0.02


def test_rand_augment_without_operations_does_not_change_the_image() -> None:
    images = random_images(4, 3, 9, 8)
    assert torch.equal(RandAugment(num_ops=0)(images, np.arange(4), 0, 0), images)


@pytest.mark.parametrize("magnitude", [-1, 31])
def test_an_invalid_magnitude_is_refused(magnitude: int) -> None:
    with pytest.raises(ValueError, match=rf"magnitude: expected an integer in \[0, 30\], found {magnitude}"):
        RandAugment(magnitude=magnitude)
