"""Converts IDX files (the format of MNIST and Fashion-MNIST) to one folder of PNG files and a CSV table per split."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from sightline.core.errors import DataError
from sightline.core.files import expand_user, temporary_sibling, write_text
from sightline.core.parallel import available_cores
from sightline.data.records import Row
from sightline.data.sources.idx import read_idx


def convert_idx(source: str | Path, out: str | Path, prefix: str = "FashionMNIST") -> dict[str, int]:
    """Writes a folder in `out` for each split that the IDX files in `source` have (`train`, `val`, `test`).

    A folder has the images as `<prefix>_<i>.png` and the table `info.csv` with the columns `files` and `type` (the
    label). It is renamed into place once complete. `out` may be the same as `source`. Returns the number of images by
    split. Raises DataError if a file is missing or damaged, or if one of the folders already exists."""
    root, target = expand_user(source), expand_user(out)
    if not prefix or Path(prefix).name != prefix:
        raise DataError(f"prefix: '{prefix}' cannot start a file name. Expected a name without a folder.")
    if not root.exists():
        raise DataError(f"'{root}' does not exist (current directory: {Path.cwd()}).")
    splits = read_idx(root).splits
    for split in splits:
        if (target / split).exists():
            raise DataError(
                f"'{target / split}' already exists and is not overwritten. Choose another directory, or move it."
            )
    try:
        target.mkdir(parents=True, exist_ok=True)
        for split, rows in splits.items():
            _write(rows, target / split, prefix)
    except OSError as error:
        raise DataError(f"Cannot write to '{target}': {error.strerror or error}.") from error
    return {split: len(rows) for split, rows in splits.items()}


def _write(rows: Sequence[Row], folder: Path, prefix: str) -> None:
    names = [f"{prefix}_{i}.png" for i in range(len(rows))]
    temporary = temporary_sibling(folder)
    temporary.mkdir()

    def save(row: Row, name: str) -> None:
        Image.fromarray(row.image).save(temporary / name)  # type: ignore[arg-type]

    try:
        with ThreadPoolExecutor(available_cores()) as threads:
            for _ in threads.map(save, rows, names):
                pass
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows(
            [("files", "type"), *((name, row.label) for name, row in zip(names, rows, strict=True))]
        )
        write_text(temporary / "info.csv", table.getvalue())
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
