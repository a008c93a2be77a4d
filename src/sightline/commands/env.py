"""`sightline env`: versions, machine and settings, as a bug report needs them."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline import __version__
from sightline.commands.table import print_json
from sightline.core.errors import first_line

_DEVELOPMENT = ("all", "bench", "dev", "docs", "test")
_SETTINGS = ("CUDA_VISIBLE_DEVICES", "MKL_NUM_THREADS", "NO_COLOR", "OMP_NUM_THREADS", "RANK", "WORLD_SIZE")


def main(argv: Sequence[str]) -> int:
    """Prints the environment: no host name, and no variables but the settings of Sightline and torch."""
    options = argparse.ArgumentParser(
        "sightline env",
        description="Print versions, machine and settings, to paste into a bug report. The home directory is written "
        "as ~; of the environment variables, only those of Sightline and torch are printed.",
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

    packages = {str(item.metadata["Name"]): item.version for item in importlib.metadata.distributions()}
    found = {
        "sightline": f"{__version__} in {Path(__file__).parents[1]}",
        "python": f"{platform.python_version()} in {sys.prefix}",
        "platform": platform.platform(),
        **_machine(),
        "cache": str(Cache().folder),
    }
    variables = {
        name: _without_home(value)
        for name, value in sorted(os.environ.items())
        if name.startswith("SIGHTLINE_") or name in _SETTINGS
    }
    return {
        **{name: _without_home(value) for name, value in found.items()},
        "extras": _extras(packages),
        "variables": variables,
    }


def _machine() -> dict[str, str]:
    """Describes the machine and torch. If torch cannot be imported, says why: that may be the bug to report."""
    try:
        from sightline.runs.environment import collect_environment
    except (ImportError, OSError) as error:
        return {"machine": platform.machine(), "torch": f"cannot be imported: {first_line(error)}", "cuda": "unknown"}
    made_with = collect_environment(Path(os.devnull))
    torch = made_with["torch"]
    return {
        "machine": made_with["machine_words"],
        "torch": f"{torch['version']}, {torch['threads']} threads, {torch['cpu_capability']}",
        "cuda": ", ".join(torch["cuda_devices"]) or "no device",
    }


def _extras(packages: Mapping[str, str]) -> dict[str, dict[str, str | None]]:
    """Each optional extra with its packages and their versions; None for one that is not installed."""
    versions = {_normalised(name): version for name, version in packages.items()}
    required: dict[str, list[str]] = {}
    included: dict[str, list[str]] = {}
    try:
        requirements = importlib.metadata.requires("sightline") or ()
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return {}
    for requirement in requirements:
        match = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?.*;.*extra == ['\"]([\w-]+)['\"]", requirement)
        if match is None or match[3] in _DEVELOPMENT:
            continue
        required.setdefault(match[3], [])
        if match[1] == "sightline":  # an extra that includes another one
            included.setdefault(match[3], []).extend((match[2] or "").split(","))
        else:
            required[match[3]].append(match[1])
    return {
        extra: {
            name: versions.get(_normalised(name))
            for part in (extra, *included.get(extra, ()))
            for name in required.get(part, ())
        }
        for extra in sorted(required)
    }


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _without_home(text: str) -> str:
    """Returns the text with `~` in place of the home directory, as it is written and with its links resolved."""
    home = os.path.expanduser("~")  # noqa: PTH111 Path.home raises without a home directory
    for written in {home, os.path.realpath(home)}:
        if len(written) > 1:
            text = text.replace(f"{written}{os.sep}", f"~{os.sep}")
    return text
