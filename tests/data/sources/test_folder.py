"""Folders that are not classes, images that cannot be read, and images with two labels are reported before training."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

import sightline
from helpers.commands import Command
from sightline.compose.checks import check_conflicts
from sightline.core.errors import DataError, ImageError
from sightline.data.cache.pack import pack_splits
from sightline.data.images.decode import decode_image
from sightline.data.images.preprocess import Preprocess
from sightline.data.sources.open import open_source
from sightline.data.sources.tree import image_files


def fill(root: Path, *folders: str, images: int = 3) -> Path:
    """Writes PNG files of noise to each folder, no two equal."""
    rng = np.random.default_rng(sum(map(ord, "".join(folders))))
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for i in range(images):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / folder / f"{i}.png")
    return root


def zipped(root: Path) -> Path:
    """Writes the same tree as a zip file."""
    file = root.with_suffix(".zip")
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(root.rglob("*")):
            archive.write(path, path.relative_to(root))
    return file


# --- folders that look like splits


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize(
    "names",
    [
        ("training_set", "test_set"), ("Training Data", "Validation Data"), ("train-images", "eval"), ("cats", "dev"),
        ("train1", "train2"), ("TESTING", "dogs"), ("valset", "trainset"), ("hold-out", "rest"), ("test split", "x"),
    ],
)  # fmt: skip
def test_folders_named_like_splits_are_not_classes(tmp_path: Path, names: tuple[str, ...], archive: bool) -> None:
    root = fill(tmp_path / "data", *(f"{name}/{inner}" for name in names for inner in ("a", "b")))
    with pytest.raises(
        DataError, match=r"look like splits, but would be read as classes.*train, val and test"
    ) as caught:
        open_source("folder", zipped(root) if archive else root)
    assert "list all of them in data.classes" in str(caught.value)


@pytest.mark.parametrize("names", [("trainers", "boots"), ("validators", "x"), ("test_tube", "flask"), ("a", "b")])
def test_other_names_are_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert open_source("folder", fill(tmp_path, *names)).info.classes == tuple(sorted(names))


def test_a_class_named_like_a_split_is_listed_in_the_config(tmp_path: Path) -> None:
    root = fill(tmp_path, "training_set", "other")
    source = open_source("folder", root, classes=["other", "training_set"])
    assert source.info.classes == ("other", "training_set")


def test_splits_inside_splits_are_detected(tmp_path: Path) -> None:
    root = fill(tmp_path, "train/training_set", "train/test_set", "val/training_set", "val/test_set")
    with pytest.raises(DataError, match="look like splits"):
        open_source("folder", root)


@pytest.mark.parametrize("names", [("bus", "car", "train"), ("valid", "invalid"), ("train", "test", "bench")])
def test_a_class_inside_a_split_may_be_named_like_a_split(tmp_path: Path, names: tuple[str, ...]) -> None:
    """For example the class 'train' of vehicles."""
    root = fill(tmp_path, *(f"{split}/{name}" for split in ("train", "test") for name in names))
    assert open_source("folder", root).info.classes == tuple(sorted(names))


def test_a_run_of_an_earlier_version_is_resumed_on_folders_named_like_splits(tmp_path: Path) -> None:
    root = fill(tmp_path, "training_set/a", "training_set/b", "test_set/a", "test_set/b")
    assert open_source("folder", root, known=["test_set", "training_set"]).info.classes == ("test_set", "training_set")


@pytest.mark.parametrize("archive", [False, True])
def test_folders_that_all_contain_the_same_folders_are_not_classes(tmp_path: Path, archive: bool) -> None:
    root = fill(tmp_path / "data", *(f"{place}/{inner}" for place in ("lab", "field") for inner in ("cat", "dog")))
    with pytest.raises(
        DataError, match=r"field, lab would be read as classes, but all of them contain the same folders"
    ):
        open_source("folder", zipped(root) if archive else root)
    assert open_source("folder", root, classes=["field", "lab"]).info.classes == ("field", "lab")


@pytest.mark.parametrize("inner", [("cat/images", "dog/images"), ("cat/day", "cat/night", "dog/day", "dog/dusk")])
def test_folders_inside_classes_are_not_classes(tmp_path: Path, inner: tuple[str, ...]) -> None:
    assert open_source("folder", fill(tmp_path, *inner)).info.classes == ("cat", "dog")


@pytest.mark.parametrize("archive", [False, True])
def test_the_one_folder_above_the_classes_is_named(tmp_path: Path, archive: bool) -> None:
    root = fill(tmp_path / "data", "dataset/cat", "dataset/dog")
    if archive:  # in an archive, one folder that contains everything is skipped
        assert open_source("folder", zipped(root)).info.classes == ("cat", "dog")
        return
    with pytest.raises(DataError, match=r"has only one folder, 'dataset'.*set data.root='.*/data/dataset'"):
        open_source("folder", root)
    root = fill(tmp_path / "splits", "train/dataset/cat", "train/dataset/dog")
    with pytest.raises(DataError, match=r"/train' has only one folder, 'dataset', .*classes, move them up into it"):
        open_source("folder", root)


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("where", ["", "train/", "train/cat/"])
def test_files_of_operating_systems_are_not_a_class(tmp_path: Path, where: str, archive: bool) -> None:
    root = fill(tmp_path / "data", "train/cat", "train/dog", "test/cat", "test/dog", f"{where}__MACOSX")
    (root / f"{where}__MACOSX" / "._0.png").write_bytes(b"\0\5\x16\7")
    source = open_source("folder", zipped(root) if archive else root, val=0)
    assert source.info.classes == ("cat", "dog")
    assert len(source.splits["train"]) == 6


# --- suffixes


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
UNSUPPORTED = {
    "a.heic": (HEIC, "is a HEIC image, which is not supported. Convert it"),
    "a.HEIF": (HEIC, "is a HEIC image"),
    "a.jxl": (b"\xff\x0a" + bytes(32), "is a JPEG XL image"),
    "a.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"></svg>', "is an SVG drawing"),
    "a.exr": (b"v/1\x01" + bytes(32), "is an OpenEXR image"),
    "a.hdr": (b"#?RADIANCE\n" + bytes(32), "is a Radiance HDR image"),
    "a.xcf": (b"gimp xcf v011" + bytes(32), "is a GIMP image"),
    "a.CR2": (b"II*\0" + bytes(64), "is a camera raw file"),
}


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("store", ["pixels", "encoded"])
def test_an_image_of_an_unsupported_format_is_named(here: Command, tmp_path: Path, cache: bool, store: str) -> None:
    """In an earlier version, it was skipped silently."""
    root = fill(tmp_path / "data", "cat", "dog", images=10)
    for name, (content, _) in UNSUPPORTED.items():
        (root / "cat" / name).write_bytes(content)
    arguments = ("train", f"data.root={root}", "trainer.max_epochs=1", f"data.cache={cache}", f"data.store={store}")
    result = here(*arguments)
    assert result.returncode == 2
    assert "8 images cannot be used (set data.on_bad=skip to leave them out)" in result.stderr
    for name, (_, message) in UNSUPPORTED.items():
        assert f"cat/{name}' {message}" in result.stderr
    result = here(*arguments, "data.on_bad=skip", "run.name=run")
    assert result.returncode == 0, result.stderr
    left_out = (tmp_path / "runs" / "run" / "data.json").read_text()
    assert all(message in left_out for _, message in UNSUPPORTED.values())


def test_a_raw_file_is_not_taken_for_its_preview(tmp_path: Path) -> None:
    file = tmp_path / "photo.nef"
    Image.new("RGB", (16, 12), (200, 10, 10)).save(file, "TIFF")  # cameras store a small image first
    with pytest.raises(ImageError, match="a camera raw file"):
        decode_image(file, f"'{file}'")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")
def test_avif_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.avif"
    pixels = np.tile(np.arange(0, 256, 4, dtype=np.uint8)[:, None, None], (1, 64, 3))
    Image.fromarray(pixels).save(file, quality=95)
    assert image_files(tmp_path) == [file]
    decoded = Preprocess(64, 64, 3).decode(file).transpose(1, 2, 0)
    assert np.abs(decoded.astype(int) - np.asarray(Image.open(file).convert("RGB"))).max() == 0
    assert np.abs(decoded.astype(int) - pixels).mean() < 4


def test_files_that_are_not_images_are_skipped(tmp_path: Path) -> None:
    root = fill(tmp_path, "cat", "dog")
    for name in ("Thumbs.db", "notes.txt", "desktop.ini", ".DS_Store", "labels.json", "clip.mp4"):
        (root / "cat" / name).write_bytes(b"x")
    assert len(open_source("folder", root, val=0, test=0).splits["train"]) == 6


# --- one image, two classes


def same_image(root: Path, *places: str) -> None:
    """Writes the same pixels to several files, each in another format."""
    pixels = np.random.default_rng(5).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for i, place in enumerate(places):
        Image.fromarray(pixels).save(root / f"{place}.{('png', 'bmp', 'tiff', 'webp')[i]}", lossless=True)


@pytest.mark.parametrize("store", ["pixels", "encoded"])
@pytest.mark.parametrize("layout", [("cat", "dog"), ("train/cat", "train/dog", "val/cat", "val/dog")])
def test_one_image_in_two_classes_is_reported(tmp_path: Path, layout: tuple[str, ...], store: str) -> None:
    root = fill(tmp_path / "data", *layout, images=10)
    same_image(root, f"{layout[0]}/twice", f"{layout[-1]}/again")
    config = {
        "data": {"root": str(root), "store": store}, "run": {"dir": str(tmp_path / "runs")},
        "trainer": {"max_epochs": 1, "progress": False},
    }  # fmt: skip
    for _ in range(2):  # decoded, then from the cache
        with pytest.warns(UserWarning, match="1 image is in more than one class, with the same pixels: ") as caught:
            sightline.fit(config)
        (message,) = [str(item.message) for item in caught]
        assert f"'{layout[0]}/twice.png' (cat)" in message
        assert f"'{layout[-1]}/again.bmp' (dog)" in message


def test_several_conflicts_are_counted(tmp_path: Path) -> None:
    root = fill(tmp_path, "a", "b", "c")
    same_image(root, "a/x", "b/x", "c/x", "a/y")
    data, _ = pack_splits(open_source("folder", root), {"size": 8, "channels": 3})
    with pytest.warns(UserWarning, match="^1 image is in more than one class") as caught:
        check_conflicts(data)
    assert len(caught) == 1


def test_the_same_image_twice_in_one_class_is_not_a_conflict(tmp_path: Path) -> None:
    root = fill(tmp_path, "cat", "dog")
    same_image(root, "cat/twice", "cat/again")
    data, _ = pack_splits(open_source("folder", root), {"size": 8, "channels": 3})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_conflicts(data)
