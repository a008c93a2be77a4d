"""Reads one folder of images per class, in a directory or an archive, with or without split folders."""

import re
from collections.abc import Collection, Sequence

from sightline.core.errors import DataError, arg, join_names
from sightline.data.records import Row
from sightline.data.sources.listing import SPLIT_NAMES
from sightline.data.sources.tree import DirectoryTree, FileTree, image_paths

_SPLIT_LIKE_NAME = re.compile(
    r"(training|train|validation|valid|val|development|dev|testing|test|evaluation|eval|holdout)"
    r"(set|data|dataset|split|images|image|imgs|img|pictures|folder|dir)?\d*"
)
"""Matches folder names that nearly always mean a split, in lower case and without separators such as `_`."""


def find_split_folders(tree: FileTree) -> dict[str, str]:
    """Returns the folders at the top that have the name of a split, by split; empty if there are none.

    Raises DataError if two folders are the same split, or if there are split folders but none for train."""
    folders: dict[str, str] = {}
    for name in sorted(tree.entries("").folders):
        split = SPLIT_NAMES.get(name.lower())
        if split is not None:
            if split in folders:
                raise DataError(
                    f"'{tree.root}' has two folders for the {split} split: '{folders[split]}' and '{name}'. "
                    f"Move the images into one of them."
                )
            folders[split] = name
    if folders and "train" not in folders:
        raise DataError(
            f"'{tree.root}' has a folder for {join_names(sorted(folders))} but none named 'train'. Rename "
            f"the folder of the training images to 'train'."
        )
    return folders


def read_class_folders(tree: FileTree, named: Collection[str] = ()) -> dict[str, list[Row]]:
    """Lists the images of every class folder, by split. The label of an image is the name of its class folder.

    Raises DataError if a class folder is empty, and for folders that are probably not classes: with names like splits,
    all with the same subfolders, or a single one with subfolders. Folders in `named` are accepted as classes."""
    folders = find_split_folders(tree) or {"train": ""}
    return {split: _read_class_rows(tree, folder, named) for split, folder in folders.items()}


def _check_class_folders(tree: FileTree, folder: str, names: Sequence[str], named: Collection[str]) -> None:
    """Raises DataError for folders that are probably not classes, since wrong classes would train without an error."""
    unnamed = [name for name in names if name not in named]
    where = f"'{tree.shown(folder)}'"
    otherwise = f"If the classes are '{','.join(names[:3])},…', list all of them in {arg.classes}."
    splits = [name for name in unnamed if _SPLIT_LIKE_NAME.fullmatch(re.sub(r"[\W_]+", "", name.lower()))]
    # within a split folder, a single name like a split is probably a class, such as `train` among vehicles
    if splits and (not folder or len(splits) == len(unnamed) or len(splits) > 2):
        raise DataError(
            f"{where}: the folders {join_names(splits)} look like splits, but would be read as classes. Rename them to "
            f"train, val and test at the top of the data directory, or set {arg.root} to the one that has the class "
            f"folders. {otherwise}"
        )
    inner = {name: frozenset(tree.entries(f"{folder}/{name}" if folder else name).folders) for name in unnamed}
    if len(names) == 1 and unnamed and folder in ("", "train") and len(inside := sorted(inner[names[0]])) > 1:
        plain = not folder and isinstance(tree, DirectoryTree)
        advice = f"set {arg.root}='{tree.root / names[0]}'" if plain else "move them up into it"
        raise DataError(
            f"{where} has only one folder, '{names[0]}', which contains the folders {join_names(inside, 4)}. If these "
            f"are the classes, {advice}. {otherwise}"
        )
    same = set(inner.values())
    if len(unnamed) > 1 and len(same) == 1 and len(inside := sorted(same.pop())) > 1:
        raise DataError(
            f"{where}: the folders {join_names(unnamed, 4)} would be read as classes, but all of them contain the same "
            f"folders: {join_names(inside, 4)}. If these are the classes, set {arg.root} to one of the outer folders, "
            f"or rename the outer ones to train, val and test. {otherwise}"
        )


def _read_class_rows(tree: FileTree, folder: str, named: Collection[str]) -> list[Row]:
    rows: list[Row] = []
    names = sorted(tree.entries(folder).folders)
    _check_class_folders(tree, folder, names, named)
    for name in names:
        inner = f"{folder}/{name}" if folder else name
        paths = image_paths(tree, inner)
        if not paths:
            raise DataError(
                f"'{tree.shown(inner)}' contains no images, so the class '{name}' is empty. Add images, or "
                f"remove the folder."
            )
        rows += [Row(path, tree.image(path), name, tree.where(path)) for path in paths]
    if not rows:
        loose = len(image_paths(tree, folder))
        content = f"only {loose} image{'s' * (loose > 1)}" if loose else "it is empty"
        if not loose and (others := sorted(tree.entries(folder).files)):
            content = f"only {join_names(others, 4)}"
        raise DataError(
            f"No class folders in '{tree.shown(folder)}': {content}. Expected one folder of images per class, or a CSV "
            f"file."
        )
    return rows
