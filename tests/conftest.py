"""Fixtures for all tests: the shared data, the command in a subprocess or in this process, a finished run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from helpers.commands import Command, run_command
from helpers.shared_data import missing, unpacked
from sightline import cli
from sightline.config.names import NAMES
from sightline.core.errors import argument_names

# the same examples in every run and no deadline, so that no test fails by chance or because the machine is busy;
# `--hypothesis-profile=search` draws others
settings.register_profile("same", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("search", settings.get_profile("same"), derandomize=False)
settings.load_profile("same")

# processes that share a machine must not each start a thread per core, and results depend on the number of threads
os.environ.update(OMP_NUM_THREADS="1", COLUMNS="120")
torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    """Makes weights and images that a fixture draws without a seed independent of the order of the tests."""
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """Does the same for those of a test."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache directory for the tests and the commands that they start."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["SIGHTLINE_CACHE"] = str(folder)
    return folder


@pytest.fixture(autouse=True)
def names_of_the_config() -> Iterator[None]:
    """Makes messages name arguments as a config does, also if a test calls lower layers directly. The params dict and
    the learner always use their own names."""
    with argument_names(NAMES):
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The directory of the shared data: `$SIGHTLINE_SHARED`, or `shared` beside the checkout."""
    path = Path(os.environ.get("SIGHTLINE_SHARED") or Path(__file__).parents[2] / "shared")
    if not (path / "data").is_dir():
        missing(f"no shared data in '{path}'; set SIGHTLINE_SHARED")
    return path


@pytest.fixture(scope="session")
def mnist(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10,000 MNIST digits as PNG files with a CSV (columns `file,target`), unpacked."""
    return unpacked(shared, "mnist10k-png.tar.gz", tmp_path_factory.mktemp("mnist")) / "mnist10k"


@pytest.fixture(scope="session")
def flowers(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """650 photographs of five classes of flowers, in folders `train` and `test`."""
    return unpacked(shared, "photos-flowers.tar.gz", tmp_path_factory.mktemp("photographs")) / "flowers"


@pytest.fixture
def sightline(tmp_path: Path) -> Command:
    """`sightline("train", "seed=1")` runs the command in an empty directory."""

    def run(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
        return run_command(*arguments, **{"cwd": tmp_path, **options})  # type: ignore[arg-type]

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs the command like `sightline`, but in this process, which has already imported torch."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            cli.main([str(argument) for argument in arguments])
        return subprocess.CompletedProcess(arguments, int(exit_info.value.code or 0), *capsys.readouterr())

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs on the embedded digits."""
    folder = tmp_path_factory.mktemp("digits")
    done = run_command("train", "run.name=digits", "trainer.max_epochs=2", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "digits"
