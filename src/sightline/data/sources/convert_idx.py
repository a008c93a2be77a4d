"""IDX files, as MNIST and Fashion-MNIST are handed out -> folders of pictures, each with its table."""

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
    """Writes `out/train` and `out/test`, whichever the IDX files in `source` have: the pictures as `<prefix>_<i>.png`
    and `info.csv` with the columns `files` and `type`. Gives the number of pictures of each. `out` may be `source`.

    Raises DataError for files that are missing or damaged, and when one of the folders is there already. A folder
    appears when it is whole."""
    root, target = expand_user(source), expand_user(out)
    if not prefix or Path(prefix).name != prefix:
        raise DataError(f"'{prefix}' cannot begin the name of a file.")
    if not root.exists():
        raise DataError(f"'{root}' does not exist (from {Path.cwd()}).")
    splits = read_idx(root).splits
    for split in splits:
        if (target / split).exists():
            raise DataError(
                f"'{target / split}' exists, and nothing is written over. Choose another place, or move it."
            )
    try:
        target.mkdir(parents=True, exist_ok=True)
        for split, rows in splits.items():
            _write(rows, target / split, prefix)
    except OSError as error:
        raise DataError(f"cannot write to '{target}': {error.strerror or error}.") from error
    return {split: len(rows) for split, rows in splits.items()}


def _write(rows: Sequence[Row], folder: Path, prefix: str) -> None:
    names = [f"{prefix}_{i}.png" for i in range(len(rows))]
    aside = temporary_sibling(folder)
    aside.mkdir()

    def save(row: Row, name: str) -> None:
        Image.fromarray(row.image).save(aside / name)  # type: ignore[arg-type]

    try:
        with ThreadPoolExecutor(available_cores()) as threads:
            for _ in threads.map(save, rows, names):
                pass
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows(
            [("files", "type"), *((name, row.label) for name, row in zip(names, rows, strict=True))]
        )
        write_text(aside / "info.csv", table.getvalue())
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
