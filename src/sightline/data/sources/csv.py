"""Reads CSV tables of image file names and labels from a directory or an archive, and checks every row."""

import csv
import io
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from sightline.core.errors import DataError, arg, did_you_mean, join_names
from sightline.data.records import NO_COLUMNS, Row
from sightline.data.sources.folder import find_split_folders
from sightline.data.sources.listing import group_by_split, parse_split
from sightline.data.sources.tree import FileTree

__all__ = ("Columns", "find_column", "read_csv", "read_tables", "table_names")

IMAGE_COLUMNS = ("files", "image name", "file", "filename", "image")
LABEL_COLUMNS = ("type", "label", "target", "class")


class Columns(NamedTuple):
    """The column names that the config sets; None means the usual names. `numbers` selects regression labels."""

    image: str | None = None
    label: str | None = None
    split: str | None = None
    group: str | None = None
    numbers: bool = False

    def extra_columns(self, header: Sequence[str], image: str, label: str) -> list[str]:
        """Returns the columns to keep with each sample: all except image, label, split and the index of pandas."""
        used = (image, label, self.split)
        return [name for name in header if name and name not in used and not name.startswith("Unnamed: ")]


class TableFiles:
    """Looks up the image files that a table lists. Each folder is listed once, which is faster than a stat per row."""

    def __init__(self, tree: FileTree) -> None:
        self.tree = tree
        self._listed: dict[str, set[str]] = {}

    def find(self, name: str, folder: str, where: str) -> str:
        """Returns the path in the tree of the file `name`, relative to `folder`.

        `where` starts the error messages. Raises DataError if the file does not exist or is outside the tree."""
        if not name:
            raise DataError(f"{where}: no file name.")
        path = self.tree.inside(folder, name)
        if path is None:
            raise DataError(f"{where}: '{name}' is outside the data directory '{self.tree.root}'.")
        inside, _, base = path.rpartition("/")
        files = self._listed.get(inside)
        if files is None:
            files = self._listed[inside] = self.tree.files(inside)
        if "\0" in name or (base not in files and not self.tree.has(path)):
            raise DataError(f"{where}: the file '{self.tree.shown(path)}' does not exist.{did_you_mean(base, files)}")
        return path


def table_names(tree: FileTree, folder: str) -> list[str]:
    """Returns the names of the CSV files in a folder, sorted."""
    return sorted(name for name in tree.entries(folder).files if name.endswith(".csv"))


def read_tables(tree: FileTree, csv: str | None, images: str | None, columns: Columns) -> dict[str, list[Row]]:
    """Reads the table in each split folder, or else a single table: `csv`, by default the only one at the top.

    File names are relative to the folder of their table. `images` replaces it: a folder relative to each split folder,
    or, for a single table, to the top. Returns rows by split. Raises DataError if a table is missing, ambiguous or
    invalid."""
    split_of = {} if csv else find_split_folders(tree)
    folders = {split: folder for split, folder in split_of.items() if table_names(tree, folder)}
    if folders and "train" not in folders:
        raise DataError(f"'{tree.root}' has a CSV file for {join_names(sorted(folders))} but none for train.")
    if folders and columns.split is not None:
        raise DataError(
            f"{arg.split_column}: '{tree.root}' already has tables in split folders ({join_names(folders)}). Remove "
            f"{arg.split_column}, or set {arg.csv} to one table."
        )
    files = TableFiles(tree)
    if folders:
        return {
            split: read_csv(files, _only_csv(tree, folder), posixpath.join(folder, images or ""), columns)
            for split, folder in folders.items()
        }
    table = csv or _only_csv(tree, "")
    if not tree.has(table):
        others = table_names(tree, posixpath.dirname(table))
        near = did_you_mean(posixpath.basename(table), others)
        raise DataError(f"{arg.csv}: '{tree.shown(table)}' does not exist.{near}")
    rows = read_csv(files, table, images or posixpath.dirname(table), columns)
    return group_by_split(rows, tree.shown(table))


