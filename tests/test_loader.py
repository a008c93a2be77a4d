"""Batches out of a packed data set: which rows, in which order, changed how."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sightline.data.augment import Flip, ShiftCrop
from sightline.data.loader import BatchLoader
from sightline.data.packed import PackedDataset
from sightline.data.preprocess import Preprocess
from sightline.types import Batch, Seekable

AUGMENT = (Flip(0.5), Flip(0.5, vertical=True), ShiftCrop(2))
PREPROCESS = Preprocess(5, 5, 1, (0.5,), (0.25,))


def dataset(count: int) -> PackedDataset:
    images = np.random.default_rng(count).integers(0, 256, (count, 1, 5, 5), dtype=np.uint8)
    labels = torch.arange(count) * 7 % 10
    return PackedDataset(torch.from_numpy(images), labels, tuple(map(str, range(count))), tuple(map(str, range(10))))


def loader(count: int, size: int, seed: int = 0, shuffle: bool = True, augment: bool = True) -> BatchLoader:
    return BatchLoader(dataset(count), PREPROCESS, size, shuffle=shuffle, augment=AUGMENT if augment else (), seed=seed)


def rows(batches: list[Batch]) -> list[int]:
    return [row for batch in batches for row in batch.index.tolist()]


def joined(batches: list[Batch]) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.cat([getattr(batch, name) for batch in batches]) for name in ("x", "y", "index"))  # type: ignore[return-value]


def same(one: list[Batch], other: list[Batch]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(joined(one), joined(other), strict=True))


COUNT = st.integers(1, 60)
SIZE = st.integers(1, 70)
SEED = st.integers(0, 2**40)


@settings(deadline=None, max_examples=60)
@given(count=COUNT, size=SIZE, seed=SEED, shuffle=st.booleans())
def test_every_row_comes_once_an_epoch_and_the_last_batch_is_what_is_left(
    count: int, size: int, seed: int, shuffle: bool
) -> None:
    batches = loader(count, size, seed, shuffle)
    assert len(batches) == math.ceil(count / size)
    for _ in range(2):
        epoch = list(batches)
        assert len(epoch) == len(batches)
        assert sorted(rows(epoch)) == list(range(count))
        assert [len(batch.y) for batch in epoch] == [size] * (count // size) + [count % size] * bool(count % size)


@settings(deadline=None, max_examples=40)
@given(count=COUNT, sizes=st.tuples(SIZE, SIZE), seed=SEED, epoch=st.integers(0, 50))
@pytest.mark.rows("X15")
def test_the_batch_size_changes_neither_the_order_nor_any_image(
    count: int, sizes: tuple[int, int], seed: int, epoch: int
) -> None:
    streams = []
    for size in sizes:
        batches = loader(count, size, seed)
        batches.seek(epoch)
        streams.append(list(batches))
    assert same(*streams)


@settings(deadline=None, max_examples=40)
@given(count=COUNT, size=SIZE, seed=SEED, epoch=st.integers(0, 3), data=st.data())
@pytest.mark.rows("X15")
def test_seeking_is_skipping(count: int, size: int, seed: int, epoch: int, data: st.DataObject) -> None:
    played = loader(count, size, seed)
    for _ in range(epoch):
        list(played)
    whole = list(played)
    batch = data.draw(st.integers(0, len(whole)))
    sought = loader(count, size, seed)
    sought.seek(epoch, batch)
    rest = list(sought)
    assert len(rest) == len(whole) - batch
    if rest:
        assert same(rest, whole[batch:])
    assert same(list(sought), list(played)), "after a seek the next epoch is a whole one"


def test_epochs_differ_in_order_and_in_augmentation() -> None:
    batches = loader(50, 8)
    first, second = list(batches), list(batches)
    assert rows(first) != rows(second)
    x, _, index = joined(first)
    other, _, other_index = joined(second)
    changed = (x[index.argsort()] != other[other_index.argsort()]).flatten(1).any(1)
    assert changed.float().mean().item() > 0.5


def test_the_same_seed_gives_the_same_stream_and_another_another() -> None:
    one, same_seed, other = loader(50, 8, seed=3), loader(50, 8, seed=3), loader(50, 8, seed=4)
    for _ in range(3):
        first = list(one)
        assert same(first, list(same_seed))
        assert rows(first) != rows(list(other))


def test_torchs_own_generator_neither_matters_nor_moves() -> None:
    torch.manual_seed(1)
    first = list(loader(20, 8))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = list(loader(20, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert same(first, second)


def test_index_joins_every_sample_to_its_image_and_label() -> None:
    data = dataset(37)
    batches = BatchLoader(data, PREPROCESS, 8, shuffle=True)
    expected = PREPROCESS.normalizer()(data.images)
    for batch in batches:
        assert batch.x.dtype == torch.float32
        assert batch.y.dtype == batch.index.dtype == torch.int64
        assert torch.equal(batch.x, expected[batch.index])
        assert torch.equal(batch.y, data.labels[batch.index])


def test_without_shuffle_the_order_is_that_of_the_data_in_every_epoch() -> None:
    batches = loader(20, 6, shuffle=False)
    assert rows(list(batches)) == rows(list(batches)) == list(range(20))


def test_without_augmentation_every_epoch_shows_the_same_images() -> None:
    batches = loader(20, 6, shuffle=False, augment=False)
    assert same(list(batches), list(batches))


def test_an_epoch_left_in_the_middle_is_followed_by_the_next_one() -> None:
    batches = loader(30, 4)
    next(iter(batches))
    second = loader(30, 4)
    second.seek(1)
    assert same(list(batches), list(second))


def test_the_data_is_not_changed() -> None:
    data = dataset(20)
    before = data.fingerprint()
    list(BatchLoader(data, PREPROCESS, 8, shuffle=True, augment=AUGMENT))
    assert data.fingerprint() == before


def test_a_long_epoch_is_the_same_in_any_batch_size() -> None:
    # longer than the piece of the order that is computed at once
    count = 140_000
    data = PackedDataset(
        torch.zeros((count, 1, 1, 1), dtype=torch.uint8),
        torch.zeros(count, dtype=torch.int64),
        ("",) * count,
        ("a", "b"),
    )
    orders = []
    for size in (999, 70_000, 200_000):
        batches = BatchLoader(data, Preprocess(1, 1, 1), size, shuffle=True)
        batches.seek(2, 1 if size == 999 else 0)
        orders.append(torch.cat([batch.index for batch in batches] or [torch.empty(0)]))
    assert torch.equal(orders[0], orders[1][999:])
    assert torch.equal(orders[1], orders[2])
    assert torch.equal(orders[1].sort().values, torch.arange(count))


def test_an_empty_split_has_no_batches() -> None:
    batches = loader(0, 8)
    assert len(batches) == 0
    assert list(batches) == []


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_needs_at_least_one_image(size: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1, not {size}"):
        loader(4, size)


def test_a_trainer_can_resume_on_it() -> None:
    assert isinstance(loader(4, 2), Seekable)
