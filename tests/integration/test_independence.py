"""No two random choices of a run depend on each other: every pair of augmentations, per batch and per image, two of one
kind, the same one in two epochs, and each with the order of the images."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import chdtrc
from torch import Tensor
from torchvision.transforms import v2

from sightline.compose.data import build_augmentations
from sightline.config.schema import DataConfig, TrainConfig
from sightline.core.types import Augmentation
from sightline.data.augment.colour import ColorJitter
from sightline.data.augment.flip_shift import Flip, ShiftCrop
from sightline.data.augment.geometry import Affine, Cutout, Erase, RandomResizedCrop
from sightline.data.augment.per_image import PerImage
from sightline.data.augment.policies import RandAugment, TrivialAugment
from sightline.data.cache.dataset import PackedDataset
from sightline.data.images.preprocess import Preprocess
from sightline.data.loading.loader import BatchLoader

COUNT, SIDE = 1000, 8
PROBE = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8))
WEIGHTS = torch.rand((3, SIDE, SIDE), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
IMPOSSIBLE = 1e-9
"""The p-value below which choices are dependent; independent choices fall below it in one of a billion pairs."""


def number(image: Tensor) -> float:
    """A number that differs between nearly all outcomes of an augmentation."""
    return float((image.double() * WEIGHTS).sum())


class Recorded:
    """A batch augmentation that also augments a fixed image and records the result for each sample."""

    def __init__(self, step: Augmentation):
        self.step, self.seen = step, dict[int, float]()

    def __call__(self, images: Tensor, index: NDArray[np.int64], seed: int, epoch: int) -> Tensor:
        shown = self.step(PROBE.expand(len(index), -1, -1, -1), index, seed, epoch)
        self.seen |= {int(row): number(image) for row, image in zip(index, shown, strict=True)}
        return self.step(images, index, seed, epoch)


class RecordedTransform:
    """The same for a transform of one image."""

    def __init__(self, transform: Callable[[Any], Any]):
        self.transform, self.seen = transform, list[float]()

    def __call__(self, image: Tensor) -> Tensor:
        self.seen.append(number(self.transform(PROBE.clone())))
        return image


def python_flip(image: Tensor) -> Tensor:
    return image.flip(2) if random.random() < 0.5 else image


def numpy_shade(image: Tensor) -> Tensor:
    return (image.float() * np.random.uniform(0.2, 1)).to(torch.uint8)  # noqa: NPY002 as third-party code does


BATCHED: dict[str, Augmentation] = {
    "crop": RandomResizedCrop((0.3, 1.0)),
    "flip": Flip(0.5),
    "vertical flip": Flip(0.5, vertical=True),
    "shift": ShiftCrop(2),
    "affine": Affine(30, 0.2, (0.8, 1.2), 10),
    "trivial": TrivialAugment(),
    "rand": RandAugment(2, 20),
    "jitter": ColorJitter(0.5, 0.5, 0.5),
    "erase": Erase(0.5),
    "cutout": Cutout(4),
}
SINGLE: dict[str, Callable[[Any], Any]] = {
    "hflip": v2.RandomHorizontalFlip(0.5),
    "vflip": v2.RandomVerticalFlip(0.5),
    "invert": v2.RandomInvert(0.5),
    "rotation": v2.RandomRotation(30),
    "jitter": v2.ColorJitter(0.5, 0.5),
    "python": python_flip,
    "numpy": numpy_shade,
}


def dataset(count: int = COUNT) -> PackedDataset:
    images = PROBE.expand(count, -1, -1, -1)
    return PackedDataset(images, torch.zeros(count, dtype=torch.int64), tuple(map(str, range(count))), ("a", "b"))


def loader(steps: Sequence[Augmentation], **options: Any) -> BatchLoader:
    return BatchLoader(dataset(), Preprocess(SIDE, SIDE, 3), 100, augment=steps, workers=0, seed=5, **options)


def groups(values: Sequence[float]) -> NDArray[np.int64]:
    """Which of at most four groups of about equal size each value is in."""
    borders = np.unique(np.quantile(values, (0.25, 0.5, 0.75), method="higher"))
    group = np.digitize(values, borders)
    assert len(set(group)) > 1, "all values are equal"
    return group


def dependence(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """The p-value of a chi-squared test of independence of two groupings."""
    table = np.bincount(4 * one + other, minlength=16).reshape(4, 4).astype(float)
    table = table[table.any(1)][:, table.any(0)]
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    return float(chdtrc(freedom, ((table - expected) ** 2 / expected).sum()))


def dependent(choices: dict[Any, Sequence[float]]) -> list[tuple[Any, Any]]:
    """The pairs of names whose choices depend on each other."""
    grouped = {name: groups(values) for name, values in choices.items()}
    return [
        (one, other)
        for one, other in itertools.combinations(grouped, 2)
        if dependence(grouped[one], grouped[other]) < IMPOSSIBLE
    ]


def test_dependence_is_detected() -> None:
    """The test itself detects equal, opposite and partly equal choices, and reports no independent ones."""
    draw = np.random.default_rng(0)
    one, other = draw.random(COUNT), draw.random(COUNT)
    partly = np.where(draw.random(COUNT) < 0.3, one, other)
    choices = {"one": one, "same": one, "half": one < 0.5, "other half": one >= 0.5, "partly": partly}
    assert len(dependent(choices)) == 10  # every pair
    assert not dependent({"one": one, "other": other, "half": draw.random(COUNT) < 0.5})


def test_every_pair_of_augmentations_is_independent() -> None:
    """Each kind twice, per batch and per image, in one list; also between epochs, and with the order of the images."""
    steps: dict[str, Augmentation] = {}
    for position in ("first", "second"):
        steps |= {f"{position} {name}": Recorded(step) for name, step in BATCHED.items()}
        steps |= {f"{position} image {name}": Recorded(PerImage(step)) for name, step in SINGLE.items()}
    batches = loader(list(steps.values()), shuffle=True)
    choices: dict[str, list[float]] = {}
    for epoch in range(2):
        order = torch.cat([batch.index for batch in batches])  # type: ignore[misc]
        assert sorted(order.tolist()) == list(range(COUNT))
        choices[f"order of epoch {epoch}"] = order.argsort().tolist()
        for name, step in steps.items():
            assert isinstance(step, Recorded)
            choices[f"{name} in epoch {epoch}"] = [step.seen[row] for row in range(COUNT)]
    assert not dependent(choices)


def test_every_pair_of_transforms_of_one_image_is_independent() -> None:
    """The transforms of a list are one step: each continues the random stream of the one before it."""
    recorded = [RecordedTransform(transform) for transform in (*SINGLE.values(), *SINGLE.values())]
    batches = loader([PerImage(recorded)])
    for _ in range(2):
        list(batches)
    parts = {epoch: slice(epoch * COUNT, (epoch + 1) * COUNT) for epoch in range(2)}
    choices = {
        (position, epoch): one.seen[part] for position, one in enumerate(recorded) for epoch, part in parts.items()
    }
    assert not dependent(choices)


@pytest.mark.parametrize("batched", [False, True])
def test_all_four_pairs_of_two_flips_occur(batched: bool) -> None:
    """Built from a config, as in a run: both, either, none."""
    nodes = [
        {"_target_": f"torchvision.transforms.v2.Random{name}Flip", "p": 0.5} for name in ("Horizontal", "Vertical")
    ]
    augment: dict[str, Any] = {"flip": 0.5, "vertical_flip": 0.5} if batched else {"transforms": nodes}
    data: DataConfig = TrainConfig.from_dict({"data": {"augment": {"shift": 0, **augment}}}).data
    x = torch.cat([batch.x for batch in loader(build_augmentations(data))])[:400]  # type: ignore[misc]
    plain = next(iter(loader([]))).x[0]
    forms = [plain, plain.flip(2), plain.flip(1), plain.flip(1, 2)]
    counts = [int((x == form).flatten(1).all(1).sum()) for form in forms]
    assert sum(counts) == 400
    assert min(counts) > 60


@pytest.mark.parametrize("kind", ["pil", "numpy", "tensor"])
def test_a_list_of_transforms_equals_applying_them_one_after_the_other(kind: str) -> None:
    """Whichever type a transform returns, the next one gets the type that it expects."""

    def as_pil(image: Any) -> Any:
        return v2.functional.to_pil_image(image) if kind != "pil" else image.rotate(90)

    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (5, 3, SIDE, SIDE), dtype=np.uint8))
    index = np.arange(5)
    both = PerImage([as_pil, as_pil, lambda image: image], kind)(images, index, 0, 0)
    one = images
    for transform in (as_pil, as_pil):
        one = PerImage(transform, kind)(one, index, 0, 0)
    assert torch.equal(both, one)
    assert torch.equal(PerImage([], kind)(images, index, 0, 0), images)
