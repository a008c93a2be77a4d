"""Packing a source: every image is decoded once, in the order of the source, and `auto` values come from the data."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.images import noise, write_folders, write_image
from sightline.core.errors import DataError
from sightline.data.cache.dataset import EncodedImages, PackedDataset
from sightline.data.cache.directory import Cache
from sightline.data.cache.pack import PackOptions, pack_splits
from sightline.data.cache.workers import Workers
from sightline.data.images.preprocess import Preprocess
from sightline.data.records import DataInfo, Sample
from sightline.data.sources.open import ListSource, open_source

CLASSES = ("a", "b", "c")
GRAY = Preprocess(4, 4, 1)


def samples_of(count: int, channels: int = 0) -> list[Sample]:
    return [Sample(f"id{i}", noise(4, 4, channels, seed=i), i % 3) for i in range(count)]


def files_of(folder: Path, count: int, channels: int = 0) -> list[Sample]:
    return [
        Sample(f"id{i}", write_image(folder / f"{i}.png", noise(4, 4, channels, seed=i)), i % 3) for i in range(count)
    ]


def source(**splits: list[Sample]) -> ListSource:
    return ListSource(DataInfo("test", CLASSES), splits)


def pack(
    samples: list[Sample],
    preprocess: Preprocess = GRAY,
    progress: Callable[[int], None] = lambda _: None,
    **options: Any,
) -> PackedDataset:
    return pack_splits(source(train=samples), preprocess, progress, packing=PackOptions(**options))[0]["train"]


STORAGES = ("memory", "cached", "encoded", "cached encoded")


@pytest.fixture(params=STORAGES)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The `PackOptions` arguments of each way to store images."""
    cache = Cache(tmp_path / "cache") if "cached" in request.param else None
    return {"store": "encoded" if "encoded" in request.param else "pixels", "cache": cache}


def test_images_labels_and_ids_are_in_the_order_of_the_samples(tmp_path: Path, storage: dict[str, Any]) -> None:
    pixels = [noise(4, 4, seed=i) for i in range(700)]  # more than two blocks of work
    samples = []
    for i, image in enumerate(pixels):
        path = write_image(tmp_path / f"{i * 7919 % 700}.png", image)  # not in sorted order
        samples.append(Sample(f"id{i}", path, i % 3, columns={"site": str(i % 5)} if i % 2 else {}))
    packed = pack(samples, **storage)
    assert len(packed) == 700
    assert isinstance(packed.images, EncodedImages) is (storage["store"] == "encoded")
    result = packed.pixels(range(700))
    assert result.dtype == torch.uint8
    assert np.array_equal(result.numpy()[:, 0], np.stack(pixels))
    assert packed.labels.dtype == torch.int64
    assert packed.labels.tolist() == [i % 3 for i in range(700)]
    assert packed.ids == tuple(f"id{i}" for i in range(700))
    assert packed.classes == CLASSES
    assert packed.columns == {"site": tuple(str(i % 5) if i % 2 else "" for i in range(700))}
    assert packed.left_out == ()


@settings(max_examples=15)
@given(parts=st.lists(st.integers(1, 40), min_size=1, max_size=3), store=st.sampled_from(["pixels", "encoded"]))
def test_every_split_has_its_own_images_and_no_others(
    parts: list[int], store: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("splits")
    samples = files_of(folder, sum(parts))
    order = np.random.default_rng(len(parts)).permutation(len(samples)).tolist()
    splits, start = {}, 0
    for name, count in zip(("train", "val", "test"), parts, strict=False):
        splits[name] = [samples[row] for row in order[start : start + count]]
        start += count
    packed, _ = pack_splits(source(**splits), GRAY, packing=PackOptions(store, Cache(folder / "cache")))
    assert set(packed) == set(splits)
    for name, listed in splits.items():
        expected = np.stack([GRAY.decode(sample.image) for sample in listed])
        assert np.array_equal(packed[name].pixels(range(len(listed))).numpy(), expected)
        assert packed[name].ids == tuple(sample.id for sample in listed)
        assert packed[name].labels.tolist() == [sample.label for sample in listed]


def test_only_the_requested_splits_are_packed() -> None:
    data = source(train=samples_of(5), val=samples_of(3), test=samples_of(2))
    packed, _ = pack_splits(data, GRAY, only=("test",))
    assert {split: len(part) for split, part in packed.items()} == {"test": 2}
    assert packed["test"].fingerprint() == pack_splits(data, GRAY)[0]["test"].fingerprint()


def test_the_number_of_threads_changes_nothing(tmp_path: Path) -> None:
    samples = files_of(tmp_path, 600)
    fingerprints = set()
    for threads in (1, 2, 5):
        for store in ("pixels", "encoded"):
            packed = pack(samples, store=store, workers=Workers(threads))
            fingerprints.add(packed.fingerprint())
            assert np.array_equal(packed.pixels([599]).numpy()[0], GRAY.decode(samples[599].image))
    assert len(fingerprints) == 1


def test_packing_does_not_change_torchs_number_of_threads() -> None:
    """Trained weights depend on the number of threads, so it must not depend on whether, and how, images were decoded
    before."""
    code = (
        "import numpy as np, torch\n"
        "from sightline.core.parallel import map_in_order\n"
        "list(map_in_order(lambda i: torch.zeros(9).sum(), range(4), threads=2, max_pending=4))\n"
        "print(torch.get_num_threads())"
    )
    counts = [
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "3"},
        ).stdout
        for script in (code, "import torch; print(torch.get_num_threads())")
    ]
    assert counts[0] == counts[1] != "1\n"


