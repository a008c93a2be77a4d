"""Data passed from Python: arrays, torch and Hugging Face datasets, and torchvision's datasets by name."""

from __future__ import annotations

import importlib
import io
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from helpers.images import noise, write_folders
from sightline.compose.data import data_source
from sightline.config.schema import DataConfig, TrainConfig
from sightline.core.errors import ConfigError, DataError, MissingExtraError
from sightline.data.cache.pack import PackOptions, pack_splits
from sightline.data.images.preprocess import Preprocess
from sightline.data.records import Sample
from sightline.data.sources.adapt import as_source
from sightline.data.sources.open import open_source
from sightline.data.sources.torch_dataset import stored_labels, to_uint8_image

ALL = {"val": 0, "test": 0}
PIXELS = noise(12, 5, 4)
LABELS = [i % 3 for i in range(12)]
NAMES = ["cat", "dog", "eel"]


class Items(Dataset[Any]):
    """A dataset of items made by a function, with the given attributes; `reads` counts the reads."""

    def __init__(self, make: Callable[[int], Any], n: int = 12, **attributes: Any) -> None:
        self.make, self.n, self.reads = make, n, 0
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        return self.make(index)


def pair(index: int) -> tuple[Any, int]:
    return Image.fromarray(PIXELS[index]), LABELS[index]


def pixels(sample: Sample) -> Any:
    image = sample.image
    return np.asarray(image if isinstance(image, np.ndarray) else image.read())  # type: ignore[union-attr]


# --- arrays


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor])
def test_a_tuple_of_arrays(convert: Callable[[Any], Any]) -> None:
    source = as_source((convert(PIXELS), convert(np.array(LABELS))), **ALL, name="mine")
    assert source.info.name == "mine"
    assert source.info.classes == ("0", "1", "2")
    samples = source.splits["train"]
    assert [sample.label for sample in samples] == LABELS
    assert [sample.id for sample in samples][:2] == ["train/00000", "train/00001"]
    assert all(np.array_equal(pixels(sample), PIXELS[i]) for i, sample in enumerate(samples))
    assert {split: len(part) for split, part in as_source((PIXELS, LABELS), val=3, test=3).splits.items()} == {
        "train": 6,
        "val": 3,
        "test": 3,
    }


