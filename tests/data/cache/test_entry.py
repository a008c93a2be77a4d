"""Images stored on disk or in memory: damage is detected, failed writes are reported, and the pixels are the same in
every case."""

from __future__ import annotations

import errno
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.disks import small_disk
from helpers.images import noise, write_image
from sightline.core.errors import DataError
from sightline.data.augment.geometry import RandomResizedCrop
from sightline.data.cache.dataset import PackedDataset
from sightline.data.cache.directory import Cache
from sightline.data.cache.pack import PackOptions, pack_splits
from sightline.data.images import decode as decode_module
from sightline.data.images.preprocess import Preprocess
from sightline.data.loading.loader import BatchLoader
from sightline.data.records import DataInfo, Sample
from sightline.data.sources.open import ListSource

DECODER = Preprocess(5, 4, 3)
COUNT = 12
BAD = 7  # the row of an image that cannot be read, where there is one
STORES = ("pixels", "encoded")


def samples_in(folder: Path, bad: bool = False) -> list[Sample]:
    samples = [
        Sample(f"id{i}", write_image(folder / f"{i:02}.png", noise(5, 4, 3, seed=i)), i % 2) for i in range(COUNT)
    ]
    if bad:
        (folder / f"{BAD:02}.png").write_bytes(b"no image")
    return samples


def decode_all(samples: list[Sample]) -> np.ndarray:
    return np.stack([DECODER.decode(sample.image) for sample in samples])


class Packer:
    """Packs the same samples repeatedly and counts the decoded images."""

    def __init__(self, samples: list[Sample], store: str, folder: Path, **options: Any):
        self.samples, self.store, self.options = samples, store, options
        self.cache = Cache(folder)

    def __call__(self) -> tuple[PackedDataset, int]:
        counted: list[int] = []
        source = ListSource(DataInfo("test", ("a", "b")), {"train": self.samples})
        packed, _ = pack_splits(
            source, DECODER, counted.append, packing=PackOptions(self.store, self.cache, **self.options)
        )
        return packed["train"], sum(counted)

    @property
    def entry(self) -> Path:
        (entry,) = self.cache.entries()
        return entry.path


@pytest.fixture(params=STORES)
def packer(request: pytest.FixtureRequest, tmp_path: Path) -> Packer:
    return Packer(samples_in(tmp_path / "images"), request.param, tmp_path / "cache")


def check(packed: PackedDataset, samples: list[Sample]) -> None:
    """Asserts that pixels, fingerprint and statistics equal those of the files themselves."""
    expected = decode_all(samples)
    assert np.array_equal(packed.pixels(range(len(samples))).numpy(), expected)
    labels = torch.tensor([sample.label for sample in samples])
    plain = PackedDataset(torch.from_numpy(expected), labels, packed.ids, packed.classes)
    assert packed.fingerprint() == plain.fingerprint()
    assert packed.statistics() == plain.statistics()


@pytest.mark.rows("X15")
def test_a_hit_decodes_nothing(
    packer: Packer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, decoded = packer()
    assert decoded == COUNT
    check(first, packer.samples)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an image was decoded")

    with monkeypatch.context() as context:
        context.setattr(decode_module, "read_file", refuse)
        context.setattr(Preprocess, "decode_with_stats", refuse)
        context.setattr(decode_module, "decode_jpeg_turbo", refuse)
        again, decoded = packer()
        assert decoded == 0
        assert again.fingerprint() == first.fingerprint()
        assert again.statistics() == first.statistics()
        if packer.store == "pixels":
            assert np.array_equal(again.pixels(range(COUNT)).numpy(), first.pixels(range(COUNT)).numpy())
    check(again, packer.samples)
    assert caplog.messages == []


def test_a_cached_encoded_image_is_not_read_from_its_file(tmp_path: Path) -> None:
    packer = Packer(samples_in(tmp_path / "images"), "encoded", tmp_path / "cache")
    packer()
    packed, _ = packer()
    expected = decode_all(packer.samples)
    for sample in packer.samples:
        sample.image.unlink()  # type: ignore[union-attr]
    assert np.array_equal(packed.pixels(range(COUNT)).numpy(), expected)


def test_cached_pixels_can_be_changed_without_changing_the_cache(tmp_path: Path) -> None:
    packer = Packer(samples_in(tmp_path / "images"), "pixels", tmp_path / "cache")
    packed, _ = packer()
    assert isinstance(packed.images, torch.Tensor)
    packed.images.zero_()
    again, decoded = packer()
    assert decoded == 0
    check(again, packer.samples)


# --- damage


def flip(path: Path, place: int, by: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ by]))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


