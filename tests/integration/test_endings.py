"""The start and the end of a run: a disk that fills up during the export, kills just before a directory is renamed, and
what must be on the disk before a checkpoint is."""

from __future__ import annotations

import errno
import fcntl
import gc
import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers import params_user as users
from helpers.disks import fill, small_disk
from helpers.params_digits import small_digits
from helpers.processes import ended, started, until
from sightline.compose import assemble
from sightline.core.errors import ArtifactError, RunFailedError
from sightline.core.files import atomic_write, locked, sha256
from sightline.engine.checkpoint.content import read_checkpoint
from sightline.inference.artifact import export_model, load
from sightline.inference.evaluate import evaluate_split
from sightline.runs import directory
from sightline.runs.directory import Run


def config(folder: Path, name: str = "run") -> dict[str, Any]:
    """A network of 600 KiB on the embedded digits, one epoch of 18 steps."""
    layers = [
        {"_target_": "torch.nn.Flatten"},
        {"_target_": "torch.nn.Linear", "in_features": "auto", "out_features": 2000},
        {"_target_": "torch.nn.Linear", "in_features": 2000, "out_features": "auto"},
    ]
    return {
        "run": {"dir": str(folder), "name": name},
        "data": {"batch_size": 72, "augment": {"shift": 0}},
        "module": {
            "network": {"layers": layers},
            "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1},
            "lr_scheduler": None,
        },
        "trainer": {"max_epochs": 1, "progress": False, "device": "cpu", "threads": 1, "log_every": 4},
    }


def results(run: Path) -> dict[str, str]:
    """The checksums of the exported weights and of the tables."""
    files = [run / "exported" / "model.safetensors", *sorted((run / "predictions").iterdir())]
    return {file.name: sha256(file) for file in files}


def hidden(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob(".*")}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without any failure."""
    run = assemble.assemble(config(tmp_path_factory.mktemp("uninterrupted"))).fit().run
    assert run is not None
    return run


# --- a disk that fills up between training and the export


def fill_before_the_export(ballast: Path, patch: pytest.MonkeyPatch) -> None:
    """Fills the disk when training is over."""
    finish = assemble.Assembly.finish

    def fill_then_finish(self: assemble.Assembly) -> Any:
        fill(ballast, leave=256 << 10)
        return finish(self)

    patch.setattr(assemble.Assembly, "finish", fill_then_finish)


def assert_resumes(run: Path, uninterrupted: Path) -> None:
    """Asserts that the resumed run ends with the same bits as the uninterrupted one."""
    assemble.resume(run).fit()
    assert results(run) == results(uninterrupted)
    assert load(run).manifest["metrics"] == load(uninterrupted).manifest["metrics"]


NO_ROOM = (
    r"the exported model needs 1\.6 MiB, but the disk of '.*/full' has only 0\.\d MiB free\. The checkpoint of step 18 "
    r"is valid\. Free disk space and resume from it\."
)
NO_SPACE = r"The model of '.*/full' could not be exported .*No space left on device.*: sightline resume .*/full$"


def test_deleting_an_assembly_releases_its_lock(tmp_path: Path) -> None:
    """At once, without the garbage collector, also with a requeue command."""
    settings = config(tmp_path)
    settings["run"]["requeue"] = "true"
    gc.disable()
    try:
        assembly = assemble.assemble(settings)
        path = assembly.run.path
        del assembly
        with locked(path) as acquired:
            assert acquired
    finally:
        gc.enable()


@pytest.mark.rows("X01")
@pytest.mark.parametrize(("message", "free"), [(NO_ROOM, None), (NO_SPACE, 1 << 40)], ids=["asked", "written"])
def test_a_disk_without_room_for_the_model(message: str, free: int | None, uninterrupted: Path, tmp_path: Path) -> None:
    """The free space is too small when it is checked, or it runs out in the middle of the weights file."""
    with small_disk(tmp_path / "small", "16m") as disk:
        run, ballast = disk / "full", disk / "ballast"
        assembly = assemble.assemble(config(disk, "full"))
        with pytest.MonkeyPatch.context() as patch:
            fill_before_the_export(ballast, patch)
            if free is not None:
                patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
            with pytest.raises(RunFailedError, match=message):
                assembly.fit()
        assert hidden(run) == set()
        assert not (run / "exported").exists()
        with pytest.raises(RunFailedError, match=NO_ROOM):
            assemble.resume(run).fit()
        fill(disk / "more")
        with pytest.raises(RunFailedError, match=r"/full' cannot be read or written: .*No space left on device"):
            assemble.resume(run).fit()
        ballast.unlink()
        assert_resumes(run, uninterrupted)


@pytest.mark.rows("X01")
def test_a_disk_without_room_for_the_tables(uninterrupted: Path, tmp_path: Path) -> None:
    """The exported model is complete, without metrics."""
    with small_disk(tmp_path / "small", "16m") as disk:
        run, ballast = disk / "full", disk / "ballast"

        def fill_then_evaluate(*arguments: Any) -> Any:
            fill(ballast)
            return evaluate_split(*arguments)

        assembly = assemble.assemble(config(disk, "full"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(assemble, "evaluate_split", fill_then_evaluate)
            with pytest.raises(RunFailedError, match=NO_SPACE):
                assembly.fit()
        assert hidden(run) == set()
        assert load(run).manifest["metrics"] == {}
        ballast.unlink()
        assert_resumes(run, uninterrupted)


# --- kills in the export

KILLED = """
import os, signal, sys
from pathlib import Path
from sightline.cli import main

