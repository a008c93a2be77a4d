"""Handwritten digits in the layout that the params-dict trainer reads."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from helpers.images import write_image, write_table
from sightline.data.sources.open import digits_rows


def lay_out(mnist: Path, root: Path, train: int, test: int) -> Path:
    """Creates `root/train` and `root/test`, each with images and an `info.csv` of `files` and `type`: the first digits
    of the list, and its last ones. Returns `root`."""
    with next(mnist.glob("*.csv")).open(newline="") as file:
        rows = [(row["file"], row["target"]) for row in csv.DictReader(file)]
    for split, part in (("train", rows[:train]), ("test", rows[len(rows) - test :])):
        folder = root / split
        folder.mkdir(parents=True)
        for name, _ in part:
            os.link(mnist / name, folder / Path(name).name)
        write_table(folder / "info.csv", "files,type", [f"{Path(name).name},{label}" for name, label in part])
    return root


def small_digits(root: Path, train: int = 96, test: int = 40) -> Path:
    """Creates the same layout from the embedded digits, 8 x 8 pixels."""
    rows = digits_rows()
    for split, part in (("train", rows[:train]), ("test", rows[train : train + test])):
        for i, row in enumerate(part):
            write_image(root / split / f"digit_{i}.png", row.image)  # type: ignore[arg-type]
        lines = [f"digit_{i}.png,{row.label}" for i, row in enumerate(part)]
        write_table(root / split / "info.csv", "files,type", lines)
    return root
