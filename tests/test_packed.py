"""Decode once: order, labels, fingerprint and statistics of a packed split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from images import noise, write_image
from sightline.data.packed import PackedDataset, pack, pack_splits
from sightline.data.preprocess import Preprocess
from sightline.data.sources import ListSource
from sightline.errors import DataError
from sightline.types import DataInfo, Sample

CLASSES = ("a", "b", "c")
GRAY = Preprocess(4, 4, 1)


def samples_of(count: int, channels: int = 0) -> list[Sample]:
    return [Sample(f"id{i}", noise(4, 4, channels, seed=i), i % 3) for i in range(count)]


def dataset(images: torch.Tensor, classes: tuple[str, ...] = CLASSES) -> PackedDataset:
    count = len(images)
    return PackedDataset(images, torch.arange(count) % len(classes), tuple(map(str, range(count))), classes)


def source(**splits: list[Sample]) -> ListSource:
    return ListSource(DataInfo("test", CLASSES), splits)


def test_images_labels_and_ids_are_in_the_order_of_the_samples(tmp_path: Path) -> None:
    pixels = [noise(4, 4, seed=i) for i in range(700)]  # more than two pieces of work
    samples = [
        Sample(f"id{i}", write_image(tmp_path / f"{i}.png", image) if i % 50 == 0 else image, i % 3)
        for i, image in enumerate(pixels)
    ]
    packed = pack(samples, GRAY, CLASSES)
    assert len(packed) == 700
    assert packed.images.dtype == torch.uint8
    assert np.array_equal(packed.images.numpy()[:, 0], np.stack(pixels))
    assert packed.labels.dtype == torch.int64
    assert packed.labels.tolist() == [i % 3 for i in range(700)]
    assert packed.ids == tuple(f"id{i}" for i in range(700))
    assert packed.classes == CLASSES


def test_the_number_of_threads_changes_nothing() -> None:
    samples = samples_of(600)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        many = pack(samples, GRAY, CLASSES)
    finally:
        torch.set_num_threads(threads)
    assert many.fingerprint() == pack(samples, GRAY, CLASSES).fingerprint()


def test_counts_are_in_class_order_and_name_the_empty_ones() -> None:
    assert pack(samples_of(4), GRAY, (*CLASSES, "none")).counts == {"a": 2, "b": 1, "c": 1, "none": 0}


def test_every_image_finished_is_counted() -> None:
    seen: list[int] = []
    pack(samples_of(600), GRAY, CLASSES, seen.append)
    assert sum(seen) == 600
    assert len(seen) > 1
    counted: list[int] = []
    pack_splits(source(train=samples_of(5), val=samples_of(3)), GRAY, counted.append)
    assert sum(counted) == 8


def test_no_samples_are_no_images() -> None:
    packed = pack([], GRAY, CLASSES)
    assert len(packed) == 0
    assert packed.images.shape == (0, 1, 4, 4)
    assert packed.labels.dtype == torch.int64
    assert packed.counts == dict.fromkeys(CLASSES, 0)


@pytest.mark.parametrize("bad", [[5], [5, 6], [5, 599], [300, 5, 280], [599, 300]])
def test_the_first_bad_image_in_the_order_of_the_samples_is_named(tmp_path: Path, bad: list[int]) -> None:
    samples = samples_of(600)
    for row in bad:
        path = tmp_path / f"{row}.png"
        path.write_bytes(b"not an image")
        samples[row] = samples[row]._replace(image=path)
    with pytest.raises(DataError, match=rf"'{tmp_path}/{min(bad)}\.png' is no image"):
        pack(samples, GRAY, CLASSES)


def test_bytes_in_memory_are_named_by_their_id() -> None:
    with pytest.raises(DataError, match="'id0' is no image"):
        pack([Sample("id0", b"junk", 0)], GRAY, CLASSES)


# --- fingerprint


BASE = dataset(torch.from_numpy(np.stack([noise(4, 4, 3, seed=i) for i in range(6)])).permute(0, 3, 1, 2).contiguous())


@settings(deadline=None, max_examples=50)
@given(place=st.integers(0, BASE.images.numel() - 1), by=st.integers(1, 255))
def test_a_single_pixel_changes_the_fingerprint(place: int, by: int) -> None:
    images = BASE.images.clone()
    images.view(-1)[place] += by
    assert replace(BASE, images=images).fingerprint() != BASE.fingerprint()


CHANGES: dict[str, Callable[[PackedDataset], PackedDataset]] = {
    "a label": lambda d: replace(d, labels=torch.tensor([1, *d.labels.tolist()[1:]])),
    "the order of labels": lambda d: replace(d, labels=d.labels.flip(0)),
    "the order of images": lambda d: replace(d, images=d.images.flip(0)),
    "a class name": lambda d: replace(d, classes=("a", "b", "d")),
    "the order of classes": lambda d: replace(d, classes=("b", "a", "c")),
    "a class more": lambda d: replace(d, classes=(*CLASSES, "d")),
    "the shape": lambda d: replace(d, images=d.images.reshape(6, 3, 2, 8)),
    "an image less": lambda d: replace(d, images=d.images[:5], labels=d.labels[:5], ids=d.ids[:5]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_a_model_would_see_changes_the_fingerprint(change: str) -> None:
    assert CHANGES[change](BASE).fingerprint() != BASE.fingerprint()


def test_class_names_are_kept_apart() -> None:
    assert replace(BASE, classes=("a, b", "c")).fingerprint() != replace(BASE, classes=("a", "b, c")).fingerprint()


def test_nothing_else_changes_the_fingerprint() -> None:
    renamed = replace(BASE, ids=tuple(f"moved/{name}" for name in BASE.ids))
    laid_out = replace(BASE, images=BASE.images.contiguous(memory_format=torch.channels_last))
    assert renamed.fingerprint() == laid_out.fingerprint() == BASE.fingerprint()
    assert len(BASE.fingerprint()) == 64


def test_the_file_format_does_not_change_the_fingerprint(tmp_path: Path) -> None:
    prints = set()
    for suffix in ("png", "bmp", "tif"):
        samples = [
            Sample(str(i), write_image(tmp_path / f"{i}.{suffix}", noise(4, 4, 3, seed=i)), i % 3) for i in range(3)
        ]
        prints.add(pack(samples, Preprocess(4, 4, 3), CLASSES).fingerprint())
    assert len(prints) == 1


# --- statistics


@settings(deadline=None, max_examples=50)
@given(
    shape=st.tuples(st.integers(1, 9), st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 2**32 - 1),
)
def test_statistics_are_numpys(shape: tuple[int, ...], seed: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    mean, std = dataset(torch.from_numpy(images)).statistics()
    wide = images.astype(np.float64) / 255
    assert mean == pytest.approx(wide.mean(axis=(0, 2, 3)), rel=1e-12)
    expected = wide.std(axis=(0, 2, 3))
    assert std == pytest.approx(np.where(expected == 0, 1, expected), rel=1e-12)


@settings(deadline=None, max_examples=100)
@given(value=st.integers(0, 255), count=st.integers(1, 3000))
@example(value=105, count=3)
@example(value=175, count=3)
def test_a_channel_that_never_changes_has_a_deviation_of_one(value: int, count: int) -> None:
    # not 1e-17, which would blow the first pixel that differs up to 1e14
    packed = dataset(torch.full((count, 1, 1, 1), value, dtype=torch.uint8))
    mean, std = packed.statistics()
    assert std == (1.0,)
    assert mean == pytest.approx((value / 255,))


def test_each_channel_has_its_own_statistics() -> None:
    images = torch.zeros((2, 3, 2, 2), dtype=torch.uint8)
    images[:, 1] = 255
    images[0, 2] = 255
    mean, std = dataset(images).statistics()
    assert mean == pytest.approx((0, 1, 0.5))
    assert std == pytest.approx((1, 1, 0.5))


# --- auto


def test_auto_takes_size_and_channels_from_the_first_image_and_measures_train() -> None:
    train, val = samples_of(20, channels=3), samples_of(5, channels=3)
    packed, preprocess = pack_splits(source(train=train, val=val), {"size": "auto", "channels": "auto", "mean": "auto"})
    assert preprocess.shape == (3, 4, 4)
    assert (preprocess.mean, preprocess.std) == packed["train"].statistics()
    assert {split: len(part) for split, part in packed.items()} == {"train": 20, "val": 5}
    normal = preprocess.normalizer()(packed["train"].images)
    assert normal.mean(dim=(0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert normal.std(dim=(0, 2, 3), unbiased=False).tolist() == pytest.approx([1, 1, 1], abs=1e-5)


def test_what_is_given_is_kept() -> None:
    values: dict[str, Any] = {"size": [6, 5], "channels": 1, "mean": [0.25], "std": [0.5], "resize": "pad"}
    _, preprocess = pack_splits(source(train=samples_of(3, channels=3)), values)
    assert preprocess == Preprocess(6, 5, 1, (0.25,), (0.5,), resize="pad")
    _, square = pack_splits(source(train=samples_of(3)), {"size": 7, "mean": [0.5]})
    assert square.shape == (1, 7, 7)
    assert square.mean == (0.5,)
    assert square.std != (1.0,)
    _, listed = pack_splits(source(train=samples_of(3)), {"size": [7]})
    assert listed.shape == (1, 7, 7)


@pytest.mark.parametrize("split", ["train", "val"])
def test_with_auto_an_image_of_another_size_is_named(split: str) -> None:
    splits = {"train": samples_of(3), "val": samples_of(3)}
    splits[split][2] = Sample("odd", noise(4, 5), 0)
    with pytest.raises(DataError, match=r"'odd' is 4 x 5 pixels, the first image 4 x 4\. Set data\.preprocess\.size"):
        pack_splits(source(**splits), {"size": "auto"})
    packed, _ = pack_splits(source(**splits), {"size": 4})
    assert packed[split].images.shape == (3, 1, 4, 4)


def test_with_auto_a_colour_image_among_gray_ones_is_named() -> None:
    samples = [*samples_of(3), Sample("odd", noise(4, 4, 3), 0)]
    with pytest.raises(DataError, match=r"'odd' is a colour image, the first one is gray.*data\.preprocess\.channels"):
        pack_splits(source(train=samples), {})
    packed, _ = pack_splits(source(train=samples), {"channels": 3})
    assert packed["train"].images.shape == (4, 3, 4, 4)


def test_a_gray_image_among_colour_ones_is_fine() -> None:
    packed, preprocess = pack_splits(source(train=[*samples_of(2, channels=3), *samples_of(1)]), {})
    assert preprocess.channels == 3
    assert np.array_equal(packed["train"].images[2, 0], packed["train"].images[2, 2])


def test_a_finished_preprocessing_is_taken_as_it_is() -> None:
    wanted = Preprocess(8, 8, 3, (0.1,), (0.2,))
    packed, preprocess = pack_splits(source(train=samples_of(3)), wanted)
    assert preprocess is wanted
    assert packed["train"].images.shape == (3, 3, 8, 8)


def test_a_first_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"bad\.png"):
        pack_splits(source(train=[Sample("a", path, 0)]), {})
    with pytest.raises(DataError, match=r"gone\.png.*No such file"):
        pack_splits(source(train=[Sample("a", tmp_path / "gone.png", 0)]), {})