method, folder, name = sys.argv[1:4]
true = getattr(Path, method)

def killed(self, target):
    if (Path(target).parent.name, Path(target).name) == (folder, name):
        os.kill(os.getpid(), signal.SIGKILL)
    return true(self, target)

setattr(Path, method, killed)
main(sys.argv[4:])
"""
"""Runs the command and kills it just before a file or directory in this folder gets this name."""


@pytest.mark.rows("X01")
@pytest.mark.parametrize(
    ("rename", "leftover"),
    [
        (("rename", "run", "exported"), ".exported"),
        (("replace", "exported", "sightline.json"), "exported/.sightline.json"),
        pytest.param(("replace", "predictions", "test.csv"), "predictions/.test.csv", marks=pytest.mark.slow),
    ],
    ids=["the model", "its metrics", "a table"],
)
def test_files_of_a_killed_export_are_deleted(
    rename: tuple[str, ...], leftover: str, uninterrupted: Path, tmp_path: Path
) -> None:
    """The next export deletes them, and keeps the files of others."""
    run = Path(shutil.copytree(uninterrupted, tmp_path / "run"))
    others = ["exported/README.md", "exported/.notes", ".exported.backup/model", "predictions/.mine.csv", ".run.json"]
    for name in others:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("years of work")
    before = hidden(run)
    with started("-c", KILLED, *rename, "resume", run, cwd=tmp_path) as process:
        assert ended(process) == (-signal.SIGKILL, "")
    assert leftover in {name[: -len(".0123456789abcdef")] for name in hidden(run) - before}
    assemble.resume(run).fit()
    assert hidden(run) == before
    assert {(run / name).read_text() for name in others} == {"years of work"}
    assert results(run).items() >= results(uninterrupted).items()


@pytest.mark.rows("X01")
def test_files_of_a_killed_export_may_fill_the_disk(uninterrupted: Path, tmp_path: Path) -> None:
    """They are deleted before the free space is checked."""
    with small_disk(tmp_path / "small", "16m") as disk:
        run = Path(shutil.copytree(uninterrupted, disk / "full"))
        leftover = run / ".exported.0123456789abcdef"
        leftover.mkdir()
        fill(leftover / "model.safetensors", leave=256 << 10)
        assert_resumes(run, uninterrupted)
        assert not leftover.exists()


def test_a_signal_to_requeue_while_a_recorder_is_closed_is_handled(tmp_path: Path) -> None:
    """A custom recorder may take long to close, between training and the export."""

    class Slow:
        def log(self, step: int, values: Mapping[str, float]) -> None: ...

        def close(self) -> None:
            signal.raise_signal(signal.SIGUSR1)

    requeued = tmp_path / "requeued"
    settings = config(tmp_path)
    settings["run"]["requeue"] = f"echo $SIGHTLINE_RUN > '{requeued}'"
    before = signal.getsignal(signal.SIGUSR1)
    result = assemble.assemble(settings, recorder=Slow()).fit()
    assert requeued.read_text() == f"{result.run}\n"
    assert not result.interrupted
    assert "test" in result.metrics
    assert signal.getsignal(signal.SIGUSR1) == before


@pytest.mark.rows("X01")
@pytest.mark.parametrize("renamed", [1, 2])
def test_a_signal_while_an_export_replaces_another_one(
    renamed: int, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM, delivered after the old export was moved away or after the new one was moved in."""
    run = Path(shutil.copytree(uninterrupted, tmp_path / "run"))
    true, renames = Path.rename, itertools.count(1)

    def rename(path: Path, target: Path) -> Path:
        done = true(path, target)
        if run / "exported" in (path, target) and next(renames) == renamed:
            signal.raise_signal(signal.SIGTERM)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        result = assemble.resume(run).fit()
    assert (result.interrupted, result.signal) == (True, signal.SIGTERM)
    assert sha256(run / "exported" / "model.safetensors") == sha256(uninterrupted / "exported" / "model.safetensors")
    assert_resumes(run, uninterrupted)
    assert hidden(run) == hidden(uninterrupted)