def test_progress_counts_every_image(tmp_path: Path, storage: dict[str, Any]) -> None:
    seen: list[int] = []
    pack(files_of(tmp_path, 600), progress=seen.append, **storage)
    assert sum(seen) == 600
    assert len(seen) > 1
    counted: list[int] = []
    data = source(train=files_of(tmp_path / "t", 5), val=files_of(tmp_path / "v", 3))
    pack_splits(data, GRAY, counted.append, packing=PackOptions(**storage))
    assert sum(counted) == 8


def test_an_empty_split_has_no_images() -> None:
    packed = pack([])
    assert len(packed) == 0
    assert packed.shape == (0, 1, 4, 4)
    assert packed.labels.dtype == torch.int64
    assert packed.counts == dict.fromkeys(CLASSES, 0)


def test_pixels_are_stored_up_to_a_limit_and_encoded_images_above(tmp_path: Path) -> None:
    samples = files_of(tmp_path, 10, channels=3)
    fits = 10 * 3 * 4 * 4

    def encoded(limit: int, crop_limit: int = 64 * 64, **options: Any) -> bool:
        options |= {"pixels_limit": limit, "crop_limit": crop_limit}
        return isinstance(pack(samples, Preprocess(4, 4, 3), **options).images, EncodedImages)

    assert not encoded(fits)
    assert encoded(fits - 1)
    assert not encoded(fits - 1, store="pixels")
    assert encoded(fits, store="encoded")
    assert not encoded(fits, crop_limit=16, crops=True)
    assert encoded(fits, crop_limit=15, crops=True)
    assert not encoded(fits, crop_limit=15, crops=False)


def test_more_images_than_memory_are_an_error() -> None:
    samples = [Sample("a", b"", 0)] * 4
    with pytest.raises(DataError, match=r"4 images of 4000000 x 4000000 need .* GiB of memory.*data\.store=encoded"):
        pack(samples, Preprocess(4_000_000, 4_000_000, 3), store="pixels")


# --- images that cannot be read


@pytest.mark.parametrize("bad", [[5], [5, 6], [5, 599], [300, 5, 280], [599, 300]])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("store", ["pixels", "encoded"])
def test_every_bad_image_is_named_in_the_order_of_the_samples(
    tmp_path: Path, bad: list[int], cached: bool, store: str
) -> None:
    samples = files_of(tmp_path, 600)
    for row in bad:
        (tmp_path / f"{row}.png").write_bytes(b"not an image %d" % row)
        samples[row] = samples[row]._replace(where=f"row {row}")
    for _ in range(2):  # the second time out of the cache
        with pytest.raises(DataError) as caught:
            pack(samples, store=store, cache=Cache(tmp_path / "cache") if cached else None)
        message = str(caught.value)
        places = [message.index(f"'{tmp_path / f'{row}.png'}' (row {row}) is not an image") for row in sorted(bad)]
        assert places == sorted(places)
        assert message.count("is not an image") == len(bad)
        assert "data.on_bad=skip" in message


def test_of_many_bad_images_ten_are_named_and_the_rest_counted() -> None:
    samples = [Sample(f"id{i}", b"junk %d" % i, 0) for i in range(25)]
    with pytest.raises(DataError, match="25 images cannot be used") as caught:
        pack(samples)
    assert str(caught.value).count("is not an image") == 10
    assert "… and 15 more" in str(caught.value)


