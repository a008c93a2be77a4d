"""Map-style torch data sets as samples. Labels are taken without decoding an image where the data set has them; the
images stay in the data set until they are read."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Subset

from sightline.data.classes import label_name
from sightline.data.decode import content_key, open_image
from sightline.data.numbers import number
from sightline.data.pixels import plain_label, to_pixels
from sightline.data.rows import Row
from sightline.data.targets import dataset_classes, quick_labels
from sightline.errors import DataError, ImageError, arg, listing

_PROBES = 3
_READS = 5  # of each probe: a flip with probability 1/2 goes unseen once in 4,096 times
_RANDOM = ("ColorJitter", "AutoAugment", "RandAugment", "TrivialAugmentWide", "AugMix", "MixUp", "CutMix")


@dataclass(frozen=True, slots=True)
class ItemImage:
    """The image of one item of a data set, whose identity nobody knows."""

    items: Items
    index: int

    @property
    def token(self) -> None:
        """None: the data set may answer otherwise in another process."""
        return

    def read(self) -> NDArray[np.uint8] | Image.Image:
        """The item's image. Raises DataError when its label is not the one that was listed."""
        return self.items.image(self.index)


class Items:
    """A data set and its labels, with `numbers` of any type of number. Only data sets of torch and torchvision are read
    by several threads at once. The items of others may share an open file, an image or a buffer, so an image is decoded
    and copied before the next item is read."""

    def __init__(self, dataset: Any, name: str, numbers: bool = False) -> None:
        self.dataset, self.name, self.numbers = dataset, name, numbers
        alone = all(type(part).__module__.partition(".")[0] in ("torch", "torchvision") for part in _parts(dataset))
        self._lock: AbstractContextManager[Any] = nullcontext() if alone else threading.Lock()
        self._refuse_random()
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
            image, label = self._parts_of(item, where)
            return (_decoded(image, where) if decode else image), label

    def _parts_of(self, item: Any, where: str) -> tuple[Any, int | float | str]:
        if isinstance(item, Mapping):
            missing = [key for key in ("image", "label") if key not in item]
            if missing:
                raise DataError(f"{where}: no key '{missing[0]}', only {listing(map(str, item))}.")
            return item["image"], plain_label(item["label"], where, self.numbers)
        if isinstance(item, tuple | list) and len(item) == 2:
            return item[0], plain_label(item[1], where, self.numbers)
        count = f" of {len(item)}" if isinstance(item, tuple | list) else ""
        raise DataError(
            f"{where}: a {type(item).__name__}{count}; expected (image, label), or a dict with 'image' and 'label'."
        )

    def _refuse_random(self) -> None:
        named = next(
            (type(t).__name__ for part in _parts(self.dataset) for t in _transforms(part) if _is_random(t)), ""
        )
        differs = next((index for index in range(min(_PROBES, len(self))) if self._differs(index)), None)
        if named or differs is not None:
            told = f"the transform {named} is random" if named else f"item {differs} differs from one read to the next"
            raise DataError(
                f"{self.name}: {told}. Images are decoded once, so a random transform would be frozen. Take it out of "
                f"the data set and give it as an augmentation: {arg.transforms}, or augment=PerSample(…)."
            )

    def _differs(self, index: int) -> bool:
        try:
            return len({content_key(self.item(index, decode=True)[0]) for _ in range(_READS)}) > 1
        except ImageError:  # reported, or left out, when all are read
            return False

    def _labels(self) -> list[int | float | str]:
        quick = quick_labels(self.dataset)
        if quick is not None and all(quick[i] == self.item(i)[1] for i in range(min(_PROBES, len(self)))):
            return quick
        return [self.item(index)[1] for index in range(len(self))]


def _decoded(image: Any, where: str) -> NDArray[np.uint8] | Image.Image:
    """An image as pixels that are no one else's; a Pillow image where it has alpha."""
    picture = open_image(to_pixels(image, where), where)
    return picture.copy() if isinstance(picture, Image.Image) and picture.mode in ("LA", "RGBA") else np.array(picture)


def dataset_rows(dataset: Any, split: str, numbers: bool = False) -> tuple[list[Row], tuple[str, ...] | None]:
    """The items of a data set and, where it names them, its classes in order."""
    name = f"the {split} data set ({type(dataset).__name__})"
    if not len(dataset):
        raise DataError(f"{name} has no items.")
    items = Items(dataset, name, numbers)
    classes = dataset_classes(dataset, name)
    width = max(5, len(str(len(items) - 1)))
    rows = []
    for i, label in enumerate(items.labels):
        where = f"{name}, item {i}"
        told = repr(number(label, where)) if numbers else label_name(label, classes, where)
        rows.append(Row(f"{split}/{i:0{width}d}", ItemImage(items, i), told, where))
    return rows, classes


def short_name(data: Any) -> str:
    """What to call data that was handed over."""
    if isinstance(data, Subset):
        return short_name(data.dataset)
    noted = getattr(data, "info", None)
    told = getattr(noted, "dataset_name", None) or getattr(noted, "builder_name", None)
    return str(told) if told else "arrays" if isinstance(data, tuple) else type(data).__name__


def _parts(dataset: Any) -> Iterator[Any]:
    yield dataset
    inner = [dataset.dataset] if isinstance(dataset, Subset) else getattr(dataset, "datasets", ())
    for part in inner if isinstance(inner, list | tuple) else ():
        yield from _parts(part)


def _transforms(part: Any) -> Iterator[Any]:
    inner = getattr(part, "transforms", None)
    for child in (getattr(part, "transform", None), *(inner if isinstance(inner, list | tuple) else (inner,))):
        if child is not None and child is not part:
            yield child
            yield from _transforms(child)


def _is_random(transform: Any) -> bool:
    name = type(transform).__name__
    return (name.startswith("Random") or name in _RANDOM) and getattr(transform, "p", 0.5) not in (0, 1)
