"""Python processes that tests wait for and send signals to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def started(*arguments: str | Path, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """Runs `python *arguments` in a separate process, with standard output and error in one unbuffered stream."""
    with subprocess.Popen(
        [sys.executable, *map(str, arguments)],
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
            process.kill()  # if the test has failed; otherwise the process has ended


def until(process: subprocess.Popen[str], prefix: str) -> str:
    """Waits for a line that starts with `prefix` and returns it."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(prefix):
            return line
    raise AssertionError("".join(lines))


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Waits until the process ends: (exit code, the rest of its output)."""
    assert process.stdout is not None
    output = process.stdout.read()
    return process.wait(300), output
