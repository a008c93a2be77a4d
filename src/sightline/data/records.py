"""Data structures for labelled images before decoding: `Row` (the label is text), `Sample` (the label is a number) and
the `DataSource` protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

NO_COLUMNS: Mapping[str, str] = MappingProxyType({})


class Reference(Protocol):
    """A lazily read image that is neither a separate file nor in memory: in an archive, a table or a Python dataset.

    `read` returns an encoded image, pixels uint8 [H, W] or [H, W, C], or a Pillow image; several threads may call it at
    once. `token` changes whenever the content may have changed (for example the path, size and modification time of
    the archive, and the member's name). It is None when the content cannot be identified without reading it."""

    def read(self) -> bytes | NDArray[np.uint8] | Image.Image: ...
    @property
    def token(self) -> str | None: ...


class Sample(NamedTuple):
    """One labelled image of a data source: a reference to the image, or its pixels if they are already in memory.

    `label` is a class index, or the target of a regression. Error messages add `where` to the image's name, for example
    the row of a table. `columns` are the other columns of the table, by name, for use in the evaluation."""

    id: str
    image: Path | bytes | NDArray[np.uint8] | Reference  # a file, an encoded image, uint8 pixels [H,W] or [H,W,C]
    label: int | float
    where: str = ""
    columns: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class DataInfo:
    """The name, classes and location of a data source.

    A label `i` means `classes[i]`. If `classes` is empty, labels are regression targets. `root` is the path of the
    data, or None for data without a path."""

    name: str
    classes: tuple[str, ...]
    root: Path | None = None

    @property
    def outputs(self) -> int:
        """The number of outputs that a network needs per image: one per class, or 1 for regression."""
        return len(self.classes) or 1


class DataSource(Protocol):
    """A dataset as samples by split name (`train`, `val`, `test`). Only `train` is required."""

    @property
    def info(self) -> DataInfo: ...
    @property
    def splits(self) -> Mapping[str, Sequence[Sample]]: ...


class Row(NamedTuple):
    """A sample before the classes are known; its label is still text.

    `where` is its location for error messages, empty if the path of the image is enough. `split` is the value of the
    split column, empty if there is none."""

    id: str
    image: Path | bytes | NDArray[np.uint8] | Reference
    label: str
    where: str = ""
    columns: Mapping[str, str] = NO_COLUMNS
    split: str = ""

    @property
    def place(self) -> str:
        """The start of an error message about this row: `where`, or else the quoted path or id of the image."""
        return self.where or (f"'{self.image}'" if isinstance(self.image, Path) else f"'{self.id}'")


class RawListing(NamedTuple):
    """The rows of one layout by split, and the class names in label order if the data defines them."""

    splits: dict[str, list[Row]]
    classes: tuple[str, ...] | None = None


class RowSplits(NamedTuple):
    """How `val` and `test` were held out by row from one list of samples.

    `places` maps each split, `train` included, to the indices of its samples in that list. `by_class` says whether the
    split is stratified by class. After decoding, packing repeats the split by image content: by content key, or with
    `checksum` by the older CRC-32, for runs recorded before content keys existed."""

    seed: int
    places: dict[str, list[int]]
    by_class: bool = True
    checksum: bool = False