def test_a_table_that_is_being_written_is_not_deleted(tmp_path: Path) -> None:
    """`sightline evaluate` writes it without the run's lock."""
    run = Run(tmp_path)
    table = run.predictions("val")
    table.parent.mkdir()
    (table.parent / ".test.csv.0123456789abcdef").touch()  # of a killed process
    with atomic_write(table) as file:
        file.write(b"index\n")
        assert len(list(table.parent.iterdir())) == 2
        run.sweep()
    assert list(table.parent.iterdir()) == [table]


# --- kills at the start

FILLED = """
import sys
from pathlib import Path
from sightline.runs.directory import Run

def fill(run):
    run.write_config({"seed": 1})
    print("filling", flush=True)
    sys.stdin.readline()

Run.create(Path("runs"), sys.argv[1], "x", fill)
"""
"""Creates a run directory, and waits for a line of input before renaming it."""


def test_directories_of_runs_killed_at_their_start_are_deleted(tmp_path: Path) -> None:
    """The next run deletes them, except the directory of a living process and files of others."""
    runs = tmp_path / "runs"
    others = {".run.backup", ".run.0123", ".running.0123456789abcdef", "run.0123456789abcdef"}
    for name in others:
        (runs / name).mkdir(parents=True)
        (runs / name / "precious").write_text("years of work")
    (runs / ".run.0123456789abcdef").symlink_to(runs / ".run.backup")
    others.add(".run.0123456789abcdef")
    with started("-c", FILLED, "living", cwd=tmp_path) as living:
        until(living, "filling")
        (filled,) = names(runs) - others
        with started("-c", FILLED, "killed", cwd=tmp_path) as killed:
            until(killed, "filling")
            killed.kill()
        assert len(names(runs) - others) == 2
        assemble.assemble(config(runs, "next")).fit()
        assert names(runs) == {*others, filled, "next"}
        assert living.stdin is not None
        living.stdin.write("continue\n")
        living.stdin.flush()
        assert ended(living) == (0, "")
    assert names(runs) == {*others, "living", "next"}
    assert (runs / "living" / "config.yaml").read_text() == "seed: 1\n"
    assert all((runs / name / "precious").read_text() == "years of work" for name in others)


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_without_file_locks_files_of_killed_runs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / ".run.0123456789abcdef").mkdir()
    Run.create(tmp_path, "mine", "x")
    assert names(tmp_path) == {".run.0123456789abcdef", "mine"}


