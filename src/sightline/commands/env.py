"""`sightline env`: versions, machine and settings, as a bug report needs them."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sightline import __version__
from sightline.commands.table import print_json

_DEVELOPMENT = ("all", "bench", "dev", "docs", "test")
_SETTINGS = ("CUDA_VISIBLE_DEVICES", "MKL_NUM_THREADS", "NO_COLOR", "OMP_NUM_THREADS", "RANK", "WORLD_SIZE")


def main(argv: Sequence[str]) -> int:
    """Prints the environment; names no user, host or secret."""
    options = argparse.ArgumentParser(
        "sightline env",
        description="Print versions, machine and settings, to paste into a bug report. Names no user, host or secret.",
        allow_abbrev=False,
    )
    options.add_argument("--json", action="store_true", help="print the same as JSON")
    arguments = options.parse_args(argv)
    found = _environment()
    if arguments.json:
        print_json(found)
        return 0
    for name in ("sightline", "python", "platform", "machine", "torch", "cuda", "cache"):
        print(f"{name:<12} {found[name]}")
    for extra, packages in found["extras"].items():
        installed = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
        missing = ", ".join(name for name, version in packages.items() if not version)
        hint = f"missing: {missing} (pip install 'sightline[{extra}]')" if missing else ""
        print(f"{extra:<12} {'; '.join(filter(None, (installed, hint)))}")
    for name, value in found["variables"].items():
        print(f"{name}={value}")
    return 0


def _environment() -> dict[str, Any]:
    from sightline.data.cache.directory import Cache
    from sightline.runs.environment import collect_environment

    made_with = collect_environment()
    torch = made_with["torch"]
    return {
        "sightline": f"{__version__} in {_without_home(Path(__file__).parents[1])}",
        "python": f"{made_with['python']} in {_without_home(Path(sys.prefix))}",
        "platform": made_with["platform"],
        "machine": made_with["machine_words"],
        "torch": f"{torch['version']}, {torch['threads']} threads, {torch['cpu_capability']}",
        "cuda": ", ".join(torch["cuda_devices"]) or "no device",
        "cache": _without_home(Cache().folder),
        "extras": _extras(made_with["packages"]),
        "variables": {
            name: _without_home(Path(value)) if "/" in value else value
            for name, value in sorted(os.environ.items())
            if name.startswith("SIGHTLINE_") or name in _SETTINGS
        },
    }


def _extras(packages: dict[str, str]) -> dict[str, dict[str, str | None]]:
    """Each optional extra with its packages and their versions; None for one that is not installed."""
    versions = {_normalised(name): version for name, version in packages.items()}
    found: dict[str, dict[str, str | None]] = {}
    for requirement in importlib.metadata.requires("sightline") or ():
        match = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?.*;.*extra == ['\"]([\w-]+)['\"]", requirement)
        if match is None or match[3] in _DEVELOPMENT or match[1] == "sightline":
            continue
        found.setdefault(match[3], {})[match[1]] = versions.get(_normalised(match[1]))
    return dict(sorted(found.items()))


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _without_home(path: Path) -> str:
    try:
        return f"~/{path.relative_to(Path.home())}"
    except (ValueError, RuntimeError):
        return str(path)
