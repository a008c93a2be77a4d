"""A packed split: its rows, its stats of every image, and the fingerprint and statistics computed from them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from helpers.images import noise, write_image
from sightline.core.errors import ImageError
from sightline.data.cache.dataset import EncodedImages, PackedDataset
from sightline.data.cache.directory import Cache
from sightline.data.cache.pack import PackOptions, pack_splits
from sightline.data.images.digest import ImageStats
from sightline.data.images.preprocess import Preprocess
from sightline.data.records import DataInfo, Sample
from sightline.data.sources.open import ListSource

CLASSES = ("a", "b", "c")


def dataset(images: torch.Tensor, classes: tuple[str, ...] = CLASSES) -> PackedDataset:
    count = len(images)
    return PackedDataset(images, torch.arange(count) % len(classes), tuple(map(str, range(count))), classes)


def pixels_of(count: int, channels: int = 3, side: int = 4) -> torch.Tensor:
    """Noise, uint8 [N,C,H,W], no two images equal."""
    images = np.stack([noise(side, side, channels, seed=i) for i in range(count)])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def stats_of(images: torch.Tensor) -> ImageStats:
    return ImageStats.from_images(images.contiguous().numpy())


BASE = dataset(pixels_of(6))


# --- rows


def test_rows_pick_from_shared_images() -> None:
    images, rows = pixels_of(5), np.array([4, 0, 0, 2])
    packed = PackedDataset(images, torch.tensor([0, 1, 1, 2]), tuple("wxyz"), CLASSES, rows)
    assert len(packed) == 4
    assert packed.shape == (4, 3, 4, 4)
    assert packed.counts == {"a": 1, "b": 2, "c": 1}
    assert packed.places(np.array([3, 0])).tolist() == [2, 4]
    assert torch.equal(packed.pixels([0, 3, 1]), images[[4, 2, 0]])


def test_two_splits_share_one_tensor() -> None:
    images = pixels_of(6)
    one = PackedDataset(images, torch.zeros(3, dtype=torch.int64), tuple("abc"), CLASSES, np.array([0, 2, 4]))
    other = PackedDataset(images, torch.zeros(3, dtype=torch.int64), tuple("def"), CLASSES, np.array([5, 3, 1]))
    assert one.images is other.images
    assert torch.equal(one.pixels(range(3)), images[::2])
    assert torch.equal(other.pixels(range(3)), images[[5, 3, 1]])
    assert one.fingerprint() != other.fingerprint()


def test_encoded_images_are_decoded_when_they_are_read(tmp_path: Path) -> None:
    images = [noise(6, 6, 3, seed=i) for i in range(4)]
    files = [write_image(tmp_path / f"{i}.png", image) for i, image in enumerate(images)]
    read: list[int] = []

    def fetch(row: int) -> Path:
        read.append(row)
        return files[row]

    encoded = EncodedImages(Preprocess(6, 6, 3), np.full((4, 2), 6, np.int32), fetch, lambda row: f"'{row}'")
    packed = PackedDataset(encoded, torch.zeros(2, dtype=torch.int64), ("x", "y"), CLASSES, np.array([3, 1]))
    assert packed.shape == (2, 3, 6, 6)
    assert read == []
    result = packed.pixels([0, 1])
    assert read == [3, 1]
    assert np.array_equal(result.permute(0, 2, 3, 1).numpy(), np.stack([images[3], images[1]]))


def test_an_encoded_image_that_is_missing_is_named(tmp_path: Path) -> None:
    name, sizes = "'gone.png' (row 7)", np.full((1, 2), 4, np.int32)
    encoded = EncodedImages(Preprocess(4, 4, 1), sizes, lambda row: tmp_path / "gone.png", lambda row: name)
    packed = PackedDataset(encoded, torch.zeros(1, dtype=torch.int64), ("x",), CLASSES)
    with pytest.raises(ImageError, match=r"Cannot read 'gone\.png' \(row 7\): No such file"):
        packed.pixels([0])


def test_counts_are_in_class_order_and_name_the_empty_ones() -> None:
    packed = dataset(pixels_of(4), (*CLASSES, "none", "also none"))
    assert list(packed.counts.items()) == [("a", 1), ("b", 1), ("c", 1), ("none", 1), ("also none", 0)]


# --- stats


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 9), st.sampled_from([1, 3]), st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 2**32 - 1),
)
def test_stats_are_sha256_and_sums_of_the_pixels(shape: tuple[int, ...], seed: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    if seed % 3 == 0:
        images[:] = 255  # the largest possible sums
    stats = ImageStats.from_images(images)
    wide = images.astype(np.int64)
    assert np.array_equal(stats.moments[..., 0], wide.sum((2, 3)))
    assert np.array_equal(stats.moments[..., 1], (wide**2).sum((2, 3)))
    assert stats.sizes.tolist() == [list(shape[2:])] * shape[0]
    assert not stats.lost.any()
    assert [row.tobytes() for row in stats.digests] == [hashlib.sha256(i.tobytes()).digest()[:16] for i in images]


def test_no_images_have_empty_stats() -> None:
    assert [len(values) for values in ImageStats.from_images(np.empty((0, 3, 4, 4), np.uint8))] == [0] * 5


def test_the_squares_of_a_large_white_image_do_not_overflow() -> None:
    images = torch.full((2, 3, 1200, 1200), 255, dtype=torch.uint8)  # 9.4e10, beyond int32
    stats = stats_of(images)
    assert stats.moments[:, :, 1].tolist() == [[255 * 255 * 1200 * 1200] * 3] * 2
    assert replace(dataset(images), stats=stats).statistics() == ((1.0,) * 3, (1.0,) * 3)


# --- fingerprint


@settings(max_examples=50)
@given(place=st.integers(0, BASE.images.numel() - 1), by=st.integers(1, 255))
def test_a_single_pixel_changes_the_fingerprint(place: int, by: int) -> None:
    images = BASE.images.clone()
    images.view(-1)[place] += by
    assert replace(BASE, images=images).fingerprint() != BASE.fingerprint()


CHANGES: dict[str, Callable[[PackedDataset], PackedDataset]] = {
    "a label": lambda d: replace(d, labels=torch.tensor([1, *d.labels.tolist()[1:]])),
    "the order of labels": lambda d: replace(d, labels=d.labels.flip(0)),
    "the order of images": lambda d: replace(d, images=d.images.flip(0)),
    "the order of rows": lambda d: replace(d, rows=np.arange(6)[::-1].copy()),
    "a class name": lambda d: replace(d, classes=("a", "b", "d")),
    "the order of classes": lambda d: replace(d, classes=("b", "a", "c")),
    "a class more": lambda d: replace(d, classes=(*CLASSES, "d")),
    "the shape": lambda d: replace(d, images=d.images.reshape(6, 3, 2, 8)),
    "an image less": lambda d: replace(d, images=d.images[:5], labels=d.labels[:5], ids=d.ids[:5]),
    "a row less": lambda d: replace(d, rows=np.arange(5), labels=d.labels[:5], ids=d.ids[:5]),
}


@pytest.mark.parametrize("with_stats", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_whatever_a_model_would_see_changes_the_fingerprint(change: str, with_stats: bool) -> None:
    changed = CHANGES[change](BASE)
    if with_stats:
        changed = replace(changed, stats=stats_of(changed.images))
    assert changed.fingerprint() != BASE.fingerprint()


def test_class_names_are_separated_in_the_fingerprint() -> None:
    assert replace(BASE, classes=("a, b", "c")).fingerprint() != replace(BASE, classes=("a", "b, c")).fingerprint()


def test_nothing_else_changes_the_fingerprint() -> None:
    renamed = replace(BASE, ids=tuple(f"moved/{name}" for name in BASE.ids), columns={"site": tuple("uvwxyz")})
    laid_out = replace(BASE, images=BASE.images.contiguous(memory_format=torch.channels_last))
    assert renamed.fingerprint() == laid_out.fingerprint() == BASE.fingerprint()
    assert len(BASE.fingerprint()) == 64


@settings(max_examples=30)
@given(rows=st.lists(st.integers(0, 6), min_size=1, max_size=12))
def test_rows_of_shared_images_equal_a_copy(rows: list[int]) -> None:
    images, labels = pixels_of(7), torch.arange(len(rows)) % 3
    ids = tuple(map(str, rows))
    copied = PackedDataset(images[rows], labels, ids, CLASSES)
    shared = PackedDataset(images, labels, ids, CLASSES, np.array(rows))
    with_stats = replace(shared, stats=stats_of(images))
    assert copied.fingerprint() == shared.fingerprint() == with_stats.fingerprint()
    assert copied.statistics() == shared.statistics() == with_stats.statistics()
    assert torch.equal(copied.pixels(range(len(rows))), with_stats.pixels(range(len(rows))))


class _Reference:
    """A reference as an archive returns it."""

    def __init__(self, data: bytes, token: str | None):
        self.data, self.token = data, token

    def read(self) -> bytes:
        return self.data


def test_equal_pixels_have_the_same_fingerprint_and_statistics_in_any_storage(tmp_path: Path) -> None:
    """Files of three formats, bytes, references and arrays; decoded or encoded; cached or not; alone or beside
    another split that shares the images."""
    arrays = [noise(5, 7, 3, seed=i) for i in range(9)]
    files = {
        suffix: [write_image(tmp_path / f"{i}.{suffix}", array) for i, array in enumerate(arrays)]
        for suffix in ("png", "bmp", "tif")
    }
    encoded = [file.read_bytes() for file in files["png"]]
    kinds = {**files, "bytes": encoded, "arrays": arrays, "references": [_Reference(b, str(i)) for i, b in
             enumerate(encoded)], "unknown": [_Reference(b, None) for b in encoded]}  # fmt: skip
    results = set()
    for kind, images in kinds.items():
        listed = [Sample(f"{kind}{i}", image, i % 3) for i, image in enumerate(images)]
        splits = {"train": listed[::2], "val": listed[1::2]}
        for store in ("pixels", "encoded"):
            # no cache, a new entry, an existing entry
            for cache in (None, Cache(tmp_path / "cache"), Cache(tmp_path / "cache")):
                source = ListSource(DataInfo("test", CLASSES), splits)
                packed, _ = pack_splits(source, Preprocess(5, 7, 3), packing=PackOptions(store, cache))
                results.add(tuple((part.fingerprint(), part.statistics()) for part in packed.values()))
                assert packed["train"].pixels([1]).permute(0, 2, 3, 1).numpy().tolist() == [arrays[2].tolist()]
    plain = dataset(torch.from_numpy(np.stack(arrays[::2])).permute(0, 3, 1, 2))
    plain = replace(plain, labels=torch.tensor([i % 3 for i in range(0, 9, 2)]))
    ((train, _),) = results
    assert train == (plain.fingerprint(), plain.statistics())


# --- statistics


@settings(max_examples=50)
@given(
    shape=st.tuples(st.integers(1, 9), st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 2**32 - 1),
    part=st.none() | st.lists(st.integers(0, 8), min_size=1, max_size=9),
)
def test_statistics_equal_numpys(shape: tuple[int, ...], seed: int, part: list[int] | None) -> None:
    images = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    packed = dataset(torch.from_numpy(images))
    seen: NDArray[np.uint8] = images
    if part is not None:
        rows = np.array(part) % shape[0]
        labels = torch.zeros(len(rows), dtype=torch.int64)
        packed = replace(
            packed, rows=rows, labels=labels, ids=tuple(map(str, rows)), stats=stats_of(torch.from_numpy(images))
        )
        seen = images[rows]
    mean, std = packed.statistics()
    wide = seen.astype(np.float64) / 255
    assert mean == pytest.approx(wide.mean(axis=(0, 2, 3)), rel=1e-12)
    expected = wide.std(axis=(0, 2, 3))
    constant = seen.min(axis=(0, 2, 3)) == seen.max(axis=(0, 2, 3))
    assert std == pytest.approx(np.where(constant, 1, expected), rel=1e-9)


@settings(max_examples=100)
@given(value=st.integers(0, 255), count=st.integers(1, 3000))
@example(value=105, count=3)
@example(value=175, count=3)
def test_a_constant_channel_has_a_standard_deviation_of_one(value: int, count: int) -> None:
    # not 1e-17, which would scale the first pixel that differs to 1e14
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