def test_a_mapping_of_splits_and_a_source_that_is_returned_unchanged() -> None:
    source = as_source({"train": (PIXELS, LABELS), "Validation": (PIXELS[:3], LABELS[:3])}, classes=NAMES)
    assert {split: len(part) for split, part in source.splits.items()} == {"train": 12, "val": 3}
    assert source.info.classes == tuple(NAMES)
    assert as_source(source) is source


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "cannot use builtins.NoneType as data. Expected"),
        ("folder", "'folder' is a path, not data"),
        ((1, 2, 3), r"train: found a tuple of 3; expected \(images, labels\)"),
        ((1, 2), r"train: found a tuple of 2; expected \(images, labels\)"),
        ((PIXELS / 255, LABELS), r"the train images: expected uint8 pixels, found float64 .*\(x \* 255\)"),
        ((PIXELS, LABELS[:-1]), "the train images: found 12 images, but 11 labels in the train labels"),
        (([PIXELS[0], PIXELS[0][:2]], [0, 1]), "the train images: cannot be converted to an array"),
        (
            {"train": (PIXELS, LABELS), "tset": (PIXELS, LABELS)},
            "the key 'tset', which is not a split. Did you mean 'test'",
        ),
        ({"test": (PIXELS, LABELS)}, "no key for train; its keys are: test"),
        ({"train": (PIXELS, LABELS), "val": 1, "valid": 2}, "two keys for the split val: train, val, valid"),
        (DataLoader(TensorDataset(torch.zeros(2))), r"found a DataLoader; pass its dataset \(loader\.dataset\)"),
        (iter([1]), "Convert data that can only be iterated to a list"),
        (type("Stream", (IterableDataset,), {"__iter__": lambda self: iter(())})(), "Stream as data"),
    ],
)
def test_unusable_data_is_an_error(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_source(data)


# --- torch datasets


@pytest.mark.rows("B03", "A38")
@pytest.mark.parametrize(
    "make",
    [
        pair,
        lambda i: (PIXELS[i], np.int64(LABELS[i])),
        lambda i: (torch.from_numpy(PIXELS[i]), torch.tensor(LABELS[i])),
        lambda i: (torch.from_numpy(PIXELS[i])[None], torch.tensor([LABELS[i]])),
        lambda i: [(torch.from_numpy(PIXELS[i])[None] / 255), LABELS[i]],
        lambda i: (PIXELS[i].astype(np.float64) / 255, LABELS[i]),
        lambda i: {"image": PIXELS[i][..., None], "label": LABELS[i], "id": i},
    ],
)
def test_items_of_every_usual_form(make: Callable[[int], Any]) -> None:
    samples = as_source(Items(make), **ALL).splits["train"]
    assert [sample.label for sample in samples] == LABELS
    for i, sample in enumerate(samples):
        assert np.array_equal(pixels(sample).reshape(5, 4), PIXELS[i])
        assert sample.image.token is None  # type: ignore[union-attr]


@pytest.mark.rows("A38")
@pytest.mark.parametrize("scale", [torch.float32, torch.float64])
def test_floats_made_by_to_tensor_are_converted_back_exactly(scale: torch.dtype) -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    assert np.array_equal(to_uint8_image(levels.to(scale) / 255, "x"), levels[0][..., None].numpy())


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 4, 4) - 2.1, "float32 pixels from -2.1 to -2.1; expected multiples of 1/255.*Remove Normalize"),
        (torch.full((1, 4, 4), 0.5), "from 0.5 to 0.5; expected multiples of 1/255"),
        (torch.full((1, 4, 4), 128.0), "from 128 to 128"),
        (torch.full((1, 4, 4), float("nan")), "from nan to nan"),
        (torch.zeros(1, 4, 4, dtype=torch.int64), r"found int64 pixels; expected uint8, or floats in \[0, 1\]"),
        (torch.zeros(2, 4, 5, dtype=torch.uint8), r"a Tensor of shape \[2, 4, 5\]; expected \[H,W\]"),
        (np.zeros((4,), np.uint8), r"a ndarray of shape \[4\]"),
        ("x.png", "a str of shape"),
    ],
)
def test_images_of_another_dtype_or_shape_are_refused(image: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_source(Items(lambda i: (image, i % 2)))


@pytest.mark.parametrize(
    ("shape", "tensor", "array"),
    [((3, 4, 5), (4, 5, 3), (4, 5, 3)), ((4, 5, 3), (4, 5, 3), (4, 5, 3)), ((3, 5, 1), (5, 1, 3), (3, 5, 1))],
)
def test_the_axis_of_channels_depends_on_the_type_of_the_image(
    shape: tuple[int, ...], tensor: tuple[int, ...], array: tuple[int, ...]
) -> None:
    assert np.asarray(to_uint8_image(torch.zeros(shape, dtype=torch.uint8), "x")).shape == tensor
    assert np.asarray(to_uint8_image(np.zeros(shape, np.uint8), "x")).shape == array


@pytest.mark.parametrize("name", ["targets", "labels", "_labels"])
@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_stored_labels_are_used_without_reading_images(name: str, kind: Callable[[Any], Any]) -> None:
    data = Items(pair, **{name: kind(LABELS)}, classes=NAMES)
    both = ConcatDataset([Subset(data, [5, 1, 0]), data])
    source = as_source(both, **ALL)
    assert data.reads <= 18  # to check that items do not change and have these labels
    assert source.info.classes == ("cat", "dog", "eel")
    expected = [LABELS[i] for i in (5, 1, 0)] + LABELS
    assert [sample.label for sample in source.splits["train"]] == expected
    assert np.array_equal(pixels(source.splits["train"][0]), PIXELS[5])


def test_a_tensor_dataset_has_stored_labels() -> None:
    data = TensorDataset(torch.from_numpy(PIXELS)[:, None] / 255, torch.tensor(LABELS))
    assert stored_labels(data) == LABELS
    assert [sample.label for sample in as_source(data, **ALL).splits["train"]] == LABELS


@pytest.mark.parametrize(
    "attributes",
    [
        {"targets": LABELS, "target_transform": lambda label: label},
        {"targets": LABELS, "transforms": lambda image, label: (image, label)},
        {"targets": LABELS[:-1]},
        {"targets": [[label] for label in LABELS]},
        {"labels": ["a", "b"]},
        {"targets": [9, *LABELS[1:]]},
    ],
)
def test_stored_labels_that_may_differ_from_the_items_are_not_used(attributes: dict[str, Any]) -> None:
    data = Items(pair, **attributes)
    assert [sample.label for sample in as_source(data, **ALL).splits["train"]] == LABELS
    assert data.reads >= 12


def test_a_label_that_differs_from_the_listed_one_is_detected_when_the_image_is_read() -> None:
    data = Items(pair, targets=[*LABELS[:5], 0, *LABELS[6:]])
    samples = as_source(data, **ALL).splits["train"]
    with pytest.raises(DataError, match=r"the train dataset \(Items\), item 5: the label is now 2, but was 0 before"):
        pixels(samples[5])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda i: PIXELS[i], r"item 0: found a ndarray; expected \(image, label\), or a dict"),
        (lambda i: (PIXELS[i], 0, 0), r"item 0: found a tuple of 3; expected \(image, label\)"),
        (lambda i: {"image": PIXELS[i], "lable": 0}, "item 0: no key 'label', only image, lable"),
        (lambda i: (PIXELS[i], torch.eye(3)[0]), r"item 0: the label is a Tensor of shape \[3\]; expected an integer"),
        (lambda i: (PIXELS[i], 0.5), "item 0: the label is a float; expected an integer or text"),
        (lambda i: [][i], r"item 0: cannot be read: IndexError: list index out of range"),
    ],
)
def test_items_of_another_form_are_refused(make: Callable[[int], Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_source(Items(make))


def test_classes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match=r"item 2: label 2 is out of range; the data names 2 classes: cat, dog"):
        as_source(Items(pair, targets=LABELS, classes=NAMES[:2]))
    with pytest.raises(DataError, match="its parts do not have the same classes in the same order"):
        as_source(ConcatDataset([Items(pair, classes=NAMES), Items(pair, classes=NAMES[::-1])]))
    parts = {"train": Items(pair, classes=NAMES), "test": Items(pair, classes=["cat", "dog", "fox"])}
    with pytest.raises(DataError, match="The test dataset has classes that are not in the train dataset: fox"):
        as_source(parts)
    with pytest.raises(DataError, match=r"data\.classes is 5, but the data names 3 classes: cat, dog, eel"):
        as_source(Items(pair, classes=NAMES), classes=5)
    with pytest.raises(DataError, match="has no items"):
        as_source(Items(pair, 0))


def test_configured_classes_reorder_or_rename_the_classes_of_the_data() -> None:
    def names(classes: list[str]) -> list[str]:
        source = as_source(Items(pair, classes=NAMES), classes=classes, **ALL)
        return [source.info.classes[sample.label] for sample in source.splits["train"]]

    assert names(["eel", "cat", "dog"]) == NAMES * 4  # the same names: by name
    assert names(["x", "y", "z"]) == ["x", "y", "z"] * 4  # other names: by place
    with pytest.raises(DataError, match=r"label 'dog' is not in data\.classes: cat, eel, fox"):
        names(["cat", "eel", "fox"])


def test_a_random_transform_is_refused() -> None:
    def shaken(index: int) -> tuple[Any, int]:
        image = PIXELS[index]
        return (image[:, ::-1] if torch.rand(()) < 0.5 else image), LABELS[index]

    message = (
        r"item \d differs from one read to the next\. .*same result in every epoch.*data\.augment\.transforms.*PerImage"
    )
    with pytest.raises(DataError, match=message):
        as_source(Items(shaken))
    v2 = importlib.import_module("torchvision.transforms")
    rare = v2.Compose([v2.ToTensor(), v2.RandomErasing(0.001)])
    with pytest.raises(DataError, match="the transform RandomErasing is random"):
        as_source(Subset(Items(pair, transform=rare), [0, 1, 2]))
    assert as_source(Items(pair, transform=v2.Compose([v2.RandomHorizontalFlip(0.0)])), **ALL)


def test_datasets_that_may_not_be_thread_safe_are_read_by_one_thread_at_a_time() -> None:
    inside = []

    def slow(index: int) -> tuple[Any, int]:
        inside.append(index)
        time.sleep(0.001)
        assert inside.pop() == index
        assert not inside
        return pair(index)

    samples = as_source(Items(slow), **ALL).splits["train"]
    with ThreadPoolExecutor(6) as pool:
        assert all(np.array_equal(a, PIXELS[i]) for i, a in enumerate(pool.map(pixels, samples)))


# --- Hugging Face


def png(index: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(PIXELS[index]).save(data, "PNG")
    return data.getvalue()


def hub(**columns: Any) -> Any:
    """A Hugging Face dataset of the twelve images and labels with names; `columns` are added or replace these."""
    datasets = importlib.import_module("datasets")
    cells = {"image": [{"bytes": png(i), "path": None} for i in range(12)], "label": LABELS} | columns
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    dataset = datasets.Dataset.from_dict({name: cell for name, cell in cells.items() if cell is not None})
    return dataset.cast(datasets.Features({name: features.get(name, kind) for name, kind in dataset.features.items()}))


def test_a_hugging_face_dataset() -> None:
    data = hub(note=[*"abcdefghijk", None], width=list(range(12)))
    source = as_source(data, **ALL)
    samples = source.splits["train"]
    assert source.info.classes == ("cat", "dog", "eel")
    assert [sample.label for sample in samples] == LABELS
    assert [sample.image.read() for sample in samples] == [png(i) for i in range(12)]  # type: ignore[union-attr]
    assert dict(samples[11].columns) == {"note": "", "width": "11"}
    assert samples[3].image.token == f"{data._fingerprint}|3"  # type: ignore[union-attr]
    assert samples[3].where == "the train dataset, row 3"
    chosen = as_source(data.with_format("torch").select([5, 1, 0, 2]), **ALL).splits["train"]
    assert [sample.image.read() for sample in chosen] == [png(i) for i in (5, 1, 0, 2)]  # type: ignore[union-attr]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda s: s.image.read(), samples)) == [png(i) for i in range(12)]


def test_a_hugging_face_dictionary_is_a_mapping_of_splits() -> None:
    data = hub()
    both = importlib.import_module("datasets").DatasetDict({"train": data, "test": data.select([0, 1, 2])})
    source = as_source(both, val=0)
    assert {split: len(part) for split, part in source.splits.items()} == {"train": 12, "test": 3}


def test_hugging_face_images_in_files_beside_the_table(tmp_path: Path) -> None:
    datasets = importlib.import_module("datasets")
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    data = datasets.Dataset.from_dict({"img": [str(tmp_path / f"{i}.png") for i in range(4)], "labels": list("abab")})
    samples = as_source(data.cast_column("img", datasets.Image()), **ALL).splits["train"]
    assert [sample.image.read() for sample in samples] == [png(i) for i in range(4)]  # type: ignore[union-attr]
    assert samples[0].image.token is None  # type: ignore[union-attr]
    (tmp_path / "1.png").unlink()
    with pytest.raises(DataError, match=r"row 1: cannot read '.*1\.png': No such file"):
        samples[1].image.read()  # type: ignore[union-attr]


def test_an_unusable_hugging_face_dataset_is_an_error() -> None:
    datasets = importlib.import_module("datasets")
    with pytest.raises(DataError, match=r"has a transform \(set_transform\).*\.with_format\(None\).*data\.augment"):
        as_source(hub().with_transform(lambda batch: batch))
    with pytest.raises(
        DataError, match=r"has the columns image; expected ClassLabel in one of: label, .*rename_column"
    ):
        as_source(hub(label=None))
    with pytest.raises(DataError, match=r"has the columns label; expected Image in one of: image, img\. Cast one"):
        as_source(hub(image=None))
    with pytest.raises(DataError, match=r"the column 'image' is not an Image\. Cast it with \.cast_column\('image'"):
        as_source(datasets.Dataset.from_dict({"image": ["x.png"], "label": [0]}))
    with pytest.raises(DataError, match="the train dataset, row 2, column 'label': no label"):
        as_source(hub(label=[0, 1, -1, *LABELS[3:]]))
    with pytest.raises(DataError, match=r"row 0, column 'label': the label 0\.5 is neither"):
        as_source(datasets.Dataset.from_dict({"img": [None], "label": [0.5]}).cast_column("img", datasets.Image()))
    with pytest.raises(
        DataError, match=r"class labels \(label\) and other columns \(row\)\. Choose the number to predict"
    ):
        as_source(hub(row=list(range(12))), numbers=True)
    regression = as_source(hub(row=list(range(12)), target=[0.5] * 12), **ALL, numbers=True)
    assert [sample.label for sample in regression.splits["train"]] == [0.5] * 12
    empty = as_source(hub(image=[None, *({"bytes": png(i), "path": None} for i in range(1, 12))]), **ALL)
    with pytest.raises(DataError, match="row 0: no image in column 'image'"):
        empty.splits["train"][0].image.read()  # type: ignore[union-attr]


# --- config keys for data passed from Python


@pytest.mark.parametrize(
    ("key", "value"), [("source", "folder"), ("root", "x"), ("group_column", "x"), ("download", True)]
)
def test_keys_for_the_location_are_refused_for_data_passed_from_python(key: str, value: Any) -> None:
    message = rf"^data\.{key}: the source was passed in from Python, so this key has no effect"
    with pytest.raises(ConfigError, match=message):
        data_source(TrainConfig(data=replace(DataConfig(), **{key: value})), (PIXELS, LABELS))


@pytest.mark.parametrize(("key", "value"), [("classes", 3), ("val", 0.5), ("test", 4)])
def test_keys_for_classes_and_splits_are_refused_for_a_custom_source(key: str, value: Any) -> None:
    config = TrainConfig(data=replace(DataConfig(), **{key: value}))
    source = as_source((PIXELS, LABELS), **ALL)
    message = rf"^data\.{key}: the source passed in from Python defines its classes and splits"
    with pytest.raises(ConfigError, match=message):
        data_source(config, source)
    data_source(config, (PIXELS.repeat(9, 0), LABELS * 9))
    assert data_source(TrainConfig(data=replace(DataConfig(), val=0, test=0)), source) is source


# --- torchvision


@pytest.mark.rows("B03")
def test_class_folders_of_torchvision(tmp_path: Path) -> None:
    folders = importlib.import_module("torchvision.datasets")
    root = write_folders(tmp_path, {"cat": 3, "dog": 2})
    theirs = as_source(folders.ImageFolder(str(root)), **ALL)
    ours = open_source("folder", root, **ALL)
    assert theirs.info.classes == ours.info.classes
    for sample, other in zip(theirs.splits["train"], ours.splits["train"], strict=True):
        assert sample.label == other.label
        with Image.open(other.image) as image:  # type: ignore[arg-type]
            assert np.array_equal(pixels(sample), np.asarray(image.convert("RGB")))


@pytest.mark.rows("B03")
def test_a_dataset_by_name(tmp_path: Path) -> None:
    importlib.import_module("torchvision.datasets")
    from test_arrays import write_idx

    write_idx(tmp_path / "MNIST" / "raw", "train", 30)
    write_idx(tmp_path / "MNIST" / "raw", "t10k", 10)
    source = open_source("auto", tmp_path, dataset="MNIST", val=6)
    assert source.info.name == "MNIST"
    assert source.info.root == tmp_path
    assert source.info.classes == tuple("0123456789")
    assert {split: len(part) for split, part in source.splits.items()} == {"train": 24, "val": 6, "test": 10}
    files = open_source("idx", tmp_path, **ALL)
    named = open_source("torchvision", tmp_path, dataset="MNIST", **ALL)
    for split, samples in files.splits.items():
        assert [(s.id, s.label) for s in named.splits[split]] == [(s.id, s.label) for s in samples]
        assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(named.splits[split], samples, strict=True))


def test_splits_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = importlib.import_module("torchvision.datasets")
    requested = []

    class SVHN(Items):
        def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
            if split not in ("train", "valid"):
                raise ValueError(f"Unknown value '{split}' for argument split.")
            requested.append((root, split, download))
            super().__init__(pair, labels=LABELS)

    monkeypatch.setattr(library, "SVHN", SVHN)
    source = open_source("torchvision", tmp_path, dataset="SVHN", download=True)
    assert requested == [(str(tmp_path), "train", True), (str(tmp_path), "valid", True)]
    assert {split: len(part) for split, part in source.splits.items()} == {"train": 12, "val": 12}


def test_an_unavailable_torchvision_dataset_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module("torchvision.datasets")

    def assert_error(match: str, root: Path | None = tmp_path, **arguments: Any) -> None:
        with pytest.raises(DataError, match=match):
            open_source("torchvision", root, **arguments)

    assert_error(r"data\.dataset: the source 'torchvision' needs the name of a dataset")
    assert_error(r"data\.dataset: torchvision has no dataset 'CIFR10'\. Did you mean 'CIFAR10'\?", dataset="CIFR10")
    assert_error(r"data\.root: CIFAR10 needs a directory for its files\. Set data\.root=PATH", None, dataset="CIFAR10")
    assert_error(
        rf"data\.root: CIFAR10 is missing or incomplete in '{tmp_path}' .*Set data\.download=true", dataset="CIFAR10"
    )
    assert_error(r"data\.root: SVHN is missing or incomplete in .*Set data\.download=true", dataset="SVHN")
    assert_error(
        r"data\.download: ImageNet cannot be downloaded automatically\. Get its files as",
        dataset="ImageNet",
        download=True,
    )
    assert_error(r"data\.dataset: EMNIST cannot be created from its name alone: .*split", dataset="EMNIST")
    monkeypatch.setattr("socket.socket.connect", lambda *_: (_ for _ in ()).throw(OSError("no network here")))
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: (_ for _ in ()).throw(OSError("no network here")))
    assert_error(
        r"data\.download: CIFAR10 could not be downloaded to '.*': .*no network", dataset="CIFAR10", download=True
    )


