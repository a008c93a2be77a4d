"""CSV tables of images and labels, in a directory or an archive: which columns, which rows, and what is wrong with a
row."""

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
    """The columns that the config names, where it does; `numbers` says that labels are numbers to predict."""

    image: str | None = None
    label: str | None = None
    split: str | None = None
    group: str | None = None
    numbers: bool = False

    def extra_columns(self, header: Sequence[str], image: str, label: str) -> list[str]:
        """The columns to keep: all but those read already and the index that pandas writes."""
        read = (image, label, self.split)
        return [name for name in header if name and name not in read and not name.startswith("Unnamed: ")]


class TableFiles:
    """The files that tables of a tree name; each folder is listed once, a table has a row for most of its files."""

    def __init__(self, tree: FileTree) -> None:
        self.tree = tree
        self._listed: dict[str, set[str]] = {}

    def find(self, name: str, folder: str, where: str) -> str:
        """The path of a file called `name` relative to `folder`. Raises DataError where it is not there."""
        if not name:
            raise DataError(f"{where}: no file name.")
        path = self.tree.inside(folder, name)
        if path is None:
            raise DataError(f"{where}: '{name}' lies outside the data directory '{self.tree.root}'.")
        inside, _, base = path.rpartition("/")
        files = self._listed.get(inside)
        if files is None:
            files = self._listed[inside] = self.tree.files(inside)
        if "\0" in name or (base not in files and not self.tree.has(path)):
            raise DataError(f"{where}: the file '{self.tree.shown(path)}' does not exist.{did_you_mean(base, files)}")
        return path


def table_names(tree: FileTree, folder: str) -> list[str]:
    """The CSV files in a folder, in order."""
    return sorted(name for name in tree.entries(folder).files if name.endswith(".csv"))


def read_tables(tree: FileTree, csv: str | None, images: str | None, columns: Columns) -> dict[str, list[Row]]:
    """The rows of a table in each split's folder, or of the one table at the top or that `csv` names."""
    split_of = {} if csv else find_split_folders(tree)
    folders = {split: folder for split, folder in split_of.items() if table_names(tree, folder)}
    if folders and "train" not in folders:
        raise DataError(f"'{tree.root}' has a CSV file for {join_names(sorted(folders))} but none for train.")
    if folders and columns.split is not None:
        raise DataError(
            f"{arg.split_column}: '{tree.root}' has folders with tables for {join_names(folders)}, which are the "
            f"splits "
            f"already; leave the column out, or name one table with {arg.csv}."
        )
    files = TableFiles(tree)
    if folders:
        return {
            split: read_csv(files, _one_csv(tree, folder), posixpath.join(folder, images or ""), columns)
            for split, folder in folders.items()
        }
    table = csv or _one_csv(tree, "")
    if not tree.has(table):
        others = table_names(tree, posixpath.dirname(table))
        near = did_you_mean(posixpath.basename(table), others)
        raise DataError(f"{arg.csv}: '{tree.shown(table)}' does not exist.{near}")
    rows = read_csv(files, table, images or posixpath.dirname(table), columns)
    return group_by_split(rows, tree.shown(table))


def read_csv(files: TableFiles, table: str, images: str, columns: Columns = Columns()) -> list[Row]:  # noqa: B008
    """The rows of a CSV file whose first line names the columns. File names are relative to the folder `images` and
    must lie inside the tree. Row numbers count the header as row 1.

    Raises DataError naming the file, the row and the column."""
    name = files.tree.shown(table)
    try:
        lines = csv.reader(io.TextIOWrapper(io.BytesIO(files.tree.read(table)), "utf-8-sig", newline=""), strict=True)
        header = [title.strip() for title in next(lines, [])]
        rows = list(_rows(lines, header, files, name, images, columns))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"'{name}' is no CSV file in UTF-8: {error}.") from error
    except OSError as error:
        raise DataError(f"cannot read '{name}': {error.strerror}.") from error
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
                f"{where}: '{cells[image_at]}' is listed twice, first in row {seen[path]}; a copy could land in "
                f"another split."
            )
        seen[path] = number
        extra_cells: Mapping[str, str] = {title: cells[at].strip() for title, at in extra} if extra else NO_COLUMNS
        split = parse_split(cells[split_at], where) if columns.split else ""
        yield Row(path, tree.image(path), label, where, extra_cells, split)


def find_column(header: Sequence[str], given: str | None, usual: Sequence[str], key: str, table: str) -> str:
    """The column that the config key names, or the first of the usual names that the table has."""
    if given is not None:
        if given not in header:
            raise DataError(
                f"{key}: '{table}' has no column '{given}'.{did_you_mean(given, header)} It has: {join_names(header)}."
            )
        return given
    found = [name for name in usual if name in header]
    if not found:
        raise DataError(
            f"'{table}' has none of the columns {join_names(usual)}; it has: {join_names(header) or 'nothing'}. "
            f"Say which one with {key}."
        )
    return found[0]


def _one_csv(tree: FileTree, folder: str) -> str:
    tables = table_names(tree, folder)
    if len(tables) == 1:
        return posixpath.join(folder, tables[0])
    if not tables:
        raise DataError(
            f"no CSV file in '{tree.shown(folder)}'; set {arg.csv}, or {arg.source}=folder for class folders."
        )
    raise DataError(
        f"'{tree.shown(folder)}' has {len(tables)} CSV files: {join_names(tables)}; say which with {arg.csv}."
    )
