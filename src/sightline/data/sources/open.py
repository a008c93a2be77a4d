"""Where images come from: the kind of layout, named or detected, and the source that lists its samples. A source knows
ids, labels and splits; it decodes nothing. What is wrong with the data's *layout* is reported here, with the file and
the row."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sightline.core.errors import DataError, arg, did_you_mean, join_names
from sightline.core.files import expand_user
from sightline.data.records import RawListing, Row
from sightline.data.sources.archive import ArchiveTree, is_archive
from sightline.data.sources.csv import Columns, read_tables, table_names
from sightline.data.sources.digits import load_digits
from sightline.data.sources.folder import read_class_folders
from sightline.data.sources.idx import idx_folder, is_idx_file, read_idx
from sightline.data.sources.listing import SPLIT_NAMES, ListSource, build_source
from sightline.data.sources.npz import is_array_file, read_npz
from sightline.data.sources.parquet import parquet_files, read_parquet
from sightline.data.sources.tree import DirectoryTree, FileTree

__all__ = ("KINDS", "ListSource", "open_source")

KINDS = ("auto", "digits", "folder", "csv", "parquet", "idx", "npz", "torchvision")
_TABLES = ("csv", "parquet")


def open_source(
    kind: str = "auto",
    root: str | Path | None = None,
    *,
    csv: str | None = None,
    images: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    group_column: str | None = None,
    classes: int | Sequence[str] | None = None,
    val: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    dataset: str | None = None,
    download: bool = False,
    numbers: bool = False,
    known: Sequence[str] = (),
) -> ListSource:
    """Reads the layout of a data set and returns its samples by split.

    `kind` is one of KINDS; "auto" looks at what is there. `val` and `test` say what to set aside where the data itself
    has no such split (a part below 1 or a number of images), stratified by class and drawn from `seed`; with
    `group_column`, images of one group stay together. `dataset` and `download` are for torchvision. With `numbers`,
    labels are numbers to predict and there are no classes. Folders whose names are `known` are classes, whatever they
    look like.

    Raises DataError for a path that does not exist, an empty folder, a single class, a class that only an evaluation
    split has, a label out of range or that is no number, a table row without its file, a damaged file."""
    if kind not in KINDS:
        raise DataError(
            f"{arg.source}: no source '{kind}'.{did_you_mean(kind, KINDS)} Expected one of {join_names(KINDS)}."
        )
    path = tree = None
    if kind == "auto" and dataset is not None:
        kind = "torchvision"
    elif kind not in ("digits", "torchvision") and not (kind == "auto" and root is None):
        path = _existing(root, kind)
    if path is not None and kind in ("auto", "folder", "csv"):
        tree = _tree(path)
    if kind == "auto":
        kind = "digits" if path is None or tree is None else _detect(path, tree, csv)
    columns = Columns(image_column, label_column, split_column, group_column, numbers)
    _check_columns(kind, path, columns)
    if kind == "torchvision":
        from sightline.data.sources.torchvision import open_torchvision

        how: dict[str, Any] = {"classes": classes, "val": val, "test": test, "seed": seed, "numbers": numbers}
        return open_torchvision(dataset, root, download, **how)
    named = [] if classes is None or isinstance(classes, int) else list(classes)
    found = (
        RawListing({"train": digits_rows()})
        if path is None
        else _read(kind, path, tree, csv, images, columns, [*named, *known])
    )
    return build_source(
        found,
        "digits" if path is None else _name(path),
        root=path.parent if path is not None and path.is_file() and kind == "csv" and not is_archive(path) else path,
        classes=classes,
        val=val,
        test=test,
        seed=seed,
        group_column=group_column,
        numbers=numbers,
    )


def _check_columns(kind: str, path: Path | None, columns: Columns) -> None:
    """Raises DataError for columns and targets that this kind of source does not have."""
    if columns.numbers and kind in ("digits", "folder"):
        kinds = "the embedded digits have" if kind == "digits" else f"'{path}' has folders of images, which are"
        raise DataError(
            f"{arg.target}=number: {kinds} classes, not numbers. Set {arg.root} to a CSV or Parquet file with a "
            f"column of numbers beside the images, or to NumPy's arrays."
        )
    for name, column in ((arg.split_column, columns.split), (arg.group_column, columns.group)):
        if column is not None and kind not in _TABLES:
            raise DataError(f"{name} needs a CSV or Parquet source; '{kind}' has no columns.")


def digits_rows() -> list[Row]:
    """The embedded digits, see `load_digits`."""
    pairs = zip(*load_digits(), strict=True)
    return [Row(f"digits/{i:04d}", image, str(label)) for i, (image, label) in enumerate(pairs)]


def _read(
    kind: str,
    path: Path,
    tree: FileTree | None,
    csv: str | None,
    images: str | None,
    columns: Columns,
    named: Sequence[str],
) -> RawListing:
    if kind == "idx":
        return read_idx(path)
    if kind == "npz":
        return read_npz(path, columns.numbers)
    if kind == "parquet" or tree is None:
        return read_parquet(path, columns)
    if kind == "folder":
        return RawListing(read_class_folders(tree, named))
    is_table = path.is_file() and not is_archive(path)
    return RawListing(read_tables(tree, csv or (path.name if is_table else None), images, columns))


def _tree(path: Path) -> FileTree:
    if path.is_dir():
        return DirectoryTree(path)
    return ArchiveTree(path) if is_archive(path) else DirectoryTree(path.parent)


def _detect(path: Path, tree: FileTree, csv: str | None) -> str:
    """The kind of source by what is there."""
    if path.is_file() and not is_archive(path):
        return _kind_of(path)
    if csv is not None or _has_table(tree):
        return "csv"
    if path.is_file():
        return "folder"
    if idx_folder(path) is not None:
        return "idx"
    if parquet_files(path):
        return "parquet"
    folders, names = tree.entries("")
    files = [Path(name) for name in sorted(names)]
    if any(map(is_array_file, files)):
        return "npz"
    archives = [file for file in files if is_archive(file)]
    if archives and not folders:
        raise DataError(
            f"'{path}' holds the archive {join_names(map(str, archives))}; set {arg.root}='{path / archives[0]}'."
        )
    return "folder"


def _has_table(tree: FileTree) -> bool:
    places = ["", *(name for name in tree.entries("").folders if name.lower() in SPLIT_NAMES)]
    return any(table_names(tree, place) for place in places)


def _kind_of(path: Path) -> str:
    """The kind of source that a file is; empty when it is none."""
    if is_idx_file(path):
        return "idx"
    if is_archive(path):
        return "folder"
    if is_array_file(path):
        return "npz"
    return {".csv": "csv", ".parquet": "parquet"}.get(path.suffix.lower(), "")


def _existing(root: str | Path | None, kind: str) -> Path:
    if root is None:
        raise DataError(f"{arg.root}: the source '{kind}' needs the directory of the data; set {arg.root}=PATH.")
    path = expand_user(root)
    if not path.exists():
        parent = path.parent
        siblings = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
        raise DataError(f"{arg.root}: '{path}' does not exist (from {Path.cwd()}).{did_you_mean(path.name, siblings)}")
    fits = (
        path.is_dir()
        or _kind_of(path) in ((kind,) if kind != "auto" else KINDS)
        or (kind == "csv" and is_archive(path))
    )
    if not fits:
        raise DataError(
            f"{arg.root}: '{path}' is a file; expected a directory of images, a .csv, .parquet, .npz, .npy or IDX "
            f"file, or an archive (.zip, .tar, .tar.gz)"
            + (f" that the source '{kind}' reads." if kind != "auto" else ".")
        )
    return path


def _name(path: Path) -> str:
    """What the data set is called: its folder, or its file without the suffix."""
    if path.is_dir() or _kind_of(path) in ("csv", "idx"):
        return (path if path.is_dir() else path.parent).resolve().name
    name = path.name
    while Path(name).suffix.lower() in (".gz", ".bz2", ".xz", ".tar", ".tgz", ".zip", ".parquet", ".npz", ".npy"):
        name = Path(name).stem
    return name
