"""An image that changes during a run is noticed and named, from every kind of source."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

import sightline
from helpers.images import noise
from sightline.config.typed import merge
from sightline.core.errors import ArtifactError, DataError
from sightline.core.files import sha256
from sightline.data.cache.dataset import PackedDataset
from sightline.data.cache.directory import Cache
from sightline.data.cache.pack import PackOptions, pack_splits
from sightline.data.sources.adapt import as_source
from sightline.data.sources.open import open_source
from sightline.engine.trainer import Callback, Trainer

COUNT = 24


def write_images(root: Path, split: str = "train", first: int = 0) -> Path:
    for number in range(COUNT):
        path = root / split / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(20, 24, 3, seed=first + number)).save(path)
    return root


def config(root: Path, runs: Path, name: str, **changes: Any) -> dict[str, Any]:
    plain = {
        "run": {"dir": str(runs), "name": name},
        "data": {
            "root": str(root),
            "preprocess": {"size": 16},
            "store": "encoded",
            "cache": False,
            "batch_size": 8,
            "workers": 2,
        },
        "module": {"network": {"width": 4}},
        "trainer": {"max_epochs": 3, "progress": False, "device": "cpu", "threads": 1},
    }
    return merge(plain, changes)


class Replaces(Callback):
    """Replaces an image after the first epoch; with `keep_size` its file keeps its length."""

    def __init__(self, path: Path, keep_size: bool = False):
        self.path, self.keep_size, self.done = path, keep_size, False

    def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        if not self.done:
            replace(self.path, self.keep_size)
            self.done = True


def replace(path: Path, keep_size: bool = False) -> None:
    before = path.read_bytes()
    Image.fromarray(noise(20, 24, 3, seed=999)).save(path)
    if keep_size:
        after = path.read_bytes()
        length = max(len(before), len(after))
        path.write_bytes(after.ljust(length, b"\0")[:length])
    assert path.read_bytes() != before


@pytest.mark.parametrize("crop", [None, [0.5, 1.0]])
@pytest.mark.parametrize("split", ["train", "val"])
def test_an_image_that_is_replaced_while_a_run_trains_is_named(
    split: str, crop: list[float] | None, tmp_path: Path
) -> None:
    """The error names it; after the image is restored, the run resumes and ends with the same bits."""
    root = tmp_path / "images"
    for number, part in enumerate(("train", "val", "test")):
        write_images(root, part, 100 * number)
    changes: dict[str, Any] = {"data": {"augment": {"crop": crop}}}
    sightline.fit(config(root, tmp_path / "runs", "uninterrupted", **changes))
    path = root / split / "b" / "7.png"
    shutil.copy2(path, tmp_path / "original.png")
    with pytest.raises(DataError, match=rf"'{path}' has changed since this run first read it"):
        sightline.fit(config(root, tmp_path / "runs", "interrupted", **changes), callbacks=[Replaces(path)])
    run = tmp_path / "runs" / "interrupted"
    with pytest.raises(ArtifactError, match="a training with other images or labels"):
        sightline.resume(run)
    shutil.copy2(tmp_path / "original.png", path)
    result = sightline.resume(run).fit()
    assert result.epochs == 3
    weights = [tmp_path / "runs" / name / "exported" / "model.safetensors" for name in ("uninterrupted", "interrupted")]
    assert sha256(weights[0]) == sha256(weights[1])


@pytest.mark.parametrize("changes", [{"cache": True}, {"store": "pixels"}])
def test_a_run_that_stores_copies_keeps_using_them(changes: dict[str, Any], tmp_path: Path) -> None:
    root = write_images(tmp_path / "images")
    changes = {"data": {"cache_dir": str(tmp_path / "cache"), **changes}}
    result = sightline.fit(config(root, tmp_path / "runs", "uninterrupted", **changes))
    path = root / "train" / "a" / "2.png"
    again = sightline.fit(config(root, tmp_path / "runs", "replaced", **changes), callbacks=[Replaces(path)])
    assert again.history == result.history
    assert again.metrics == result.metrics


def test_a_file_of_the_same_size_and_time_is_noticed_too(tmp_path: Path) -> None:
    root = write_images(tmp_path / "images")
    path = root / "train" / "a" / "2.png"
    packed, _ = pack_splits(open_source("folder", root, val=0, test=0), {"size": 16}, packing=PackOptions("encoded"))
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-8] ^= 255  # in the checksum of the last chunk, which Pillow does not check
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    with pytest.raises(DataError, match=r"2\.png' has changed"):
        packed["train"].pixels(range(COUNT))


def test_the_file_behind_a_damaged_copy_is_compared_too(tmp_path: Path) -> None:
    """A damaged copy in the cache is read from its original file, unless that file has changed."""
    root = write_images(tmp_path / "images")
    packing = PackOptions("encoded", Cache(tmp_path / "cache"))
    source = open_source("folder", root, val=0, test=0)
    packed, _ = pack_splits(source, {"size": 16}, packing=packing)
    expected = packed["train"].pixels(range(COUNT))
    (entry,) = packing.cache.entries()  # type: ignore[union-attr]
    file = entry.path / "encoded.bin"
    file.write_bytes(bytes(file.stat().st_size))
    packed, _ = pack_splits(source, {"size": 16}, packing=packing)
    assert torch.equal(packed["train"].pixels(range(COUNT)), expected)
    packed, _ = pack_splits(source, {"size": 16}, packing=packing)
    (entry,) = packing.cache.entries()  # type: ignore[union-attr]
    (entry.path / "encoded.bin").write_bytes(bytes(file.stat().st_size))
    replace(root / "train" / "a" / "2.png")
    with pytest.raises(DataError, match=r"2\.png' has changed"):
        packed["train"].pixels(range(COUNT))


def test_a_member_of_an_archive_that_is_replaced_is_named(tmp_path: Path) -> None:
    root = write_images(tmp_path / "images")
    files = sorted((root / "train").rglob("*.png"))

    def write() -> None:
        with zip_path.open("r+b") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for path in files:
                archive.write(path, path.relative_to(root / "train"))

    zip_path = tmp_path / "images.zip"
    zip_path.touch()
    write()
    source = open_source("folder", zip_path, val=0, test=0)
    packed, _ = pack_splits(source, {"size": 16}, packing=PackOptions("encoded"))
    packed["train"].pixels(range(COUNT))
    chosen = files[3]
    size = chosen.stat().st_size
    replace(chosen)
    chosen.write_bytes(chosen.read_bytes().ljust(size, b"\0")[:size])  # every member keeps its offset
    write()
    with pytest.raises(DataError):
        packed["train"].pixels(range(COUNT))


@pytest.mark.parametrize("kind", ["array", "Pillow", "tensor"])
def test_an_item_of_a_dataset_that_changes_is_named(kind: str) -> None:
    """Items of a dataset have no file bytes, so their pixels are compared."""

    class Changing(Dataset[tuple[Any, int]]):
        def __init__(self) -> None:
            self.images = [noise(16, 16, 3, seed=number) for number in range(COUNT)]
            self.targets = [number % 2 for number in range(COUNT)]

        def __len__(self) -> int:
            return COUNT

        def __getitem__(self, index: int) -> tuple[Any, int]:
            image = self.images[index]
            if kind == "Pillow":
                return Image.fromarray(image), index % 2
            return (torch.from_numpy(image).permute(2, 0, 1) if kind == "tensor" else image), index % 2

    data = Changing()
    packed: dict[str, PackedDataset]
    packed, _ = pack_splits(as_source(data, val=0, test=0), {"size": 16}, packing=PackOptions("encoded"))
    expected = packed["train"].pixels(range(COUNT))
    assert torch.equal(packed["train"].pixels(range(COUNT)), expected)
    data.images[5] = data.images[5].copy()
    data.images[5][3, 4, 1] ^= 1
    with pytest.raises(DataError, match=r"train/00005' \(the train dataset \(Changing\), item 5\) has changed"):
        packed["train"].pixels(np.arange(COUNT))