def test_bytes_in_memory_are_named_by_their_id() -> None:
    with pytest.raises(DataError, match="'id0' is not an image"):
        pack([Sample("id0", b"junk", 0)])


@pytest.mark.parametrize("on_bad", ["error", "skip"])
def test_two_samples_with_the_same_bad_bytes_are_both_named(on_bad: str, tmp_path: Path) -> None:
    """For example two empty cells of a table: a cache entry holds one image for both."""
    samples = [Sample(f"id{i}", b"" if i in (2, 5) else write_image(tmp_path / f"{i}.png"), i % 3, f"row {i}")
               for i in range(9)]  # fmt: skip
    if on_bad == "error":
        with pytest.raises(DataError) as caught:
            pack(samples, cache=Cache(tmp_path / "cache"))
        reasons = str(caught.value)
    else:
        left_out = pack(samples, cache=Cache(tmp_path / "cache"), on_bad="skip").left_out
        assert [name for name, _ in left_out] == ["id2", "id5"]
        reasons = " ".join(reason for _, reason in left_out)
    assert "'id2' (row 2) is not an image" in reasons
    assert "'id5' (row 5) is not an image" in reasons


# --- auto


def test_auto_takes_size_and_channels_from_the_first_image_and_measures_train() -> None:
    train, val = samples_of(20, channels=3), samples_of(5, channels=3)
    packed, preprocess = pack_splits(source(train=train, val=val), {"size": "auto", "channels": "auto", "mean": "auto"})
    assert preprocess.shape == (3, 4, 4)
    assert (preprocess.mean, preprocess.std) == packed["train"].statistics()
    assert {split: len(part) for split, part in packed.items()} == {"train": 20, "val": 5}
    normal = preprocess.normalizer()(packed["train"].pixels(range(20)))
    assert normal.mean(dim=(0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert normal.std(dim=(0, 2, 3), unbiased=False).tolist() == pytest.approx([1, 1, 1], abs=1e-5)


def test_configured_values_are_kept() -> None:
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
    with pytest.raises(
        DataError, match=r"'odd' is 4 x 5 pixels, but the first image is 4 x 4\. Set data\.preprocess\.size"
    ):
        pack_splits(source(**splits), {"size": "auto"})
    packed, _ = pack_splits(source(**splits), {"size": 4})
    assert packed[split].shape == (3, 1, 4, 4)


def test_with_auto_a_colour_image_among_gray_ones_is_named() -> None:
    samples = [*samples_of(3), Sample("odd", noise(4, 4, 3), 0)]
    with pytest.raises(
        DataError, match=r"'odd' is a colour image, but the first image is gray.*data\.preprocess\.channels"
    ):
        pack_splits(source(train=samples), {})
    packed, _ = pack_splits(source(train=samples), {"channels": 3})
    assert packed["train"].shape == (4, 3, 4, 4)


@pytest.mark.parametrize("store", ["pixels", "encoded"])
@pytest.mark.parametrize("odd", ["size", "channels"])
def test_auto_checks_images_that_are_already_cached(tmp_path: Path, odd: str, store: str) -> None:
    """An entry that was made with a fixed size holds resized images; a later run with `auto` must not use them."""
    samples = files_of(tmp_path, 6)
    write_image(tmp_path / "3.png", noise(5, 4) if odd == "size" else noise(4, 4, 3))
    packing = PackOptions(store, Cache(tmp_path / "cache"))
    values = {"size": 4, "channels": 1}
    pack_splits(source(train=samples), values, packing=packing)
    counted: list[int] = []
    with pytest.raises(DataError, match=r"3\.png' is (5 x 4 pixels|a colour image)"):
        pack_splits(source(train=samples), {**values, odd: "auto"}, counted.append, packing=packing)
    assert counted == []  # from the cache
    other = {"size": "channels", "channels": "size"}[odd]
    pack_splits(source(train=samples), {**values, other: "auto"}, packing=packing)


def test_an_image_that_auto_refuses_creates_no_entry(tmp_path: Path) -> None:
    samples = files_of(tmp_path, 6)
    write_image(tmp_path / "3.png", noise(5, 4))
    cache = Cache(tmp_path / "cache")
    with pytest.raises(DataError, match=r"3\.png' is 5 x 4"):
        pack_splits(source(train=samples), {}, packing=PackOptions("pixels", cache))
    assert cache.entries() == []
    assert [path.name for path in cache.folder.iterdir()] == ["locks"]


def test_a_gray_image_among_colour_ones_is_accepted() -> None:
    packed, preprocess = pack_splits(source(train=[*samples_of(2, channels=3), *samples_of(1)]), {})
    assert preprocess.channels == 3
    third = packed["train"].pixels([2])[0]
    assert np.array_equal(third[0], third[2])


def test_a_preprocess_object_is_used_unchanged() -> None:
    wanted = Preprocess(8, 8, 3, (0.1,), (0.2,))
    packed, preprocess = pack_splits(source(train=samples_of(3)), wanted)
    assert preprocess is wanted
    assert packed["train"].shape == (3, 3, 8, 8)


def test_a_first_image_that_cannot_be_read_is_named_or_skipped(tmp_path: Path) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"bad\.png"):
        pack_splits(source(train=[Sample("a", path, 0)]), {})
    with pytest.raises(DataError, match=r"gone\.png.*No such file"):
        pack_splits(source(train=[Sample("a", tmp_path / "gone.png", 0)]), {})
    skip = PackOptions(on_bad="skip")
    packed, preprocess = pack_splits(source(train=[Sample("bad", path, 0), *samples_of(3)]), {}, packing=skip)
    assert preprocess.shape == (1, 4, 4)
    assert packed["train"].ids == ("id0", "id1", "id2")
    with pytest.raises(DataError, match="None of the 1 training images can be read"):
        pack_splits(source(train=[Sample("bad", path, 0)]), {}, packing=skip)


# --- when two runs share an entry


def keys(cache: Cache) -> set[str]:
    return {entry.path.name for entry in cache.entries()}


def test_seeds_splits_and_labels_share_one_entry(tmp_path: Path) -> None:
    """With another seed, other sizes of val and test, other labels or another order, nothing is decoded again."""
    root = write_folders(tmp_path / "images", {"cat": 9, "dog": 12, "eel": 8})
    cache, counted = Cache(tmp_path / "cache"), list[int]()

    def packed(**options: Any) -> dict[str, PackedDataset]:
        return pack_splits(
            open_source("folder", root, **options), GRAY, counted.append, None, PackOptions(cache=cache)
        )[0]

    first = packed()
    assert sum(counted) == 29
    counted.clear()
    fingerprints = {first["train"].fingerprint()}
    for options in ({"seed": 1}, {"val": 0.3}, {"val": 0, "test": 0}, {"test": 5}):
        again = packed(**options)
        fingerprints.add(again["train"].fingerprint())
        for part in again.values():
            expected = np.stack([GRAY.decode(root / name) for name in part.ids])
            assert np.array_equal(part.pixels(range(len(part))).numpy(), expected)
    listed = open_source("folder", root).splits["train"]
    relabelled = [sample._replace(label=0) for sample in reversed(listed)]
    rest = [sample for split in ("val", "test") for sample in open_source("folder", root).splits[split]]
    pack_splits(source(train=relabelled, val=rest), GRAY, counted.append, None, PackOptions(cache=cache))
    assert counted == []
    assert len(fingerprints) == 5
    assert len(keys(cache)) == 1


@pytest.mark.parametrize(
    "change",
    [{"height": 5}, {"width": 5}, {"channels": 3}, {"resize": "pad"}, {"interpolation": "nearest"}, {"background": 0}],
)
def test_another_preprocessing_is_another_entry(tmp_path: Path, change: dict[str, Any]) -> None:
    samples, cache, counted = files_of(tmp_path, 5), Cache(tmp_path / "cache"), list[int]()
    pack(samples, GRAY, cache=cache)
    pack(samples, Preprocess(4, 4, 1, (0.3,), (0.7,)), counted.append, cache=cache)
    assert counted == []  # normalisation is not part of the key
    values = {**GRAY.to_dict(), **change, "mean": [0.0], "std": [1.0]}
    changed = pack(samples, Preprocess.from_dict(values), counted.append, cache=cache)
    assert sum(counted) == 5
    assert len(keys(cache)) == 2
    assert changed.shape[1:] == Preprocess.from_dict(values).shape


def rewrite(path: Path) -> None:
    """Replaces an image by another one with the same number of bytes."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    image = noise(4, 4, seed=99)
    for seed in range(100, 400):
        write_image(path, image, compress_level=0)
        if path.stat().st_size == len(data):
            break
        image = noise(4, 4, seed=seed)
    assert path.stat().st_size == len(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


@pytest.mark.parametrize("store", ["pixels", "encoded"])
@pytest.mark.parametrize("change", ["content and time", "time", "size", "removed"])
def test_a_file_that_changed_is_decoded_again(tmp_path: Path, change: str, store: str) -> None:
    samples = [Sample(f"id{i}", write_image(tmp_path / f"{i}.png", noise(4, 4, seed=i), compress_level=0), i % 3)
               for i in range(5)]  # fmt: skip
    cache, counted, file = Cache(tmp_path / "cache"), list[int](), tmp_path / "3.png"
    pack(samples, store=store, cache=cache)
    before = file.stat()
    if change == "content and time":
        rewrite(file)
    elif change == "time":
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    elif change == "size":
        write_image(file, noise(8, 8, seed=5))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        file.unlink()
        with pytest.raises(DataError, match=r"Cannot read .*3\.png': No such file"):
            pack(samples, store=store, cache=cache)
        write_image(file, noise(4, 4, seed=77))
    packed = pack(samples, progress=counted.append, store=store, cache=cache)
    assert sum(counted) == 5
    assert np.array_equal(packed.pixels([3])[0].numpy(), GRAY.decode(file))


def test_a_reference_that_changed_is_decoded_again(tmp_path: Path) -> None:
    class Member:
        def __init__(self, seed: int, token: str | None):
            self.seed, self.token = seed, token

        def read(self) -> Any:
            return noise(4, 4, seed=self.seed)

    cache = Cache(tmp_path / "cache")
    for seed, token, entries in ((1, "one", 1), (2, "two", 2), (3, None, 2)):
        packed = pack([Sample("a", Member(seed, token), 0)], cache=cache)
        assert np.array_equal(packed.pixels([0])[0, 0].numpy(), noise(4, 4, seed=seed))
        assert len(keys(cache)) == entries


def test_a_reference_that_returns_pixels_can_be_stored_encoded(tmp_path: Path) -> None:
    """`Reference.read` may return an array or a Pillow image; then there are no encoded bytes to store."""
    from PIL import Image

    class Member:
        def __init__(self, seed: int, pillow: bool):
            self.seed, self.pillow, self.token = seed, pillow, f"{seed}"

        def read(self) -> Any:
            pixels = noise(4, 4, seed=self.seed)
            return Image.fromarray(pixels) if self.pillow else pixels

    samples = [Sample(f"id{i}", Member(i, pillow=i % 2 == 0), 0) for i in range(4)]
    for _ in range(2):
        packed = pack(samples, store="encoded", cache=Cache(tmp_path / "cache"))
        for i in range(4):
            assert np.array_equal(packed.pixels([i])[0, 0].numpy(), noise(4, 4, seed=i))


def test_an_image_of_two_samples_is_stored_once(tmp_path: Path) -> None:
    path, data = write_image(tmp_path / "a.png"), write_image(tmp_path / "b.png", noise(4, 4, seed=9)).read_bytes()
    samples = [Sample("one", path, 0), Sample("two", data, 1), Sample("three", path, 2), Sample("four", data, 0)]
    counted: list[int] = []
    packed = pack(samples, progress=counted.append, cache=Cache(tmp_path / "cache"))
    assert sum(counted) == len(packed.images) == 2
    assert packed.labels.tolist() == [0, 1, 2, 0]
    shown = packed.pixels(range(4)).numpy()
    assert np.array_equal(shown[0], shown[2])
    assert np.array_equal(shown[:2], np.stack([GRAY.decode(path), GRAY.decode(data)]))
    assert np.array_equal(shown[1], shown[3])


def test_a_relative_path_is_another_file_in_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path / "cache")
    images = []
    for folder in ("one", "two"):
        write_image(tmp_path / folder / "a.png", noise(4, 4, seed=len(images)), compress_level=0)
        os.utime(tmp_path / folder / "a.png", ns=(0, 0))
        monkeypatch.chdir(tmp_path / folder)
        images.append(pack([Sample("a", Path("a.png"), 0)], cache=cache).pixels([0])[0, 0].numpy())
    assert np.array_equal(images[0], noise(4, 4, seed=0))
    assert np.array_equal(images[1], noise(4, 4, seed=1))


def test_a_path_that_is_not_utf8_is_cached_like_any_other(tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"caf\xe9")
    write_folders(root, {"cat": 3, "dog": 3})
    cache, counted = Cache(tmp_path / "cache"), list[int]()
    for _ in range(2):
        packed, _ = pack_splits(open_source("folder", root, val=0, test=0), GRAY, counted.append, None,
                                PackOptions(cache=cache))  # fmt: skip
        assert len(packed["train"]) == 6
    assert sum(counted) == 6


def test_in_memory_data_is_not_cached(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    pack(samples_of(4), cache=cache)
    assert not cache.folder.exists()
