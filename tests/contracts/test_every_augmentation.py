"""The contract of every augmentation: what `helpers.augmentations.check` tests, and other images in another epoch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

from helpers.augmentations import EPOCH, SEED, batches, check, check_draws, random_images
from helpers.shapes import check_shape
from sightline.core.types import Augmentation
from sightline.data.augment.colour import ColorJitter
from sightline.data.augment.flip_shift import Flip, ShiftCrop
from sightline.data.augment.geometry import Affine, Cutout, Erase, RandomResizedCrop
from sightline.data.augment.per_image import PerImage
from sightline.data.augment.policies import RandAugment, TrivialAugment

STEPS: dict[str, Augmentation] = {
    "flip": Flip(),
    "vertical flip": Flip(vertical=True),
    "shift": ShiftCrop(2),
    "jitter": ColorJitter(0.4, 0.4, 0.4),
    "image by image": PerImage(v2.RandomHorizontalFlip()),
    "crop": RandomResizedCrop(),
    "small crop": RandomResizedCrop((0.01, 0.1), (0.2, 5.0)),
    "affine": Affine(degrees=30, translate=0.2, scale=(0.5, 1.5), shear=20),
    "erase": Erase(0.7),
    "cutout": Cutout(3),
    "trivial": TrivialAugment(),
    "random": RandAugment(),
    "strong": RandAugment(num_ops=3, magnitude=30),
}


@pytest.mark.parametrize("name", sorted(STEPS))
@settings(max_examples=30)
@given(batch=batches(), seed=SEED, epoch=EPOCH)
def test_a_batch_equals_its_images_one_by_one_and_the_input_is_unchanged(
    name: str, batch: tuple[Tensor, NDArray[np.int64]], seed: int, epoch: int
) -> None:
    check(STEPS[name], *batch, seed, epoch)


@pytest.mark.parametrize("name", sorted(STEPS))
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 9, 7), (3, 1, 5)])
def test_shape_and_dtype_do_not_change(name: str, channels: int, height: int, width: int) -> None:
    images = random_images(5, channels, height, width)
    result = STEPS[name](images, np.arange(5), 1, 2)
    check_shape(result, "uint8 [B,C,H,W]", {"B": 5, "C": channels, "H": height, "W": width})


@pytest.mark.parametrize("name", sorted(STEPS))
def test_a_batch_of_several_blocks_equals_its_images_one_by_one(name: str) -> None:
    check(STEPS[name], random_images(150, 3, 45, 47), np.arange(150), 3, 4)


@pytest.mark.parametrize("name", sorted(STEPS))
def test_another_epoch_and_another_seed_give_other_images(name: str) -> None:
    check_draws(STEPS[name])
