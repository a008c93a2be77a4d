"""Where an exported model comes from, for a reader who has nothing but the model."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

_KEPT = ("id", "began", "python", "torch", "packages", "git", "given", "drift")
"""What of `environment.json` goes with the model."""


def provenance(
    run: str, config: Mapping[str, Any], fingerprint: Mapping[str, Any], environment: Mapping[str, Any]
) -> dict[str, Any]:
    """What an artifact's description says of its origin. `run` is the name of the run's directory, `fingerprint` that
    of each split, `environment` what the run noted before its first step; what that lacks is left out."""
    told = {name: environment.get(name) for name in _KEPT} | {"machine": environment.get("machine_words")}
    return {
        "run": run,
        "config": dict(config),
        "seed": config.get("seed"),
        "data": dict(fingerprint),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **{name: value for name, value in told.items() if value is not None},
    }
