"""What the labels mean: class names in order, and the number of every label text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sightline.errors import DataError, arg, listing, nearest

if TYPE_CHECKING:
    from sightline.data.rows import Row


def sort_names(names: set[str]) -> tuple[str, ...]:
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
            raise DataError(f"{arg.classes} is {classes}, but the data names {len(own)} classes: {listing(own)}.")
        names = own
    elif classes is None:
        names = own or sort_names({row.label for row in splits["train"]})
    else:
        names = tuple(str(i) for i in range(classes)) if isinstance(classes, int) else tuple(classes)
        if len(set(names)) != len(names):
            raise DataError(f"{arg.classes} names a class twice: {listing(names)}.")
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
                known = f"0 to {classes - 1}" if isinstance(classes, int) else listing(names)
                problem = f"{row.place}: label '{row.label}' is out of range; {arg.classes} has {known}."
                raise DataError(problem + nearest(row.label, names))
            raise DataError(
                f"{row.place}: the class '{row.label}' is in the {split} split but not in train, so it can never be "
                f"predicted.{nearest(row.label, names)} Training classes: {listing(names)}."
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


def label_name(value: Any, own: Sequence[str] | None, where: str) -> str:
    """The text of a label as a library stores it: the number of one of its `own` classes, a number alone, or text."""
    if value is None or value == "" or (own is not None and value == -1):
        raise DataError(f"{where}: no label.")
    if not isinstance(value, int | str) or isinstance(value, bool):
        advice = f"; to predict numbers, set {arg.target}=number" if isinstance(value, float) else ""
        raise DataError(f"{where}: the label {value!r} is neither a whole number nor text{advice}.")
    if own is None or isinstance(value, str):
        return str(value)
    if not 0 <= value < len(own):
        raise DataError(f"{where}: label {value} is out of range; the data names {len(own)} classes: {listing(own)}.")
    return own[value]
