"""Balanced sampling: every epoch shows all classes equally often. How it and class weights help a rare class."""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor

import sightline
from sightline.core.errors import ConfigError
from sightline.core.types import Batch
from sightline.data.augment.flip_shift import Flip, ShiftCrop
from sightline.data.augment.geometry import Erase
from sightline.data.cache.dataset import PackedDataset
from sightline.data.images.digest import ImageStats
from sightline.data.images.preprocess import Preprocess
from sightline.data.loading.loader import BatchLoader
from sightline.data.loading.sampler import BalancedOrder

AUGMENT = (Flip(0.5), ShiftCrop(2), Erase(0.5))
PREPROCESS = Preprocess(6, 6, 1, (0.5,), (0.25,))
HISTOGRAM = st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any)
SEED = st.integers(0, 2**40)
SKEWED = (40, 3, 0, 11, 1)


def dataset(counts: tuple[int, ...] | list[int], order: NDArray[np.int64] | None = None) -> PackedDataset:
    """`counts` images of each class, listed in `order`; with `stats` the loader orders them by content."""
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.random.default_rng(len(labels)).integers(0, 256, (len(labels), 1, 6, 6), dtype=np.uint8)
    order = np.random.default_rng(1).permutation(len(labels)) if order is None else order
    images, labels = images[order], labels[order]
    classes = tuple(map(str, range(len(counts))))
    ids = tuple(map(str, order))
    return PackedDataset(
        torch.from_numpy(images), torch.from_numpy(labels), ids, classes, stats=ImageStats.from_images(images)
    )


def loader(data: PackedDataset, size: int = 7, **options: Any) -> BatchLoader:
    return BatchLoader(data, PREPROCESS, size, shuffle=True, balanced=True, **options)


def joined(batches: list[Batch]) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.cat([getattr(batch, name) for batch in batches]) for name in ("x", "y", "index"))  # type: ignore[return-value]


def same(one: list[Batch], other: list[Batch]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(joined(one), joined(other), strict=True))


def spread(counts: Mapping[int, int], among: list[int]) -> int:
    values = [counts.get(one, 0) for one in among]
    return max(values) - min(values)


@settings(max_examples=80)
@given(histogram=HISTOGRAM, seed=SEED, size=st.integers(1, 40), start=st.sampled_from([0, 0, 1, 17, 10**9]))
def test_an_epoch_has_equally_many_of_each_class_and_images_take_turns_over_epochs(
    histogram: list[int], seed: int, size: int, start: int
) -> None:
    data = dataset(histogram)
    present = [label for label, count in enumerate(histogram) if count]
    batches = loader(data, size, seed=seed, workers=0)
    batches.seek(start)
    shown: Counter[int] = Counter()
    labels: Counter[int] = Counter()
    for _ in range(4):
        x, y, index = joined(list(batches))
        assert len(y) == len(data)
        assert torch.equal(y, data.labels[index])
        assert torch.equal(x, PREPROCESS.normalizer()(data.pixels(index.numpy())))
        assert spread(Counter(y.tolist()), present) <= 1
        labels.update(y.tolist())
        shown.update(index.tolist())
        assert spread(labels, present) <= (1 if start == 0 else 2), "the remainder does not rotate over the classes"
        for label in present:
            rows = torch.nonzero(data.labels == label).flatten().tolist()
            assert spread(shown, rows) <= 1, "the images of a class do not take turns"


def test_an_image_of_a_common_class_is_not_shown_again_before_the_others_were() -> None:
    """Six epochs show the class 1000 times: each of its 400 images two or three times."""
    data = dataset([400, 50, 50])
    batches = loader(data, 50, seed=3)
    shown = Counter(row for _ in range(6) for row in joined(list(batches))[2].tolist())
    common = [shown[row] for row in torch.nonzero(data.labels == 0).flatten().tolist()]
    assert sum(common) == 1000
    assert Counter(common) == {2: 200, 3: 200}


