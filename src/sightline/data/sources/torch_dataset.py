"""Map-style torch data sets as samples. Labels are taken without decoding an image where the data set has them; the
images stay in the data set until they are read."""

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
    """The class names that a data set carries in `classes`, in label order."""
    if isinstance(dataset, Subset):
        return dataset_classes(dataset.dataset, name)
    if isinstance(dataset, ConcatDataset):
        found = {dataset_classes(part, name) for part in dataset.datasets}
        if len(found) > 1:
            raise DataError(f"{name}: its parts do not name the same classes in the same order.")
        return found.pop()
    classes = getattr(dataset, "classes", None)
    if not isinstance(classes, Sequence) or isinstance(classes, str) or not classes:
        return None
    names = [", ".join(map(str, given)) if isinstance(given, tuple | list) else str(given) for given in classes]
    if all(text.startswith(f"{i} - ") for i, text in enumerate(names)):  # torchvision's MNIST says "0 - zero"
        names = [str(i) for i in range(len(names))]
    if len(set(names)) < len(names):  # ImageNet has two cranes
        names = [f"{i} {text}" for i, text in enumerate(names)]
    return tuple(names)


def stored_labels(dataset: Any) -> list[int | float | str] | None:
    """Every label without reading an item, where a data set keeps them and leaves them as they are; else None."""
    if isinstance(dataset, Subset):
        inner = stored_labels(dataset.dataset)
        return None if inner is None else [inner[i] for i in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [stored_labels(part) for part in dataset.datasets]
        return None if None in parts else [label for part in parts for label in part or ()]
    if isinstance(dataset, TensorDataset):
        found: Any = dataset.tensors[1] if len(dataset.tensors) == 2 else None
    else:
        joint_transform = getattr(dataset, "transforms", None)  # torchvision's own keeps the two apart and says so
        if (
            getattr(dataset, "target_transform", None) is not None
            or getattr(joint_transform, "target_transform", joint_transform) is not None
        ):
            return None
        names = ("targets", "labels", "_labels")
        found = next((value for name in names if (value := getattr(dataset, name, None)) is not None), None)
    found = found.tolist() if hasattr(found, "tolist") else found
    if not isinstance(found, list | tuple) or len(found) != len(dataset):
        return None
    return list(found) if all(type(label) in (int, float, str) for label in found) else None


def parse_label(label: Any, where: str, numbers: bool = False) -> int | float | str:
    """A label as a whole number or text, or with `numbers` as any number. Raises DataError for anything else, such as
    one-hot."""
    value = label.item() if getattr(label, "ndim", None) == 0 or getattr(label, "shape", None) == (1,) else label
    if isinstance(value, int | float | str if numbers else int | str) and not isinstance(value, bool):
        return value
    shape = f" of shape {list(label.shape)}" if hasattr(label, "shape") else ""
    expected = "a number" if numbers else "a whole number or text"
    advice = f" To predict numbers, set {arg.target}=number." if isinstance(value, float) and not numbers else ""
    raise DataError(f"{where}: the label is a {type(label).__name__}{shape}; expected {expected}.{advice}")


def to_uint8_image(image: Any, where: str) -> NDArray[np.uint8] | Image.Image:
    """A Pillow image as it is, an array or tensor as uint8 [H,W] or [H,W,C]. Floats must be the whole levels that
    ToTensor makes: times 255 they are the bits again."""
    if isinstance(image, Image.Image):
        return image
    first = hasattr(image, "detach")  # a tensor has its channels first, an array last, where both could be
    array = np.asarray(image.detach().cpu() if first else image)
    if array.ndim == 3:
        ends = (array.shape[0] in (1, 3), array.shape[2] in (1, 3))
        if ends[0] and (first or not ends[1]):
            array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)) or 0 in array.shape:
        raise DataError(
            f"{where}: the image is a {type(image).__name__} of shape {list(array.shape)}; expected [H,W], [C,H,W] or "
            f"[H,W,C] with C 1 or 3."
        )
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise DataError(f"{where}: pixels of {array.dtype}; expected uint8, or floats from 0 to 1 as ToTensor makes.")
    levels = array * 255.0
    whole = np.round(levels)
    if not (array.min() >= 0 and array.max() <= 1 and np.abs(levels - whole).max() <= 1e-3):
        raise DataError(
            f"{where}: {array.dtype} pixels from {array.min():.3g} to {array.max():.3g} that are not the whole levels "
            f"of 0 to 1 which ToTensor makes. Leave Normalize, and what else computes with floats, out of the data "
            f"set: {arg.preprocess} normalises."
        )
    return whole.astype(np.uint8)


