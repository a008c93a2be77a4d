"""What an exported model says of itself: the names of its files and their description, read without torch."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sightline.core.errors import ArtifactError
from sightline.core.files import parse_json, read_json, replace_non_finite

FORMAT = 2
WITH_OUTPUT = 3
"""Of an artifact with a temperature or a threshold, which earlier versions would leave out without a message."""
READS = (1, 2, 3)
"""Format 1 had no checksum of its own, and less of where the model came from."""
WEIGHTS = "model.safetensors"
MANIFEST = "sightline.json"


def checksummed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The description as JSON gives it back, with the checksum of everything else in it as `sha256`. It tells damage,
    not malice: who changes the file can count again."""
    plain: dict[str, Any] = parse_json(json.dumps(replace_non_finite(dict(manifest)), allow_nan=False))
    plain.pop("sha256", None)
    return plain | {"sha256": _checksum(plain)}


def _checksum(plain: Mapping[str, Any]) -> str:
    """Of the one spelling: keys in order, no blanks, nothing but ASCII."""
    others = {key: value for key, value in plain.items() if key != "sha256"}
    text = json.dumps(others, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def read_manifest(directory: Path) -> dict[str, Any]:
    """The artifact's description; raises ArtifactError when it is missing, damaged or of a later format."""
    path = directory / MANIFEST
    if not os.path.lexists(path):
        raise ArtifactError(
            f"there is no exported model in '{directory}': '{MANIFEST}' is missing. Has the run finished?"
        )
    try:
        manifest: dict[str, Any] = read_json(path)
        version = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"'{path}' is damaged, or cannot be read: {error}.") from error
    if type(version) is not int or version not in READS:
        versions = ", ".join(map(str, READS))
        raise ArtifactError(f"'{path}' is of format {version}; this version of Sightline reads the formats {versions}.")
    if (version > 1 or "sha256" in manifest) and manifest.get("sha256") != _checksum(manifest):
        raise ArtifactError(
            f"'{path}' is damaged: it is not what was written at the export, the SHA-256 of its content differs."
        )
    return manifest
