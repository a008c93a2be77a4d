"""Crops, affine maps and erasing: equal to torchvision's, with draws in range, independent of the rest of the batch."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn import functional as nn_functional

from helpers.augmentations import SEED, random_images
from sightline.core.rng import uniform
from sightline.data.augment.geometry import (
    Affine,
    Cutout,
    Erase,
    RandomResizedCrop,
    affine_matrices,
    uniform_between,
    warp,
)


def reference_box(crop: RandomResizedCrop, row: int, height: int, width: int) -> list[int]:
    """Torchvision's `RandomResizedCrop.make_params`, line by line, with our draws."""
    index = np.array([row])
    for attempt in range(10):
        area = height * width * uniform_between(crop.scale, 5, 6, f"crop area {attempt}", index)[0]
        logs = math.log(crop.ratio[0]), math.log(crop.ratio[1])
        ratio = math.exp(uniform_between(logs, 5, 6, f"crop ratio {attempt}", index)[0])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(uniform(5, 6, "crop top", index)[0] * (height - h + 1))
            left = int(uniform(5, 6, "crop left", index)[0] * (width - w + 1))
            return [top, left, h, w]
    h, w = height, width
    if width / height < min(crop.ratio):
        h = round(w / min(crop.ratio))
    elif width / height > max(crop.ratio):
        w = round(h * max(crop.ratio))
    return [(height - h) // 2, (width - w) // 2, h, w]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (40, 3), (32, 32), (375, 500), (30, 400), (400, 30)])
@pytest.mark.parametrize("crop", [RandomResizedCrop(), RandomResizedCrop((0.5, 1.0), (0.9, 1.1))])
def test_boxes_equal_torchvisions(crop: RandomResizedCrop, size: tuple[int, int]) -> None:
    boxes = crop.boxes(np.arange(60), 5, 6, np.tile(size, (60, 1)))
    assert boxes.dtype == np.int64
    assert boxes.tolist() == [reference_box(crop, row, *size) for row in range(60)]


@settings(max_examples=60)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 600), st.integers(1, 600)), max_size=20),
    scale=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    ratio=st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)).map(sorted),
    seed=SEED,
)
def test_a_box_is_inside_its_image_and_does_not_depend_on_the_others(
    sizes: list[tuple[int, int]], scale: list[float], ratio: list[float], seed: int
) -> None:
    crop, index = RandomResizedCrop((scale[0], scale[1]), (ratio[0], ratio[1])), np.arange(len(sizes))
    array = np.array(sizes, dtype=np.int64).reshape(-1, 2)
    boxes = crop.boxes(index, seed, 0, array)
    assert boxes.shape == (len(sizes), 4)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= array).all()
    for i in range(len(sizes)):
        assert np.array_equal(crop.boxes(index[i : i + 1], seed, 0, array[i : i + 1]), boxes[i : i + 1])


def test_area_and_ratio_are_in_range_and_distributed_as_torchvisions() -> None:
    transforms = importlib.import_module("torchvision.transforms.v2")
    boxes = RandomResizedCrop().boxes(np.arange(4000), 0, 0, np.full((4000, 2), 300))
    height, width = boxes[:, 2], boxes[:, 3]
    assert ((height + 0.5) * (width + 0.5) >= 0.08 * 300**2).all()
    assert ((width + 0.5) / (height - 0.5) >= 3 / 4).all()
    assert ((width - 0.5) / (height + 0.5) <= 4 / 3).all()
    torch.manual_seed(0)
    theirs = transforms.RandomResizedCrop(300)
    drawn = [theirs.make_params([torch.empty(3, 300, 300)]) for _ in range(1500)]
    for ours, key in ((boxes[:, 0], "top"), (boxes[:, 1], "left"), (height, "height"), (width, "width")):
        other = np.array([one[key] for one in drawn])
        spread = math.sqrt(ours.var() / len(ours) + other.var() / len(other))
        assert abs(ours.mean() - other.mean()) < 4 * spread
        assert 0.9 < ours.std() / other.std() < 1.1


@pytest.mark.parametrize("size", [(32, 32), (45, 30), (1, 7), (1, 1)])
def test_a_crop_is_the_box_resized_bilinearly(size: tuple[int, int]) -> None:
    images, index, crop = random_images(40, 3, *size), np.arange(40), RandomResizedCrop()
    result = crop(images, index, 1, 2)
    for i, (top, left, height, width) in enumerate(crop.boxes(index, 1, 2, np.tile(size, (40, 1))).tolist()):
        part = images[i : i + 1, :, top : top + height, left : left + width].double()
        exact = nn_functional.interpolate(part, size=size, mode="bilinear", align_corners=False)[0]
        assert (result[i] - exact).abs().max() < 0.501


def test_a_crop_of_the_full_image_does_not_change_it() -> None:
    images = random_images(5, 3, 20, 30)
    assert torch.equal(RandomResizedCrop((1.0, 1.0), (1.5, 1.5))(images, np.arange(5), 0, 0), images)


def one_matrix(size: tuple[int, int], angle: float, move: list[float], scale: float, shear: list[float]) -> NDArray:
    return affine_matrices(
        size, np.array([angle]), np.array([move]), np.array([scale]), np.array([shear]), np.zeros((1, 2))
    )


