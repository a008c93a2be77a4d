"""The wheel: what is in it, and that it works where nothing else of the project is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "sightline"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing of the build is left in the checkout."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(copy / "dist"), str(copy)],
        check=True,
        capture_output=True,
    )
    (made,) = (copy / "dist").iterdir()
    return made


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    there = {path for path in PACKAGE.parent.rglob("*") if path.suffix in (".py", ".pyi", ".yaml", ".npz", ".typed")}
    assert held == {str(path.relative_to(PACKAGE.parent)) for path in there | {PACKAGE / "py.typed"}}
    assert {
        "sightline/py.typed",
        "sightline/data/sources/digits.npz",
        "sightline/config/presets/experiment/digits.yaml",
    } < held


@pytest.mark.slow
def test_the_installed_wheel_trains(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own; the dependencies are those of this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    program = tmp_path / "venv" / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(program), "install", "--quiet", "--no-deps", str(wheel)],
        check=True,
        capture_output=True,
    )
    # a path of this kind does not run the .pth files in it, so the checkout is not found by way of this environment
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}

    def run(*words: str) -> str:
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run(str(program), "-c", "import sightline; print(sightline.__file__)").strip()
    assert Path(where).is_relative_to(tmp_path / "venv")
    command = str(tmp_path / "venv" / "bin" / "sightline")
    assert "train" in run(command, "--help")
    run(command, "train", "trainer.max_epochs=1", "run.name=first", "trainer.progress=false")
    assert (tmp_path / "runs" / "first" / "exported" / "model.safetensors").is_file()
