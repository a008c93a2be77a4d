"""What a run was made with: versions, machine, the user's own code as git knows it."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

_MOST_DIFF = 1 << 20


def environment(directory: Path | None = None) -> dict[str, Any]:
    """A JSON-ready description of Python, packages, torch's settings, and the git commit, changes and untracked files
    of `directory` (the current one by default). No environment variables: they may hold secrets."""
    packages = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    return {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "torch": {
            "version": torch.__version__,
            "threads": torch.get_num_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "cuda": torch.version.cuda,
            "cuda_devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "packages": dict(sorted(packages.items(), key=lambda item: str(item[0]).lower())),
        "git": git_state(directory or Path.cwd()),
    }


def git_state(directory: Path) -> dict[str, Any] | None:
    """Commit, diff against it (up to 1 MiB) and untracked files of the repository around `directory`, if any."""
    commit = _git(directory, "rev-parse", "HEAD")
    if commit is None:
        return None
    diff = _git(directory, "diff", "HEAD") or ""
    untracked = _git(directory, "ls-files", "--others", "--exclude-standard") or ""
    return {
        "commit": commit.strip(),
        "diff": diff[:_MOST_DIFF],
        "diff_cut": len(diff) > _MOST_DIFF,
        "untracked": untracked.splitlines()[:1000],
    }


def _git(directory: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 fixed words, no shell
            ["git", "-C", str(directory), *words],  # noqa: S607 the user's own git
            capture_output=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace")
