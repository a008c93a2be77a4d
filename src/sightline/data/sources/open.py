"""Opens a dataset from a path or a name: detects its layout and lists its samples by split.

Nothing is decoded here. Errors in the layout, such as a table row without its file, name the file and the row."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sightline.core.errors import DataError, arg, did_you_mean, join_names, render_argument
from sightline.core.files import expand_user
from sightline.core.log import logger
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

__all__ = ("KINDS", "ListSource", "detect_kind", "open_source")

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
    """Reads the layout of a dataset and returns its samples by split.

    `kind` is one of KINDS; "auto" detects the layout, and without `root` and `dataset` it means the embedded digits.
    `csv` and `images` are a table and the folder of its images, relative to `root`. A missing `val` or `test` split is
    held out from train: a fraction if below 1, else a number of images. The choice is stratified by class and depends
    only on `seed` and the data; with `group_column`, all images of a group are in the same split. `dataset` and
    `download` are for torchvision. With `numbers` (regression), labels are numbers and there are no classes. Folders
    named in `known` are classes even if they look like splits.

    Raises DataError for a path that does not exist, an empty folder, fewer than two classes, a class that is not in
    train, a label that is out of range or not a number, a table row without its file, and a damaged file."""
    if kind not in KINDS:
        raise DataError(
            f"{arg.source}: unknown source '{kind}'.{did_you_mean(kind, KINDS)} Expected one of: {join_names(KINDS)}."
        )
    path = tree = None
    if root is None and dataset is None and kind in ("auto", "digits"):
        _check_digits(csv=csv, images=images, image_column=image_column, label_column=label_column)
    if kind == "auto" and dataset is not None:
        kind = "torchvision"
    elif kind not in ("digits", "torchvision") and not (kind == "auto" and root is None):
        path = _existing_path(root, kind)
    if path is not None and kind in ("auto", "folder", "csv"):
        tree = _tree(path)
    if kind == "auto":
        kind = "digits" if path is None or tree is None else _detect(path, tree, csv)
    logger.debug("reading a source of kind '%s'%s", kind, "" if path is None else f" at '{path}'")
    columns = Columns(image_column, label_column, split_column, group_column, numbers)
    _check_columns(kind, path, columns)
    if kind == "torchvision":
        from sightline.data.sources.torchvision import open_torchvision

        options: dict[str, Any] = {"classes": classes, "val": val, "test": test, "seed": seed, "numbers": numbers}
        return open_torchvision(dataset, root, download, **options)
    named = [] if classes is None or isinstance(classes, int) else list(classes)
    listing = (
        RawListing({"train": digits_rows()})
        if path is None
        else _read(kind, path, tree, csv, images, columns, [*named, *known])
    )
    return build_source(
        listing,
        "digits" if path is None else _name(path),
        root=path.parent if path is not None and path.is_file() and kind == "csv" and not is_archive(path) else path,
        classes=classes,
        val=val,
        test=test,
        seed=seed,
        group_column=group_column,
        numbers=numbers,
    )


def detect_kind(root: str | Path, csv: str | None = None) -> str:
    """Returns the kind of source that `open_source` would read at `root`, one of KINDS other than "auto". `csv` is as
    in `open_source`.

    Raises DataError for a path that does not exist or is of no known kind."""
    path = _existing_path(root, "auto")
    return _detect(path, _tree(path), csv)


def _check_digits(**location: str | None) -> None:
    """Raises DataError for arguments that say where data is, because the embedded digits would be used instead."""
    for name, value in location.items():
        if value is not None:
            raise DataError(
                f"{render_argument(name)} is set, but {arg.root} is not. Set {arg.root} to the directory of the data."
            )


def _check_columns(kind: str, path: Path | None, columns: Columns) -> None:
    """Raises DataError if this kind of source does not support regression, or has no columns."""
    if columns.numbers and kind in ("digits", "folder"):
        problem = "the embedded digits have" if kind == "digits" else f"'{path}' has folders of images, which are"
        raise DataError(
            f"{arg.target}=number: {problem} classes, not numbers. Set {arg.root} to a CSV or Parquet file with a "
            f"column of numbers, or to NumPy arrays."
        )
    for name, column in ((arg.split_column, columns.split), (arg.group_column, columns.group)):
        if column is not None and kind not in _TABLES:
            raise DataError(f"{name} needs a CSV or Parquet source; '{kind}' has no columns.")


def digits_rows() -> list[Row]:
    """Returns the embedded digits (see `load_digits`) as rows."""
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
    """Detects the kind of source from the files at `path`."""
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
            f"'{path}' contains the archive {join_names(map(str, archives))}. Set {arg.root}='{path / archives[0]}'."
        )
    return "folder"


def _has_table(tree: FileTree) -> bool:
    folders = ["", *(name for name in tree.entries("").folders if name.lower() in SPLIT_NAMES)]
    return any(table_names(tree, folder) for folder in folders)


def _kind_of(path: Path) -> str:
    """Returns the kind of source for a file, by its name; empty if there is none."""
    if is_idx_file(path):
        return "idx"
    if is_archive(path):
        return "folder"
    if is_array_file(path):
        return "npz"
    return {".csv": "csv", ".parquet": "parquet"}.get(path.suffix.lower(), "")


def _existing_path(root: str | Path | None, kind: str) -> Path:
    if root is None:
        raise DataError(f"{arg.root}: the source '{kind}' needs the directory of the data; set {arg.root}=PATH.")
    path = expand_user(root)
    if not path.exists():
        parent = path.parent
        siblings = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
        raise DataError(
            f"{arg.root}: '{path}' does not exist (current directory: {Path.cwd()}).{did_you_mean(path.name, siblings)}"
        )
    is_readable = (
        path.is_dir()
        or _kind_of(path) in ((kind,) if kind != "auto" else KINDS)
        or (kind == "csv" and is_archive(path))
    )
    if not is_readable:
        raise DataError(
            f"{arg.root}: '{path}' is a file. Expected a directory of images, a .csv, .parquet, .npz, .npy or IDX "
            f"file, or an archive (.zip, .tar, .tar.gz)"
            + (f" that the source '{kind}' reads." if kind != "auto" else ".")
        )
    return path


def _name(path: Path) -> str:
    """Returns the name of the dataset: its folder for a directory, CSV or IDX, else its file without the suffixes."""
    if path.is_dir() or _kind_of(path) in ("csv", "idx"):
        return (path if path.is_dir() else path.parent).resolve().name
    name = path.name
    while Path(name).suffix.lower() in (".gz", ".bz2", ".xz", ".tar", ".tgz", ".zip", ".parquet", ".npz", ".npy"):
        name = Path(name).stem
    return name
