"""Converts map-style torch datasets to rows. Images stay in the dataset until they are read. Labels that the dataset
stores are read without decoding an image."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from sightline.core.errors import DataError, ImageError, arg, join_names
from sightline.data.images.decode import decode_image
from sightline.data.images.digest import content_key
from sightline.data.records import Row
from sightline.data.sources.labels import label_text, parse_number


def dataset_classes(dataset: Any, name: str) -> tuple[str, ...] | None:
    """Returns the class names in the attribute `classes` of a dataset, in label order, or None if it has none.

    Raises DataError if the parts of a ConcatDataset have different classes. `name` is its name in messages."""
    if isinstance(dataset, Subset):
        return dataset_classes(dataset.dataset, name)
    if isinstance(dataset, ConcatDataset):
        variants = {dataset_classes(part, name) for part in dataset.datasets}
        if len(variants) > 1:
            raise DataError(f"{name}: its parts do not have the same classes in the same order.")
        return variants.pop()
    classes = getattr(dataset, "classes", None)
    if not isinstance(classes, Sequence) or isinstance(classes, str) or not classes:
        return None
    names = [", ".join(map(str, item)) if isinstance(item, tuple | list) else str(item) for item in classes]
    if all(text.startswith(f"{i} - ") for i, text in enumerate(names)):  # torchvision's MNIST has "0 - zero"
        names = [str(i) for i in range(len(names))]
    if len(set(names)) < len(names):  # ImageNet has the name "crane" twice
        names = [f"{i} {text}" for i, text in enumerate(names)]
    return tuple(names)


def stored_labels(dataset: Any) -> list[int | float | str] | None:
    """Returns the labels that a dataset stores, without reading an item; None if it has none or may transform them."""
    if isinstance(dataset, Subset):
        inner = stored_labels(dataset.dataset)
        return None if inner is None else [inner[i] for i in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [stored_labels(part) for part in dataset.datasets]
        return None if None in parts else [label for part in parts for label in part or ()]
    if isinstance(dataset, TensorDataset):
        labels: Any = dataset.tensors[1] if len(dataset.tensors) == 2 else None
    else:
        joint_transform = getattr(dataset, "transforms", None)  # torchvision's StandardTransform has target_transform
        if (
            getattr(dataset, "target_transform", None) is not None
            or getattr(joint_transform, "target_transform", joint_transform) is not None
        ):
            return None
        names = ("targets", "labels", "_labels")
        labels = next((value for name in names if (value := getattr(dataset, name, None)) is not None), None)
    labels = labels.tolist() if hasattr(labels, "tolist") else labels
    if not isinstance(labels, list | tuple) or len(labels) != len(dataset):
        return None
    return list(labels) if all(type(label) in (int, float, str) for label in labels) else None


def parse_label(label: Any, where: str, numbers: bool = False) -> int | float | str:
    """Converts a label, or a tensor or array with one value, to an integer or text, or with `numbers` also a float.

    Raises DataError for other labels, such as one-hot vectors. `where` starts the message."""
    value = label.item() if getattr(label, "ndim", None) == 0 or getattr(label, "shape", None) == (1,) else label
    if isinstance(value, int | float | str if numbers else int | str) and not isinstance(value, bool):
        return value
    shape = f" of shape {list(label.shape)}" if hasattr(label, "shape") else ""
    expected = "a number" if numbers else "an integer or text"
    advice = f" To predict numbers, set {arg.target}=number." if isinstance(value, float) and not numbers else ""
    raise DataError(f"{where}: the label is a {type(label).__name__}{shape}; expected {expected}.{advice}")


def to_uint8_image(image: Any, where: str) -> NDArray[np.uint8] | Image.Image:
    """Converts an array or tensor to uint8 [H, W] or [H, W, C] with C 1 or 3; a Pillow image is returned unchanged.

    Channels-first input is transposed. Floats must be multiples of 1/255 in [0, 1] as ToTensor makes them, so that the
    original uint8 values are restored exactly. Raises DataError for other shapes, dtypes and values."""
    if isinstance(image, Image.Image):
        return image
    is_tensor = hasattr(image, "detach")
    array = np.asarray(image.detach().cpu() if is_tensor else image)
    if array.ndim == 3:
        channels_first, channels_last = array.shape[0] in (1, 3), array.shape[2] in (1, 3)
        if channels_first and (is_tensor or not channels_last):  # if both fit, tensors have channels first, arrays last
            array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)) or 0 in array.shape:
        raise DataError(
            f"{where}: the image is a {type(image).__name__} of shape {list(array.shape)}; expected [H,W], [C,H,W] or "
            f"[H,W,C] with C 1 or 3."
        )
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise DataError(f"{where}: found {array.dtype} pixels; expected uint8, or floats in [0, 1] from ToTensor.")
    levels = array * 255.0
    rounded = np.round(levels)
    if not (array.min() >= 0 and array.max() <= 1 and np.abs(levels - rounded).max() <= 1e-3):
        raise DataError(
            f"{where}: found {array.dtype} pixels from {array.min():.3g} to {array.max():.3g}; expected multiples of "
            f"1/255 in [0, 1] from ToTensor. Remove Normalize and other float transforms from the dataset; "
            f"{arg.preprocess} normalises the images."
        )
    return rounded.astype(np.uint8)


_NUM_PROBED = 3
_READS_PER_ITEM = 5  # with 3 probes, a random flip with probability 1/2 is missed once in 4,096 times
_RANDOM_TRANSFORMS = ("ColorJitter", "AutoAugment", "RandAugment", "TrivialAugmentWide", "AugMix", "MixUp", "CutMix")


@dataclass(frozen=True, slots=True)
class DatasetImage:
    """A reference to the image of one item of a dataset."""

    items: LabelledDataset
    index: int

    @property
    def token(self) -> None:
        """Always None, since the dataset may return another image in another process."""
        return

    def read(self) -> NDArray[np.uint8] | Image.Image:
        """Returns the decoded image. Raises DataError if the label of the item has changed since it was listed."""
        return self.items.image(self.index)


class LabelledDataset:
    """A map-style dataset with the list of its labels; its items are read with a lock if they may share state.

    Only datasets of torch and torchvision are read by several threads at once. The items of other datasets may share an
    open file, an image or a buffer, so each image is decoded and copied before the next item is read. With `numbers`,
    labels may be floats. Raises DataError if the dataset has a random transform or an invalid item."""

    def __init__(self, dataset: Any, name: str, numbers: bool = False) -> None:
        self.dataset, self.name, self.numbers = dataset, name, numbers
        is_thread_safe = all(
            type(part).__module__.partition(".")[0] in ("torch", "torchvision") for part in _nested_datasets(dataset)
        )
        self._lock: AbstractContextManager[Any] = nullcontext() if is_thread_safe else threading.Lock()
        self._check_deterministic()
        self.labels = self._labels()

    def __len__(self) -> int:
        return len(self.dataset)

    def image(self, index: int) -> NDArray[np.uint8] | Image.Image:
        """Returns the decoded image of an item. Raises DataError if its label differs from `labels`."""
        image, label = self.item(index, decode=True)
        if label != self.labels[index]:
            raise DataError(
                f"{self.name}, item {index}: the label is now {label!r}, but was {self.labels[index]!r} before. Labels "
                f"must not change."
            )
        decoded: NDArray[np.uint8] | Image.Image = image
        return decoded

    def item(self, index: int, decode: bool = False) -> tuple[Any, int | float | str]:
        """Returns (image, label) of an item. With `decode`, the image is decoded to pixels and copied.

        Raises DataError if the dataset raises an exception or the item has another form."""
        where = f"{self.name}, item {index}"
        with self._lock:
            try:
                item = self.dataset[index]
            except Exception as error:  # the code of the dataset may raise any type
                raise DataError(f"{where}: cannot be read: {type(error).__name__}: {error}.") from error
            image, label = self._unpack_item(item, where)
            return (_decode_copy(image, where) if decode else image), label

    def _unpack_item(self, item: Any, where: str) -> tuple[Any, int | float | str]:
        if isinstance(item, Mapping):
            missing = [key for key in ("image", "label") if key not in item]
            if missing:
                raise DataError(f"{where}: no key '{missing[0]}', only {join_names(map(str, item))}.")
            return item["image"], parse_label(item["label"], where, self.numbers)
        if isinstance(item, tuple | list) and len(item) == 2:
            return item[0], parse_label(item[1], where, self.numbers)
        count = f" of {len(item)}" if isinstance(item, tuple | list) else ""
        raise DataError(
            f"{where}: found a {type(item).__name__}{count}; expected (image, label), or a dict with 'image' and "
            f"'label'."
        )

    def _check_deterministic(self) -> None:
        named = next(
            (type(t).__name__ for part in _nested_datasets(self.dataset) for t in _transforms(part) if _is_random(t)),
            "",
        )
        differs = next(
            (index for index in range(min(_NUM_PROBED, len(self))) if self._is_nondeterministic(index)), None
        )
        if named or differs is not None:
            message = (
                f"the transform {named} is random" if named else f"item {differs} differs from one read to the next"
            )
            raise DataError(
                f"{self.name}: {message}. Images are decoded once, so a random transform has the same result in every "
                f"epoch. Move it from the dataset to the augmentations: {arg.transforms}, or augment=PerImage(…)."
            )

    def _is_nondeterministic(self, index: int) -> bool:
        try:
            return len({content_key(self.item(index, decode=True)[0]) for _ in range(_READS_PER_ITEM)}) > 1
        except ImageError:  # reported or skipped when all images are read
            return False

    def _labels(self) -> list[int | float | str]:
        stored = stored_labels(self.dataset)
        if stored is not None and all(stored[i] == self.item(i)[1] for i in range(min(_NUM_PROBED, len(self)))):
            return stored
        return [self.item(index)[1] for index in range(len(self))]


def _decode_copy(image: Any, where: str) -> NDArray[np.uint8] | Image.Image:
    """Returns a copy of the decoded image: a Pillow image if it has an alpha channel, else an array."""
    image = decode_image(to_uint8_image(image, where), where)
    return image.copy() if isinstance(image, Image.Image) and image.mode in ("LA", "RGBA") else np.array(image)


def dataset_rows(dataset: Any, split: str, numbers: bool = False) -> tuple[list[Row], tuple[str, ...] | None]:
    """Returns the rows of a map-style dataset, and its class names in label order or None.

    Raises DataError if the dataset is empty, has a random transform or has an invalid item or label."""
    name = f"the {split} dataset ({type(dataset).__name__})"
    if not len(dataset):
        raise DataError(f"{name} has no items.")
    items = LabelledDataset(dataset, name, numbers)
    classes = dataset_classes(dataset, name)
    width = max(5, len(str(len(items) - 1)))
    rows = []
    for i, label in enumerate(items.labels):
        where = f"{name}, item {i}"
        text = repr(parse_number(label, where)) if numbers else label_text(label, classes, where)
        rows.append(Row(f"{split}/{i:0{width}d}", DatasetImage(items, i), text, where))
    return rows, classes


def data_name(data: Any) -> str:
    """Returns a name for data passed in from Python: its Hugging Face name, "arrays" for a tuple, or its type."""
    if isinstance(data, Subset):
        return data_name(data.dataset)
    info = getattr(data, "info", None)
    name = getattr(info, "dataset_name", None) or getattr(info, "builder_name", None)
    return str(name) if name else "arrays" if isinstance(data, tuple) else type(data).__name__


def _nested_datasets(dataset: Any) -> Iterator[Any]:
    yield dataset
    inner = [dataset.dataset] if isinstance(dataset, Subset) else getattr(dataset, "datasets", ())
    for part in inner if isinstance(inner, list | tuple) else ():
        yield from _nested_datasets(part)


def _transforms(part: Any) -> Iterator[Any]:
    inner = getattr(part, "transforms", None)
    for child in (getattr(part, "transform", None), *(inner if isinstance(inner, list | tuple) else (inner,))):
        if child is not None and child is not part:
            yield child
            yield from _transforms(child)


def _is_random(transform: Any) -> bool:
    name = type(transform).__name__
    return (name.startswith("Random") or name in _RANDOM_TRANSFORMS) and getattr(transform, "p", 0.5) not in (0, 1)
