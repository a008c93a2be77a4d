"""From rows whose labels are text to samples whose labels are numbers: class names, the splits that the data brings,
and what is set aside where it brings none. Every source ends here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from sightline.data.classes import class_names, label_index
from sightline.data.numbers import check_numbers, numbered
from sightline.data.splits import split_groups, split_rows
from sightline.errors import DataError, arg, listing, nearest
from sightline.types import DataInfo, Reference, Sample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
NO_COLUMNS: Mapping[str, str] = MappingProxyType({})


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


class Found(NamedTuple):
    """What a layout holds: rows by split and, where the data names its classes in order, those names."""

    splits: dict[str, list[Row]]
    classes: tuple[str, ...] | None = None


class Drawn(NamedTuple):
    """How splits were set aside by row from one list: for each of them, and for what is left to train on, the places of
    its samples in that list; `by_class` says whether each class gave its share. Packing, which knows what the images
    show, draws anew by it: by their content key, or, for a run that was made before there was one, by the `checksum`
    of then."""

    seed: int
    places: dict[str, list[int]]
    by_class: bool = True
    checksum: bool = False


@dataclass(frozen=True)
class ListSource:
    """A data source whose samples are listed in memory (where they are and their labels, not their pixels)."""

    info: DataInfo
    splits: Mapping[str, Sequence[Sample]]
    drawn: Drawn | None = None


def assemble(
    found: Found,
    name: str,
    *,
    root: Path | None = None,
    classes: int | Sequence[str] | None = None,
    val: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    group_column: str | None = None,
    numbers: bool = False,
) -> ListSource:
    """The source of what was found: labels become numbers, and `val` and `test` are set aside where the data has no
    such split (a part below 1 or a number of images). With `numbers`, labels are numbers to predict and there are no
    classes.

    Raises DataError for a single class, a class that only an evaluation split has, a label out of range or that is no
    number, a group that lies in two splits."""
    names: tuple[str, ...] = ()
    index: Mapping[str, int | float]
    if numbers:
        found = found._replace(splits={split: numbered(rows) for split, rows in found.splits.items()})
        check_numbers(found, classes)
        index = {row.label: float(row.label) for rows in found.splits.values() for row in rows}
    else:
        names = class_names(found.splits, found.classes, classes)
        index = label_index(names, given=classes is not None, own=found.classes)
    if group_column is not None:
        _check_groups(found.splits, group_column)
    rows, places = _with_missing_splits(found.splits, val, test, seed, group_column, by_class=not numbers)
    splits = {
        split: [Sample(row.id, row.image, index[row.label], row.where, row.columns) for row in rows[split]]
        for split in ("train", "val", "test")
        if rows.get(split)
    }
    by_row = len(places) > 1 and group_column is None
    return ListSource(DataInfo(name, names, root), splits, Drawn(seed, places, not numbers) if by_row else None)


def split_named(value: str, where: str) -> str:
    """The split that a cell of the split column names. Raises DataError for anything else."""
    split = SPLIT_NAMES.get(value.strip().lower())
    if split is None:
        raise DataError(
            f"{where}: '{value}' is no split.{nearest(value.lower(), SPLIT_NAMES)} Expected {listing(SPLIT_NAMES)} in "
            f"the column that {arg.split_column} names."
        )
    return split


def by_split(rows: Sequence[Row], table: str) -> dict[str, list[Row]]:
    """The rows of one table by what its split column says."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.split or "train", []).append(row)
    if "train" not in found:
        raise DataError(f"{table}: {arg.split_column}: no row is in train, only in {listing(sorted(found))}.")
    return found


def _check_groups(splits: Mapping[str, Sequence[Row]], column: str) -> None:
    home: dict[str, tuple[str, Row]] = {}
    for split, rows in splits.items():
        for row in rows:
            group = row.columns[column]
            if not group:
                raise DataError(f"{row.place}: no group in column '{column}' ({arg.group_column}).")
            first, other = home.setdefault(group, (split, row))
            if first != split:
                raise DataError(
                    f"{row.place}: the group '{group}' ({arg.group_column}: {column}) is in the {split} split and in "
                    f"{first} ({other.place}); all images of a group belong into one split."
                )


def _with_missing_splits(
    found: Mapping[str, list[Row]], val: float, test: float, seed: int, group_column: str | None, by_class: bool
) -> tuple[dict[str, list[Row]], dict[str, list[int]]]:
    """The rows of every split; and of those that come out of one list, the places they had in it."""
    rows = dict(found)
    total = len(found["train"])
    places = {"train": list(range(total))}
    for split, share in (("test", test), ("val", val)):
        if split not in rows and share and not (split == "test" and "val" in found):
            train = rows["train"]
            labels = [row.label if by_class else "" for row in train]
            count = round(share * total) if share < 1 else int(share)
            if group_column is None:
                kept, taken = split_rows(labels, count, seed, split)
            else:
                kept, taken = split_groups(labels, [row.columns[group_column] for row in train], count, seed, split)
            rows |= {"train": [train[i] for i in kept], split: [train[i] for i in taken]}
            left = places["train"]
            places |= {"train": [left[i] for i in kept], split: [left[i] for i in taken]}
    return rows, places
