"""Labels: class names in order and the index of each label text, or numbers to predict (regression)."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sightline.core.errors import DataError, arg, did_you_mean, join_names
from sightline.data.records import RawListing, Row

_LARGEST = 2.0**128 - 2.0**104  # of float32, which labels are kept as


def sort_class_names(names: set[str]) -> tuple[str, ...]:
    """Class names in order: as numbers when all of them are (2 before 10), else as text."""
    if all(re.fullmatch(r"[-+]?\d+(\.\d+)?", name) for name in names):
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    return tuple(sorted(names))


def class_names(
    splits: Mapping[str, Sequence[Row]], own: tuple[str, ...] | None, classes: int | Sequence[str] | None
) -> tuple[str, ...]:
    """The class names in label order: from the config where it gives them, else as the data names its `own`, else those
    that the training rows have."""
    if isinstance(classes, int) and own is not None:
        if classes != len(own):
            raise DataError(f"{arg.classes} is {classes}, but the data names {len(own)} classes: {join_names(own)}.")
        names = own
    elif classes is None:
        names = own or sort_class_names({row.label for row in splits["train"]})
    else:
        names = tuple(str(i) for i in range(classes)) if isinstance(classes, int) else tuple(classes)
        if len(set(names)) != len(names):
            raise DataError(f"{arg.classes} names a class twice: {join_names(names)}.")
    if len(names) < 2:
        problem = f"only one class, '{names[0]}'" if names else "no class"
        where = " Is the data directory one too deep?" if classes is None else f" Change {arg.classes}."
        raise DataError(f"{problem}: a classifier needs at least two.{where}")
    valid = set(label_index(names, given=classes is not None, own=own))
    for split, members in splits.items():
        for row in members:
            if row.label in valid:
                continue
            if classes is not None:
                known = f"0 to {classes - 1}" if isinstance(classes, int) else join_names(names)
                problem = f"{row.place}: label '{row.label}' is out of range; {arg.classes} has {known}."
                raise DataError(problem + did_you_mean(row.label, names))
            raise DataError(
                f"{row.place}: the class '{row.label}' is in the {split} split but not in train, so it can never be "
                f"predicted.{did_you_mean(row.label, names)} Training classes: {join_names(names)}."
            )
    return names


def label_index(names: Sequence[str], given: bool, own: Sequence[str] | None = None) -> dict[str, int]:
    """The class index of every label text. With names the config gives, a label may also be its class's number: the
    table says 3, data.classes says what 3 is called. In the same way, names that share none with the data's `own` ones
    stand in their places."""
    index = {name: i for i, name in enumerate(names)}
    if given and own is not None:
        renamed = len(own) == len(names) and not set(own) & set(names)
        return index | ({name: i for i, name in enumerate(own)} if renamed else {})
    numbered = any(name.isdecimal() for name in names)
    return index | ({str(i): i for i in range(len(names))} if given and not numbered else {})


def label_text(value: Any, own: Sequence[str] | None, where: str) -> str:
    """The text of a label as a library stores it: the number of one of its `own` classes, a number alone, or text."""
    if value is None or value == "" or (own is not None and value == -1):
        raise DataError(f"{where}: no label.")
    if not isinstance(value, int | str) or isinstance(value, bool):
        advice = f"; to predict numbers, set {arg.target}=number" if isinstance(value, float) else ""
        raise DataError(f"{where}: the label {value!r} is neither a whole number nor text{advice}.")
    if own is None or isinstance(value, str):
        return str(value)
    if not 0 <= value < len(own):
        raise DataError(
            f"{where}: label {value} is out of range; the data names {len(own)} classes: {join_names(own)}."
        )
    return own[value]


def parse_number(value: Any, where: str) -> float:
    """A label, as text or as a library stores it, as a finite number. Raises DataError for anything else."""
    if value is None or value == "":
        raise DataError(f"{where}: no label.")
    try:
        # float() would read 1_000 as a thousand, and a truth value is one of two classes
        found = math.nan if isinstance(value, bool) or "_" in str(value) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise DataError(
            f"{where}: the label {value!r} is no finite number; {arg.target}=number needs one for every image, such as "
            f"3.5 or -2e3."
        )
    if abs(found) > _LARGEST:
        raise DataError(f"{where}: the label {value!r} is too large for float32, which ends at {_LARGEST:.3g}.")
    return found + 0.0  # 0 for -0, whose bytes would be another fingerprint


def parse_number_labels(rows: Sequence[Row]) -> list[Row]:
    """The rows, each label checked to be a number and written in one way."""
    return [row._replace(label=repr(parse_number(row.label, row.place))) for row in rows]


def check_regression_labels(found: RawListing, classes: int | Sequence[str] | None) -> None:
    """Raises DataError for labels that cannot be meant as numbers."""
    if classes is not None:
        raise DataError(
            f"{arg.classes}: with {arg.target}=number a label is a number and no class; leave {arg.classes} out."
        )
    if found.classes is not None:
        raise DataError(
            f"{arg.target}=number: the data names the classes of its labels ({join_names(found.classes)}), so they are "
            f"no "
            f"numbers. Leave {arg.target} at class, or name a column of numbers with {arg.label_column}."
        )


def is_float32_number(value: Any) -> bool:
    """Whether a label is one that `parse_number` would give back as it is."""
    return type(value) is float and abs(value) <= _LARGEST