def test_without_torchvision_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    monkeypatch.delitem(__import__("sys").modules, "torchvision.datasets", raising=False)
    with pytest.raises((MissingExtraError, ModuleNotFoundError), match="torchvision"):
        open_source("torchvision", tmp_path, dataset="CIFAR10")


# --- datasets whose items share something

SHARED = [noise(40, 40, 3, seed=number) for number in range(96)]


class InOneFile(Dataset[tuple[Any, int]]):
    """Images that are opened and not loaded, all of one open file."""

    def __init__(self, folder: Path) -> None:
        self.path, self.places = folder / "all.bin", [0]
        with self.path.open("wb") as file:
            for pixels in SHARED:
                Image.fromarray(pixels).save(file, "BMP")
                self.places.append(file.tell())
        self.tar = tarfile.open(folder / "all.tar", "w")  # noqa: SIM115 it stays open as long as the dataset
        for number, pixels in enumerate(SHARED):
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "BMP")
            member = tarfile.TarInfo(f"{number}.bmp")
            member.size = stream.tell()
            stream.seek(0)
            self.tar.addfile(member, stream)
        self.tar.close()
        self.tar = tarfile.open(folder / "all.tar")  # noqa: SIM115

    def __len__(self) -> int:
        return len(SHARED)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return Image.open(self.tar.extractfile(f"{index}.bmp")), index % 2  # type: ignore[arg-type]