def read_csv(files: TableFiles, table: str, images: str, columns: Columns = Columns()) -> list[Row]:  # noqa: B008
    """Reads the rows of a CSV file with a header line.

    File names are relative to the folder `images` and must be inside the tree. Raises DataError for an invalid file or
    row; the message names the table, the row (the header is row 1) and the column."""
    name = files.tree.shown(table)
    try:
        lines = csv.reader(io.TextIOWrapper(io.BytesIO(files.tree.read(table)), "utf-8-sig", newline=""), strict=True)
        header = [title.strip() for title in next(lines, [])]
        rows = list(_rows(lines, header, files, name, images, columns))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"'{name}' is not a valid CSV file in UTF-8: {error}.") from error
    except OSError as error:
        raise DataError(f"Cannot read '{name}': {error.strerror}.") from error
    if not rows:
        raise DataError(f"'{name}' has a header but no rows.")
    return rows


def _rows(
    lines: Iterator[list[str]], header: list[str], files: TableFiles, table: str, images: str, columns: Columns
) -> Iterator[Row]:
    image_title = find_column(header, columns.image, IMAGE_COLUMNS, arg.image_column, table)
    label_title = find_column(header, columns.label, LABEL_COLUMNS, arg.label_column, table)
    image_at, label_at = header.index(image_title), header.index(label_title)
    split_at = header.index(find_column(header, columns.split, (), arg.split_column, table)) if columns.split else -1
    if columns.group is not None:
        find_column(header, columns.group, (), arg.group_column, table)
    extra = [(title, header.index(title)) for title in columns.extra_columns(header, image_title, label_title)]
    tree = files.tree
    seen: dict[str, int] = {}
    for number, cells in enumerate(lines, start=2):
        if not any(cells):
            continue
        where = f"{table}, row {number}"
        if len(cells) != len(header):
            raise DataError(f"{where}: {len(cells)} cells, expected {len(header)} as in the header.")
        path = files.find(cells[image_at].strip(), images, where)
        label = cells[label_at].strip()
        if not label:
            raise DataError(f"{where}: no label in column '{label_title}'.")
        if path in seen:
            raise DataError(
                f"{where}: '{cells[image_at]}' is listed twice, first in row {seen[path]}. Remove one of the rows; "
                f"duplicates could be in different splits."
            )
        seen[path] = number
        extra_cells: Mapping[str, str] = {title: cells[at].strip() for title, at in extra} if extra else NO_COLUMNS
        split = parse_split(cells[split_at], where) if columns.split else ""
        yield Row(path, tree.image(path), label, where, extra_cells, split)


def find_column(header: Sequence[str], given: str | None, usual: Sequence[str], key: str, table: str) -> str:
    """Returns `given`, the column that the config key `key` names, or else the first of the `usual` names in `header`.

    Raises DataError if the table has no such column."""
    if given is not None:
        if given not in header:
            raise DataError(
                f"{key}: '{table}' has no column '{given}'.{did_you_mean(given, header)} It has: {join_names(header)}."
            )
        return given
    matches = [name for name in usual if name in header]
    if not matches:
        raise DataError(
            f"'{table}' has none of the columns {join_names(usual)}; it has: {join_names(header) or 'nothing'}. "
            f"Set {key} to the right one."
        )
    return matches[0]


def _only_csv(tree: FileTree, folder: str) -> str:
    tables = table_names(tree, folder)
    if len(tables) == 1:
        return posixpath.join(folder, tables[0])
    if not tables:
        raise DataError(
            f"No CSV file in '{tree.shown(folder)}'; set {arg.csv}, or {arg.source}=folder for class folders."
        )
    raise DataError(
        f"'{tree.shown(folder)}' has {len(tables)} CSV files: {join_names(tables)}. Set {arg.csv} to one of them."
    )
