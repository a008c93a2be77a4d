"""The data sets the benchmarks use, as the archives in `$SIGHTLINE_SHARED/data` (by default `../shared/data`)."""

from __future__ import annotations

import os
import sys
import tarfile
from pathlib import Path

MNIST, CIFAR10, FLOWERS = "mnist10k-png.tar.gz", "cifar10-jpg.tar.gz", "photos-flowers.tar.gz"


def unpacked(name: str, folder: Path) -> Path:
    """`folder`, with what is in the archive. Ends the program, and says what to set, where there is no such archive."""
    shared = Path(os.environ.get("SIGHTLINE_SHARED") or Path(__file__).parents[2] / "shared")
    archive = shared / "data" / name
    if not archive.is_file():
        print(f"there is no '{archive}'; set SIGHTLINE_SHARED to the directory that holds data/", file=sys.stderr)
        raise SystemExit(2)
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return folder
