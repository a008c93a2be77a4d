"""Transforms of single images: seeded by the row, without effect on the global generators, and with checked results."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from helpers.augmentations import EPOCH, SEED, batches, check, check_draws, random_images
from sightline.core.errors import DataError
from sightline.data.augment.per_image import PerImage


def noisy_tensor(image: Tensor) -> Tensor:
    """Draws from all three generators, and writes into its input."""
    image += torch.randint(0, 256, image.shape, dtype=torch.uint8)
    return image ^ random.randrange(256) ^ int(np.random.randint(256))  # noqa: NPY002


def noisy_array(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    image[:] = noisy_tensor(torch.from_numpy(image)).numpy()
    return image[:, ::-1]  # with a negative stride


def noisy_pil(image: Image.Image) -> Image.Image:
    return image.rotate(random.uniform(-90, 90))


STEPS = {"tensor": PerImage(noisy_tensor), "numpy": PerImage(noisy_array, "numpy"), "pil": PerImage(noisy_pil, "pil")}


@settings(max_examples=60)
@given(batch=batches(), kind=st.sampled_from(sorted(STEPS)), seed=SEED, epoch=EPOCH)
def test_a_batch_equals_its_images_one_by_one_and_the_input_is_unchanged(
    batch: tuple[Tensor, NDArray[np.int64]], kind: str, seed: int, epoch: int
) -> None:
    states = random.getstate(), repr(np.random.get_state())  # noqa: NPY002
    check(STEPS[kind], *batch, seed, epoch)
    assert (random.getstate(), repr(np.random.get_state())) == states  # noqa: NPY002


@pytest.mark.parametrize("kind", sorted(STEPS))
def test_another_epoch_and_another_seed_give_other_images(kind: str) -> None:
    check_draws(STEPS[kind], 8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", sorted(STEPS))
def test_the_transform_receives_the_image_and_its_result_is_used(kind: str, channels: int) -> None:
    images = random_images(3, channels, 4, 6)
    seen: list[Any] = []

    def record(image: Any) -> Any:
        seen.append(image)
        return image

    assert torch.equal(PerImage(record, kind)(images, np.arange(3), 0, 0), images)
    for received, image in zip(seen, images, strict=True):
        if kind == "tensor":
            assert torch.equal(received, image)
        elif kind == "numpy":
            assert received.dtype == np.uint8
            assert np.array_equal(received, image.permute(1, 2, 0))
        else:
            assert received.mode == ("L" if channels == 1 else "RGB")
            assert received.size == (6, 4)
            assert np.array_equal(np.asarray(received).reshape(4, 6, channels), image.permute(1, 2, 0))


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image[:, :, 0],
        lambda image: Image.fromarray(image[:, :, 0]),
        lambda image: torch.from_numpy(image).permute(2, 0, 1),
    ],
)
def test_a_gray_image_may_be_returned_in_any_form(change: Callable[[Any], Any]) -> None:
    images = random_images(3, 1, 4, 6)
    assert torch.equal(PerImage(change, "numpy")(images, np.arange(3), 0, 0), images)


@pytest.mark.parametrize("kind", ["tensor", "pil"])
def test_torchvisions_transforms_draw_by_row(kind: str) -> None:
    v2 = importlib.import_module("torchvision.transforms.v2")
    transform = v2.Compose([v2.RandomHorizontalFlip(), v2.ColorJitter(0.5, 0.5, 0.5, 0.1), v2.RandomRotation(20)])
    check(PerImage(transform, kind), random_images(8, 3, 16, 18), np.arange(8) * 7, 2, 3)
    wrap = v2.Compose([v2.ToImage(), v2.RandomCrop(16, padding=2)])
    check(PerImage(wrap, kind), random_images(8, 3, 16, 16), np.arange(8), 2, 3)


def test_it_may_not_be_called_in_another_thread() -> None:
    assert PerImage.threaded is False
    assert PerImage(noisy_tensor) == PerImage(noisy_tensor, "tensor")


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kind: expected one of: 'tensor', 'pil', 'numpy', found 'opencv'"):
        PerImage(noisy_tensor, "opencv")


def to_float(image: Tensor) -> Tensor:
    return image / 255


@pytest.mark.parametrize(
    ("transform", "kind", "returned"),
    [
        (to_float, "tensor", "a float32 tensor [3, 4, 6]"),
        (lambda image: image[:, :2], "tensor", "a uint8 tensor [3, 2, 6]"),
        (lambda image: image.resize((5, 4)), "pil", "a PIL image of mode RGB, 4x5"),
        (lambda image: image.convert("HSV"), "pil", "a PIL image of mode HSV, 4x6"),
        (lambda image: image.convert("L"), "pil", "a PIL image of mode L, 4x6"),
        (lambda image: image / 255, "numpy", "a float64 array [4, 6, 3]"),
        (lambda image: image[0, 0], "numpy", "a uint8 array [3]"),
        (lambda image: image[:, :, 0], "numpy", "a uint8 array [4, 6]"),
        (lambda image: None, "numpy", "an object of type NoneType"),
    ],
)
def test_an_invalid_result_is_an_error_that_describes_it(
    transform: Callable[[Any], Any], kind: str, returned: str
) -> None:
    state = torch.get_rng_state()
    with pytest.raises(DataError) as caught:
        PerImage(transform, kind)(random_images(2, 3, 4, 6), np.array([41, 42]), 0, 0)
    message = str(caught.value)
    name = "to_float" if transform is to_float else "<lambda>"
    assert f"{name} received a uint8 tensor [3, 4, 6] and returned {returned}." in message
    assert "Leave out ToTensor, ToDtype and Normalize" in message
    assert "data.preprocess.size" in message
    assert torch.equal(torch.get_rng_state(), state)


class Failing:
    """Fails at the second image."""

    calls = 0

    def __call__(self, image: Tensor) -> Tensor:
        torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
        self.calls += 1
        if self.calls == 2:
            raise KeyError("no such thing")
        return image


def test_an_exception_names_the_transform_and_its_image_and_restores_the_generators() -> None:
    states = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())  # noqa: NPY002
    with pytest.raises(DataError, match=r"Failing failed on a uint8 tensor \[1, 2, 2\]: KeyError: 'no such") as caught:
        PerImage(Failing())(random_images(3, 1, 2, 2), np.array([8, 9, 10]), 0, 0)
    assert isinstance(caught.value.__cause__, KeyError)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), repr(np.random.get_state())) == states[1:]  # noqa: NPY002