def test_a_directory_that_is_deleted_or_locked_by_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process deletes or locks it first, so another directory is created."""
    made: list[Path] = []
    with ExitStack() as elsewhere:

        def late(path: Path) -> AbstractContextManager[bool]:
            made.append(path)
            if len(made) == 1:
                path.rmdir()
            elif len(made) == 2:
                elsewhere.enter_context(locked(path))
            return locked(path)

        monkeypatch.setattr(directory, "locked", late)
        Run.create(tmp_path, "mine", "x", lambda run: run.write_config({"seed": 1}))
    assert len(made) == 3
    assert names(tmp_path) == {made[1].name, "mine"}
    assert names(tmp_path / "mine") == {"config.yaml"}


def test_a_run_is_locked_from_its_start(tmp_path: Path) -> None:
    def refused(run: Run) -> None:
        with pytest.raises(ArtifactError, match="is being trained by another process"), run.locked():
            pass

    with ExitStack() as lock:
        run = Run.create(tmp_path, "mine", "x", refused, lock)
        refused(run)
    with run.locked():
        pass


# --- what is on the disk before a file gets its name


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """The size in bytes of each file when it was last synced, by inode."""
    sync, sizes = os.fsync, {}

    def syncs(descriptor: int) -> None:
        status = os.fstat(descriptor)
        sync(descriptor)
        sizes[status.st_ino] = status.st_size

    monkeypatch.setattr(os, "fsync", syncs)
    return sizes


def train(folder: Path) -> None:
    assemble.assemble(config(folder)).fit()


def train_by_params(folder: Path) -> None:
    users.run(users.small(num_epochs=2), small_digits(folder / "data"), folder / "run", metrics=False)


@pytest.mark.rows("X01")
@pytest.mark.parametrize("run_training", [train, train_by_params])
def test_curves_are_on_the_disk_before_the_checkpoint(
    run_training: Callable[[Path], None], synced: dict[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard's file is synced with all points up to a checkpoint's step before the checkpoint gets its name."""
    replace = Path.replace
    seen: list[tuple[int, int]] = []

    def recording_replace(self: Path, target: Path) -> Path:
        if target.name == "last.ckpt":
            seen.append((read_checkpoint(self)["step"], last_step_within(tmp_path, synced)))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", recording_replace)
    run_training(tmp_path)
    assert seen[-1][0] > 0
    assert all(synced_step >= step for step, synced_step in seen), seen


def last_step_within(folder: Path, synced: Mapping[int, int]) -> int:
    """The last step of the curves in the synced part of their files."""
    last = 0
    for file in [*folder.rglob("events.out.tfevents.*")]:
        with tempfile.TemporaryDirectory() as part:
            (Path(part) / file.name).write_bytes(file.read_bytes()[: synced.get(file.stat().st_ino, 0)])
            events = EventAccumulator(part, {"scalars": 0})
            events.Reload()
            last = max([last, *(point.step for tag in events.Tags()["scalars"] for point in events.Scalars(tag))])
    return last


@pytest.mark.rows("X01")
def test_a_model_is_on_the_disk_before_it_has_its_name(
    uninterrupted: Path, synced: dict[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, seen = Path.rename, []

    def recording_rename(self: Path, target: Path) -> Path:
        seen.extend((file.stat().st_size, synced.get(file.stat().st_ino)) for file in self.iterdir())
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", recording_rename)
    model = load(uninterrupted)
    export_model(tmp_path / "exported", model.model, model.spec, model.preprocess, model.classes, {})
    assert len(seen) == 2
    assert all(size == known for size, known in seen), seen
