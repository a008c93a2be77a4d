"""Label parsing: the order of class names, label text to class index, and numbers for regression."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sightline.core.errors import DataError, arg, did_you_mean, join_names
from sightline.data.records import RawListing, Row

_MAX_FLOAT32 = 2.0**128 - 2.0**104  # labels are stored as float32


def sort_class_names(names: set[str]) -> tuple[str, ...]:
    """Sorts class names by value if all of them are decimal numbers (2 before 10), else as text."""
    if all(re.fullmatch(r"[-+]?\d+(\.\d+)?", name) for name in names):
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    return tuple(sorted(names))


def class_names(
    splits: Mapping[str, Sequence[Row]], own: tuple[str, ...] | None, classes: int | Sequence[str] | None
) -> tuple[str, ...]:
    """Returns the class names in label order: `classes` from the config, else the data's `own`, else those in train.

    If `classes` is a number, the names are the data's own, else "0", "1", …. Raises DataError for fewer than two
    classes, a repeated class, a number that differs from the data's, and a row whose label is not a class."""
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
        problem = f"Found only one class, '{names[0]}'" if names else "Found no classes"
        advice = "Is the data directory one level too deep?" if classes is None else f"Change {arg.classes}."
        raise DataError(f"{problem}; a classifier needs at least two. {advice}")
    valid = set(label_index(names, given=classes is not None, own=own))
    for split, members in splits.items():
        for row in members:
            if row.label in valid:
                continue
            if classes is not None:
                problem = f"is not in {arg.classes}: {join_names(names)}."
                if isinstance(classes, int):
                    problem = f"is out of range; {arg.classes} has 0 to {classes - 1}."
                raise DataError(f"{row.place}: label '{row.label}' {problem}{did_you_mean(row.label, names)}")
            raise DataError(
                f"{row.place}: the class '{row.label}' is in the {split} split but not in train, so it can never be "
                f"predicted.{did_you_mean(row.label, names)} Training classes: {join_names(names)}."
            )
    return names


def label_index(names: Sequence[str], given: bool, own: Sequence[str] | None = None) -> dict[str, int]:
    """Returns the class index of every valid label text. `given` says that `names` come from the config.

    With names from the config, a label may also be the class index, unless one of the names is a number. If the data
    has `own` names instead, and as many as `names` but none in common, they are renamed by position."""
    index = {name: i for i, name in enumerate(names)}
    if given and own is not None:
        renamed = len(own) == len(names) and not set(own) & set(names)
        return index | ({name: i for i, name in enumerate(own)} if renamed else {})
    numbered = any(name.isdecimal() for name in names)
    return index | ({str(i): i for i in range(len(names))} if given and not numbered else {})


def label_text(value: Any, own: Sequence[str] | None, where: str) -> str:
    """Converts a label stored by another library to text: an index into the `own` class names, an integer, or text.

    Raises DataError for a missing label, an index that is out of range, and other types."""
    if value is None or value == "" or (own is not None and value == -1):
        raise DataError(f"{where}: no label.")
    if not isinstance(value, int | str) or isinstance(value, bool):
        advice = f" To predict numbers, set {arg.target}=number." if isinstance(value, float) else ""
        raise DataError(f"{where}: the label {value!r} is neither an integer nor text.{advice}")
    if own is None or isinstance(value, str):
        return str(value)
    if not 0 <= value < len(own):
        raise DataError(
            f"{where}: label {value} is out of range; the data names {len(own)} classes: {join_names(own)}."
        )
    return own[value]


def parse_number(value: Any, where: str) -> float:
    """Converts a regression label, text or a number, to a float. Raises DataError unless it is finite in float32."""
    if value is None or value == "":
        raise DataError(f"{where}: no label.")
    try:
        # float() would read 1_000 as a thousand, and a bool is a class
        number = math.nan if isinstance(value, bool) or "_" in str(value) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            f"{where}: the label {value!r} is not a finite number; {arg.target}=number needs one for every image, such "
            f"as 3.5 or -2e3."
        )
    if abs(number) > _MAX_FLOAT32:
        raise DataError(f"{where}: the label {value!r} is too large for float32 (at most {_MAX_FLOAT32:.3g}).")
    return number + 0.0  # turns -0 into 0, so that the fingerprint of the labels is the same


def parse_number_labels(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows with each label checked by `parse_number` and rewritten as `repr(float)`."""
    return [row._replace(label=repr(parse_number(row.label, row.place))) for row in rows]


def check_regression_labels(found: RawListing, classes: int | Sequence[str] | None) -> None:
    """Raises DataError if the config or the data defines classes, since regression has none."""
    if classes is not None:
        raise DataError(
            f"{arg.classes}: with {arg.target}=number labels are numbers, not classes. Remove {arg.classes}."
        )
    if found.classes is not None:
        raise DataError(
            f"{arg.target}=number: the data names the classes of its labels ({join_names(found.classes)}), so they are "
            f"not numbers. Set {arg.target}=class, or set {arg.label_column} to a column of numbers."
        )


def is_float32_number(value: Any) -> bool:
    """Whether `parse_number` would return the label unchanged: a float that is finite in float32."""
    return type(value) is float and abs(value) <= _MAX_FLOAT32
