"""Data handed over in Python: arrays, torch data sets, Hugging Face data sets, or one of these for each split."""

from collections.abc import Mapping, Sequence
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
    """The source of a tuple (images, labels) of uint8 arrays or tensors, a map-style torch Dataset, a Hugging Face
    Dataset, or a mapping from split names to these; a source is returned as it is. `classes`, `val`, `test`, `seed`
    and `numbers` are as in `open_source`.

    Raises DataError for anything else, and for what cannot be trained on as it is."""
    if isinstance(getattr(data, "info", None), DataInfo) and isinstance(getattr(data, "splits", None), Mapping):
        source: DataSource = data
        _check_target(source.info, numbers)
        return source
    parts = _by_split(data) if isinstance(data, Mapping) else {"train": data}
    found = {split: _rows(part, split, numbers) for split, part in parts.items()}
    own = {split: names for split, (_, names) in found.items()}
    for split, names in own.items():
        if classes is None and names is not None and own["train"] is not None and set(names) - set(own["train"]):
            extra = sorted(set(names) - set(own["train"]))
            raise DataError(f"the {split} data set names classes that train has not: {join_names(extra)}.")
    splits = {split: rows for split, (rows, _) in found.items()}
    name = name or data_name(parts["train"])
    found_all = RawListing(splits, own["train"])
    return build_source(found_all, name, classes=classes, val=val, test=test, seed=seed, numbers=numbers)


def _check_target(info: DataInfo, numbers: bool) -> None:
    if numbers and info.classes:
        raise DataError(
            f"{arg.target}=number: the source '{info.name}' has the classes {join_names(info.classes)}; one whose "
            f"labels "
            f"are numbers has none, DataInfo(name, ())."
        )
    if not numbers and not info.classes:
        raise DataError(
            f"the source '{info.name}' has no classes, so its labels are numbers to predict; set {arg.target}=number."
        )


def _by_split(data: Mapping[Any, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, part in data.items():
        split = SPLIT_NAMES.get(str(key).lower())
        if split is None:
            raise DataError(
                f"the data has the key '{key}', which is no split.{did_you_mean(str(key), SPLIT_NAMES)} Hand over the "
                f"splits to use: {{'train': …, 'val': …, 'test': …}}; it has: {join_names(map(str, data))}."
            )
        if split in found:
            raise DataError(f"the data has two parts for {split}: {join_names(map(str, data))}.")
        found[split] = part
    if "train" not in found:
        raise DataError(f"the data has no part for train, only {join_names(map(str, data)) or 'nothing'}.")
    return found


def _rows(data: Any, split: str, numbers: bool) -> tuple[list[Row], tuple[str, ...] | None]:
    if is_hugging_face(data):
        return hugging_face_rows(data, split, numbers)
    if isinstance(data, tuple):
        if len(data) != 2 or not all(hasattr(part, "__len__") for part in data):
            raise DataError(f"{split}: a tuple of {len(data)}; expected (images, labels), two arrays.")
        images, labels = data
        names = f"the {split} images", f"the {split} labels"
        return array_rows(images, labels, split, lambda _: "", *names, numbers), None
    if type(data).__name__ == "DataLoader" and hasattr(data, "dataset"):
        raise DataError(f"{split}: a DataLoader; hand over its data set (loader.dataset), the batches are made here.")
    if isinstance(data, str | bytes) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise DataError(
            f"{split}: cannot take {type(data).__module__}.{type(data).__qualname__} as data. Expected (images, "
            f"labels) of uint8 arrays, a torch Dataset with __getitem__ and __len__, a Hugging Face Dataset, or a "
            f"mapping from split names to these. What can only be iterated must be made into a list or files first."
        )
    return dataset_rows(data, split, numbers)