_NUM_PROBED = 3
_READS_PER_ITEM = 5  # of each probe: a flip with probability 1/2 goes unseen once in 4,096 times
_RANDOM_TRANSFORMS = ("ColorJitter", "AutoAugment", "RandAugment", "TrivialAugmentWide", "AugMix", "MixUp", "CutMix")


@dataclass(frozen=True, slots=True)
class DatasetImage:
    """The image of one item of a data set, whose identity nobody knows."""

    items: LabelledDataset
    index: int

    @property
    def token(self) -> None:
        """None: the data set may answer otherwise in another process."""
        return

    def read(self) -> NDArray[np.uint8] | Image.Image:
        """The item's image. Raises DataError when its label is not the one that was listed."""
        return self.items.image(self.index)


class LabelledDataset:
    """A data set and its labels, with `numbers` of any type of number. Only data sets of torch and torchvision are read
    by several threads at once. The items of others may share an open file, an image or a buffer, so an image is decoded
    and copied before the next item is read."""

    def __init__(self, dataset: Any, name: str, numbers: bool = False) -> None:
        self.dataset, self.name, self.numbers = dataset, name, numbers
        alone = all(
            type(part).__module__.partition(".")[0] in ("torch", "torchvision") for part in _nested_datasets(dataset)
        )
        self._lock: AbstractContextManager[Any] = nullcontext() if alone else threading.Lock()
        self._check_deterministic()
        self.labels = self._labels()

    def __len__(self) -> int:
        return len(self.dataset)

    def image(self, index: int) -> NDArray[np.uint8] | Image.Image:
        """The pixels of an item."""
        image, label = self.item(index, decode=True)
        if label != self.labels[index]:
            raise DataError(
                f"{self.name}, item {index}: its label is {label!r} now and was {self.labels[index]!r} before; labels "
                f"must not change."
            )
        found: NDArray[np.uint8] | Image.Image = image
        return found

    def item(self, index: int, decode: bool = False) -> tuple[Any, int | float | str]:
        """(image, label) of an item, the label as a number or text; with `decode`, the image as pixels of its own."""
        where = f"{self.name}, item {index}"
        with self._lock:
            try:
                item = self.dataset[index]
            except Exception as error:  # the data set's own code raises what it likes
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
            f"{where}: a {type(item).__name__}{count}; expected (image, label), or a dict with 'image' and 'label'."
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
                f"{self.name}: {message}. Images are decoded once, so a random transform would be frozen. Take it out "
                f"of "
                f"the data set and give it as an augmentation: {arg.transforms}, or augment=PerImage(…)."
            )

    def _is_nondeterministic(self, index: int) -> bool:
        try:
            return len({content_key(self.item(index, decode=True)[0]) for _ in range(_READS_PER_ITEM)}) > 1
        except ImageError:  # reported, or left out, when all are read
            return False

    def _labels(self) -> list[int | float | str]:
        quick = stored_labels(self.dataset)
        if quick is not None and all(quick[i] == self.item(i)[1] for i in range(min(_NUM_PROBED, len(self)))):
            return quick
        return [self.item(index)[1] for index in range(len(self))]


def _decode_copy(image: Any, where: str) -> NDArray[np.uint8] | Image.Image:
    """An image as pixels that are no one else's; a Pillow image where it has alpha."""
    image = decode_image(to_uint8_image(image, where), where)
    return image.copy() if isinstance(image, Image.Image) and image.mode in ("LA", "RGBA") else np.array(image)


def dataset_rows(dataset: Any, split: str, numbers: bool = False) -> tuple[list[Row], tuple[str, ...] | None]:
    """The items of a data set and, where it names them, its classes in order."""
    name = f"the {split} data set ({type(dataset).__name__})"
    if not len(dataset):
        raise DataError(f"{name} has no items.")
    items = LabelledDataset(dataset, name, numbers)
    classes = dataset_classes(dataset, name)
    width = max(5, len(str(len(items) - 1)))
    rows = []
    for i, label in enumerate(items.labels):
        where = f"{name}, item {i}"
        message = repr(parse_number(label, where)) if numbers else label_text(label, classes, where)
        rows.append(Row(f"{split}/{i:0{width}d}", DatasetImage(items, i), message, where))
    return rows, classes


def data_name(data: Any) -> str:
    """What messages call data that was passed in from Python."""
    if isinstance(data, Subset):
        return data_name(data.dataset)
    noted = getattr(data, "info", None)
    name = getattr(noted, "dataset_name", None) or getattr(noted, "builder_name", None)
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
