"""The example of the typed API runs unchanged, and mypy checks it with the source."""

from __future__ import annotations

import runpy
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_example_with_custom_parts(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(ROOT / "examples" / "own_parts.py"))
    result = example["main"](tmp_path)
    assert result.history[-1]["val_accuracy"] >= 0.99
    assert result.epochs < 20, "the callback ended it"
    assert "answers: dark, light" in capsys.readouterr().out


def test_mypy_checks_the_example() -> None:
    files = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]["files"]
    assert "examples/own_parts.py" in files
