"""Reads Parquet tables of images (encoded, or as paths) and labels, in the layout of Hugging Face datasets."""

from __future__ import annotations

import bisect
import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from sightline.core.errors import DataError, arg, join_names
from sightline.core.locate import import_optional
from sightline.data.records import NO_COLUMNS, RawListing, Row
from sightline.data.sources.csv import IMAGE_COLUMNS, LABEL_COLUMNS, Columns, TableFiles, find_column
from sightline.data.sources.labels import label_text, parse_number
from sightline.data.sources.listing import SPLIT_NAMES, group_by_split, parse_split
from sightline.data.sources.tree import DirectoryTree

_SPLIT_PATTERN = re.compile(r"(train|val|valid|validation|test)(?![a-z])", re.IGNORECASE)


def parquet_files(root: Path) -> dict[str, list[Path]]:
    """Returns the Parquet files in `root`, or else in `root/data`, by split; empty if there are none.

    The split comes from the start of the file name, such as `train-00000-of-00001.parquet`, or from the folder. If no
    name says a split, or `root` is a file, all files are train. Raises DataError if only some names do, or none is
    train."""
    if root.is_file():
        return {"train": [root]}
    for folder in (root, root / "data"):
        files = sorted(folder.glob("*.parquet")) + sorted(
            file for inner in folder.glob("*") if inner.name.lower() in SPLIT_NAMES for file in inner.glob("*.parquet")
        )
        if files:
            return _files_by_split(files, folder)
    return {}


class ReadLimits(NamedTuple):
    """Memory limits for reading images from row groups.

    Each thread keeps a row group in memory if its images have at most `max_group_bytes` bytes uncompressed. A larger
    one is read `batch_rows` rows at a time; reading an earlier row then starts again at its first row."""

    max_group_bytes: int = 64 * 2**20
    batch_rows: int = 64


def read_parquet(root: Path, columns: Columns, limits: ReadLimits = ReadLimits()) -> RawListing:
    """Reads the rows of all Parquet files below `root` by split: labels and plain columns, but not the images.

    Raises DataError for missing, damaged or inconsistent tables, columns and labels."""
    files = parquet_files(root)
    if not files:
        inner = sorted({str(file.parent) for file in root.glob("*/*.parquet")})
        raise DataError(
            f"No .parquet file in '{root}' or in its folder 'data'."
            + (f" There are some in {join_names(inner, 4)}. Set {arg.root} to one of these." if inner else "")
        )
    if len(files) > 1 and columns.split is not None:
        raise DataError(
            f"{arg.split_column}: the tables in '{root}' already have splits ({join_names(files)}). Remove "
            f"{arg.split_column}."
        )
    top = root if root.is_dir() else root.parent
    reader, tree = _Reader(limits), TableFiles(DirectoryTree(top))
    tables, classes = {}, set()
    for split, paths in files.items():
        rows = tables[split] = list[Row]()
        for path in paths:
            table = _TableFile(path, columns)
            classes.add(table.classes)
            rows += table.rows(reader, tree)
        if not rows:
            raise DataError(f"{join_names(map(str, paths), 3)}: no rows for {split}.")
    if len(classes) > 1:
        raise DataError(f"The tables in '{root}' do not have the same classes in the same order.")
    splits = group_by_split(tables["train"], str(root)) if columns.split is not None else tables
    return RawListing(splits, classes.pop())


@dataclass(frozen=True, slots=True)
class ParquetImage:
    """A reference to the encoded image in one row of a table."""

    reader: _Reader
    table: _TableFile
    row: int

    @property
    def token(self) -> str:
        """Identifies the content: path, size and modification time of the table, and the row."""
        return f"{self.table.token}|{self.row}"

    def read(self) -> bytes:
        """Returns the encoded image. Raises DataError if the cell has no image."""
        cell = self.reader.read(self.table, self.row)
        data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if data is None:
            detail = f", only the path '{path}'. Write the table with embedded images" if path else ""
            raise DataError(f"{self.table.path}, row {self.row}: no image in column '{self.table.image}'{detail}.")
        return bytes(data)


