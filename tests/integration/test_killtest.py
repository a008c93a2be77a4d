"""Runs that are killed and resumed equal an uninterrupted run, bit for bit; the test starts the benchmark."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.rows("X01")
def test_six_killed_runs_equal_the_uninterrupted_run() -> None:
    """SIGKILL at random and at forced moments; every tensor, table, log point and curve is compared. The
    option `--kills` of `benchmarks/killtest.py` sets their number."""
    script = Path(__file__).parents[2] / "benchmarks" / "killtest.py"
    command = [sys.executable, str(script), "--kills", "6", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 of 6 runs equal the uninterrupted run" in done.stdout