def test_the_order_differs_between_epochs_and_between_seeds() -> None:
    data = dataset(SKEWED)
    orders = [joined(list(loader(data, seed=seed)))[2].tolist() for seed in range(3)]
    batches = loader(data)
    orders += [joined(list(batches))[2].tolist() for _ in range(4)][1:]
    assert len(set(map(tuple, orders))) == 6
    labels = joined(list(batches))[1]
    assert len(set(labels[:14].tolist())) >= 3, "classes are not mixed"
    common = [{row for row in order if data.labels[row] == 0} for order in orders[:3]]
    assert common[0] != common[1] != common[2], "another seed starts with the same images"


@settings(max_examples=50)
@given(
    size=st.integers(1, 60),
    world=st.integers(1, 3),
    workers=st.sampled_from([0, 1, 3]),
    prefetch=st.sampled_from([0, 2, 5]),
    augment=st.booleans(),
    epoch=st.integers(0, 9),
    draw=st.data(),
)
def test_batch_size_threads_ranks_and_resuming_change_nothing(
    size: int, world: int, workers: int, prefetch: int, augment: bool, epoch: int, draw: st.DataObject
) -> None:
    data, steps = dataset(SKEWED), AUGMENT if augment else ()
    reference = loader(data, len(data), seed=5, augment=steps, workers=0)
    reference.seek(epoch)
    ranks = [
        loader(data, size, seed=5, augment=steps, workers=workers, prefetch=prefetch, rank=rank, world_size=world)
        for rank in range(world)
    ]
    batch = draw.draw(st.integers(0, len(ranks[0]) - 1))
    parts = []
    for rank in ranks:
        rank.seek(epoch)
        full = list(rank)
        rank.seek(epoch, batch)
        assert same(list(rank), full[batch:])
        parts.append(full)
    together = [part[step] for step in range(len(parts[0])) for part in parts]
    assert same(together, list(reference))


def test_the_order_in_which_the_data_is_listed_changes_nothing() -> None:
    random = np.random.default_rng(4)
    streams = []
    for _ in range(3):
        data = dataset(SKEWED, random.permutation(sum(SKEWED)))
        batches = loader(data, 9, seed=2, augment=AUGMENT)
        epochs = [joined(list(batches)) for _ in range(3)]
        streams.append([(x, y, [data.ids[row] for row in index.tolist()]) for x, y, index in epochs])
    for one, other in itertools.pairwise(streams):
        for (x, y, ids), (other_x, other_y, other_ids) in zip(one, other, strict=True):
            assert torch.equal(x, other_x)
            assert torch.equal(y, other_y)
            assert ids == other_ids


def test_copies_of_an_image_are_augmented_differently() -> None:
    keys: list[int] = []

    def record(images: Tensor, index: NDArray[np.int64], seed: int, epoch: int) -> Tensor:
        keys.extend(index.tolist())
        return images

    data = dataset([96, 2])
    batches = loader(data, 98, augment=(*AUGMENT, record), seed=1, workers=0)
    x, y, index = joined(list(batches))
    assert len(set(keys)) == 98, "two samples of an epoch draw with the same key"
    rare = torch.nonzero(data.labels == 1).flatten().tolist()
    for row in rare:
        ways = {image.numpy().tobytes() for image in x[index == row]}
        assert int((index == row).sum()) in (24, 25)
        assert len(ways) > 20
        first = joined([batches.look([row], 0)])[0][0].numpy().tobytes()
        assert first in ways, "no copy is augmented as without balancing"
    plain = BatchLoader(data, PREPROCESS, 98, shuffle=True, augment=AUGMENT, seed=1)
    once, _, rows = joined(list(plain))
    for row in index[y == 0].tolist():
        assert torch.equal(x[index == row][0], once[rows == row][0])


def test_any_epoch_is_reached_without_those_before_it() -> None:
    """The counts from the formula equal those from counting."""
    labels = np.repeat(np.arange(4), (7, 1, 12, 3))
    balanced = BalancedOrder(labels, seed=9)
    counted = np.zeros(4, np.int64)
    for epoch in range(50):
        assert (balanced.samples_before(epoch) == counted).all()
        samples, _ = balanced.take(np.arange(23), epoch)
        counted += np.bincount(labels[samples], minlength=4)
    far = balanced.samples_before(10**12 + 1) - balanced.samples_before(10**12)
    assert far.sum() == 23
    assert far.max() - far.min() <= 1


