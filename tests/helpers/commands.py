"""Runs the command line or Python code in a separate process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def run_command(
    *arguments: str | Path, cwd: Path, timeout: float = 300, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs the command in a separate process and captures its output."""
    return subprocess.run(
        [sys.executable, "-m", "sightline", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, **(env or {})},
    )


def python(code: str, *arguments: str, cwd: Path | None = None, options: Sequence[str] = ()) -> str:
    """Returns the output of a fresh interpreter, for results that must not depend on what these tests have imported."""
    done = subprocess.run(
        [sys.executable, *options, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
