"""`sightline data convert-idx`: IDX files become folders of images that the params-dict trainer reads."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from helpers.commands import Command
from sightline.core.errors import DataError
from sightline.params import FashionMNIST, convert_idx, params


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    """Writes an IDX file of bytes, compressed if the name ends in .gz."""
    data = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]]:
    """The four files under their original names, and their content."""
    random, content = np.random.default_rng(0), {}
    (tmp_path / "data").mkdir()
    for split, count in (("train", 30), ("test", 12)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        write_idx(tmp_path / "data" / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / "data" / f"{split}-labels-idx1-ubyte.gz", labels)
        content[split] = (images, labels)
    return tmp_path / "data", content


@pytest.mark.rows("A36", "A35")
def test_the_files_become_images_with_tables_beside_them(
    files: tuple[Path, dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]], sightline: Command
) -> None:
    folder, content = files
    done = sightline("data", "convert-idx", folder, folder)
    assert done.returncode == 0, done.stderr
    assert "train  30 images and info.csv" in done.stdout
    for split, (images, labels) in content.items():
        lines = (folder / split / "info.csv").read_text().splitlines()
        assert lines == ["files,type", *(f"FashionMNIST_{i}.png,{label}" for i, label in enumerate(labels))]
        assert len(list((folder / split).iterdir())) == len(images) + 1
        for i, pixels in enumerate(images):
            with Image.open(folder / split / f"FashionMNIST_{i}.png") as image:
                assert image.mode == "L"
                assert np.array_equal(np.asarray(image), pixels)
        dataset = FashionMNIST(params | {"flip_images": False}, split, folder)
        assert torch.equal(torch.cat([pixels for pixels, _ in dataset]), torch.from_numpy(images).float().mul(1 / 255))
        assert dataset.packed.labels.tolist() == labels.tolist()


@pytest.mark.rows("A36")
def test_nothing_is_overwritten_and_a_failure_writes_nothing(
    files: tuple[Path, dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]], sightline: Command, tmp_path: Path
) -> None:
    folder, _ = files
    (tmp_path / "out" / "test").mkdir(parents=True)
    done = sightline("data", "convert-idx", folder, tmp_path / "out")
    assert done.returncode == 2
    assert "already exists and is not overwritten" in done.stderr
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["test"]
    (folder / "test-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="no IDX file with the labels of test"):
        convert_idx(folder, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(DataError, match=r"nowhere' does not exist"):
        convert_idx(tmp_path / "nowhere", tmp_path / "other")


def test_other_file_names_and_a_single_split(
    files: tuple[Path, dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]], tmp_path: Path
) -> None:
    folder, _ = files
    for name in ("images-idx3", "labels-idx1"):
        (folder / f"test-{name}-ubyte.gz").unlink()
    assert convert_idx(folder, tmp_path / "out", prefix="digit") == {"train": 30}
    assert (tmp_path / "out" / "train" / "digit_29.png").is_file()
    with pytest.raises(DataError, match="cannot start a file name"):
        convert_idx(folder, tmp_path / "more", prefix="a/b")
