"""Archives of the shared data, and what a test does where they are missing."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import NoReturn

import pytest


def absent(reason: str) -> NoReturn:
    """For a test whose shared data or document is not at hand: it is skipped by name, and a failure where all must be
    there, as it must wherever `.ci/run` finds the shared directory."""
    if os.environ.get("SIGHTLINE_SHARED_REQUIRED"):
        pytest.fail(reason)
    pytest.skip(reason)


def unpacked(shared: Path, name: str, folder: Path) -> Path:
    """`folder`, with what is in an archive of the shared data."""
    with tarfile.open(shared / "data" / name) as archive:
        archive.extractall(folder, filter="data")
    return folder
