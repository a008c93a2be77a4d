"""Images and their labels as a source lists them, before anything is decoded: rows whose labels are text, samples whose
labels are numbers, and what is known of a data source."""

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
    """An image that is neither a file of its own nor in memory: in an archive, in a table, in another library's data
    set. `read` may be called by several threads at once. `token` is an identity that changes when the content may
    have (such as path, size and modification time of the archive, and the member's name); None when there is none."""

    def read(self) -> bytes | NDArray[np.uint8] | Image.Image: ...
    @property
    def token(self) -> str | None: ...


class Sample(NamedTuple):
    """One labelled image of a data source: where it is, not its pixels, unless they are in memory already. `where` is
    what an error about it says beside its name, such as the row of a table; `columns` are further facts by name, kept
    to measure by."""

    id: str
    image: Path | bytes | NDArray[np.uint8] | Reference  # a file, an encoded image, uint8 pixels [H,W] or [H,W,C]
    label: int | float
    where: str = ""
    columns: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class DataInfo:
    """What is known of a data source before any image is decoded. A label `i` means `classes[i]`; without classes, a
    label is a number to predict."""

    name: str
    classes: tuple[str, ...]
    root: Path | None = None

    @property
    def outputs(self) -> int:
        """How many numbers a network answers with for each image: one a class, or the one that is predicted."""
        return len(self.classes) or 1


class DataSource(Protocol):
    """Where images come from: named splits of samples. Only `train` must be there."""

    @property
    def info(self) -> DataInfo: ...
    @property
    def splits(self) -> Mapping[str, Sequence[Sample]]: ...


class Row(NamedTuple):
    """A sample before the classes are known: its label is still a name. `where` is what an error about it should say,
    empty for a file that is its own answer; `split` is what a split column says."""

    id: str
    image: Path | bytes | NDArray[np.uint8] | Reference
    label: str
    where: str = ""
    columns: Mapping[str, str] = NO_COLUMNS
    split: str = ""

    @property
    def place(self) -> str:
        """How a message begins that is about this row."""
        return self.where or (f"'{self.image}'" if isinstance(self.image, Path) else f"'{self.id}'")


class RawListing(NamedTuple):
    """What a layout holds: rows by split and, where the data names its classes in order, those names."""

    splits: dict[str, list[Row]]
    classes: tuple[str, ...] | None = None


class RowSplits(NamedTuple):
    """How splits were set aside by row from one list: for each of them, and for what is left to train on, the places of
    its samples in that list; `by_class` says whether each class gave its share. Packing, which knows what the images
    show, draws anew by it: by their content key, or, for a run that was made before there was one, by the `checksum`
    of then."""

    seed: int
    places: dict[str, list[int]]
    by_class: bool = True
    checksum: bool = False
