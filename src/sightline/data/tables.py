"""CSV tables of images and labels: which columns, which rows, and what is wrong with a row."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import NamedTuple

from sightline.errors import DataError, listing, nearest

IMAGE_COLUMNS = ("files", "image name", "file", "filename", "image")
LABEL_COLUMNS = ("type", "label", "target", "class")


class Entry(NamedTuple):
    """One row of a table: an image file that is there, its label as text, and where it stands for messages."""

    file: Path
    label: str
    where: str


def read_csv(
    table: Path, images: Path, root: Path, image_column: str | None = None, label_column: str | None = None
) -> list[Entry]:
    """The rows of a CSV file whose first line names the columns. File names are relative to `images` and must lie below
    `root`. Other columns, such as an unnamed index, are passed over. Row numbers count the header as row 1.

    Raises DataError naming the file, the row and the column."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            image_at = _column(header, image_column, IMAGE_COLUMNS, "data.image_column", table)
            label_at = _column(header, label_column, LABEL_COLUMNS, "data.label_column", table)
            entries: list[Entry] = []
            seen: dict[Path, int] = {}
            for number, cells in enumerate(reader, start=2):
                if not any(cells):
                    continue
                where = f"{table}, row {number}"
                if len(cells) != len(header):
                    raise DataError(f"{where}: {len(cells)} cells, expected {len(header)} as in the header.")
                entry = Entry(_image(cells[image_at].strip(), images, root, where), cells[label_at].strip(), where)
                if not entry.label:
                    raise DataError(f"{where}: no label in column '{header[label_at]}'.")
                if entry.file in seen:
                    raise DataError(
                        f"{where}: '{cells[image_at]}' is listed twice, first in row {seen[entry.file]}; a copy could "
                        f"land in another split."
                    )
                seen[entry.file] = number
                entries.append(entry)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"'{table}' is no CSV file in UTF-8: {error}.") from error
    if not entries:
        raise DataError(f"'{table}' has a header but no rows.")
    return entries


def _column(header: list[str], given: str | None, usual: tuple[str, ...], key: str, table: Path) -> int:
    if given is not None:
        if given not in header:
            raise DataError(
                f"{key}: '{table}' has no column '{given}'.{nearest(given, header)} It has: {listing(header)}."
            )
        return header.index(given)
    found = [name for name in usual if name in header]
    if not found:
        raise DataError(
            f"'{table}' has none of the columns {listing(usual)}; it has: {listing(header) or 'nothing'}. "
            f"Say which one with {key}."
        )
    return header.index(found[0])


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name too long to exist is no error."""
    try:
        return path.is_file()
    except OSError:
        return False


def _image(name: str, images: Path, root: Path, where: str) -> Path:
    if not name:
        raise DataError(f"{where}: no file name.")
    path = Path(os.path.abspath(images / name))  # noqa: PTH100 resolve() would follow links
    # compared without following links: a linked folder inside the root is the user's own doing, '..' in a row is not
    if not path.is_relative_to(os.path.abspath(root)):  # noqa: PTH100
        raise DataError(f"{where}: '{name}' lies outside the data directory '{root}'.")
    if not is_file(path):
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{where}: the file '{path}' does not exist.{nearest(path.name, siblings)}")
    return path
