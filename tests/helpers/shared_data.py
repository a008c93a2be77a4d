"""Archives of the shared data, and what a test does if they are missing."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """Skips a test whose shared data or document is missing. It fails instead if `SIGHTLINE_SHARED_REQUIRED` is set, as
    `.ci/run` does when it finds the shared directory."""
    if os.environ.get("SIGHTLINE_SHARED_REQUIRED"):
        pytest.fail(reason)
    pytest.skip(reason)


def unpacked(shared: Path, name: str, folder: Path) -> Path:
    """Unpacks an archive of the shared data into `folder`, and returns that."""
    with tarfile.open(shared / "data" / name) as archive:
        archive.extractall(folder, filter="data")
    return folder
