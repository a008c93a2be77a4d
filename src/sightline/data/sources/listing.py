"""From rows whose labels are text to samples whose labels are numbers: class names, the splits that the data brings,
and what is set aside where it brings none. Every source ends here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sightline.core.errors import DataError, arg, did_you_mean, join_names
from sightline.data.records import DataInfo, RawListing, Row, RowSplits, Sample
from sightline.data.sources.labels import check_regression_labels, class_names, label_index, parse_number_labels
from sightline.data.sources.splits import split_groups, split_rows

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class ListSource:
    """A data source whose samples are listed in memory (where they are and their labels, not their pixels)."""

    info: DataInfo
    splits: Mapping[str, Sequence[Sample]]
    drawn: RowSplits | None = None


def build_source(
    found: RawListing,
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
        found = found._replace(splits={split: parse_number_labels(rows) for split, rows in found.splits.items()})
        check_regression_labels(found, classes)
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
    return ListSource(DataInfo(name, names, root), splits, RowSplits(seed, places, not numbers) if by_row else None)


def parse_split(value: str, where: str) -> str:
    """The split that a cell of the split column names. Raises DataError for anything else."""
    split = SPLIT_NAMES.get(value.strip().lower())
    if split is None:
        raise DataError(
            f"{where}: '{value}' is no split.{did_you_mean(value.lower(), SPLIT_NAMES)} Expected "
            f"{join_names(SPLIT_NAMES)} in "
            f"the column that {arg.split_column} names."
        )
    return split


def group_by_split(rows: Sequence[Row], table: str) -> dict[str, list[Row]]:
    """The rows of one table by what its split column says."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.split or "train", []).append(row)
    if "train" not in found:
        raise DataError(f"{table}: {arg.split_column}: no row is in train, only in {join_names(sorted(found))}.")
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
