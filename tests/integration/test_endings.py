"""What the first and the last instants of a run leave: a disk that fills up in the export, kills where directories get
their names, and what must be on the disk before a checkpoint is."""

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
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    run = assemble.assemble(config(tmp_path_factory.mktemp("whole"))).fit().run
    assert run is not None
    return run


# --- a disk that fills up between training and the export


def filled_before_the_export(ballast: Path, patch: pytest.MonkeyPatch) -> None:
    """The disk fills up when training is over."""
    finish = assemble.Assembly.finish

    def fills(self: assemble.Assembly) -> Any:
        fill(ballast, leave=256 << 10)
        return finish(self)

    patch.setattr(assemble.Assembly, "finish", fills)


def goes_on(run: Path, whole: Path) -> None:
    """A resume ends with the same bits as the run that nothing happened to."""
    assemble.resume(run).fit()
    assert results(run) == results(whole)
    assert load(run).manifest["metrics"] == load(whole).manifest["metrics"]


NO_ROOM = (
    r"the exported model would take 1\.6 MiB, and 0\.\d MiB are free where '.*/full' is\. The checkpoint of step 18 is "
    r"whole: make room, and resume from it\."
)
NO_SPACE = r"the model of '.*/full' could not be exported .*No space left on device.*: sightline resume .*/full$"


def test_an_assembly_that_is_forgotten_lets_go_of_its_lock(tmp_path: Path) -> None:
    """At once, without the collector: also one that has a command to run."""
    how = config(tmp_path)
    how["run"]["requeue"] = "true"
    gc.disable()
    try:
        assembly = assemble.assemble(how)
        path = assembly.run.path
        del assembly
        with locked(path) as mine:
            assert mine
    finally:
        gc.enable()


@pytest.mark.rows("X01")
@pytest.mark.parametrize(("told", "free"), [(NO_ROOM, None), (NO_SPACE, 1 << 40)], ids=["asked", "written"])
def test_a_disk_without_room_for_the_model(told: str, free: int | None, whole: Path, tmp_path: Path) -> None:
    """Asked for the room, or, where there was room when it was asked for, in the middle of the file of weights."""
    with small_disk(tmp_path / "small", "16m") as place:
        run, ballast = place / "full", place / "ballast"
        assembly = assemble.assemble(config(place, "full"))
        with pytest.MonkeyPatch.context() as patch:
            filled_before_the_export(ballast, patch)
            if free is not None:
                patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
            with pytest.raises(RunFailedError, match=told):
                assembly.fit()
        assert hidden(run) == set()
        assert not (run / "exported").exists()
        with pytest.raises(RunFailedError, match=NO_ROOM):
            assemble.resume(run).fit()
        fill(place / "more")
        with pytest.raises(RunFailedError, match=r"/full' cannot be read or written: .*No space left on device"):
            assemble.resume(run).fit()
        ballast.unlink()
        goes_on(run, whole)


