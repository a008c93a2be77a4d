"""Images kept on disk or in memory: what is damaged is noticed, what cannot be written is told, and the pixels are the
same in every case."""

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


def truth(samples: list[Sample]) -> np.ndarray:
    return np.stack([DECODER.decode(sample.image) for sample in samples])


class Packer:
    """Packs the same samples again and again, and counts what is decoded."""

    def __init__(self, samples: list[Sample], store: str, folder: Path, **how: Any):
        self.samples, self.store, self.how = samples, store, how
        self.notes: list[str] = []
        self.cache = Cache(folder, note=self.notes.append)

    def __call__(self) -> tuple[PackedDataset, int]:
        counted: list[int] = []
        source = ListSource(DataInfo("test", ("a", "b")), {"train": self.samples})
        packed, _ = pack_splits(
            source, DECODER, counted.append, packing=PackOptions(self.store, self.cache, **self.how)
        )
        return packed["train"], sum(counted)

    @property
    def entry(self) -> Path:
        (entry,) = self.cache.entries()
        return entry.path


@pytest.fixture(params=STORES)
def packer(request: pytest.FixtureRequest, tmp_path: Path) -> Packer:
    return Packer(samples_in(tmp_path / "pictures"), request.param, tmp_path / "cache")


def check(packed: PackedDataset, samples: list[Sample]) -> None:
    """Every pixel, the fingerprint and the statistics are those of the files themselves."""
    expected = truth(samples)
    assert np.array_equal(packed.pixels(range(len(samples))).numpy(), expected)
    labels = torch.tensor([sample.label for sample in samples])
    plain = PackedDataset(torch.from_numpy(expected), labels, packed.ids, packed.classes)
    assert packed.fingerprint() == plain.fingerprint()
    assert packed.statistics() == plain.statistics()


