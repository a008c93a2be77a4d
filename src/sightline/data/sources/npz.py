"""NumPy's files: an .npz, or .npy files side by side, by the names that are usual in them."""

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
    """Whether the name is that of a file of arrays."""
    return path.suffix.lower() in (".npz", ".npy")


def read_npz(root: Path, numbers: bool = False) -> RawListing:
    """The arrays in an .npz file, in the only one of a folder, or in the .npy files of a folder, by the names that
    Keras (x_train, y_train, …) and MedMNIST (train_images, train_labels, …) use. `numbers` is as in `array_rows`."""
    arrays, source = _arrays(root)
    pairs: dict[str, dict[str, str]] = {}
    for key in arrays:
        meaning = _parse_array_name(key)
        if meaning is not None:
            split, what = meaning
            if what in pairs.setdefault(split, {}):
                raise DataError(f"'{source}': '{pairs[split][what]}' and '{key}' both are the {what} of {split}.")
            pairs[split][what] = key
    if "train" not in pairs:
        raise DataError(
            f"'{source}' has no arrays for train; it has: {join_names(arrays) or 'nothing'}. Expected x_train and "
            f"y_train, train_images and train_labels, or images and labels."
        )
    found = {}
    for split, pair in pairs.items():
        for what in ("images", "labels"):
            if what not in pair:
                other = next(iter(pair.values()))
                raise DataError(f"'{source}' has '{other}' but no {what} for {split}; it has: {join_names(arrays)}.")
        image_key, label_key = pair["images"], pair["labels"]
        images = _load(arrays[image_key], image_key, source)
        labels = _load(arrays[label_key], label_key, source)
        place = f"{source}, {image_key}"
        found[split] = array_rows(
            images, labels, split, f"{place}[{{}}]".format, f"'{source}', {image_key}", f"{label_key}", numbers
        )
    return RawListing(found)


def _parse_array_name(key: str) -> tuple[str, str] | None:
    """(split, "images" or "labels") of an array's name."""
    words = key.lower().split("_")
    for what, names in (("images", IMAGE_NAMES), ("labels", LABEL_NAMES)):
        if len(words) == 1 and words[0] in names:
            return "train", what
        for word, split in itertools.permutations(words, 2) if len(words) == 2 else ():
            if word in names and split in SPLIT_NAMES:
                return SPLIT_NAMES[split], what
    return None


def _arrays(root: Path) -> tuple[Mapping[str, Path], Path]:
    """The file that each array is in, by the array's name, and what messages call the whole."""
    source = root if root.is_dir() or root.suffix.lower() == ".npz" else root.parent
    if source.is_dir():
        archives = sorted(source.glob("*.npz"))
        if len(archives) > 1:
            listed = join_names(file.name for file in archives)
            raise DataError(
                f"'{source}' has {len(archives)} .npz files: {listed}; say which: {arg.root}=PATH/FILE.npz."
            )
        if not archives or root != source:
            return {file.stem: file for file in sorted(source.glob("*.npy"))}, source
        source = archives[0]
    try:
        with zipfile.ZipFile(source) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"'{source}' is no .npz file, or a damaged one: {error}.") from error
    return dict.fromkeys(names, source), source


def _load(file: Path, key: str, source: Path) -> NDArray[Any]:
    """An array, out of a file of its own mapped and not read."""
    try:
        if file.suffix.lower() == ".npy":
            mapped: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
            return mapped.view(np.ndarray)
        with np.load(file, allow_pickle=False) as arrays:
            return np.asarray(arrays[key])
    except Exception as error:  # whatever zipfile, zlib and numpy raise for damaged files
        pickled = "allow_pickle" in str(error)
        reason = "it is pickled, and loading it could run code; save it as a plain array" if pickled else error
        raise DataError(f"'{source}', {key}: cannot be read: {reason}.") from error
