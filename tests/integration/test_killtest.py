"""Runs that are killed and resumed equal one that was not, to the bit; the benchmark itself is the test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.rows("X01")
def test_six_killed_runs_equal_the_one_that_was_not() -> None:
    """SIGKILL at random and at forced moments; every tensor, table, log point and curve. `benchmarks/killtest.py` kills
    as many as it is told to."""
    script = Path(__file__).parents[2] / "benchmarks" / "killtest.py"
    words = [sys.executable, str(script), "--kills", "6", "--check"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 of 6 runs equal the uninterrupted one" in done.stdout