@pytest.mark.rows("X01")
def test_a_disk_without_room_for_the_tables(whole: Path, tmp_path: Path) -> None:
    """The model is whole, and has measured nothing yet."""
    with small_disk(tmp_path / "small", "16m") as place:
        run, ballast = place / "full", place / "ballast"

        def fills(*given: Any) -> Any:
            fill(ballast)
            return evaluate_split(*given)

        assembly = assemble.assemble(config(place, "full"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(assemble, "evaluate_split", fills)
            with pytest.raises(RunFailedError, match=NO_SPACE):
                assembly.fit()
        assert hidden(run) == set()
        assert load(run).manifest["metrics"] == {}
        ballast.unlink()
        goes_on(run, whole)


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
"""The command, killed where a file or directory in this folder is to get this name."""


@pytest.mark.rows("X01")
@pytest.mark.parametrize(
    ("moment", "left"),
    [
        (("rename", "run", "exported"), ".exported"),
        (("replace", "exported", "sightline.json"), "exported/.sightline.json"),
        pytest.param(("replace", "predictions", "test.csv"), "predictions/.test.csv", marks=pytest.mark.slow),
    ],
    ids=["the model", "its metrics", "a table"],
)
def test_what_a_kill_in_the_export_leaves(moment: tuple[str, ...], left: str, whole: Path, tmp_path: Path) -> None:
    """The next one clears it away, and what was put there by somebody else stays."""
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    others = ["exported/README.md", "exported/.notes", ".exported.backup/model", "predictions/.mine.csv", ".run.json"]
    for name in others:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("years of work")
    before = hidden(run)
    with started("-c", KILLED, *moment, "resume", run, cwd=tmp_path) as process:
        assert ended(process) == (-signal.SIGKILL, "")
    assert left in {name[: -len(".0123456789abcdef")] for name in hidden(run) - before}
    assemble.resume(run).fit()
    assert hidden(run) == before
    assert {(run / name).read_text() for name in others} == {"years of work"}
    assert results(run).items() >= results(whole).items()


@pytest.mark.rows("X01")
def test_what_fills_the_disk_may_be_what_the_killed_export_left(whole: Path, tmp_path: Path) -> None:
    """It is cleared away before the disk is asked for room."""
    with small_disk(tmp_path / "small", "16m") as place:
        run = Path(shutil.copytree(whole, place / "full"))
        left = run / ".exported.0123456789abcdef"
        left.mkdir()
        fill(left / "model.safetensors", leave=256 << 10)
        goes_on(run, whole)
        assert not left.exists()


def test_a_warning_while_a_recorder_is_closed_is_answered(tmp_path: Path) -> None:
    """One of the user's own may take its time between training and the export."""

    class Slow:
        def log(self, step: int, values: Mapping[str, float]) -> None: ...

        def close(self) -> None:
            signal.raise_signal(signal.SIGUSR1)

    told = tmp_path / "told"
    how = config(tmp_path)
    how["run"]["requeue"] = f"echo $SIGHTLINE_RUN > '{told}'"
    before = signal.getsignal(signal.SIGUSR1)
    result = assemble.assemble(how, recorder=Slow()).fit()
    assert told.read_text() == f"{result.run}\n"
    assert not result.interrupted
    assert "test" in result.metrics
    assert signal.getsignal(signal.SIGUSR1) == before


@pytest.mark.rows("X01")
@pytest.mark.parametrize("renamed", [1, 2])
def test_a_signal_while_an_export_takes_the_place_of_another_one(
    renamed: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM, delivered when the old one was moved away or the new one moved in."""
    run = Path(shutil.copytree(whole, tmp_path / "run"))
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
    assert sha256(run / "exported" / "model.safetensors") == sha256(whole / "exported" / "model.safetensors")
    goes_on(run, whole)
    assert hidden(run) == hidden(whole)


def test_a_table_that_is_being_written_is_not_swept_away(tmp_path: Path) -> None:
    """`sightline evaluate` writes it without the run's lock."""
    run = Run(tmp_path)
    table = run.predictions("val")
    table.parent.mkdir()
    (table.parent / ".test.csv.0123456789abcdef").touch()  # a killed process's
    with atomic_write(table) as file:
        file.write(b"index\n")
        assert len(list(table.parent.iterdir())) == 2
        run.sweep()
    assert list(table.parent.iterdir()) == [table]


# --- kills in the first instant

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
"""Makes a run's directory, and waits for a line before it gets its name."""


def test_what_a_kill_in_the_first_instant_leaves(tmp_path: Path) -> None:
    """The next run clears it away, but not what a living process is at, nor what is somebody else's."""
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
        living.stdin.write("go on\n")
        living.stdin.flush()
        assert ended(living) == (0, "")
    assert names(runs) == {*others, "living", "next"}
    assert (runs / "living" / "config.yaml").read_text() == "seed: 1\n"
    assert all((runs / name / "precious").read_text() == "years of work" for name in others)


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_where_there_are_no_locks_what_a_kill_leaves_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / ".run.0123456789abcdef").mkdir()
    Run.create(tmp_path, "mine", "x")
    assert names(tmp_path) == {".run.0123456789abcdef", "mine"}


def test_a_directory_that_is_taken_for_a_ruin_before_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is cleared away before it is opened, or after that: another one is made."""
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


def test_a_run_is_locked_from_its_beginning(tmp_path: Path) -> None:
    def refused(run: Run) -> None:
        with pytest.raises(ArtifactError, match="is being trained by another process"), run.locked():
            pass

    with ExitStack() as lock:
        run = Run.create(tmp_path, "mine", "x", refused, lock)
        refused(run)
    with run.locked():
        pass


# --- what is on the disk before a name says so


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """How many bytes a file had when it was synced last, by its inode."""
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
@pytest.mark.parametrize("trains", [train, train_by_params])
def test_curves_are_on_the_disk_before_the_checkpoint(
    trains: Callable[[Path], None], synced: dict[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard's file is synced with every point up to a checkpoint's step before that gets its name."""
    replace = Path.replace
    seen: list[tuple[int, int]] = []

    def replaces(self: Path, target: Path) -> Path:
        if target.name == "last.ckpt":
            seen.append((read_checkpoint(self)["step"], last_step_within(tmp_path, synced)))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replaces)
    trains(tmp_path)
    assert seen[-1][0] > 0
    assert all(found >= step for step, found in seen), seen


def last_step_within(folder: Path, synced: Mapping[int, int]) -> int:
    """The last step of the curves in as much of their files as was synced."""
    found = 0
    for file in [*folder.rglob("events.out.tfevents.*")]:
        with tempfile.TemporaryDirectory() as part:
            (Path(part) / file.name).write_bytes(file.read_bytes()[: synced.get(file.stat().st_ino, 0)])
            events = EventAccumulator(part, {"scalars": 0})
            events.Reload()
            found = max([found, *(point.step for tag in events.Tags()["scalars"] for point in events.Scalars(tag))])
    return found


@pytest.mark.rows("X01")
def test_a_model_is_on_the_disk_before_it_has_its_name(
    whole: Path, synced: dict[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, seen = Path.rename, []

    def renames(self: Path, target: Path) -> Path:
        seen.extend((file.stat().st_size, synced.get(file.stat().st_ino)) for file in self.iterdir())
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", renames)
    model = load(whole)
    export_model(tmp_path / "exported", model.model, model.spec, model.preprocess, model.classes, {})
    assert len(seen) == 2
    assert all(size == known for size, known in seen), seen
