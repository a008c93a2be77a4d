"""The scripts of `examples/params_api`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "params_api"


def script(name: str, directory: Path) -> str:
    """Runs a script of the example and returns its output."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / name)], cwd=directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.slow
@pytest.mark.rows("A28", "A29", "A37")
def test_the_example_learns_and_a_second_call_does_not_train(tmp_path: Path) -> None:
    script("make_data.py", tmp_path)
    lines = script("run.py", tmp_path).splitlines()
    assert lines[-1] == "Training Done."
    assert float([line for line in lines if line.startswith("Accuracy")][-1].split()[1]) > 0.93
    assert sorted(file.name for file in (tmp_path / "logs").glob("*.pt")) == [
        f"model_epoch_{e}.pt" for e in (0, 3, 6, 9)
    ]
    again = script("run.py", tmp_path).splitlines()
    assert again[-1] == "Training Done."
    assert "is already finished (10 epochs)" in again[0]