def test_a_split_without_images_and_one_with_a_single_class() -> None:
    assert list(loader(dataset([0, 0]))) == []
    x, _, index = joined(list(loader(dataset([0, 5, 0]), 2)))
    assert sorted(index.tolist()) == [0, 1, 2, 3, 4]
    assert len(x) == 5


def test_balancing_needs_shuffling_and_class_labels() -> None:
    data = dataset([3, 3])
    with pytest.raises(ValueError, match="needs shuffle=True"):
        BatchLoader(data, PREPROCESS, 2, balanced=True)
    numbers = PackedDataset(data.images, data.labels.float(), data.ids, ())
    with pytest.raises(ValueError, match="needs class labels"):
        loader(numbers)


def test_regression_targets_cannot_be_balanced(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    targets = images.mean((1, 2)) / 255
    config = {"data": {"sampler": "balanced", "target": "number", "cache": False}, "run": {"dir": str(tmp_path)}}
    with pytest.raises(ConfigError, match=r"data\.sampler: with data\.target=number there are no classes"):
        sightline.fit(config, source=(images, targets))


# --- a rare class

RARE = 8


def rare_digits(seed: int) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """The digits with only 2 % eights among the training images; a third of all images is the test split."""
    digits = load_digits()
    images, labels = (digits.images * 15.9375).astype(np.uint8), digits.target
    order = np.random.default_rng(seed).permutation(len(labels))
    test, rest = order[:600], order[600:]
    others, eights = rest[labels[rest] != RARE], rest[labels[rest] == RARE]
    train = np.concatenate((others, eights[: round(len(others) * 0.02 / 0.98)]))
    return {"train": (images[train], labels[train]), "test": (images[test], labels[test])}


def recalls(folder: Path, change: Mapping[str, Mapping[str, Any]]) -> tuple[float, float]:
    """The recall of the rare class and of the others on the test split, as means over five seeds."""
    layers = [
        {"_target_": "torch.nn.Flatten"},
        {"_target_": "torch.nn.Linear", "in_features": "auto", "out_features": 10},
    ]
    results = []
    for seed in range(5):
        config: dict[str, Any] = {
            "seed": seed,
            "run": {"dir": str(folder)},
            "data": {"val": 0, "cache": False, **change.get("data", {})},
            "module": {
                "monitor": "train_loss",
                "network": {"layers": layers},
                "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.03},
                **change.get("module", {}),
            },
            "trainer": {"max_epochs": 4, "progress": False},
        }
        result = sightline.fit(config, source=rare_digits(seed))
        assert result.run is not None
        with (result.run / "predictions" / "test.csv").open() as file:
            rows = [(int(row["label"]) == RARE, row["label"] == row["prediction"]) for row in csv.DictReader(file)]
        results.append([np.mean([right for rare, right in rows if rare is kind]) for kind in (True, False)])
    rare, others = np.mean(results, axis=0)
    return float(rare), float(others)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[float, float]:
    """The recalls of training without balancing or weights."""
    return recalls(tmp_path_factory.mktemp("plain"), {})


@pytest.mark.slow
def test_balanced_sampling_finds_more_of_a_rare_class(plain: tuple[float, float], tmp_path: Path) -> None:
    rare, others = recalls(tmp_path, {"data": {"sampler": "balanced"}})
    assert rare > plain[0] + 0.1
    assert others > plain[1] - 0.1, "the other classes lose too much"


@pytest.mark.slow
def test_class_weights_find_more_of_a_rare_class(plain: tuple[float, float], tmp_path: Path) -> None:
    rare, others = recalls(tmp_path, {"module": {"class_weights": "auto"}})
    assert rare > plain[0] + 0.1
    assert others > plain[1] - 0.1, "the other classes lose too much"
