"""Changes exported models as an attacker would who can also update the checksums."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sightline.core.files import sha256
from sightline.inference.manifest import MANIFEST, WEIGHTS, checksummed


def rewrite(exported: Path, change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """Rewrites the manifest; `change` gets its content and may return another."""
    file = exported / MANIFEST
    manifest = json.loads(file.read_text(encoding="utf-8"))
    manifest = checksummed(change(manifest) or manifest)
    file.write_text(json.dumps(manifest), encoding="utf-8")
    return manifest


def with_weights(exported: Path, content: bytes) -> None:
    """Replaces the weights file, with a manifest that matches."""
    (exported / WEIGHTS).write_bytes(content)
    rewrite(exported, lambda manifest: manifest.update(weights_sha256=sha256(exported / WEIGHTS)))


def with_network(exported: Path, network: Any) -> None:
    """Replaces the network in the manifest."""
    rewrite(exported, lambda manifest: manifest["model"].update(network=network))
