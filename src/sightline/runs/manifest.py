"""What an exported model says of itself: the names of its files and their description, read without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sightline.errors import ArtifactError
from sightline.files import read_json

FORMAT = 1
WEIGHTS = "model.safetensors"
MANIFEST = "sightline.json"


def read_manifest(directory: Path) -> dict[str, Any]:
    """The artifact's description; raises ArtifactError when it is missing, damaged or of a later format."""
    path = directory / MANIFEST
    if not path.is_file():
        raise ArtifactError(
            f"there is no exported model in '{directory}': '{MANIFEST}' is missing. Has the run finished?"
        )
    try:
        manifest: dict[str, Any] = read_json(path)
        version = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"'{path}' is damaged, or cannot be read: {error}.") from error
    if version != FORMAT:
        raise ArtifactError(f"'{path}' is of format {version}; this version of Sightline reads format {FORMAT}.")
    return manifest
