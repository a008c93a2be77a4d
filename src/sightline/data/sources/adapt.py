"""Converts Python objects to a data source: arrays, torch and Hugging Face datasets, or a mapping of splits to them."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from sightline.core.errors import DataError, arg, did_you_mean, join_names
from sightline.data.records import DataInfo, DataSource, RawListing, Row
from sightline.data.sources.arrays import array_rows
from sightline.data.sources.huggingface import hugging_face_rows, is_hugging_face
from sightline.data.sources.listing import SPLIT_NAMES, build_source
from sightline.data.sources.torch_dataset import data_name, dataset_rows


def as_source(
    data: Any,
    *,
    classes: int | Sequence[str] | None = None,
    val: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    name: str | None = None,
    numbers: bool = False,
) -> DataSource:
    """Converts `data` to a data source; a data source is returned unchanged.

    `data` is a tuple (images, labels) of arrays or tensors with uint8 images, a map-style torch Dataset, a Hugging Face
    Dataset, or a mapping from split names to these. `classes`, `val`, `test`, `seed` and `numbers` are the same as for
    `open_source`. `name` is the name of the dataset, by default taken from the training data.

    Raises DataError for other types of data and for invalid images, labels, classes or splits."""
    if isinstance(getattr(data, "info", None), DataInfo) and isinstance(getattr(data, "splits", None), Mapping):
        source: DataSource = data
        _check_target(source.info, numbers)
        return source
    parts = _by_split(data) if isinstance(data, Mapping) else {"train": data}
    listed = {split: _rows(part, split, numbers) for split, part in parts.items()}
    own = {split: names for split, (_, names) in listed.items()}
    for split, names in own.items():
        if classes is None and names is not None and own["train"] is not None and set(names) - set(own["train"]):
            extra = sorted(set(names) - set(own["train"]))
            raise DataError(f"The {split} dataset has classes that are not in the train dataset: {join_names(extra)}.")
    splits = {split: rows for split, (rows, _) in listed.items()}
    name = name or data_name(parts["train"])
    listing = RawListing(splits, own["train"])
    return build_source(listing, name, classes=classes, val=val, test=test, seed=seed, numbers=numbers)


def _check_target(info: DataInfo, numbers: bool) -> None:
    if numbers and info.classes:
        raise DataError(
            f"{arg.target}=number: the source '{info.name}' has the classes {join_names(info.classes)}. Expected a "
            f"source without classes, DataInfo(name, ())."
        )
    if not numbers and not info.classes:
        raise DataError(
            f"The source '{info.name}' has no classes, so its labels are numbers to predict; set {arg.target}=number."
        )


def _by_split(data: Mapping[Any, Any]) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    for key, part in data.items():
        split = SPLIT_NAMES.get(str(key).lower())
        if split is None:
            raise DataError(
                f"The data has the key '{key}', which is not a split.{did_you_mean(str(key), SPLIT_NAMES)} Pass only "
                f"splits, {{'train': …, 'val': …, 'test': …}}; its keys are: {join_names(map(str, data))}."
            )
        if split in parts:
            raise DataError(f"The data has two keys for the split {split}: {join_names(map(str, data))}.")
        parts[split] = part
    if "train" not in parts:
        raise DataError(f"The data has no key for train; its keys are: {join_names(map(str, data)) or 'none'}.")
    return parts


def _rows(data: Any, split: str, numbers: bool) -> tuple[list[Row], tuple[str, ...] | None]:
    if is_hugging_face(data):
        return hugging_face_rows(data, split, numbers)
    if isinstance(data, tuple):
        if len(data) != 2 or not all(hasattr(part, "__len__") for part in data):
            raise DataError(f"{split}: found a tuple of {len(data)}; expected (images, labels), two arrays.")
        images, labels = data
        names = f"the {split} images", f"the {split} labels"
        return array_rows(images, labels, split, lambda _: "", *names, numbers), None
    if type(data).__name__ == "DataLoader" and hasattr(data, "dataset"):
        raise DataError(f"{split}: found a DataLoader; pass its dataset (loader.dataset). Sightline makes the batches.")
    if isinstance(data, str | PurePath):
        raise DataError(f"{split}: '{data}' is a path, not data. To read a file or a directory, set {arg.root}.")
    if isinstance(data, bytes) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise DataError(
            f"{split}: cannot use {type(data).__module__}.{type(data).__qualname__} as data. Expected (images, labels) "
            f"with uint8 images, a torch Dataset with __getitem__ and __len__, a Hugging Face Dataset, or a mapping "
            f"from split names to these. Convert data that can only be iterated to a list or to files first."
        )
    return dataset_rows(data, split, numbers)