class PagesOfOneImage(Dataset[tuple[Any, int]]):
    """The pages of one TIFF file, each the same Pillow object."""

    def __init__(self, folder: Path) -> None:
        pages = [Image.fromarray(pixels) for pixels in SHARED]
        pages[0].save(folder / "all.tif", save_all=True, append_images=pages[1:])
        self.image = Image.open(folder / "all.tif")

    def __len__(self) -> int:
        return len(SHARED)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        self.image.seek(index)
        return self.image, index % 2


class OneBuffer(Dataset[tuple[Any, int]]):
    """One array that each item is written to."""

    def __init__(self, folder: Path) -> None:
        self.buffer = np.empty((40, 40, 3), np.uint8)

    def __len__(self) -> int:
        return len(SHARED)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        self.buffer[:] = SHARED[index]
        return self.buffer, index % 2


@pytest.mark.parametrize("store", ["pixels", "encoded"])
@pytest.mark.parametrize("kind", [InOneFile, PagesOfOneImage, OneBuffer])
def test_items_that_share_a_file_an_image_or_a_buffer_are_decoded_one_by_one(
    kind: Any, store: str, tmp_path: Path
) -> None:
    data = kind(tmp_path)
    source = as_source(data, **ALL)
    for _ in range(3):
        packed, _ = pack_splits(source, Preprocess(40, 40, 3), packing=PackOptions(store))
        decoded = packed["train"].pixels(range(len(SHARED))).numpy().transpose(0, 2, 3, 1)
        assert np.array_equal(decoded, np.stack(SHARED))
    for name in ("tar", "image"):
        if hasattr(data, name):
            getattr(data, name).close()


def test_the_first_items_are_decoded_like_all_others(tmp_path: Path) -> None:
    """They are read more often, to check whether they are random, and keep the information of their file."""
    stream = io.BytesIO()
    palette = Image.fromarray((noise(12, 12) > 127).astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.save(stream, "BMP")  # 8 bits in black and white, which Pillow reads as 1 bit

    class Opened(Dataset[tuple[Any, int]]):
        def __init__(self) -> None:
            self.images = [Image.open(io.BytesIO(stream.getvalue())) for _ in range(10)]

        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return self.images[index], index % 2

    packed, _ = pack_splits(as_source(Opened(), **ALL), Preprocess(12, 12, 1))
    for image in packed["train"].pixels(range(10)).numpy():
        assert np.array_equal(image[0], np.asarray(palette) * 255)