DAMAGE: dict[str, Callable[[Path], None]] = {
    "first byte": lambda path: flip(path, 0),
    "last byte": lambda path: flip(path, path.stat().st_size - 1),
    "last bit": lambda path: flip(path, path.stat().st_size - 1, 128),
    "truncated": truncate,
    "empty": lambda path: os.truncate(path, 0),
    "zeros": lambda path: (path.write_bytes(bytes(path.stat().st_size)), None)[1],
    "missing": Path.unlink,
    "a directory": lambda path: (path.unlink(), path.mkdir())[0],  # type: ignore[func-returns-value]
}
FILES = {
    "pixels": ("pixels.npy", "digests.npy", "moments.npy", "sizes.npy", "keys.npy", "meta.json"),
    "encoded": (
        "offsets.npy",
        "encoded_digests.npy",
        "digests.npy",
        "moments.npy",
        "sizes.npy",
        "keys.npy",
        "meta.json",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(("store", "name"), [(store, name) for store in STORES for name in FILES[store]])
def test_a_damaged_file_is_detected_and_the_entry_rebuilt(
    tmp_path: Path, store: str, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    packer = Packer(samples_in(tmp_path / "images"), store, tmp_path / "cache")
    packer()
    if name == "meta.json":  # its last byte is a line end without meaning
        truncate(packer.entry / name)
    DAMAGE[damage](packer.entry / name)
    caplog.clear()
    packed, decoded = packer()
    assert decoded == COUNT
    check(packed, packer.samples)
    assert name != "meta.json" or caplog.messages == []
    assert all("are damaged. They are decoded again" in message for message in caplog.messages)
    again, decoded = packer()
    assert decoded == 0, "the entry was not rebuilt"
    check(again, packer.samples)


@settings(max_examples=40)
@given(data=st.data(), by=st.integers(1, 255))
def test_any_flipped_byte_of_pixels_or_stats_is_detected_or_harmless(
    data: st.DataObject, by: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    packer = ready(tmp_path_factory, "pixels")
    name = data.draw(st.sampled_from(["pixels.npy", "digests.npy", "moments.npy", "sizes.npy"]))
    file = packer.entry / name
    place = data.draw(st.integers(0, file.stat().st_size - 1))
    original = file.read_bytes()
    flip(file, place, by)
    try:
        packed, decoded = packer()
        check(packed, packer.samples)
        if name != "pixels.npy" or place >= 128:  # NumPy's header has unused bytes
            assert decoded == COUNT
    finally:
        if packer.cache.entries() and file.read_bytes() != original:
            file.write_bytes(original)


@settings(max_examples=40)
@given(data=st.data(), by=st.integers(1, 255))
def test_any_flipped_byte_of_encoded_images_is_detected(
    data: st.DataObject, by: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    packer = ready(tmp_path_factory, "encoded")
    file = packer.entry / "encoded.bin"
    flip(file, data.draw(st.integers(0, file.stat().st_size - 1)), by)
    packed, decoded = packer()
    assert decoded == 0  # it is detected when the image is read
    check(packed, packer.samples)
    again, decoded = packer()
    assert decoded == COUNT
    check(again, packer.samples)


_READY: dict[str, Packer] = {}


def ready(factory: pytest.TempPathFactory, store: str) -> Packer:
    """A packer whose entry exists, the same one for all examples."""
    if store not in _READY:
        folder = factory.mktemp(store)
        _READY[store] = Packer(samples_in(folder / "images"), store, folder / "cache")
    _READY[store]()
    return _READY[store]


@pytest.mark.parametrize(
    ("old", "new"), [(b"}", b" "), (b"'descr':", b"'descr'("), (b"shape", b"shap"), (b"12", b"92")]
)
def test_a_damaged_header_is_detected(tmp_path: Path, old: bytes, new: bytes) -> None:
    packer = Packer(samples_in(tmp_path / "images"), "pixels", tmp_path / "cache")
    packer()
    file = packer.entry / "pixels.npy"
    content = file.read_bytes()
    assert content[10:128].count(old) == 1
    file.write_bytes(content[:10] + content[10:128].replace(old, new) + content[128:])
    packed, decoded = packer()
    assert decoded == COUNT
    check(packed, packer.samples)


def test_a_header_with_a_signed_dtype_is_detected(tmp_path: Path) -> None:
    packer = Packer(samples_in(tmp_path / "images"), "pixels", tmp_path / "cache")
    packer()
    file = packer.entry / "pixels.npy"
    content = file.read_bytes()
    assert content.count(b"'|u1'") == 1
    file.write_bytes(content.replace(b"'|u1'", b"'|i1'"))
    packed, _ = packer()
    check(packed, packer.samples)


@pytest.mark.parametrize("damage", ["truncated", "longer", "missing", "empty"])
def test_a_file_of_encoded_images_of_another_length_is_detected_at_once(tmp_path: Path, damage: str) -> None:
    packer = Packer(samples_in(tmp_path / "images"), "encoded", tmp_path / "cache")
    packer()
    file = packer.entry / "encoded.bin"
    {**DAMAGE, "longer": lengthen}[damage](file)
    packed, decoded = packer()
    assert decoded == COUNT
    check(packed, packer.samples)


def test_a_damaged_encoded_image_is_read_from_its_file_and_the_entry_invalidated(tmp_path: Path) -> None:
    packer = Packer(samples_in(tmp_path / "images"), "encoded", tmp_path / "cache")
    packed, _ = packer()
    entry = packer.entry
    flip(entry / "encoded.bin", 20)  # in the first image of the entry
    assert np.array_equal(packed.pixels(range(1, COUNT)).numpy(), decode_all(packer.samples)[1:])
    assert len(packer.cache.entries()) == 1
    assert np.array_equal(packed.pixels([0]).numpy(), decode_all(packer.samples)[:1])
    assert packer.cache.entries() == []
    again, decoded = packer()
    assert decoded == COUNT
    check(again, packer.samples)
    assert packer.entry == entry


def test_a_file_of_encoded_images_may_be_truncated_while_it_is_open(tmp_path: Path) -> None:
    packer = Packer(samples_in(tmp_path / "images"), "encoded", tmp_path / "cache")
    packed, _ = packer()
    os.truncate(packer.entry / "encoded.bin", 10)
    check(packed, packer.samples)


@pytest.mark.parametrize("store", STORES)
def test_a_flipped_digit_in_the_list_of_bad_images_is_detected(tmp_path: Path, store: str) -> None:
    """Otherwise the zeros stored for an unreadable image would be trained on with its label."""
    packer = Packer(samples_in(tmp_path / "images", bad=True), store, tmp_path / "cache", on_bad="skip")
    packed, _ = packer()
    assert [name for name, _ in packed.left_out] == [f"id{BAD}"]
    meta = packer.entry / "meta.json"
    assert json.loads(meta.read_text())["bad"].keys() == {str(BAD)}
    meta.write_text(meta.read_text().replace(f'"{BAD}": "', f'"{BAD ^ 1}": "'))
    again, _ = packer()
    assert [name for name, _ in again.left_out] == [f"id{BAD}"]
    assert again.fingerprint() == packed.fingerprint()
    assert bool(again.pixels(range(COUNT - 1)).flatten(1).any(1).all())


def test_an_incomplete_metadata_file_is_not_an_entry(packer: Packer) -> None:
    packer()
    meta = packer.entry / "meta.json"
    text = meta.read_text()
    for damaged in ("", "{", text[: len(text) // 2], "null", "[]", "{}", '"a text"', text.replace("sums", "smus")):
        meta.write_text(damaged)
        packed, decoded = packer()
        assert decoded == COUNT, damaged
        check(packed, packer.samples)


# --- failed writes


def disk_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


WAYS = [(store, way) for store in STORES for way in ("a file in its place", "a full disk while writing", "no locks")]
WAYS.append(("pixels", "no room"))  # the size of encoded images is not known in advance


@pytest.mark.parametrize(("packer", "way"), WAYS, indirect=["packer"])
def test_a_run_whose_cache_cannot_be_written_decodes_without_it(
    packer: Packer, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = packer.cache.folder
    if way == "a file in its place":
        folder.write_text("not a directory")
    elif way == "no locks":
        folder.mkdir()
        (folder / "locks").write_text("not a directory")
    elif way == "no room":
        monkeypatch.setattr(os, "posix_fallocate", disk_full)
    elif packer.store == "pixels":
        monkeypatch.setattr(os, "pwrite", disk_full)
    else:
        monkeypatch.setattr(np, "save", disk_full)
    with pytest.warns(UserWarning, match=r"cannot be kept in '.*'.*data\.cache_dir.*data\.cache=false"):
        packed, decoded = packer()
    assert decoded >= COUNT
    check(packed, packer.samples)
    monkeypatch.undo()
    if folder.is_dir():
        assert [path.name for path in folder.iterdir()] == ["locks"], "a partial entry remains"
    if way in ("no room", "a full disk while writing"):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            again, _ = packer()
        check(again, packer.samples)
        assert len(packer.cache.entries()) == 1


@pytest.mark.parametrize("store", STORES)
def test_a_full_file_system(tmp_path: Path, store: str) -> None:
    """A tmpfs of 40 KB, where this process may mount one."""
    with small_disk(tmp_path / "small", "40k") as disk:
        samples = [
            Sample(f"id{i}", write_image(tmp_path / f"{i}.png", noise(5, 4, 3, seed=i), compress_level=0), i % 2)
            for i in range(900)
        ]
        packer = Packer(samples, store, disk / "cache")
        with pytest.warns(UserWarning, match="No space left on device"):
            packed, _ = packer()
        check(packed, samples)
        assert [path.name for path in (disk / "cache").iterdir()] == ["locks"]


def test_a_read_only_cache_is_used(packer: Packer, monkeypatch: pytest.MonkeyPatch) -> None:
    packer()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "read-only")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(Path, "touch", refuse)
    packed, decoded = packer()
    assert decoded == 0
    check(packed, packer.samples)


def test_a_damaged_entry_in_a_read_only_cache_is_decoded_again(packer: Packer, monkeypatch: pytest.MonkeyPatch) -> None:
    packer()
    truncate(packer.entry / "digests.npy")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "read-only")

    for name in ("unlink", "mkdir", "touch"):
        monkeypatch.setattr(Path, name, refuse)
    with pytest.warns(UserWarning, match="cannot be kept"):
        packed, _ = packer()
    check(packed, packer.samples)


def test_a_temporary_read_error_is_not_remembered(packer: Packer) -> None:
    """After missing permissions, too many open files or a network share that hangs, a file has the same size and time
    as before, so the cache must not remember the error. Root may read everything, so here a directory of the same size
    and time replaces the file for a while."""
    file = packer.samples[7].image
    assert isinstance(file, Path)
    data = file.read_bytes()
    file.unlink()
    file.mkdir()
    os.utime(file, ns=(10**18, 10**18))
    size = file.stat().st_size
    if size < len(data):
        pytest.skip("directories are too small here")
    with pytest.raises(DataError, match=r"Cannot read .*07\.png': Is a directory"):
        packer()
    file.rmdir()
    file.write_bytes(data.ljust(size, b"\0"))
    os.utime(file, ns=(10**18, 10**18))
    packed, _ = packer()
    check(packed, packer.samples)


@pytest.mark.parametrize("cached", [False, True])
def test_an_image_that_shrinks_while_it_is_used_is_named(tmp_path: Path, cached: bool) -> None:
    """The crop was computed from the size that the image had when it was packed."""
    samples = [Sample(f"id{i}", write_image(tmp_path / f"{i}.png", noise(50, 50, 3, seed=i)), i % 2) for i in range(4)]
    source = ListSource(DataInfo("test", ("a", "b")), {"train": samples})
    packing = PackOptions("encoded", Cache(tmp_path / "cache") if cached else None)
    packed = pack_splits(source, DECODER, packing=packing)[0]["train"]
    if cached:
        flip(next(iter(packing.cache.entries())).path / "encoded.bin", 60)  # type: ignore[union-attr]
    for i in range(4):
        write_image(tmp_path / f"{i}.png", noise(9, 9, 3, seed=i))
    batches = BatchLoader(packed, DECODER, 4, augment=[RandomResizedCrop((0.05, 0.1))])
    batches.seek(3)
    with pytest.raises(DataError, match=r"\d\.png'"):
        list(batches)
