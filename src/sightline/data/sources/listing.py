"""Turns rows (labels are text) into samples (labels are numbers) and holds out missing splits, for every source."""

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
    """A data source with its list of samples in memory, but not their pixels.

    `drawn` says how `val` and `test` were held out by row; None if they were not, or were held out by group."""

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
    """Builds a data source from the rows of a layout, as the last step of every source.

    Labels become class indices, or floats with `numbers` (regression). A missing `val` or `test` split is held out from
    `train`: a fraction if below 1, else a number of images. Data with its own `val` but no `test` gets no `test`.

    Raises DataError for fewer than two classes, a class that is not in train, a label that is out of range or not a
    number, and a group that is in two splits."""
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
    """Returns the split that a cell of the split column names. Raises DataError if it is not the name of a split."""
    split = SPLIT_NAMES.get(value.strip().lower())
    if split is None:
        raise DataError(
            f"{where}: '{value}' is not a split.{did_you_mean(value.lower(), SPLIT_NAMES)} Expected one "
            f"of: {join_names(SPLIT_NAMES)} ({arg.split_column})."
        )
    return split


def group_by_split(rows: Sequence[Row], table: str) -> dict[str, list[Row]]:
    """Groups the rows of one table by split; rows without one are in train. Raises DataError if train has no rows."""
    splits: dict[str, list[Row]] = {}
    for row in rows:
        splits.setdefault(row.split or "train", []).append(row)
    if "train" not in splits:
        raise DataError(f"{arg.split_column}: '{table}' has no row in train, only in {join_names(sorted(splits))}.")
    return splits


def _check_groups(splits: Mapping[str, Sequence[Row]], column: str) -> None:
    first_rows: dict[str, tuple[str, Row]] = {}
    for split, rows in splits.items():
        for row in rows:
            group = row.columns[column]
            if not group:
                raise DataError(f"{row.place}: no group in column '{column}' ({arg.group_column}).")
            first_split, first_row = first_rows.setdefault(group, (split, row))
            if first_split != split:
                raise DataError(
                    f"{row.place}: the group '{group}' ({arg.group_column}: {column}) is in the {split} split and in "
                    f"the {first_split} split ({first_row.place}). All images of a group must be in the same split."
                )


def _with_missing_splits(
    found: Mapping[str, list[Row]], val: float, test: float, seed: int, group_column: str | None, by_class: bool
) -> tuple[dict[str, list[Row]], dict[str, list[int]]]:
    """Returns the rows by split, and for train and the held-out splits their indices in the original train list."""
    rows = dict(found)
    total = len(found["train"])
    places = {"train": list(range(total))}
    for split, size in (("test", test), ("val", val)):
        if split not in rows and size and not (split == "test" and "val" in found):
            train = rows["train"]
            labels = [row.label if by_class else "" for row in train]
            count = round(size * total) if size < 1 else int(size)
            if group_column is None:
                kept, held_out = split_rows(labels, count, seed, split)
            else:
                kept, held_out = split_groups(labels, [row.columns[group_column] for row in train], count, seed, split)
            rows |= {"train": [train[i] for i in kept], split: [train[i] for i in held_out]}
            left = places["train"]
            places |= {"train": [left[i] for i in kept], split: [left[i] for i in held_out]}
    return rows, places
