"""Parquet tables of images, as Hugging Face lays them out: encoded images, or paths to them, beside labels."""

from __future__ import annotations

import bisect
import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from sightline.data.classes import label_name
from sightline.data.numbers import number
from sightline.data.rows import NO_COLUMNS, SPLIT_NAMES, Found, Row, by_split, split_named
from sightline.data.tables import IMAGE_COLUMNS, LABEL_COLUMNS, Columns, Files, find_column
from sightline.data.trees import Directory
from sightline.errors import DataError, arg, listing
from sightline.locate import require

_SPLIT = re.compile(r"(train|val|valid|validation|test)(?![a-z])", re.IGNORECASE)
_GROUP_LIMIT = 64 * 2**20
"""A row group whose images are no larger is kept whole by the thread that reads in it; a larger one goes by in pieces,
and a step back in it begins it again."""
_PIECE = 64


def parquet_files(root: Path) -> dict[str, list[Path]]:
    """The tables below a root by split: by their own names or by those of their folders, in the root or in `data`; the
    root itself where it is one. Empty where there are none."""
    if root.is_file():
        return {"train": [root]}
    for folder in (root, root / "data"):
        files = sorted(folder.glob("*.parquet")) + sorted(
            file for inner in folder.glob("*") if inner.name.lower() in SPLIT_NAMES for file in inner.glob("*.parquet")
        )
        if files:
            return _by_name(files, folder)
    return {}


def read_parquet(root: Path, columns: Columns) -> Found:
    """The rows of every table, by split. Images stay in the files; labels and other plain columns are read."""
    files = parquet_files(root)
    if not files:
        inner = sorted({str(file.parent) for file in root.glob("*/*.parquet")})
        raise DataError(
            f"no .parquet file in '{root}' or in its folder 'data'."
            + (f" There are some in {listing(inner, 4)}; set {arg.root} to that." if inner else "")
        )
    if len(files) > 1 and columns.split is not None:
        raise DataError(
            f"{arg.split_column}: the tables in '{root}' are of {listing(files)} already; leave the column out."
        )
    top = root if root.is_dir() else root.parent
    reader, tree = _Reader(), Files(Directory(top))
    found, classes = {}, set()
    for split, paths in files.items():
        rows = found[split] = list[Row]()
        for path in paths:
            table = _Table(path, columns)
            classes.add(table.classes)
            rows += table.rows(reader, tree)
        if not rows:
            raise DataError(f"{listing(map(str, paths), 3)}: no rows for {split}.")
    if len(classes) > 1:
        raise DataError(f"the tables in '{root}' do not name the same classes in the same order.")
    splits = by_split(found["train"], str(root)) if columns.split is not None else found
    return Found(splits, classes.pop())


@dataclass(frozen=True, slots=True)
class ParquetImage:
    """The encoded image in one row of a table."""

    reader: _Reader
    table: _Table
    row: int

    @property
    def token(self) -> str:
        """Path, size and time of the table, and the row."""
        return f"{self.table.token}|{self.row}"

    def read(self) -> bytes:
        """The image's bytes."""
        cell = self.reader.read(self.table, self.row)
        data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if data is None:
            told = f", only the path '{path}'; write the table with the images in it" if path else ""
            raise DataError(f"{self.table.path}, row {self.row}: no image in column '{self.table.image}'{told}.")
        return bytes(data)


