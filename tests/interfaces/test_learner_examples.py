"""The scripts of `examples/learner`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "learner"


def script(directory: Path, name: str, *arguments: str) -> str:
    """Runs a script of the example and returns its output."""
    done = subprocess.run(
        [sys.executable, EXAMPLE / name, *arguments], cwd=directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.slow
@pytest.mark.rows("B01", "B08", "B09", "B18")
def test_the_digits_example(tmp_path: Path) -> None:
    output = script(tmp_path, "digits.py")
    values = [float(value) for value in re.findall(r"^Test Top 1 Acc : (\S+)", output, re.MULTILINE)]
    assert len(values) == 5
    assert values[-1] > 0.85
    assert re.search(r"^a \d, read as \d with \d+%$", output, re.MULTILINE)
    assert (tmp_path / "digits_models" / "all_models" / "model_4.pth").is_file()
    assert (tmp_path / "logs.txt").read_text().count("Epoch: ") == 5


@pytest.mark.slow
@pytest.mark.rows("B19", "B24")
def test_the_example_with_a_custom_step(tmp_path: Path) -> None:
    output = script(tmp_path, "own_step.py")
    assert float(re.findall(r"^pupil: (\S+)$", output, re.MULTILINE)[-1]) > 0.7


@pytest.mark.rows("B01", "B26", "B28")
def test_the_regression_example(tmp_path: Path) -> None:
    output = script(tmp_path, "regression.py", "--epochs", "8")
    assert float(re.findall(r"^mean error (\S+)$", output, re.MULTILINE)[0]) < 0.03
    assert [path.name for path in sorted(tmp_path.glob("ink.*"))] == ["ink.json", "ink.pth", "ink.safetensors"]
