"""IDX files and NumPy arrays: their images become samples without a copy, and errors in them are reported."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from helpers.images import noise
from sightline.core.errors import DataError
from sightline.data.records import Sample
from sightline.data.sources.idx import read_array
from sightline.data.sources.open import open_source

ALL = {"val": 0, "test": 0}
SHAPES = st.lists(st.integers(0, 5), min_size=3, max_size=4).map(tuple)


def idx(array: NDArray[np.uint8], kind: int = 8) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder: Path, split: str, n: int, mark: str = "-", gz: bool = False, prefix: str = "") -> None:
    """Noise of 6 x 5 pixels with the labels 0, 1, 2, 0, …"""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = noise(n, 6, 5, seed=n), np.arange(n, dtype=np.uint8) % 3
    for what, array in (("images", images), ("labels", labels)):
        data = idx(array)
        name = f"{prefix}{split}-{what}{mark}idx{array.ndim}-ubyte{'.gz' if gz else ''}"
        (folder / name).write_bytes(gzip.compress(data) if gz else data)


def pixels(samples: list[Sample]) -> NDArray[np.uint8]:
    return np.stack([np.asarray(sample.image) for sample in samples])


# --- IDX


@pytest.mark.rows("A36")
@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("test", ["t10k", "test"])
@pytest.mark.parametrize("place", [".", "raw", "MNIST/raw"])
def test_the_usual_files_in_the_usual_places(tmp_path: Path, gz: bool, mark: str, test: str, place: str) -> None:
    write_idx(tmp_path / place, "train", 9, mark, gz)
    write_idx(tmp_path / place, test, 5, mark, gz)
    source = open_source("auto", tmp_path, val=0)
    assert source.info.classes == ("0", "1", "2")
    assert list(source.splits) == ["train", "test"]
    for split, n in (("train", 9), ("test", 5)):
        samples = source.splits[split]
        assert np.array_equal(pixels(samples), noise(n, 6, 5, seed=n))
        assert [sample.label for sample in samples] == [i % 3 for i in range(n)]
        assert [sample.id for sample in samples] == [f"{split}/{i:05d}" for i in range(n)]
    name = f"train-images{mark}idx3-ubyte{'.gz' if gz else ''}"
    assert source.splits["train"][7].where == f"{tmp_path / place / name}, image 7"


def test_the_samples_are_views(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", 9)
    samples = open_source("idx", tmp_path, **ALL).splits["train"]
    assert all(type(sample.image) is np.ndarray and sample.image.base is not None for sample in samples)


def test_the_plain_file_has_priority_over_the_compressed_one(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", 9)
    for what in ("images", "labels"):
        (tmp_path / f"train-{what}-idx{3 if what == 'images' else 1}-ubyte.gz").write_bytes(b"not read")
    assert len(open_source("auto", tmp_path, **ALL).splits["train"]) == 9


def test_colour_images_have_four_axes(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", 4)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(noise(24, 5, 3).reshape(4, 6, 5, 3)))
    assert pixels(open_source("idx", tmp_path, **ALL).splits["train"]).shape == (4, 6, 5, 3)


def test_several_datasets_in_one_folder_need_a_choice(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", 9, prefix="emnist-digits-")
    write_idx(tmp_path, "train", 6, prefix="emnist-letters-")
    with pytest.raises(
        DataError, match=r"has several datasets: emnist-digits-train-images…, emnist-letters-.*Choose one"
    ):
        open_source("auto", tmp_path)
    chosen = open_source("auto", tmp_path / "emnist-letters-train-images-idx3-ubyte", **ALL)
    assert len(chosen.splits["train"]) == 6
    write_idx(tmp_path / "top" / "A" / "raw", "train", 6)
    write_idx(tmp_path / "top" / "B" / "raw", "train", 6)
    with pytest.raises(DataError, match=r"has IDX files in several folders: .*A/raw, .*B/raw\. Set data\.root to one"):
        open_source("auto", tmp_path / "top")


COMPLETE = idx(noise(9, 6, 5))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("train-images-idx3-ubyte", b"", "is not an IDX file: it is empty"),
        (
            "train-images-idx3-ubyte",
            b"\x89PNG....",
            r"is not an IDX file: it starts with 89 50 4e 47\. Expected 00 00 08",
        ),
        (
            "train-images-idx3-ubyte",
            COMPLETE[:10],
            r"the header gives the shape .* but the file has 10 bytes\. It is damaged or truncated",
        ),
        (
            "train-images-idx3-ubyte",
            COMPLETE[:-1],
            r"gives the shape \[9, 6, 5\] \(286 bytes\), but the file has 285 bytes",
        ),
        ("train-images-idx3-ubyte", COMPLETE + b"x", r"\(286 bytes\), but the file has 287 bytes"),
        ("train-images-idx3-ubyte", idx(noise(9, 6, 5), 13), "holds float32 with 3 axes; expected uint8 with 3 or 4"),
        ("train-images-idx3-ubyte", idx(noise(9, 6)), "holds uint8 with 2 axes; expected uint8 with 3 or 4"),
        ("train-images-idx3-ubyte", idx(noise(8, 6, 5)), r"found 8 images, but 9 labels in '.*labels.*'"),
        ("train-images-idx3-ubyte", idx(noise(9, 6, 5)[:, :0]), r"found the shape \[9, 0, 5\]"),
        ("train-labels-idx1-ubyte", idx(noise(9, 1)), "holds uint8 with 2 axes; expected uint8 with 1"),
        (
            "train-images-idx3-ubyte.gz",
            gzip.compress(COMPLETE)[:-20],
            "is not a gzip file or is damaged.*Download it again",
        ),
        ("train-images-idx3-ubyte.gz", COMPLETE, "is not a gzip file or is damaged"),
    ],
)
def test_an_invalid_idx_file_is_an_error(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    write_idx(tmp_path, "train", 9)
    if name.endswith(".gz"):
        (tmp_path / name.removesuffix(".gz")).unlink()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        open_source("auto", tmp_path)
    assert name in str(caught.value)


def test_a_missing_file_is_named_by_its_content(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No IDX files in .* Expected train-images-idx3-ubyte"):
        open_source("idx", tmp_path)
    write_idx(tmp_path, "t10k", 5)
    with pytest.raises(DataError, match=r"has no IDX files for train"):
        open_source("idx", tmp_path)
    write_idx(tmp_path, "train", 5)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"no IDX file with the labels of train; it has: t10k-images-idx3-ubyte"):
        open_source("idx", tmp_path)


@settings(max_examples=60)
@given(shape=SHAPES, cut=st.integers(0, 200), gz=st.booleans())
def test_every_idx_file_is_read_completely_or_refused(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...], cut: int, gz: bool
) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    data = idx(array)
    path = tmp_path_factory.getbasetemp() / f"any{'.gz' if gz else ''}"
    path.write_bytes(gzip.compress(data) if gz else data)
    assert np.array_equal(read_array(path, (3, 4)), array)
    short = data[: max(len(data) - 1 - cut, 0)]
    path.write_bytes(gzip.compress(short) if gz else short)
    with pytest.raises(DataError):
        read_array(path, (3, 4))


# --- npz and npy

IMAGES, LABELS = noise(6, 5, 4), np.array([0, 1, 2, 0, 1, 2])
FEW = {"x_test": noise(3, 5, 4), "y_test": np.array([0, 1, 2])}


@pytest.mark.parametrize(
    ("keys", "splits"),
    [
        (("x_train", "y_train"), {"test": ("x_test", "y_test")}),
        (
            ("train_images", "train_labels"),
            {"val": ("val_images", "val_labels"), "test": ("test_images", "test_labels")},
        ),
        (("images", "labels"), {}),
        (("x", "y"), {}),
        (("X_train", "Y_train"), {"val": ("X_validation", "Y_validation")}),
    ],
)
@pytest.mark.parametrize("files", [False, True])
def test_the_usual_names(
    tmp_path: Path, keys: tuple[str, str], splits: dict[str, tuple[str, str]], files: bool
) -> None:
    arrays = {keys[0]: IMAGES, keys[1]: LABELS.reshape(-1, 1), "extra": np.zeros(3)}
    for images, labels in splits.values():
        arrays |= {images: FEW["x_test"], labels: FEW["y_test"]}
    if files:
        for name, array in arrays.items():
            np.save(tmp_path / f"{name}.npy", array)
    else:
        np.savez_compressed(tmp_path / "data.npz", **arrays)
    source = open_source("auto", tmp_path, **ALL)
    assert list(source.splits) == ["train", *splits]
    assert source.info.classes == ("0", "1", "2")
    assert np.array_equal(pixels(source.splits["train"]), IMAGES)
    assert [sample.label for sample in source.splits["train"]] == LABELS.tolist()
    place = tmp_path if files else tmp_path / "data.npz"
    assert source.splits["train"][5].where == f"{place}, {keys[0]}[5]"
    assert source.splits["train"][5].id == "train/00005"
    if not files:
        assert open_source("npz", tmp_path / "data.npz", **ALL).info.name == "data"


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((6, 5, 4), (6, 5, 4)), ((6, 5, 4, 1), (6, 5, 4, 1)), ((6, 5, 4, 3), (6, 5, 4, 3)), ((6, 1, 5, 4), (6, 5, 4)),
     ((6, 3, 5, 4), (6, 5, 4, 3))],
)  # fmt: skip
def test_the_usual_shapes(tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "data.npz", x=array, y=LABELS)
    result = pixels(open_source("auto", tmp_path, **ALL).splits["train"])
    assert result.shape == expected
    assert np.array_equal(result, array.transpose(0, 2, 3, 1) if shape[1] == 3 else array.reshape(expected))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": IMAGES / 255}, r"x: expected uint8 pixels, found float64 from .* to .*; pass \(x \* 255\)\.round"),
        ({"x": IMAGES.astype("f4")}, r"found float32 from .*; pass x\.round\(\)\.astype\('uint8'\)"),
        ({"x": IMAGES - 128.0}, "probably normalised"),
        ({"x": IMAGES.astype("i8")}, r"found int64; convert with astype\('uint8'\)"),
        ({"x": IMAGES[0]}, r"x: found the shape \[5, 4\]; expected \[N,H,W\]"),
        ({"x": noise(12, 5, 4).reshape(6, 2, 5, 4)}, r"found the shape \[6, 2, 5, 4\]"),
        ({"y": LABELS[:5]}, "found 6 images, but 5 labels in .*, y"),
        ({"y": np.eye(6)}, r"y: found the shape \[6, 6\]; expected \[N\] or \[N,1\]\. Several columns are one-hot"),
        ({"y": LABELS / 2}, "y: expected integers or text, found float64"),
        ({"y": np.array([None] * 6)}, "data.npz', y: cannot be read: it is pickled, and loading it could run code"),
        ({"x": IMAGES[:0], "y": LABELS[:0]}, "the array has no images"),
        ({"images": IMAGES}, "the arrays 'x' and 'images' are both train images"),
        ({"y_train": LABELS}, "the arrays 'y' and 'y_train' are both train labels"),
        ({"x_val": IMAGES}, "has 'x_val' but no labels for val; it has: x, y, x_val"),
    ],
)
def test_an_invalid_array_is_an_error(tmp_path: Path, changes: dict[str, NDArray[np.uint8]], message: str) -> None:
    np.savez(tmp_path / "data.npz", **({"x": IMAGES, "y": LABELS} | changes), allow_pickle=True)
    with pytest.raises(DataError, match=message):
        open_source("auto", tmp_path, **ALL)


def test_an_invalid_npz_file_is_an_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", photos=IMAGES)
    with pytest.raises(DataError, match=r"data\.npz' has no arrays for train; it has: photos\. Expected x_train and"):
        open_source("npz", tmp_path)
    np.savez(tmp_path / "more.npz", x=IMAGES)
    with pytest.raises(DataError, match=r"has 2 \.npz files: data\.npz, more\.npz\. Choose one: set data\.root"):
        open_source("npz", tmp_path)
    (tmp_path / "more.npz").write_bytes((tmp_path / "data.npz").read_bytes()[:60])
    with pytest.raises(DataError, match=r"more\.npz' is not an \.npz file or is damaged"):
        open_source("npz", tmp_path / "more.npz")
    np.save(tmp_path / "single.npy", IMAGES)
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    with pytest.raises(DataError, match=r"single\.npz' is not an \.npz file or is damaged: File is not a zip file"):
        open_source("npz", tmp_path / "single.npz")


def test_labels_may_be_text(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=IMAGES, y=np.array(["cat", "dog", "cat", "dog", "cat", "dog"]))
    assert open_source("auto", tmp_path, **ALL).info.classes == ("cat", "dog")
