"""Where images come from: the embedded digits, class folders, a CSV beside images. A source knows ids, labels and
splits; it decodes nothing. What is wrong with the data's *layout* is reported here, with the file and the row."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sightline.data.splits import split_rows
from sightline.data.tables import read_csv
from sightline.errors import DataError, listing, nearest
from sightline.types import DataInfo, Sample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp", ".jfif", ".jp2")
)
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class Row(NamedTuple):
    """A sample before the classes are known: its label is still a name. `where` is what an error about it should
    say."""

    id: str
    image: Path | NDArray[np.uint8]
    label: str
    where: str


@dataclass(frozen=True)
class ListSource:
    """A data source whose samples are listed in memory (paths and labels, not pixels)."""

    info: DataInfo
    splits: Mapping[str, Sequence[Sample]]


def open_source(
    kind: str = "auto",
    root: str | Path | None = None,
    *,
    csv: str | None = None,
    images: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    classes: int | Sequence[str] | None = None,
    val: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
) -> ListSource:
    """Reads the layout of a data set and returns its samples by split.

    `kind` is "digits", "folder", "csv" or "auto". `val` and `test` say what to set aside where the data itself has no
    such split (a part below 1 or a number of images), stratified by class and drawn from `seed`.

    Raises DataError for a path that does not exist, an empty folder, a single class, a class that only an evaluation
    split has, a label out of range, a CSV row without its file."""
    if kind == "auto":
        kind = _detect(root)
    if kind == "digits":
        name, folder, found = "digits", None, {"train": digits_rows()}
    else:
        folder = _existing_folder(root, kind)
        name = folder.resolve().name
        if kind == "folder":
            found = _folder_splits(folder)
        else:
            csv = csv or (Path(root).name if root is not None and Path(root).is_file() else None)
            found = _csv_splits(folder, csv, images, image_column, label_column)
    names = class_names(found, classes)
    rows = _with_missing_splits(found, val, test, seed)
    index = label_index(names, given=classes is not None)
    splits = {
        split: [Sample(row.id, row.image, index[row.label]) for row in rows[split]]
        for split in ("train", "val", "test")
        if rows.get(split)
    }
    return ListSource(DataInfo(name, names, folder), splits)


def digits_rows() -> list[Row]:
    """The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn carries (Alpaydin and Kaynak, UCI, 1998), their 17
    gray levels stretched to 0..255."""
    import numpy as np
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = np.round(data.images * (255 / 16)).astype(np.uint8)
    return [
        Row(f"digits/{i:04d}", image, str(label), f"digit {i}")
        for i, (image, label) in enumerate(zip(pixels, data.target, strict=True))
    ]


def image_files(folder: Path) -> list[Path]:
    """Every image file below a folder, by suffix, hidden ones left out, in a stable order."""
    found: list[Path] = []
    seen = set()
    for directory, subdirectories, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:  # a link back up: once is enough
            subdirectories[:] = []
            continue
        seen.add(real)
        subdirectories[:] = sorted(name for name in subdirectories if not name.startswith("."))
        visible = (Path(directory) / name for name in files if not name.startswith("."))
        found += [file for file in visible if file.suffix.lower() in IMAGE_SUFFIXES]
    for file in found:
        if str(file).encode(errors="replace").decode() != str(file):
            raise DataError(f"the name {os.fsencode(file)!r} is no UTF-8; rename the file or its folder.")
    return sorted(found)


def sort_names(names: set[str]) -> tuple[str, ...]:
    """Class names in order: as numbers when all of them are (2 before 10), else as text."""
    if all(re.fullmatch(r"[-+]?\d+(\.\d+)?", name) for name in names):
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    return tuple(sorted(names))


def class_names(rows: Mapping[str, Sequence[Row]], classes: int | Sequence[str] | None) -> tuple[str, ...]:
    """The class names in label order, from the config where it gives them, else those the training rows have."""
    labels = {row.label for row in rows["train"]}
    if classes is None:
        names = sort_names(labels)
    else:
        names = tuple(str(i) for i in range(classes)) if isinstance(classes, int) else tuple(classes)
        if len(set(names)) != len(names):
            raise DataError(f"data.classes names a class twice: {listing(names)}.")
    if len(names) < 2:
        found = f"only one class, '{names[0]}'" if names else "no class"
        where = " Is the data directory one too deep?" if classes is None else " Change data.classes."
        raise DataError(f"{found}: a classifier needs at least two.{where}")
    valid = set(label_index(names, given=classes is not None))
    for split, members in rows.items():
        for row in members:
            if row.label in valid:
                continue
            if classes is not None:
                known = f"0 to {classes - 1}" if isinstance(classes, int) else listing(names)
                told = f"{row.where}: label '{row.label}' is out of range; data.classes has {known}."
                raise DataError(told + nearest(row.label, names))
            raise DataError(
                f"{row.where}: the class '{row.label}' is in the {split} split but not in train, so it can never be "
                f"predicted.{nearest(row.label, names)} Training classes: {listing(names)}."
            )
    return names


def label_index(names: Sequence[str], given: bool) -> dict[str, int]:
    """The class index of every label text. With names the config gives, a label may also be its class's number: the
    table says 3, data.classes says what 3 is called."""
    index = {name: i for i, name in enumerate(names)}
    numbered = any(name.isdecimal() for name in names)
    return index | ({str(i): i for i in range(len(names))} if given and not numbered else {})


def _detect(root: str | Path | None) -> str:
    if root is None:
        return "digits"
    folder = _existing_folder(root, "auto")
    if Path(root).is_file():
        return "csv"
    places = [folder, *(folder / name for name in SPLIT_FOLDERS)]
    return "csv" if any(place.is_dir() and any(place.glob("*.csv")) for place in places) else "folder"


def _existing_folder(root: str | Path | None, kind: str) -> Path:
    if root is None:
        raise DataError(f"data.root: the source '{kind}' needs the directory of the data; set data.root=PATH.")
    path = Path(root).expanduser()
    if path.is_file() and path.suffix.lower() == ".csv" and kind in ("auto", "csv"):
        return path.parent
    if not path.exists():
        parent = path.parent
        siblings = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
        raise DataError(f"data.root: '{path}' does not exist (from {Path.cwd()}).{nearest(path.name, siblings)}")
    if not path.is_dir():
        raise DataError(f"data.root: '{path}' is a file; expected a directory of images, or a .csv file.")
    return path


def _split_folders(root: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for entry in sorted(root.iterdir()):
        split = SPLIT_FOLDERS.get(entry.name.lower())
        if split is not None and entry.is_dir():
            if split in found:
                raise DataError(
                    f"'{root}' has two folders for the {split} split: '{found[split].name}' and '{entry.name}'."
                )
            found[split] = entry
    if found and "train" not in found:
        raise DataError(f"'{root}' has a folder for {listing(sorted(found))} but none named 'train'.")
    return found


def _folder_splits(root: Path) -> dict[str, list[Row]]:
    folders = _split_folders(root) or {"train": root}
    return {split: _class_folders(folder, root) for split, folder in folders.items()}


def _class_folders(folder: Path, root: Path) -> list[Row]:
    rows = []
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    for entry in classes:
        files = image_files(entry)
        if not files:
            raise DataError(f"'{entry}' is an empty folder: the class '{entry.name}' has no image.")
        rows += [Row(f.relative_to(root).as_posix(), f, entry.name, f"'{f}'") for f in files]
    if not rows:
        loose = len(image_files(folder))
        told = f"it has {loose} images but no class folders" if loose else "it is an empty folder"
        raise DataError(
            f"no images in '{folder}': {told}. Expected one folder of images for each class, or a CSV file."
        )
    return rows


def _csv_splits(
    root: Path, csv: str | None, images: str | None, image_column: str | None, label_column: str | None
) -> dict[str, list[Row]]:
    folders = {} if csv else {split: f for split, f in _split_folders(root).items() if any(f.glob("*.csv"))}
    if folders and "train" not in folders:
        raise DataError(f"'{root}' has a CSV file for {listing(sorted(folders))} but none for train.")
    tables = {split: _one_csv(folder) for split, folder in folders.items()}
    if not tables:
        table = root / csv if csv else _one_csv(root)
        if not table.is_file():
            others = [file.name for file in root.glob("*.csv")]
            raise DataError(f"data.csv: '{table}' does not exist.{nearest(table.name, others)}")
        tables = {"train": table}
    return {
        split: [
            Row(Path(os.path.relpath(entry.file, root)).as_posix(), entry.file, entry.label, entry.where)
            for entry in read_csv(
                table,
                images=(root if images and not folders else table.parent) / (images or ""),
                root=root,
                image_column=image_column,
                label_column=label_column,
            )
        ]
        for split, table in tables.items()
    }


def _one_csv(folder: Path) -> Path:
    tables = sorted(file for file in folder.glob("*.csv") if file.is_file())
    if len(tables) == 1:
        return tables[0]
    if not tables:
        raise DataError(f"no CSV file in '{folder}'; set data.csv, or data.source=folder for class folders.")
    raise DataError(
        f"'{folder}' has {len(tables)} CSV files: {listing(f.name for f in tables)}; say which with data.csv."
    )


def _with_missing_splits(found: dict[str, list[Row]], val: float, test: float, seed: int) -> dict[str, list[Row]]:
    rows = dict(found)
    total = len(found["train"])
    for split, share in (("test", test), ("val", val)):
        if split not in rows and share and not (split == "test" and "val" in found):
            labels = [row.label for row in rows["train"]]
            count = round(share * total) if share < 1 else int(share)
            kept, taken = split_rows(labels, count, seed, split)
            rows |= {"train": [rows["train"][i] for i in kept], split: [rows["train"][i] for i in taken]}
    return rows
