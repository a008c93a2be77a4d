"""The datasets of the benchmarks: archives in `$SIGHTLINE_SHARED/data` (default `../shared/data`)."""

from __future__ import annotations

import os
import sys
import tarfile
from pathlib import Path

MNIST, CIFAR10, FLOWERS = "mnist10k-png.tar.gz", "cifar10-jpg.tar.gz", "photos-flowers.tar.gz"


def unpacked(name: str, folder: Path) -> Path:
    """Extracts an archive into `folder` and returns `folder`. Exits with code 2 if there is no such archive."""
    shared = Path(os.environ.get("SIGHTLINE_SHARED") or Path(__file__).parents[2] / "shared")
    archive = shared / "data" / name
    if not archive.is_file():
        print(f"'{archive}' does not exist. Set SIGHTLINE_SHARED to the directory with data/.", file=sys.stderr)
        raise SystemExit(2)
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return folder