@pytest.mark.parametrize("angle", [0.0, 17.0, -120.0])
@pytest.mark.parametrize("scale", [0.6123, 1.2345])
@pytest.mark.parametrize("shear", [[0.0, 0.0], [25.0, 0.0], [-10.0, 33.0]])
def test_warp_equals_torchvisions_affine(angle: float, scale: float, shear: list[float]) -> None:
    functional = importlib.import_module("torchvision.transforms.v2.functional")
    image = random_images(1, 3, 60, 45)
    matrices = one_matrix((60, 45), angle, [3.0, -5.0], scale, shear)
    options = {"angle": angle, "translate": [3, -5], "scale": scale, "shear": shear}
    nearest = functional.affine(image, interpolation="nearest", **options)
    # where a position is midway between two pixels, the last bit of float32 decides
    assert (warp(image, matrices, bilinear=False) != nearest).float().mean() < 0.005
    exact = functional.affine(image.double(), interpolation="bilinear", **options)
    assert (warp(image, matrices, bilinear=True) - exact).abs().max() < 0.51


@pytest.mark.parametrize("bilinear", [False, True])
def test_quarter_turns_and_moves_by_full_pixels_are_exact(bilinear: bool) -> None:
    image = random_images(1, 3, 21, 21)
    for turns in range(5):
        turned = warp(image, one_matrix((21, 21), 90.0 * turns, [0, 0], 1, [0, 0]), bilinear=bilinear)
        assert torch.equal(turned, image.rot90(-turns, (2, 3)))  # clockwise
    moved = warp(image, one_matrix((21, 21), 0, [4, -6], 1, [0, 0]), bilinear=bilinear)
    assert torch.equal(moved, nn_functional.pad(image, (4, -4, -6, 6)))
    assert not warp(image, one_matrix((21, 21), 0, [500, 0], 1, [0, 0]), bilinear=bilinear).any()


@pytest.mark.parametrize("bilinear", [False, True])
def test_an_image_with_more_pixels_than_float32_counts_is_moved_correctly(bilinear: bool) -> None:
    image = random_images(1, 1, 1, 4_300_001)
    result = warp(image, one_matrix((1, 4_300_001), 0, [1, 0], 1, [0, 0]), bilinear=bilinear)
    assert torch.equal(result[..., 1:], image[..., :-1])


def test_affine_equals_torchvisions_with_the_same_draws() -> None:
    functional = importlib.import_module("torchvision.transforms.v2.functional")
    images, index, step = random_images(30, 3, 32, 40), np.arange(30), Affine(20, 0.25, (0.8, 1.25), 15)
    result = step(images, index, 7, 8)

    def drawn(what: str, reach: float) -> NDArray[np.float64]:
        return uniform_between((-reach, reach), 7, 8, f"affine {what}", index)

    x, y = drawn("x", 0.25 * 40).round().astype(int), drawn("y", 0.25 * 32).round().astype(int)
    assert (x.min(), x.max(), y.min(), y.max()) >= (-10, 7, -8, 5)
    scale = uniform_between((0.8, 1.25), 7, 8, "affine scale", index)
    for i in index:
        exact = functional.affine(
            images[i].double(),
            angle=drawn("angle", 20)[i],
            translate=[x[i], y[i]],
            scale=scale[i],
            shear=[drawn("shear", 15)[i], 0.0],
            interpolation="bilinear",
        )
        assert (result[i] - exact).abs().max() < 0.51


def test_affine_without_options_does_not_change_the_image() -> None:
    images = random_images(4, 3, 9, 8)
    assert torch.equal(Affine()(images, np.arange(4), 0, 0), images)


def test_erase_blackens_a_rectangle_in_range_with_its_probability() -> None:
    images = torch.full((3000, 1, 40, 50), 255, dtype=torch.uint8)
    black = Erase(0.4)(images, np.arange(3000), 0, 0)[:, 0] == 0
    chosen = black.any(2).any(1)
    assert abs(chosen.float().mean().item() - 0.4) < 0.04  # more than four standard deviations
    height, width = black.any(2).sum(1)[chosen], black.any(1).sum(1)[chosen]
    assert torch.equal(black.sum((1, 2))[chosen], height * width)  # the full rectangle is black
    assert ((height + 0.5) * (width + 0.5) >= 0.02 * 2000).all()
    assert ((height - 0.5) * (width - 0.5) <= 0.33 * 2000).all()
    assert ((height + 0.5) / (width - 0.5) >= 0.3).all()
    assert ((height - 0.5) / (width + 0.5) <= 3.3).all()
    assert black[chosen].float().mean() == pytest.approx(0.16, abs=0.02)
    assert black.any(0).any(0).all()  # up to the edges
    assert black.any(0).any(1).all()


def test_erase_does_not_change_an_image_too_small_for_a_rectangle() -> None:
    images = random_images(20, 3, 1, 1)
    assert torch.equal(Erase(1.0)(images, np.arange(20), 0, 0), images)


@pytest.mark.parametrize("size", [1, 4, 5, 100])
def test_cutout_blackens_a_square_centred_anywhere(size: int) -> None:
    images = torch.full((3000, 1, 8, 9), 255, dtype=torch.uint8)
    black = Cutout(size)(images, np.arange(3000), 0, 0)[:, 0] == 0
    height, width = black.any(2).sum(1), black.any(1).sum(1)
    assert torch.equal(black.sum((1, 2)), height * width)
    assert height.min() >= min((size + 1) // 2, 8)
    assert height.max() == min(size, 8)
    assert width.max() == min(size, 9)
    if size == 1:
        counts = black.sum(0)
        assert (counts - 3000 / 72).abs().max() < 5 * math.sqrt(3000 / 72)
