"""One folder of images for each class, in a directory or an archive, with or without folders for the splits."""

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
"""Names of folders that are nearly always splits, in lower case and without what separates their words."""


def find_split_folders(tree: FileTree) -> dict[str, str]:
    """The folders at the top that are named like splits."""
    found: dict[str, str] = {}
    for name in sorted(tree.entries("").folders):
        split = SPLIT_NAMES.get(name.lower())
        if split is not None:
            if split in found:
                raise DataError(f"'{tree.root}' has two folders for the {split} split: '{found[split]}' and '{name}'.")
            found[split] = name
    if found and "train" not in found:
        raise DataError(f"'{tree.root}' has a folder for {join_names(sorted(found))} but none named 'train'.")
    return found


def read_class_folders(tree: FileTree, named: Collection[str] = ()) -> dict[str, list[Row]]:
    """The images of every class folder, by split. Raises DataError for folders that are hardly meant as classes, unless
    they are `named`: with the names of splits, or which all hold the same folders."""
    folders = find_split_folders(tree) or {"train": ""}
    return {split: _read_class_rows(tree, folder, named) for split, folder in folders.items()}


def _check_class_folders(tree: FileTree, folder: str, names: Sequence[str], named: Collection[str]) -> None:
    """Raises DataError for folders that would be taken for classes and are not; wrong classes train without a word."""
    unnamed = [name for name in names if name not in named]
    where = f"'{tree.shown(folder)}'"
    otherwise = f"Where they are classes all the same, {arg.classes} names all of them: '{','.join(names[:3])},…'."
    splits = [name for name in unnamed if _SPLIT_LIKE_NAME.fullmatch(re.sub(r"[\W_]+", "", name.lower()))]
    # within a split, one such name is a class among others, such as the train among vehicles
    if splits and (not folder or len(splits) == len(unnamed) or len(splits) > 2):
        raise DataError(
            f"{where}: the folders {join_names(splits)} look like splits, and would be classes. Rename them to train, "
            f"val "
            f"and test at the top of the data, and they are the splits; or set {arg.root} to the one whose folders are "
            f"the classes. {otherwise}"
        )
    inner = {name: frozenset(tree.entries(f"{folder}/{name}" if folder else name).folders) for name in unnamed}
    if len(names) == 1 and unnamed and folder in ("", "train") and len(inside := sorted(inner[names[0]])) > 1:
        plain = not folder and isinstance(tree, DirectoryTree)
        advice = f"set {arg.root}='{tree.root / names[0]}'" if plain else "move them up into it"
        raise DataError(
            f"{where} has only one folder, '{names[0]}', which holds the folders {join_names(inside, 4)}. If these are "
            f"the classes, {advice}. {otherwise}"
        )
    same = set(inner.values())
    if len(unnamed) > 1 and len(same) == 1 and len(found := sorted(same.pop())) > 1:
        raise DataError(
            f"{where}: the folders {join_names(unnamed, 4)} would be the classes, but all of them hold the same "
            f"folders, {join_names(found, 4)}, as splits or sources of the same classes would. If those inside are the "
            f"classes, set {arg.root} to one of the folders, or rename them to train, val and test. {otherwise}"
        )


def _read_class_rows(tree: FileTree, folder: str, named: Collection[str]) -> list[Row]:
    rows: list[Row] = []
    names = sorted(tree.entries(folder).folders)
    _check_class_folders(tree, folder, names, named)
    for name in names:
        inner = f"{folder}/{name}" if folder else name
        paths = image_paths(tree, inner)
        if not paths:
            raise DataError(f"'{tree.shown(inner)}' is an empty folder: the class '{name}' has no image.")
        rows += [Row(path, tree.image(path), name, tree.where(path)) for path in paths]
    if not rows:
        loose = len(image_paths(tree, folder))
        detail = f"it has {loose} images but no class folders" if loose else "it is an empty folder"
        if not loose and (others := sorted(tree.entries(folder).files)):
            detail = f"it has only {join_names(others, 4)}"
        raise DataError(
            f"no images in '{tree.shown(folder)}': {detail}. Expected one folder of images for each class, or a CSV "
            f"file."
        )
    return rows
