"""Real processes that are waited for and sent real signals."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def started(*words: str | Path, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """`python *words` in a process of its own. What it says on either stream comes as one, and at once."""
    with subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            yield process
        finally:
            process.kill()  # where the test has failed; else it has ended


def until(process: subprocess.Popen[str], begins: str) -> str:
    """Waits for the line that begins so."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith(begins):
            return line
    raise AssertionError("".join(said))


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Waits for its end: (exit code, what it still said)."""
    assert process.stdout is not None
    told = process.stdout.read()
    return process.wait(300), told