class _TableFile:
    """A Parquet file with its columns and the first row of each row group. Raises DataError if a column is missing."""

    def __init__(self, path: Path, columns: Columns) -> None:
        self.path = path
        status = path.stat()
        self.token = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
        self.columns = columns
        with self.open() as file:
            self.schema = file.schema_arrow
            self.row_group_sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        self.row_group_starts = [0, *accumulate(self.row_group_sizes)]
        self._features = _features(self.schema)
        header, name = self.schema.names, str(path)
        self.image = find_column(header, columns.image, self._image_candidates(), arg.image_column, name)
        self.label = find_column(header, columns.label, self._label_candidates(), arg.label_column, name)
        for key in ("split", "group"):
            if (column := getattr(columns, key)) is not None:
                find_column(header, column, (), getattr(arg, f"{key}_column"), name)
        self.classes: tuple[str, ...] | None = None
        if names := self._features.get(self.label, {}).get("names"):
            self.classes = tuple(map(str, names))
        kind = str(self.schema.field(self.image).type)
        self.image_is_struct = kind.startswith("struct<") and "bytes: " in kind
        self.has_paths = kind in ("string", "large_string")
        if not (self.image_is_struct or self.has_paths or kind in ("binary", "large_binary")):
            raise DataError(
                f"'{path}': the column '{self.image}' holds {kind}; expected encoded images (binary, or a struct with "
                f"'bytes') or paths. Set {arg.image_column} to another column."
            )

    def open(self) -> Any:
        """Opens the file for one thread. Pages are read when they are needed, not a column at once."""
        try:
            return import_optional("pyarrow.parquet").ParquetFile(self.path, pre_buffer=False, buffer_size=2**20)
        except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
            raise DataError(f"'{self.path}' is not a Parquet file or is damaged: {error}.") from error

    def rows(self, reader: _Reader, files: TableFiles) -> Iterator[Row]:
        """Yields every row. Raises DataError for an invalid row; messages count rows from 0."""
        types = import_optional("pyarrow.types")
        plain = [
            field.name
            for field in self.schema
            if not types.is_nested(field.type) and not types.is_binary(field.type) and field.name != self.image
        ]
        extra = [
            name for name in self.columns.extra_columns(plain, self.image, self.label) if not name.startswith("__")
        ]
        wanted = {self.label, *extra, *((self.columns.split,) if self.columns.split else ())}
        with self.open() as file:
            cells = file.read(columns=[*wanted, *((self.image,) if self.has_paths else ())]).to_pydict()
        inside = self.path.relative_to(files.tree.root).as_posix()
        folder = inside.rpartition("/")[0]
        for row, value in enumerate(cells[self.label]):
            where = f"{self.path}, row {row}"
            place = f"{where}, column '{self.label}'"
            label = repr(parse_number(value, place)) if self.columns.numbers else label_text(value, self.classes, place)
            extra_cells: Mapping[str, str] = {name: _text(cells[name][row]) for name in extra} if extra else NO_COLUMNS
            split = parse_split(_text(cells[self.columns.split][row]), where) if self.columns.split else ""
            if self.has_paths:
                path = files.find(_text(cells[self.image][row]), folder, where)
                yield Row(path, files.tree.image(path), label, where, extra_cells, split)
            else:
                yield Row(f"{inside}/{row:05d}", ParquetImage(reader, self, row), label, where, extra_cells, split)

    def _image_candidates(self) -> list[str]:
        named = [name for name, feature in self._features.items() if feature.get("_type") == "Image"]
        return [*named, *IMAGE_COLUMNS, "img"]

    def _label_candidates(self) -> list[str]:
        named = [name for name, feature in self._features.items() if feature.get("_type") == "ClassLabel"]
        if self.columns.numbers:
            return [name for name in LABEL_COLUMNS if name not in named]
        return [*named[:1], *LABEL_COLUMNS] if len(named) == 1 else [*LABEL_COLUMNS, *named]


class _Reader(threading.local):
    """The read position of each thread: a row group, or part of it, in a single open file.

    Memory therefore does not grow with the number of files."""

    table: _TableFile | None = None
    group = -1
    first = 0
    images: Any = ()
    batches: Iterator[Any] = iter(())
    file: Any = None

    def __init__(self, limits: ReadLimits) -> None:
        self.limits = limits

    def read(self, table: _TableFile, row: int) -> Any:
        """Returns the image cell of a row: bytes, a dict with `bytes` and `path`, or None."""
        group = bisect.bisect_right(table.row_group_starts, row) - 1
        if table is not self.table or group != self.group or row < self.first:
            self._seek_row_group(table, group)
        while row >= self.first + len(self.images):
            self.first += len(self.images)
            self.images = next(self.batches).column(0)
        return self.images[row - self.first].as_py()

    def _seek_row_group(self, table: _TableFile, group: int) -> None:
        if table is not self.table:
            if self.file is not None:
                self.file.close()
            self.file = table.open()
        self.table, self.group, self.first, self.images = table, group, table.row_group_starts[group], ()
        details = self.file.metadata.row_group(group)
        chunks = [details.column(i) for i in range(details.num_columns)]
        size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] == table.image)
        rows = table.row_group_sizes[group] if size <= self.limits.max_group_bytes else self.limits.batch_rows
        self.batches = self.file.iter_batches(rows, row_groups=[group], columns=[table.image], use_threads=False)


def _files_by_split(files: Sequence[Path], folder: Path) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    other = []
    for file in files:
        match = _SPLIT_PATTERN.match(file.name)
        name = match[1].lower() if match else file.parent.name.lower() if file.parent != folder else ""
        if name in SPLIT_NAMES:
            splits.setdefault(SPLIT_NAMES[name], []).append(file)
        else:
            other.append(file)
    if not splits:
        return {"train": other}
    if other or "train" not in splits:
        problem = (
            f"and tables without a split: {join_names((file.name for file in other), 4)}"
            if other
            else "but none for train"
        )
        raise DataError(
            f"'{folder}' has tables for {join_names(splits)}, {problem}. Expected names such as "
            f"train-00000-of-00001.parquet and test-00000-of-00001.parquet, or {arg.root}=PATH/FILE."
        )
    return splits


def _features(schema: Any) -> Mapping[str, Mapping[str, Any]]:
    """Returns the feature types that Hugging Face `datasets` stores in the schema, by column; empty if none."""
    try:
        metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return {name: kind for name, kind in metadata["info"]["features"].items() if isinstance(kind, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _text(value: Any) -> str:
    return "" if value is None else str(value)
