"""Colour operations: equal to torchvision's, and independent of the other images of the batch."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from helpers.augmentations import EPOCH, SEED, batches, check, check_draws, random_images
from sightline.data.augment import colour
from sightline.data.augment.colour import ColorJitter
from sightline.data.augment.geometry import uniform_between

JITTERS = {
    "all": ColorJitter(0.4, 0.5, 0.6),
    "brightness": ColorJitter(brightness=2.0),
    "contrast": ColorJitter(contrast=0.9),
    "saturation": ColorJitter(saturation=1.0),
}
Operation = Callable[[Tensor], Tensor]
OPERATIONS: dict[str, Callable[[Tensor, NDArray[np.float64]], Tensor]] = {
    "brightness": lambda images, u: colour.brightness(images, 2 * u),
    "contrast": lambda images, u: colour.contrast(images, 2 * u),
    "saturation": lambda images, u: colour.saturation(images, 2 * u),
    "sharpness": lambda images, u: colour.sharpness(images, 2 * u),
    "posterize": lambda images, u: colour.posterize(images, (9 * u).astype(np.int64)),
    "solarize": lambda images, u: colour.solarize(images, 255 * u),
    "autocontrast": lambda images, u: colour.autocontrast(images),
    "equalize": lambda images, u: colour.equalize(images),
}


def sample_images() -> list[Tensor]:
    """Images of noise, of few or similar values, of one value and of a gradient; in several sizes, gray and colour."""
    images = []
    for channels in (1, 3):
        for height, width in ((32, 32), (45, 37), (3, 3), (2, 9), (120, 130)):
            noise = random_images(1, channels, height, width)[0]
            ramp = (torch.arange(height * width) * 255 // (height * width)).to(torch.uint8)
            images += [noise, noise // 8 + 60, noise // 128 * 255, torch.full_like(noise, 77)]
            images.append(ramp.view(1, height, width).repeat(channels, 1, 1))
    return images


def compare(ours: Operation, theirs: Operation, different: float) -> None:
    """Asserts that results differ by at most one level, in at most the fraction `different` of all pixels."""
    differing, pixels = 0, 0
    for image in sample_images():
        distance = (ours(image.unsqueeze(0))[0].int() - theirs(image).int()).abs()
        assert distance.max() <= 1
        differing, pixels = differing + int(distance.sum()), pixels + distance.numel()
    assert differing <= different * pixels


@settings(max_examples=80)
@given(batch=batches(), name=st.sampled_from(sorted(OPERATIONS)), seed=SEED)
def test_a_batch_equals_its_images_one_by_one_and_the_input_is_unchanged(
    batch: tuple[Tensor, NDArray[np.int64]], name: str, seed: int
) -> None:
    def step(images: Tensor, index: NDArray[np.int64], seed: int, epoch: int) -> Tensor:
        return OPERATIONS[name](images, uniform_between((0.0, 1.0), seed, epoch, "strength", index))

    check(step, *batch, seed, 0)


@settings(max_examples=40)
@given(batch=batches(), name=st.sampled_from(sorted(JITTERS)), seed=SEED, epoch=EPOCH)
def test_jitter_of_a_batch_equals_jitter_of_its_images_one_by_one(
    batch: tuple[Tensor, NDArray[np.int64]], name: str, seed: int, epoch: int
) -> None:
    check(JITTERS[name], *batch, seed, epoch)


def test_jitter_of_several_blocks_equals_jitter_of_their_images_one_by_one() -> None:
    check(JITTERS["all"], random_images(70, 3, 45, 47), np.arange(70), 3, 4)


# Torchvision adds with a fused multiply-add where the processor has one; the sum of two rounded products can come out
# on the other side of an integer, and rounding down makes that one level. Brightness has no sum.
@pytest.mark.parametrize("factor", [0.0, 0.01, 0.3, 0.5, 0.7, 1.0, 1.1, 1.33, 1.9, 1.99])
@pytest.mark.parametrize(
    ("name", "different"), [("brightness", 0.0), ("contrast", 0.005), ("saturation", 0.005), ("sharpness", 0.005)]
)
def test_blends_equal_torchvisions(name: str, different: float, factor: float) -> None:
    functional = importlib.import_module("torchvision.transforms.v2.functional")
    ours, theirs = getattr(colour, name), getattr(functional, f"adjust_{name}")
    compare(lambda images: ours(images, np.array([factor])), lambda image: theirs(image, factor), different)


@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
def test_stretching_equals_torchvisions_to_the_bit(name: str) -> None:
    functional = importlib.import_module("torchvision.transforms.v2.functional")
    compare(getattr(colour, name), getattr(functional, name), 0)


@pytest.mark.parametrize("bits", range(9))
def test_posterize_equals_torchvisions_to_the_bit(bits: int) -> None:
    functional = importlib.import_module("torchvision.transforms.v2.functional")
    compare(
        lambda images: colour.posterize(images, np.array([bits])), lambda image: functional.posterize(image, bits), 0
    )


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0, 8.5, 127.5, 254.0, 254.5, 255.0])
def test_solarize_equals_torchvisions_to_the_bit(threshold: float) -> None:
    functional = importlib.import_module("torchvision.transforms.v2.functional")
    compare(
        lambda images: colour.solarize(images, np.array([threshold])),
        lambda image: functional.solarize(image, threshold),
        0,
    )


@settings(max_examples=40)
@given(batch=batches(), name=st.sampled_from(["brightness", "contrast", "saturation", "sharpness"]))
def test_a_factor_of_one_does_not_change_the_image(batch: tuple[Tensor, NDArray[np.int64]], name: str) -> None:
    images, _ = batch
    assert torch.equal(getattr(colour, name)(images, np.ones(len(images))), images)


def test_the_mean_of_a_large_image_is_exact() -> None:
    """The sum of 4096 x 1030 pixels from 128 to 255 is not exact in float32."""
    image = random_images(1, 1, 4096, 1030) // 2 + 128
    mean = int(image.long().sum()) / image.numel()
    result = colour.contrast(image, np.zeros(1))
    assert result.unique().tolist() == [int(mean)]


def test_thirteenths_are_rounded_correctly() -> None:
    """Weighted sums of nine pixels, of which the centre counts five times."""
    for total in range(13 * 255 + 1):
        if total % 97 and total % 13:
            continue
        image = torch.zeros(1, 1, 3, 3, dtype=torch.uint8)
        centre, rest = min(total // 5, 255), total - 5 * min(total // 5, 255)
        image[0, 0, 1, 1] = centre
        for place in (0, 1, 2, 3, 5, 6, 7, 8):
            image.view(-1)[place] = min(rest, 255)
            rest -= min(rest, 255)
        assert rest == 0
        assert colour.sharpness(image, np.zeros(1))[0, 0, 1, 1] == (2 * total + 13) // 26


def test_jitter_applies_its_operations_in_order_with_factors_in_range() -> None:
    images, index = random_images(300, 3, 12, 12), np.arange(300)
    expected = images
    for name, reach in (("brightness", 0.4), ("contrast", 0.5), ("saturation", 0.6)):
        factor = uniform_between((1 - reach, 1 + reach), 1, 2, f"jitter {name}", index)
        assert 0.05 > factor.min() - (1 - reach) > 0
        assert 0.05 > (1 + reach) - factor.max() > 0
        expected = getattr(colour, name)(expected, factor)
    assert torch.equal(JITTERS["all"](images, index, 1, 2), expected)


def test_a_factor_is_never_below_zero() -> None:
    images = torch.full((500, 1, 1, 1), 100, dtype=torch.uint8)
    result = ColorJitter(brightness=3.0)(images, np.arange(500), 0, 0)
    assert result.float().mean() > 150  # half of the factors from -2 to 4 would be black
    assert result.max() == 255


def test_jitter_changes_only_what_is_enabled_and_never_the_saturation_of_gray() -> None:
    gray, colours = random_images(20, 1, 9, 9), random_images(20, 3, 9, 9)
    assert torch.equal(ColorJitter()(colours, np.arange(20), 0, 0), colours)
    assert torch.equal(ColorJitter(saturation=1.0)(gray, np.arange(20), 0, 0), gray)


@pytest.mark.parametrize("name", sorted(JITTERS))
def test_another_epoch_and_another_seed_give_other_images(name: str) -> None:
    check_draws(JITTERS[name])
