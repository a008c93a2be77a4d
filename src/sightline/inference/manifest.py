"""The manifest of an exported model (`sightline.json`): file names, formats and checksum. Does not import torch."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sightline.core.errors import ArtifactError, reason
from sightline.core.files import parse_json, read_json, replace_non_finite

FORMAT = 2
WITH_OUTPUT = 3
"""The format of artifacts with a temperature or a threshold, which earlier versions would silently ignore."""
READS = (1, 2, 3)
"""The formats that can be read. Format 1 has no checksum of the manifest and less provenance."""
WEIGHTS = "model.safetensors"
MANIFEST = "sightline.json"


def checksummed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the manifest as it will be read back from JSON, with the SHA-256 of its other values as `sha256`.

    The checksum detects damage, not tampering: whoever changes the file can compute it again."""
    plain: dict[str, Any] = parse_json(json.dumps(replace_non_finite(dict(manifest)), allow_nan=False))
    plain.pop("sha256", None)
    return plain | {"sha256": _checksum(plain)}


def _checksum(plain: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a canonical form of the JSON: sorted keys, no spaces, only ASCII."""
    others = {key: value for key, value in plain.items() if key != "sha256"}
    text = json.dumps(others, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def read_manifest(directory: Path) -> dict[str, Any]:
    """Returns the manifest in `directory`. Raises ArtifactError if it is missing, damaged or of an unknown format."""
    path = directory / MANIFEST
    if not os.path.lexists(path):
        raise ArtifactError(
            f"there is no exported model in '{directory}': '{MANIFEST}' is missing. Has the run finished?"
        )
    try:
        manifest: dict[str, Any] = read_json(path)
        version = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"'{path}' is damaged or cannot be read: {reason(error)}.") from error
    if type(version) is not int or version not in READS:
        versions = ", ".join(map(str, READS))
        raise ArtifactError(f"'{path}' is of format {version}; this version of Sightline reads the formats {versions}.")
    if (version > 1 or "sha256" in manifest) and manifest.get("sha256") != _checksum(manifest):
        raise ArtifactError(
            f"'{path}' is damaged or was changed after the export: its content does not match its SHA-256."
        )
    return manifest