@pytest.mark.rows("X15")
def test_a_hit_decodes_nothing(packer: Packer, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert packer.notes == []


def test_a_cached_encoded_image_is_not_read_from_its_file(tmp_path: Path) -> None:
    packer = Packer(samples_in(tmp_path / "pictures"), "encoded", tmp_path / "cache")
    packer()
    packed, _ = packer()
    expected = truth(packer.samples)
    for sample in packer.samples:
        sample.image.unlink()  # type: ignore[union-attr]
    assert np.array_equal(packed.pixels(range(COUNT)).numpy(), expected)


def test_cached_pixels_can_be_changed_without_changing_the_cache(tmp_path: Path) -> None:
    packer = Packer(samples_in(tmp_path / "pictures"), "pixels", tmp_path / "cache")
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
def test_a_damaged_file_is_noticed_and_the_entry_made_anew(tmp_path: Path, store: str, name: str, damage: str) -> None:
    packer = Packer(samples_in(tmp_path / "pictures"), store, tmp_path / "cache")
    packer()
    if name == "meta.json":  # its last byte is the end of a line, which means nothing
        truncate(packer.entry / name)
    DAMAGE[damage](packer.entry / name)
    packed, decoded = packer()
    assert decoded == COUNT
    check(packed, packer.samples)
    assert packer.notes == ([] if name == "meta.json" else packer.notes)
    assert all("are damaged; decoding them again" in note for note in packer.notes)
    again, decoded = packer()
    assert decoded == 0, "the entry was not made anew"
    check(again, packer.samples)


@settings(max_examples=40)
@given(data=st.data(), by=st.integers(1, 255))
def test_any_flipped_byte_of_pixels_or_facts_is_noticed_or_harmless(
    data: st.DataObject, by: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    packer = ready(tmp_path_factory, "pixels")
    name = data.draw(st.sampled_from(["pixels.npy", "digests.npy", "moments.npy", "sizes.npy"]))
    file = packer.entry / name
    place = data.draw(st.integers(0, file.stat().st_size - 1))
    whole = file.read_bytes()
    flip(file, place, by)
    try:
        packed, decoded = packer()
        check(packed, packer.samples)
        if name != "pixels.npy" or place >= 128:  # in numpy's header there is room that means nothing
            assert decoded == COUNT
    finally:
        if packer.cache.entries() and file.read_bytes() != whole:
            file.write_bytes(whole)


@settings(max_examples=40)
@given(data=st.data(), by=st.integers(1, 255))
def test_any_flipped_byte_of_encoded_images_is_noticed(
    data: st.DataObject, by: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    packer = ready(tmp_path_factory, "encoded")
    file = packer.entry / "encoded.bin"
    flip(file, data.draw(st.integers(0, file.stat().st_size - 1)), by)
    packed, decoded = packer()
    assert decoded == 0  # it is noticed when the image is read
    check(packed, packer.samples)
    again, decoded = packer()
    assert decoded == COUNT
    check(again, packer.samples)


_READY: dict[str, Packer] = {}


def ready(factory: pytest.TempPathFactory, store: str) -> Packer:
    """A packer whose entry is there; one for all examples."""
    if store not in _READY:
        folder = factory.mktemp(store)
        _READY[store] = Packer(samples_in(folder / "pictures"), store, folder / "cache")
    _READY[store]()
    return _READY[store]


@pytest.mark.parametrize(
    ("old", "new"), [(b"}", b" "), (b"'descr':", b"'descr'("), (b"shape", b"shap"), (b"12", b"92")]
)
def test_a_damaged_header_is_noticed(tmp_path: Path, old: bytes, new: bytes) -> None:
    packer = Packer(samples_in(tmp_path / "pictures"), "pixels", tmp_path / "cache")
    packer()
    file = packer.entry / "pixels.npy"
    content = file.read_bytes()
    assert content[10:128].count(old) == 1
    file.write_bytes(content[:10] + content[10:128].replace(old, new) + content[128:])
    packed, decoded = packer()
    assert decoded == COUNT
    check(packed, packer.samples)


def test_a_header_that_calls_the_pixels_signed_is_noticed(tmp_path: Path) -> None:
    packer = Packer(samples_in(tmp_path / "pictures"), "pixels", tmp_path / "cache")
    packer()
    file = packer.entry / "pixels.npy"
    content = file.read_bytes()
    assert content.count(b"'|u1'") == 1
    file.write_bytes(content.replace(b"'|u1'", b"'|i1'"))
    packed, _ = packer()
    check(packed, packer.samples)


@pytest.mark.parametrize("damage", ["truncated", "longer", "missing", "empty"])
def test_a_file_of_encoded_images_of_another_length_is_noticed_at_once(tmp_path: Path, damage: str) -> None:
    packer = Packer(samples_in(tmp_path / "pictures"), "encoded", tmp_path / "cache")
    packer()
    file = packer.entry / "encoded.bin"
    {**DAMAGE, "longer": lengthen}[damage](file)
    packed, decoded = packer()
    assert decoded == COUNT
    check(packed, packer.samples)


def test_a_damaged_encoded_image_is_read_from_its_file_and_the_entry_forgotten(tmp_path: Path) -> None:
    packer = Packer(samples_in(tmp_path / "pictures"), "encoded", tmp_path / "cache")
    packed, _ = packer()
    entry = packer.entry
    flip(entry / "encoded.bin", 20)  # in the first image of the entry
    assert np.array_equal(packed.pixels(range(1, COUNT)).numpy(), truth(packer.samples)[1:])
    assert len(packer.cache.entries()) == 1
    assert np.array_equal(packed.pixels([0]).numpy(), truth(packer.samples)[:1])
    assert packer.cache.entries() == []
    again, decoded = packer()
    assert decoded == COUNT
    check(again, packer.samples)
    assert packer.entry == entry


def test_a_file_of_encoded_images_that_is_cut_off_while_it_is_open(tmp_path: Path) -> None:
    packer = Packer(samples_in(tmp_path / "pictures"), "encoded", tmp_path / "cache")
    packed, _ = packer()
    os.truncate(packer.entry / "encoded.bin", 10)
    check(packed, packer.samples)


@pytest.mark.parametrize("store", STORES)
def test_a_flipped_digit_in_the_list_of_bad_images_is_noticed(tmp_path: Path, store: str) -> None:
    """Else the zeros in the place of an image that could not be read would be trained on, with its label."""
    packer = Packer(samples_in(tmp_path / "pictures", bad=True), store, tmp_path / "cache", on_bad="skip")
    packed, _ = packer()
    assert [name for name, _ in packed.left_out] == [f"id{BAD}"]
    meta = packer.entry / "meta.json"
    assert json.loads(meta.read_text())["bad"].keys() == {str(BAD)}
    meta.write_text(meta.read_text().replace(f'"{BAD}": "', f'"{BAD ^ 1}": "'))
    again, _ = packer()
    assert [name for name, _ in again.left_out] == [f"id{BAD}"]
    assert again.fingerprint() == packed.fingerprint()
    assert bool(again.pixels(range(COUNT - 1)).flatten(1).any(1).all())


def test_a_torn_meta_is_no_entry(packer: Packer) -> None:
    packer()
    meta = packer.entry / "meta.json"
    text = meta.read_text()
    for torn in ("", "{", text[: len(text) // 2], "null", "[]", "{}", '"a text"', text.replace("sums", "smus")):
        meta.write_text(torn)
        packed, decoded = packer()
        assert decoded == COUNT, torn
        check(packed, packer.samples)


# --- what cannot be written


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


WAYS = [(store, way) for store in STORES for way in ("a file in its place", "a full disk while writing", "no locks")]
WAYS.append(("pixels", "no room"))  # of encoded images nobody knows beforehand how much room they take


@pytest.mark.parametrize(("packer", "way"), WAYS, indirect=["packer"])
def test_where_nothing_can_be_written_the_run_decodes_for_itself(
    packer: Packer, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = packer.cache.folder
    if way == "a file in its place":
        folder.write_text("not a directory")
    elif way == "no locks":
        folder.mkdir()
        (folder / "locks").write_text("not a directory")
    elif way == "no room":
        monkeypatch.setattr(os, "posix_fallocate", full)
    elif packer.store == "pixels":
        monkeypatch.setattr(os, "pwrite", full)
    else:
        monkeypatch.setattr(np, "save", full)
    with pytest.warns(UserWarning, match=r"cannot be kept in '.*'.*data\.cache_dir.*data\.cache=false"):
        packed, decoded = packer()
    assert decoded >= COUNT
    check(packed, packer.samples)
    monkeypatch.undo()
    if folder.is_dir():
        assert [path.name for path in folder.iterdir()] == ["locks"], "a half entry is left"
    if way in ("no room", "a full disk while writing"):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            again, _ = packer()
        check(again, packer.samples)
        assert len(packer.cache.entries()) == 1


@pytest.mark.parametrize("store", STORES)
def test_a_really_full_file_system(tmp_path: Path, store: str) -> None:
    """A tmpfs of 40 KB, where this process may mount one."""
    with small_disk(tmp_path / "small", "40k") as place:
        samples = [
            Sample(f"id{i}", write_image(tmp_path / f"{i}.png", noise(5, 4, 3, seed=i), compress_level=0), i % 2)
            for i in range(900)
        ]
        packer = Packer(samples, store, place / "cache")
        with pytest.warns(UserWarning, match="No space left on device"):
            packed, _ = packer()
        check(packed, samples)
        assert [path.name for path in (place / "cache").iterdir()] == ["locks"]


def test_a_cache_that_can_only_be_read_is_as_good(packer: Packer, monkeypatch: pytest.MonkeyPatch) -> None:
    packer()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "read-only")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(Path, "touch", refuse)
    packed, decoded = packer()
    assert decoded == 0
    check(packed, packer.samples)


def test_a_damaged_entry_in_a_cache_that_can_only_be_read(packer: Packer, monkeypatch: pytest.MonkeyPatch) -> None:
    packer()
    truncate(packer.entry / "digests.npy")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "read-only")

    for name in ("unlink", "mkdir", "touch"):
        monkeypatch.setattr(Path, name, refuse)
    with pytest.warns(UserWarning, match="cannot be kept"):
        packed, _ = packer()
    check(packed, packer.samples)


def test_what_could_not_be_read_for_a_passing_reason_is_tried_again(packer: Packer) -> None:
    """A file without read permission, too many open files, a share that hangs: afterwards the file's size and time are
    what they were, so the cache must not remember that it could not be read. Root may read everything; here a
    directory stands in for a while, of the same size and time."""
    file = packer.samples[7].image
    assert isinstance(file, Path)
    data = file.read_bytes()
    file.unlink()
    file.mkdir()
    os.utime(file, ns=(10**18, 10**18))
    size = file.stat().st_size
    if size < len(data):
        pytest.skip("directories are too small here")
    with pytest.raises(DataError, match=r"cannot read .*07\.png': Is a directory"):
        packer()
    file.rmdir()
    file.write_bytes(data.ljust(size, b"\0"))
    os.utime(file, ns=(10**18, 10**18))
    packed, _ = packer()
    check(packed, packer.samples)


@pytest.mark.parametrize("cached", [False, True])
def test_a_picture_that_shrinks_while_it_is_used_is_named(tmp_path: Path, cached: bool) -> None:
    """The part that is cut from it was worked out from the size it had when it was packed."""
    samples = [Sample(f"id{i}", write_image(tmp_path / f"{i}.png", noise(50, 50, 3, seed=i)), i % 2) for i in range(4)]
    source = ListSource(DataInfo("test", ("a", "b")), {"train": samples})
    how = PackOptions("encoded", Cache(tmp_path / "cache") if cached else None)
    packed = pack_splits(source, DECODER, packing=how)[0]["train"]
    if cached:
        flip(next(iter(how.cache.entries())).path / "encoded.bin", 60)  # type: ignore[union-attr]
    for i in range(4):
        write_image(tmp_path / f"{i}.png", noise(9, 9, 3, seed=i))
    batches = BatchLoader(packed, DECODER, 4, augment=[RandomResizedCrop((0.05, 0.1))])
    batches.seek(3)
    with pytest.raises(DataError, match=r"\d\.png'"):
        list(batches)
