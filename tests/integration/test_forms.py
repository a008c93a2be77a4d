"""The same images in any format are the same data: equal fingerprints, equal splits, equal weights."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

import sightline
from sightline.core.files import sha256
from sightline.data.cache.directory import Cache
from sightline.data.cache.pack import PackOptions, pack_splits
from sightline.data.images.preprocess import Preprocess
from sightline.data.sources.open import open_source

Samples = list[tuple[str, NDArray[np.uint8], int]]


def read(mnist: Path, count: int | None) -> Samples:
    """(file name, uint8 [28,28], digit) in the order of the table."""
    with next(mnist.glob("*.csv")).open(newline="") as file:
        rows = list(csv.DictReader(file))[:count]
    return [(row["file"], np.asarray(Image.open(mnist / row["file"])), int(row["target"])) for row in rows]


def as_csv(samples: Samples, root: Path) -> dict[str, Any]:
    for name, pixels, _ in samples:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name)
    lines = ["file,target", *(f"{name},{label}" for name, _, label in samples)]
    (root / "table.csv").write_text("\n".join(lines) + "\n")
    return {"data": {"source": "csv", "root": str(root)}}


def as_folders(samples: Samples, root: Path) -> dict[str, Any]:
    for position, (_, pixels, label) in enumerate(samples):
        path = root / str(label) / f"{(position * 7919) % 100_003}.png"  # an order that no other format has
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return {"data": {"source": "folder", "root": str(root)}}


def as_zip(samples: Samples, root: Path) -> dict[str, Any]:
    as_folders(samples, root / "unpacked")
    with zipfile.ZipFile(root / "images.zip", "w") as archive:
        for path in sorted((root / "unpacked").rglob("*.png")):
            archive.write(path, path.relative_to(root / "unpacked"))
    return {"data": {"root": str(root / "images.zip")}}


def as_idx(samples: Samples, root: Path) -> dict[str, Any]:
    root.mkdir()
    images = np.stack([pixels for _, pixels, _ in samples])
    labels = np.array([label for *_, label in samples], np.uint8)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        (root / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
    return {"data": {"source": "idx", "root": str(root)}}


def as_npz(samples: Samples, root: Path) -> dict[str, Any]:
    root.mkdir()
    images = np.stack([pixels for _, pixels, _ in samples])
    np.savez(root / "mnist.npz", x_train=images, y_train=np.array([label for *_, label in samples]))
    return {"data": {"source": "npz", "root": str(root / "mnist.npz")}}


class LikeTorchvision(Dataset[tuple[torch.Tensor, int]]):
    """Returns items as torchvision's MNIST does with ToTensor: float32 [1,28,28] in [0, 1] and a class index."""

    def __init__(self, samples: Samples):
        self.samples = samples
        self.targets = torch.tensor([label for *_, label in samples])
        self.classes = [f"{digit} - {name}" for digit, name in enumerate(["zero", "one", "two", "three", "four"])]
        self.classes += ["5 - five", "6 - six", "7 - seven", "8 - eight", "9 - nine"]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        _, pixels, label = self.samples[index]
        return torch.from_numpy(pixels.copy())[None].float() / 255, label


def as_dataset(samples: Samples, root: Path) -> dict[str, Any]:
    return {"source": LikeTorchvision(samples)}


FORMATS: dict[str, Callable[[Samples, Path], dict[str, Any]]] = {
    "csv": as_csv,
    "folders": as_folders,
    "zip": as_zip,
    "idx.gz": as_idx,
    "npz": as_npz,
    "a torch Dataset": as_dataset,
}


def trained(changes: dict[str, Any], runs: Path, name: str) -> tuple[dict[str, str], str]:
    """Trains one epoch with the default splits; returns the fingerprints and the SHA-256 of the exported weights."""
    config = {
        "run": {"dir": str(runs), "name": name},
        "data": {"preprocess": {"size": 28, "channels": 1}, "augment": {"flip": 0.5}, **changes.get("data", {})},
        "trainer": {"max_epochs": 1, "progress": False, "device": "cpu", "threads": 1},
    }
    result = sightline.fit(config, **({"source": changes["source"]} if "source" in changes else {}))
    assert result.run is not None
    weights = result.run / "exported" / "model.safetensors"
    return json.loads((result.run / "data.json").read_text())["fingerprint"], sha256(weights)


@pytest.mark.parametrize("count", [400, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.rows("A35", "A36", "A38", "B03", "X15")
def test_every_format_of_the_same_images_trains_the_same_model(mnist: Path, tmp_path: Path, count: int | None) -> None:
    samples = read(mnist, count)
    results = {name: trained(make(samples, tmp_path / name), tmp_path / "runs", name) for name, make in FORMATS.items()}
    fingerprints, weights = (dict(zip(results, part, strict=True)) for part in zip(*results.values(), strict=True))
    assert set(fingerprints["csv"]) == {"train", "val", "test"}
    assert all(values == fingerprints["csv"] for values in fingerprints.values()), fingerprints
    assert set(weights.values()) == {weights["csv"]}


def test_no_copy_of_a_training_image_is_in_another_split(tmp_path: Path) -> None:
    """If splits were drawn by row, about every third copy under another name would be in another split."""
    random = np.random.default_rng(0)
    for number in range(120):
        pixels = random.integers(0, 256, (6, 6), dtype=np.uint8)
        for copy in range(1 + number % 3):
            path = tmp_path / "data" / f"c{number % 2}" / f"{number}-{copy}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    for seed in range(5):
        source = open_source("folder", tmp_path / "data", val=0.2, test=0.2, seed=seed)
        packed, _ = pack_splits(source, Preprocess(6, 6, 1), packing=PackOptions(cache=Cache(tmp_path / "cache")))
        digests = {
            split: {hashlib.sha256(image.numpy()).hexdigest() for image in part.pixels(range(len(part)))}
            for split, part in packed.items()
        }
        assert not digests["train"] & digests["val"]
        assert not digests["train"] & digests["test"]
        assert not digests["val"] & digests["test"]
        assert sum(map(len, packed.values())) == 240
        assert 24 <= len(packed["test"]) <= 48
        assert sorted(name for part in packed.values() for name in part.ids) == sorted(
            sample.id for part in source.splits.values() for sample in part
        )
