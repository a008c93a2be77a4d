"""Reads IDX files, plain or compressed with gzip: the format of MNIST, Fashion-MNIST, EMNIST and similar datasets."""

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sightline.core.errors import DataError, arg, join_names
from sightline.data.records import RawListing
from sightline.data.sources.arrays import array_rows
from sightline.data.sources.listing import SPLIT_NAMES

_NAME = re.compile(
    r"(?P<prefix>.*?)(?P<split>train|val|valid|validation|t10k|test)-(?P<what>images|labels)[-.]idx\d-ubyte(?P<gz>\.gz)?",
    re.IGNORECASE,
)
_TYPES = {8: "uint8", 9: "int8", 11: "int16", 12: "int32", 13: "float32", 14: "float64"}


class _Files(NamedTuple):
    folder: Path
    prefix: str
    """The file name before `train-images`, such as `emnist-letters-`."""
    files: dict[tuple[str, str], Path]


def is_idx_file(path: Path) -> bool:
    """Whether the name matches the naming scheme of IDX files, such as `train-images-idx3-ubyte.gz`."""
    return _NAME.fullmatch(path.name) is not None


def idx_folder(root: Path) -> Path | None:
    """Returns the folder with the IDX files: `root`, `root/raw`, or torchvision's `root/NAME/raw`; else None.

    Raises DataError if several subfolders have IDX files and `root` itself has none."""
    candidates = [root, root / "raw", *sorted(root.glob("*/raw"))]
    folders = [folder for folder in candidates if folder.is_dir() and any(map(is_idx_file, folder.iterdir()))]
    if len(folders) > 1 and root != folders[0]:
        raise DataError(
            f"'{root}' has IDX files in several folders: {join_names(map(str, folders))}. Set {arg.root} to one."
        )
    return folders[0] if folders else None


def read_idx(root: Path) -> RawListing:
    """Reads the images and labels of every split from the IDX files in a folder.

    `root` may also be one of several IDX files in a folder; those with the same prefix are read. Raises DataError if
    `train`, or the images or labels of a split, are missing, and if a file is damaged."""
    folder, prefix, files = _find_files(root)
    rows = {}
    for split in sorted({split for split, _ in files}, key=("train", "val", "test").index):
        for what in ("images", "labels"):
            if (split, what) not in files:
                have = join_names(file.name for file in files.values())
                raise DataError(f"'{folder}' has no IDX file with the {what} of {split}; it has: {have}.")
        images, labels = files[split, "images"], files[split, "labels"]
        rows[split] = array_rows(
            read_array(images, (3, 4)), read_array(labels, (1,)), split, f"{images}, image {{}}".format, f"'{images}'",
            f"'{labels}'",
        )  # fmt: skip
    if "train" not in rows:
        raise DataError(
            f"'{folder}' has no IDX files for train. Expected '{prefix}train-images-idx3-ubyte', plain or with .gz."
        )
    return RawListing(rows)


def read_array(path: Path, dimensions: tuple[int, ...]) -> NDArray[np.uint8]:
    """Reads an IDX file of bytes as a uint8 array of the shape in its header. Uncompressed files are memory-mapped.

    `dimensions` are the accepted numbers of axes. Raises DataError for a wrong magic number, another dtype or number of
    axes, and a truncated file."""
    try:
        if path.suffix.lower() == ".gz":
            data = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8)
        else:
            data = (
                np.memmap(path, np.uint8, mode="r").view(np.ndarray) if path.stat().st_size else np.empty(0, np.uint8)
            )
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"'{path}' is not a gzip file or is damaged: {error}. Download it again.") from error
    except OSError as error:
        raise DataError(f"Cannot read '{path}': {error.strerror}.") from error
    head = data[:4].tolist()
    if len(head) < 4 or head[:2] != [0, 0] or head[2] not in _TYPES:
        problem = f"it starts with {bytes(head).hex(' ')}" if head else "it is empty"
        raise DataError(f"'{path}' is not an IDX file: {problem}. Expected 00 00 08 and the number of axes.")
    if head[2] != 8 or head[3] not in dimensions:
        expected = " or ".join(map(str, dimensions))
        raise DataError(f"'{path}' holds {_TYPES[head[2]]} with {head[3]} axes; expected uint8 with {expected}.")
    start = 4 + 4 * head[3]
    shape = tuple(np.frombuffer(data[4:start].tobytes()[: 4 * head[3]].ljust(4 * head[3], b"\0"), ">u4").tolist())
    if len(data) - start != math.prod(shape):
        raise DataError(
            f"'{path}': the header gives the shape {list(shape)} ({start + math.prod(shape):,} bytes), but the file "
            f"has {len(data):,} bytes. It is damaged or truncated; download it again."
        )
    return data[start:].reshape(shape)


def _find_files(root: Path) -> _Files:
    folder = root.parent if root.is_file() else idx_folder(root)
    if folder is None:
        raise DataError(
            f"No IDX files in '{root}', nor in 'raw' or 'NAME/raw' below it. Expected train-images-idx3-ubyte and "
            f"train-labels-idx1-ubyte, plain or with .gz."
        )
    by_prefix: dict[str, dict[tuple[str, str], Path]] = {}
    for file in sorted(folder.iterdir()):
        match = _NAME.fullmatch(file.name)
        if match is None or not file.is_file():
            continue
        split = SPLIT_NAMES.get(match["split"].lower(), "test")  # t10k
        files = by_prefix.setdefault(match["prefix"], {})
        key = split, match["what"].lower()
        if key not in files or files[key].suffix == ".gz":  # torchvision keeps both; only the plain one is mapped
            files[key] = file
    chosen = _NAME.fullmatch(root.name) if root.is_file() else None
    prefix = chosen["prefix"] if chosen else next(iter(by_prefix))
    if len(by_prefix) > 1 and not chosen:
        raise DataError(
            f"'{folder}' has several datasets: {join_names(name + 'train-images…' for name in by_prefix)}. Choose one: "
            f"set {arg.root}=PATH/FILE to one of its files."
        )
    return _Files(folder, prefix, by_prefix[prefix])