class _Table:
    """A file, its columns and where its row groups begin."""

    def __init__(self, path: Path, columns: Columns) -> None:
        self.path = path
        status = path.stat()
        self.token = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
        self.columns = columns
        with self.open() as file:
            self.schema = file.schema_arrow
            self.groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        self.starts = [0, *accumulate(self.groups)]
        self._features = _features(self.schema)
        header, name = self.schema.names, str(path)
        self.image = find_column(header, columns.image, self._images(), arg.image_column, name)
        self.label = find_column(header, columns.label, self._labels(), arg.label_column, name)
        for key in ("split", "group"):
            if (given := getattr(columns, key)) is not None:
                find_column(header, given, (), f"data.{key}_column", name)
        self.classes: tuple[str, ...] | None = None
        if names := self._features.get(self.label, {}).get("names"):
            self.classes = tuple(map(str, names))
        kind = str(self.schema.field(self.image).type)
        self.nested = kind.startswith("struct<") and "bytes: " in kind
        self.paths = kind in ("string", "large_string")
        if not (self.nested or self.paths or kind in ("binary", "large_binary")):
            raise DataError(
                f"'{path}': the column '{self.image}' holds {kind}; expected encoded images (binary, or a struct with "
                f"'bytes') or paths. Say which column with {arg.image_column}."
            )

    def open(self) -> Any:
        """The file, opened for one thread. Pages are read as they are needed, not a column at once."""
        try:
            return require("pyarrow.parquet").ParquetFile(self.path, pre_buffer=False, buffer_size=2**20)
        except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
            raise DataError(f"'{self.path}' is no Parquet file, or a damaged one: {error}.") from error

    def rows(self, reader: _Reader, files: Files) -> Iterator[Row]:
        """Every row; what is wrong with one is told with its number, counted from 0."""
        types = require("pyarrow.types")
        plain = [
            field.name
            for field in self.schema
            if not types.is_nested(field.type) and not types.is_binary(field.type) and field.name != self.image
        ]
        extra = [name for name in self.columns.facts(plain, self.image, self.label) if not name.startswith("__")]
        wanted = {self.label, *extra, *((self.columns.split,) if self.columns.split else ())}
        with self.open() as file:
            cells = file.read(columns=[*wanted, *((self.image,) if self.paths else ())]).to_pydict()
        inside = self.path.relative_to(files.tree.root).as_posix()
        folder = inside.rpartition("/")[0]
        for row, value in enumerate(cells[self.label]):
            where = f"{self.path}, row {row}"
            place = f"{where}, column '{self.label}'"
            label = repr(number(value, place)) if self.columns.numbers else label_name(value, self.classes, place)
            facts: Mapping[str, str] = {name: _text(cells[name][row]) for name in extra} if extra else NO_COLUMNS
            split = split_named(_text(cells[self.columns.split][row]), where) if self.columns.split else ""
            if self.paths:
                path = files.find(_text(cells[self.image][row]), folder, where)
                yield Row(path, files.tree.image(path), label, where, facts, split)
            else:
                yield Row(f"{inside}/{row:05d}", ParquetImage(reader, self, row), label, where, facts, split)

    def _images(self) -> list[str]:
        named = [name for name, feature in self._features.items() if feature.get("_type") == "Image"]
        return [*named, *IMAGE_COLUMNS, "img"]

    def _labels(self) -> list[str]:
        named = [name for name, feature in self._features.items() if feature.get("_type") == "ClassLabel"]
        if self.columns.numbers:
            return [name for name in LABEL_COLUMNS if name not in named]
        return [*named[:1], *LABEL_COLUMNS] if len(named) == 1 else [*LABEL_COLUMNS, *named]


class _Reader(threading.local):
    """Where each thread is reading: one row group, or the piece of one, of one file. So memory does not grow with the
    number of files."""

    table: _Table | None = None
    group = -1
    first = 0
    images: Any = ()
    pieces: Iterator[Any] = iter(())
    file: Any = None

    def read(self, table: _Table, row: int) -> Any:
        """The cell of the image in a row."""
        group = bisect.bisect_right(table.starts, row) - 1
        if table is not self.table or group != self.group or row < self.first:
            self._enter(table, group)
        while row >= self.first + len(self.images):
            self.first += len(self.images)
            self.images = next(self.pieces).column(0)
        return self.images[row - self.first].as_py()

    def _enter(self, table: _Table, group: int) -> None:
        if table is not self.table:
            if self.file is not None:
                self.file.close()
            self.file = table.open()
        self.table, self.group, self.first, self.images = table, group, table.starts[group], ()
        details = self.file.metadata.row_group(group)
        chunks = [details.column(i) for i in range(details.num_columns)]
        size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] == table.image)
        rows = table.groups[group] if size <= _GROUP_LIMIT else _PIECE
        self.pieces = self.file.iter_batches(rows, row_groups=[group], columns=[table.image], use_threads=False)


def _by_name(files: Sequence[Path], folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    other = []
    for file in files:
        match = _SPLIT.match(file.name)
        name = match[1].lower() if match else file.parent.name.lower() if file.parent != folder else ""
        if name in SPLIT_NAMES:
            found.setdefault(SPLIT_NAMES[name], []).append(file)
        else:
            other.append(file)
    if not found:
        return {"train": other}
    if other or "train" not in found:
        told = (
            f"and {listing((file.name for file in other), 4)}, whose split is not told" if other else "none for train"
        )
        raise DataError(
            f"'{folder}' has tables for {listing(found)}, {told}. Expected names such as "
            f"train-00000-of-00001.parquet and test-00000-of-00001.parquet, or {arg.root}=PATH/FILE."
        )
    return found


def _features(schema: Any) -> Mapping[str, Mapping[str, Any]]:
    """What Hugging Face's `datasets` notes about the columns."""
    try:
        noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return {name: kind for name, kind in noted["info"]["features"].items() if isinstance(kind, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _text(value: Any) -> str:
    return "" if value is None else str(value)
