"""Labels that are numbers to predict, in place of classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sightline.errors import DataError, arg, listing

if TYPE_CHECKING:
    from sightline.data.rows import Found, Row

_LARGEST = 2.0**128 - 2.0**104  # of float32, which labels are kept as


def number(value: Any, where: str) -> float:
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


def numbered(rows: Sequence[Row]) -> list[Row]:
    """The rows, each label checked to be a number and written in one way."""
    return [row._replace(label=repr(number(row.label, row.place))) for row in rows]


def check_numbers(found: Found, classes: int | Sequence[str] | None) -> None:
    """Raises DataError for labels that cannot be meant as numbers."""
    if classes is not None:
        raise DataError(
            f"{arg.classes}: with {arg.target}=number a label is a number and no class; leave {arg.classes} out."
        )
    if found.classes is not None:
        raise DataError(
            f"{arg.target}=number: the data names the classes of its labels ({listing(found.classes)}), so they are no "
            f"numbers. Leave {arg.target} at class, or name a column of numbers with {arg.label_column}."
        )


def is_number(value: Any) -> bool:
    """Whether a label is one that `number` would give back as it is."""
    return type(value) is float and abs(value) <= _LARGEST
