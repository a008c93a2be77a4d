"""IDX files, plain or compressed with gzip, as MNIST and those like it are handed out."""

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
    """What stands before `train-images`, such as `emnist-letters-`."""
    files: dict[tuple[str, str], Path]


def is_idx_file(path: Path) -> bool:
    """Whether the name is that of an IDX file."""
    return _NAME.fullmatch(path.name) is not None


def idx_folder(root: Path) -> Path | None:
    """Where below a root the IDX files are: in itself, in `raw`, or in `NAME/raw`, as torchvision lays them."""
    places = [root, root / "raw", *sorted(root.glob("*/raw"))]
    found = [place for place in places if place.is_dir() and any(is_idx_file(file) for file in place.iterdir())]
    if len(found) > 1 and root != found[0]:
        raise DataError(f"'{root}' has IDX files in {join_names(map(str, found))}; say which with {arg.root}.")
    return found[0] if found else None


def read_idx(root: Path) -> RawListing:
    """The images and labels of the IDX files in a folder, or of those that belong to the one that `root` names."""
    folder, prefix, files = _files(root)
    found = {}
    for split in sorted({split for split, _ in files}, key=("train", "val", "test").index):
        for what in ("images", "labels"):
            if (split, what) not in files:
                have = join_names(file.name for file in files.values())
                raise DataError(f"'{folder}' has no IDX file with the {what} of {split}; it has: {have}.")
        images, labels = files[split, "images"], files[split, "labels"]
        found[split] = array_rows(
            read_array(images, (3, 4)), read_array(labels, (1,)), split, f"{images}, image {{}}".format, f"'{images}'",
            f"'{labels}'",
        )  # fmt: skip
    if "train" not in found:
        raise DataError(f"'{folder}' has no IDX file for train ({prefix}train-images-idx3-ubyte or .gz).")
    return RawListing(found)


def read_array(path: Path, dimensions: tuple[int, ...]) -> NDArray[np.uint8]:
    """The bytes of an IDX file in their shape; one that is not compressed is mapped, not read.

    Raises DataError for another magic number, another type, a file cut off."""
    try:
        if path.suffix.lower() == ".gz":
            data = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8)
        else:
            data = (
                np.memmap(path, np.uint8, mode="r").view(np.ndarray) if path.stat().st_size else np.empty(0, np.uint8)
            )
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"'{path}' is no gzip file, or a damaged one: {error}. Download it again.") from error
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror}.") from error
    head = data[:4].tolist()
    if len(head) < 4 or head[:2] != [0, 0] or head[2] not in _TYPES:
        message = bytes(head).hex(" ") or "nothing"
        raise DataError(f"'{path}' is no IDX file: it begins with {message}, expected 00 00 08 and the number of axes.")
    if head[2] != 8 or head[3] not in dimensions:
        expected = " or ".join(map(str, dimensions))
        raise DataError(f"'{path}' holds {_TYPES[head[2]]} with {head[3]} axes; expected uint8 with {expected}.")
    start = 4 + 4 * head[3]
    shape = tuple(np.frombuffer(data[4:start].tobytes()[: 4 * head[3]].ljust(4 * head[3], b"\0"), ">u4").tolist())
    if len(data) - start != math.prod(shape):
        raise DataError(
            f"'{path}': its header says {list(shape)}, which is {start + math.prod(shape):,} bytes, but there are "
            f"{len(data):,}; the file is damaged or cut off. Download it again."
        )
    return data[start:].reshape(shape)


def _files(root: Path) -> _Files:
    folder = root.parent if root.is_file() else idx_folder(root)
    if folder is None:
        raise DataError(
            f"no IDX files in '{root}', nor in 'raw' or 'NAME/raw' below it; expected train-images-idx3-ubyte and "
            f"train-labels-idx1-ubyte, plain or .gz."
        )
    by_prefix: dict[str, dict[tuple[str, str], Path]] = {}
    for file in sorted(folder.iterdir()):
        match = _NAME.fullmatch(file.name)
        if match is None or not file.is_file():
            continue
        split = SPLIT_NAMES.get(match["split"].lower(), "test")  # t10k
        files = by_prefix.setdefault(match["prefix"], {})
        key = split, match["what"].lower()
        if key not in files or files[key].suffix == ".gz":  # torchvision leaves both; the plain one needs no unpacking
            files[key] = file
    chosen = _NAME.fullmatch(root.name) if root.is_file() else None
    prefix = chosen["prefix"] if chosen else next(iter(by_prefix))
    if len(by_prefix) > 1 and not chosen:
        raise DataError(
            f"'{folder}' has several data sets: {join_names(name + 'train-images…' for name in by_prefix)}; say which "
            f"with {arg.root}=PATH/FILE, one of its files."
        )
    return _Files(folder, prefix, by_prefix[prefix])
