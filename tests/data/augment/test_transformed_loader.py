"""Tensor transforms: the same draws for the same row in any batch, and checks of their results."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import transforms as torchvision

from sightline.core.errors import ConfigError, DataError
from sightline.data.augment.per_image import TransformedLoader, apply_transforms, build_transforms
from sightline.data.cache.dataset import PackedDataset
from sightline.data.images.preprocess import Preprocess
from sightline.data.loading.loader import BatchLoader

COUNT, SHAPE = 13, (1, 4, 4)


def shifted(image: Tensor) -> Tensor:
    """Draws from all three generators."""
    return image + torch.rand(()) + random.random() + float(np.random.rand())  # noqa: NPY002


def doubled(image: Tensor) -> Tensor:
    return image * 2


def loader(batch_size: int) -> BatchLoader:
    images = torch.randint(0, 256, (COUNT, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data = PackedDataset(images, torch.zeros(COUNT, dtype=torch.int64), tuple(map(str, range(COUNT))), ("a",))
    return BatchLoader(data, Preprocess(4, 4, 1, (0.5,), (0.25,)), batch_size, shuffle=True, seed=5)


def by_row(batches: Any, epoch: int, first: int = 0) -> dict[int, Tensor]:
    batches.seek(epoch, first)
    return {int(row): image.clone() for batch in batches for row, image in zip(batch.index, batch.x, strict=True)}


def same(one: dict[int, Tensor], other: dict[int, Tensor]) -> bool:
    return all(torch.equal(one[row], other[row]) for row in one.keys() & other.keys())


def test_a_row_draws_the_same_in_any_batch_without_effect_on_the_global_generators() -> None:
    plain, small, large = loader(4), *(TransformedLoader(loader(size), [doubled, shifted], 7) for size in (4, 6))
    assert len(small) == len(plain) == 3
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    expected = torch.rand(()), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    once = by_row(small, 3)
    assert (torch.rand(()), random.random(), np.random.rand()) == expected  # noqa: NPY002
    assert len(once) == COUNT
    assert same(once, by_row(large, 3))
    assert same(by_row(small, 3, first=2), once)
    shifts = {row: (image - 2 * by_row(plain, 3)[row]).mean().item() for row, image in once.items()}
    assert len(set(shifts.values())) == COUNT
    assert not same(once, by_row(small, 4))
    small.seek(3)
    list(small)
    assert same({int(b.index[0]): b.x[0] for b in small}, by_row(large, 4))  # without a seek the next epoch follows


@pytest.mark.parametrize(
    ("transforms", "expected"),
    [(doubled, 2.0), ([doubled, doubled], 4.0), (nn.Sequential(nn.Identity()), 1.0), (None, 1.0)],
)
def test_one_transform_several_or_none(transforms: Any, expected: float) -> None:
    built = build_transforms(transforms, SHAPE, training=False, key="steps")
    assert torch.equal(apply_transforms(built, torch.ones(SHAPE)), torch.full(SHAPE, expected))


def test_sequences_are_flattened_nodes_built_and_random_transforms_left_out_of_evaluation() -> None:
    node = {"_target_": "torchvision.transforms.Normalize", "mean": [0.5], "std": [0.5]}
    transforms = [torchvision.Compose([doubled, nn.Sequential(torchvision.RandomRotation(90))]), node, shifted]
    names = {
        training: [getattr(transform, "__name__", type(transform).__name__) for transform in build_transforms(
            transforms, SHAPE, training=training, key="steps"
        )]
        for training in (True, False)
    }  # fmt: skip
    assert names == {True: ["doubled", "RandomRotation", "Normalize", "shifted"], False: ["doubled", "Normalize"]}


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ([doubled, 3], r"^steps\[1\]: expected a transform, found int\.$"),
        ([lambda image: image[:, :2]], r"^steps\[0\]: <lambda> received .*\[1, 4, 4\] and returned .*\[1, 2, 4\]\. "),
        ([lambda image: image[:, :2]], r"\. Expected floats of the same shape\. Set .* with data\.preprocess\.size\.$"),
        ([torchvision.ToPILImage()], r"returned a PIL image of mode L, 4x4"),
        ([lambda image: image.byte()], r"returned a uint8 tensor"),
        ([lambda image: 1 / 0], r"and failed with ZeroDivisionError: division by zero$"),
    ],
)  # fmt: skip
def test_an_invalid_transform_is_refused(transforms: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_transforms(transforms, SHAPE, training=True, key="steps")


def test_a_transform_that_fails_on_a_later_image_is_named() -> None:
    def picky(image: Tensor) -> Tensor:
        assert image.max() < 1, "too bright"
        return image

    with pytest.raises(DataError, match=r"picky received a float32 tensor \[1, 4, 4\] and failed with AssertionError"):
        list(TransformedLoader(loader(4), build_transforms(picky, SHAPE, training=True, key="steps"), 0))
