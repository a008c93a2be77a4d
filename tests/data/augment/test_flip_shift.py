"""Batched augmentation: each image depends on (seed, epoch, row) and not on the rest of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sightline.core.rng import integers
from sightline.core.types import Augmentation
from sightline.data.augment.colour import ColorJitter
from sightline.data.augment.flip_shift import Flip, ShiftCrop
from sightline.data.augment.geometry import Affine, Cutout, Erase, RandomResizedCrop
from sightline.data.augment.per_image import PerImage
from sightline.data.augment.pipeline import augmentation_pipeline
from sightline.data.augment.policies import RandAugment, TrivialAugment

STEPS: dict[str, Augmentation] = {
    "flip": Flip(0.5),
    "vertical": Flip(0.5, vertical=True),
    "shift": ShiftCrop(2),
    "far": ShiftCrop(9),
}
NAMES = st.sampled_from(sorted(STEPS))
SEED = st.integers(0, 2**40)
EPOCH = st.integers(0, 1000)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    count, channels = draw(st.integers(1, 12)), draw(st.sampled_from([1, 3]))
    height, width = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    images = random.integers(0, 256, (count, channels, height, width), dtype=np.uint8)
    return torch.from_numpy(images), random.permutation(10_000)[:count].astype(np.int64)


def numbered(count: int) -> Tensor:
    """Images whose pixels are all different, so that any move is visible."""
    return torch.arange(1, 26, dtype=torch.uint8).view(1, 1, 5, 5).repeat(count, 1, 1, 1)


@settings(max_examples=60)
@given(batch=batches(), name=NAMES, seed=SEED, epoch=EPOCH)
def test_dtype_shape_and_range_are_kept_and_the_input_is_unchanged(
    batch: tuple[Tensor, np.ndarray[tuple[int], np.dtype[np.int64]]], name: str, seed: int, epoch: int
) -> None:
    images, index = batch
    before, rows = images.clone(), index.copy()
    result = STEPS[name](images, index, seed, epoch)
    assert result.dtype == torch.uint8
    assert result.shape == images.shape
    assert torch.equal(images, before)
    assert np.array_equal(index, rows)
    for new, old in zip(result, images, strict=True):
        assert set(new.unique().tolist()) <= {0, *old.unique().tolist()}  # pixels are moved, no other values appear


@settings(max_examples=60)
@given(batch=batches(), name=NAMES, seed=SEED, epoch=EPOCH, size=st.integers(1, 12))
@pytest.mark.rows("X15")
def test_an_image_is_augmented_the_same_in_any_batch(
    batch: tuple[Tensor, np.ndarray[tuple[int], np.dtype[np.int64]]], name: str, seed: int, epoch: int, size: int
) -> None:
    images, index = batch
    together = STEPS[name](images, index, seed, epoch)
    for at in range(0, len(images), size):
        part = slice(at, at + size)
        assert torch.equal(STEPS[name](images[part], index[part], seed, epoch), together[part])
    order = torch.arange(len(images) - 1, -1, -1)
    assert torch.equal(STEPS[name](images[order], index[order.numpy()], seed, epoch)[order], together)


@settings(max_examples=40)
@given(batch=batches(), seed=SEED, epoch=EPOCH, vertical=st.booleans(), p=st.floats(0, 1))
def test_flipping_twice_restores_the_image(
    batch: tuple[Tensor, np.ndarray[tuple[int], np.dtype[np.int64]]], seed: int, epoch: int, vertical: bool, p: float
) -> None:
    images, index = batch
    flip = Flip(p, vertical)
    assert torch.equal(flip(flip(images, index, seed, epoch), index, seed, epoch), images)


@pytest.mark.parametrize(("vertical", "axis"), [(False, 3), (True, 2)])
def test_a_flip_mirrors_images_with_its_probability(vertical: bool, axis: int) -> None:
    images, index = numbered(4000), np.arange(4000)
    mirrored = images.flip(axis)
    assert torch.equal(Flip(0, vertical)(images, index, 0, 0), images)
    assert torch.equal(Flip(1, vertical)(images, index, 0, 0), mirrored)
    result = Flip(0.3, vertical)(images, index, 0, 0)
    changed = (result != images).flatten(1).any(1)
    assert torch.equal(result[changed], mirrored[changed])
    assert abs(changed.float().mean().item() - 0.3) < 0.03  # four standard deviations


def test_the_two_flips_are_drawn_independently() -> None:
    images, index = numbered(2000), np.arange(2000)
    sideways = (Flip(0.5)(images, index, 0, 0) != images).flatten(1).any(1)
    upside_down = (Flip(0.5, vertical=True)(images, index, 0, 0) != images).flatten(1).any(1)
    assert abs((sideways & upside_down).float().mean().item() - 0.25) < 0.05


@settings(max_examples=60)
@given(batch=batches(), pixels=st.integers(1, 9), seed=SEED, epoch=EPOCH)
def test_a_shift_pads_and_crops_each_image(
    batch: tuple[Tensor, np.ndarray[tuple[int], np.dtype[np.int64]]], pixels: int, seed: int, epoch: int
) -> None:
    images, index = batch
    result = ShiftCrop(pixels)(images, index, seed, epoch)
    height, width = images.shape[2:]
    for i, image in enumerate(images.numpy()):
        top = int(integers(seed, epoch, "shift down", index[i : i + 1], 0, 2 * pixels)[0])
        left = int(integers(seed, epoch, "shift right", index[i : i + 1], 0, 2 * pixels)[0])
        padded = np.pad(image, ((0, 0), (pixels, pixels), (pixels, pixels)))
        assert np.array_equal(result[i], padded[:, top : top + height, left : left + width])


def test_every_shift_is_equally_likely() -> None:
    images = torch.zeros((9000, 1, 5, 5), dtype=torch.uint8)
    images[:, :, 2, 2] = 1  # the position of the one white pixel shows the shift
    result = ShiftCrop(1)(images, np.arange(9000), 0, 0)
    counts = result.sum(dim=(0, 1))[1:4, 1:4]
    assert counts.sum().item() == 9000
    assert (counts - 1000).abs().max().item() < 150  # five standard deviations


@pytest.mark.parametrize("name", sorted(STEPS))
@pytest.mark.rows("X15")
def test_another_epoch_and_another_seed_give_other_images(name: str) -> None:
    images, index = numbered(64), np.arange(64)
    first = STEPS[name](images, index, 0, 0)
    assert torch.equal(STEPS[name](images, index, 0, 0), first)
    assert not torch.equal(STEPS[name](images, index, 0, 1), first)
    assert not torch.equal(STEPS[name](images, index, 1, 0), first)


def test_torchs_global_generator_is_not_used() -> None:
    state = torch.get_rng_state()
    for step in STEPS.values():
        step(numbered(8), np.arange(8), 0, 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_empty_batch_stays_empty() -> None:
    for step in STEPS.values():
        assert step(numbered(1)[:0], np.arange(0), 0, 0).shape == (0, 1, 5, 5)


def test_only_enabled_augmentations_are_applied() -> None:
    assert augmentation_pipeline() == []
    two = augmentation_pipeline(flip=0.5, vertical_flip=0.25, shift=2)
    assert two == [Flip(0.5), Flip(0.25, vertical=True), ShiftCrop(2)]
    assert augmentation_pipeline(policy="trivial") == [TrivialAugment()]


def test_the_crop_comes_first_and_erasing_last() -> None:
    custom = PerImage(torch.Tensor.contiguous)
    pipeline = augmentation_pipeline(
        erase=0.1, cutout=4, transforms=[custom], contrast=0.2, policy="rand", rand_ops=3, rand_magnitude=5, rotate=10,
        scale=(0.9, 1.1), translate=0.1, shear=5, flip=0.5, crop=(0.2, 1.0), crop_ratio=(0.5, 2.0),
    )  # fmt: skip
    assert pipeline == [
        RandomResizedCrop((0.2, 1.0), (0.5, 2.0)),
        Flip(0.5),
        Affine(10, 0.1, (0.9, 1.1), 5),
        RandAugment(3, 5),
        ColorJitter(0, 0.2, 0),
        custom,
        Erase(0.1),
        Cutout(4),
    ]
