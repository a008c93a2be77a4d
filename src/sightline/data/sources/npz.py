"""Reads images and labels from an .npz file or a folder of .npy files, by the usual names of the arrays."""

import itertools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.core.errors import DataError, arg, join_names
from sightline.data.records import RawListing
from sightline.data.sources.arrays import array_rows
from sightline.data.sources.listing import SPLIT_NAMES

IMAGE_NAMES = ("x", "images", "image")
LABEL_NAMES = ("y", "labels", "label", "targets")


def is_array_file(path: Path) -> bool:
    """Whether the file name has the suffix .npz or .npy."""
    return path.suffix.lower() in (".npz", ".npy")


def read_npz(root: Path, numbers: bool = False) -> RawListing:
    """Reads the splits in an .npz file, in the only .npz file of a folder, or in the .npy files of a folder.

    Arrays have the names of Keras (`x_train`, `y_train`, …), of MedMNIST (`train_images`, `train_labels`, …), or no
    split, which means train. `numbers` is the same as for `label_texts`. Raises DataError for missing, ambiguous or
    pickled arrays and damaged files."""
    arrays, source = _arrays(root)
    pairs: dict[str, dict[str, str]] = {}
    for key in arrays:
        meaning = _parse_array_name(key)
        if meaning is not None:
            split, what = meaning
            if what in pairs.setdefault(split, {}):
                raise DataError(f"'{source}': the arrays '{pairs[split][what]}' and '{key}' are both {split} {what}.")
            pairs[split][what] = key
    if "train" not in pairs:
        raise DataError(
            f"'{source}' has no arrays for train; it has: {join_names(arrays) or 'nothing'}. Expected x_train and "
            f"y_train, train_images and train_labels, or images and labels."
        )
    rows = {}
    for split, pair in pairs.items():
        for what in ("images", "labels"):
            if what not in pair:
                other = next(iter(pair.values()))
                raise DataError(f"'{source}' has '{other}' but no {what} for {split}; it has: {join_names(arrays)}.")
        image_key, label_key = pair["images"], pair["labels"]
        images = _load(arrays[image_key], image_key, source)
        labels = _load(arrays[label_key], label_key, source)
        place = f"{source}, {image_key}"
        rows[split] = array_rows(
            images,
            labels,
            split,
            f"{place}[{{}}]".format,
            f"'{source}', {image_key}",
            f"'{source}', {label_key}",
            numbers,
        )
    return RawListing(rows)


def _parse_array_name(key: str) -> tuple[str, str] | None:
    """Returns (split, "images" or "labels") for the name of an array, or None for other names."""
    parts = key.lower().split("_")
    for what, names in (("images", IMAGE_NAMES), ("labels", LABEL_NAMES)):
        if len(parts) == 1 and parts[0] in names:
            return "train", what
        for name, split in itertools.permutations(parts, 2) if len(parts) == 2 else ():
            if name in names and split in SPLIT_NAMES:
                return SPLIT_NAMES[split], what
    return None


def _arrays(root: Path) -> tuple[Mapping[str, Path], Path]:
    """Returns the file of each array by the name of the array, and the .npz file or folder for messages."""
    source = root if root.is_dir() or root.suffix.lower() == ".npz" else root.parent
    if source.is_dir():
        archives = sorted(source.glob("*.npz"))
        if len(archives) > 1:
            listed = join_names(file.name for file in archives)
            raise DataError(
                f"'{source}' has {len(archives)} .npz files: {listed}. Choose one: set {arg.root}=PATH/FILE.npz."
            )
        if not archives or root != source:
            return {file.stem: file for file in sorted(source.glob("*.npy"))}, source
        source = archives[0]
    try:
        with zipfile.ZipFile(source) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"'{source}' is not an .npz file or is damaged: {error}.") from error
    return dict.fromkeys(names, source), source


def _load(file: Path, key: str, source: Path) -> NDArray[Any]:
    """Loads an array from its file. An .npy file is memory-mapped; a pickled array is rejected."""
    try:
        if file.suffix.lower() == ".npy":
            mapped: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
            return mapped.view(np.ndarray)
        with np.load(file, allow_pickle=False) as arrays:
            return np.asarray(arrays[key])
    except Exception as error:  # zipfile, zlib and numpy raise many types for damaged files
        pickled = "allow_pickle" in str(error)
        reason = "it is pickled, and loading it could run code; save it as a plain array" if pickled else error
        raise DataError(f"'{source}', {key}: cannot be read: {reason}.") from error
