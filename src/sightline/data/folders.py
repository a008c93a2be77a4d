"""One folder of images for each class, in a directory or an archive, with or without folders for the splits."""

from __future__ import annotations

from sightline.data.rows import SPLIT_NAMES, Row
from sightline.data.trees import Tree, image_paths
from sightline.errors import DataError, listing


def split_folders(tree: Tree) -> dict[str, str]:
    """The folders at the top that are named like splits."""
    found: dict[str, str] = {}
    for name in sorted(tree.entries("").folders):
        split = SPLIT_NAMES.get(name.lower())
        if split is not None:
            if split in found:
                raise DataError(f"'{tree.root}' has two folders for the {split} split: '{found[split]}' and '{name}'.")
            found[split] = name
    if found and "train" not in found:
        raise DataError(f"'{tree.root}' has a folder for {listing(sorted(found))} but none named 'train'.")
    return found


def read_folders(tree: Tree) -> dict[str, list[Row]]:
    """The images of every class folder, by split."""
    folders = split_folders(tree) or {"train": ""}
    return {split: _class_folders(tree, folder) for split, folder in folders.items()}


def _class_folders(tree: Tree, folder: str) -> list[Row]:
    rows: list[Row] = []
    for name in sorted(tree.entries(folder).folders):
        inner = f"{folder}/{name}" if folder else name
        paths = image_paths(tree, inner)
        if not paths:
            raise DataError(f"'{tree.shown(inner)}' is an empty folder: the class '{name}' has no image.")
        rows += [Row(path, tree.image(path), name, tree.where(path)) for path in paths]
    if not rows:
        loose = len(image_paths(tree, folder))
        told = f"it has {loose} images but no class folders" if loose else "it is an empty folder"
        if not loose and (others := sorted(tree.entries(folder).files)):
            told = f"it has only {listing(others, 4)}"
        raise DataError(
            f"no images in '{tree.shown(folder)}': {told}. Expected one folder of images for each class, or a CSV file."
        )
    return rows
