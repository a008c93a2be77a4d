"""The heartbeat file: its content at each moment of a run, complete for every reader; failures to write it do not end
the run; `is_alive` and `sightline runs` read it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from helpers.commands import Command, python
from helpers.stop_at import StopAt
from sightline.core.types import Batch, StepOutput, TrainState
from sightline.engine.tasks import SupervisedTask
from sightline.engine.trainer import Callback, Trainer
from sightline.report.listing import list_runs
from sightline.runs.alive import HEARTBEAT, is_alive, read_heartbeat
from sightline.runs.heartbeat import Heartbeat

KEYS = (
    *("state", "time", "pid", "host", "epoch", "max_epochs", "batch", "batches", "step", "loss"),
    *("images_per_second", "eta_seconds", "last_step", "error"),
)


class Batches:
    """Four batches of two images; `do` is called before batch `number`, counted over all epochs."""

    def __init__(self, number: int = -1, do: Callable[[], None] = lambda: None):
        self.number, self.do = number, do
        self.count = 0

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(4):
            if self.count == self.number:
                self.do()
            self.count += 1
            yield Batch(torch.randn(2, 4), torch.tensor([0, 1]))


def trainer(heartbeat: Heartbeat, train: Any = None, val: Any = None, *callbacks: Callback) -> Trainer:
    """Three epochs of four steps."""
    model = nn.Linear(4, 2)
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1))
    return Trainer(
        SupervisedTask(nn.CrossEntropyLoss()),
        state,
        train or Batches(),
        {"val": val or Batches()},
        max_epochs=3,
        log_every=2,
        callbacks=(*callbacks, heartbeat),
    )


def wait_for(run: Path, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first heartbeat that satisfies `condition`. Reads without a pause, to notice a partly written file."""
    for _ in range(1_000_000):
        heartbeat = json.loads((run / HEARTBEAT).read_text())
        if condition(heartbeat):
            return heartbeat
    raise AssertionError(heartbeat)


def test_a_run_that_finishes(tmp_path: Path) -> None:
    heartbeat = Heartbeat(tmp_path)
    trainer(heartbeat).fit()
    assert read_heartbeat(tmp_path)["state"] == "evaluating"  # finished only after the evaluation
    with heartbeat.measuring():
        pass
    content = read_heartbeat(tmp_path)
    assert tuple(sorted(content)) == tuple(sorted(KEYS))
    assert (content["state"], content["pid"], content["host"]) == ("finished", os.getpid(), socket.gethostname())
    assert (content["epoch"], content["max_epochs"], content["batch"], content["batches"]) == (3, 3, 0, 4)
    assert (content["step"], content["eta_seconds"], content["error"]) == (12, 0.0, None)
    assert content["loss"] > 0
    assert content["images_per_second"] > 0
    for key in ("time", "last_step"):
        assert datetime.fromisoformat(content[key]).utcoffset() == timedelta(0)
    assert [entry.name for entry in tmp_path.iterdir()] == [HEARTBEAT]
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())


def test_a_watcher_sees_it_start_train_and_evaluate(tmp_path: Path) -> None:
    """Training and evaluation wait until the heartbeat thread has written the expected state."""
    seen: dict[str, dict[str, Any]] = {}

    def train() -> None:
        # all three counters, since the thread may read them while a step ends; batch 2, since batch 1 has no rate
        at_step_6 = {"step": 6, "batch": 2, "epoch": 1}.items()
        seen["training"] = wait_for(
            tmp_path, lambda heartbeat: at_step_6 <= heartbeat.items() and heartbeat["images_per_second"] is not None
        )

    def evaluate() -> None:
        # also the step: if the thread has not written since, the file is from the previous evaluation
        seen["evaluating"] = wait_for(
            tmp_path, lambda heartbeat: (heartbeat["state"], heartbeat["step"]) == ("evaluating", 12)
        )

    class First(Callback):
        def on_epoch_start(self, trainer: Trainer) -> None:
            seen.setdefault("start", json.loads((tmp_path / HEARTBEAT).read_text()))

    heartbeat = Heartbeat(tmp_path, seconds=0.001)
    trainer(heartbeat, Batches(6, train), Batches(9, evaluate), First()).fit()
    first = seen["start"]
    assert (first["state"], first["epoch"], first["step"], first["last_step"]) == ("training", 0, 0, None)
    assert (first["loss"], first["eta_seconds"]) == (None, None)
    training = seen["training"]
    assert (training["state"], training["epoch"], training["batch"], training["batches"]) == ("training", 1, 2, 4)
    assert training["loss"] > 0
    assert training["eta_seconds"] >= 0  # to a tenth of a second
    assert training["last_step"] is not None
    evaluating = seen["evaluating"]
    assert (evaluating["epoch"], evaluating["batch"], evaluating["images_per_second"] is None) == (2, 4, False)


def test_a_run_that_is_interrupted(tmp_path: Path) -> None:
    trainer(Heartbeat(tmp_path), None, None, StopAt(5)).fit()
    content = read_heartbeat(tmp_path)
    assert (content["state"], content["epoch"], content["batch"], content["step"]) == ("interrupted", 1, 1, 5)
    assert content["eta_seconds"] is None


def test_a_run_that_fails_and_one_that_is_stopped_by_ctrl_c(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("the disk\nis gone")

    with pytest.raises(RuntimeError):
        trainer(Heartbeat(tmp_path), Batches(5, fail)).fit()
    content = read_heartbeat(tmp_path)
    assert (content["state"], content["error"], content["step"]) == ("failed", "RuntimeError: the disk", 5)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(Heartbeat(tmp_path), Batches(5, stop)).fit()
    content = read_heartbeat(tmp_path)
    assert (content["state"], content["error"]) == ("interrupted", None)
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())


def test_a_failure_before_training_is_recorded(tmp_path: Path) -> None:
    class Fails(Callback):
        def on_fit_start(self, trainer: Trainer) -> None:
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        trainer(Heartbeat(tmp_path), None, None, Fails()).fit()
    content = read_heartbeat(tmp_path)
    assert (content["state"], content["error"], content["step"]) == ("failed", "OSError: no room", None)


@pytest.mark.parametrize(
    ("error", "state"), [(None, "finished"), (ValueError("no"), "failed"), (KeyboardInterrupt(), "interrupted")]
)
def test_the_evaluation_after_training_sets_the_state(error: BaseException | None, state: str, tmp_path: Path) -> None:
    heartbeat = Heartbeat(tmp_path, seconds=0.001)
    trainer(heartbeat).fit()

    def measure() -> None:
        with heartbeat.measuring():
            during = wait_for(tmp_path, lambda content: content["state"] == "evaluating")
            assert (during["step"], during["eta_seconds"]) == (12, 0.0)
            assert is_alive(tmp_path)
            if error is not None:
                raise error

    if error is None:
        measure()
    else:
        with pytest.raises(type(error)):
            measure()
    assert read_heartbeat(tmp_path)["state"] == state
    assert not is_alive(tmp_path)


@pytest.mark.parametrize("how", ["gone", "full", "in the way"])
def test_a_failed_write_does_not_end_the_run(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    if how == "in the way":
        (run / HEARTBEAT / "x").mkdir(parents=True)
    elif how == "full":
        run.mkdir()

        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_text", full)
    done = trainer(Heartbeat(run, seconds=0.001)).fit()
    assert done.steps == 12
    if run.exists():
        assert [entry.name for entry in run.iterdir()] == ([HEARTBEAT] if how == "in the way" else [])


def test_invalid_counters_of_a_callback_do_not_end_the_run(tmp_path: Path) -> None:
    class Odd(Callback):
        def on_step_end(self, trainer: Trainer, output: StepOutput) -> None:
            trainer.last_log["loss"] = {1, 2}  # type: ignore[assignment]

    assert trainer(Heartbeat(tmp_path, seconds=0.001), None, None, Odd()).fit().steps == 12
    losing = trainer(Heartbeat(tmp_path))
    losing.last_log["train_loss"] = float("nan")
    losing.max_epochs = 0
    losing.fit()
    assert read_heartbeat(tmp_path)["loss"] is None


# --- readers


def alive(**changes: Any) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"state": "training", "time": now, "pid": os.getpid(), "host": socket.gethostname(), **changes}


def ended() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"state": "evaluating"}, True),
        ({"state": "finished"}, False),
        ({"state": "interrupted"}, False),
        ({"state": "failed"}, False),
        ({"seconds ago": 30}, True),
        ({"seconds ago": 3600}, False),
        ({"seconds ago": -3600}, False),
        ({"time": "2026-11-20T16:38:00"}, False),
        ({"time": 5}, False),
        ({"time": "soon"}, False),
        ({"pid": 1}, True),  # a process of another user or of this one
        ({"pid": None}, False),
        ({"pid": True}, False),
        ({"pid": -1}, False),
        ({"pid": 1 << 70}, False),
        ({"pid": 0, "host": "another"}, True),
        ({"host": "another", "seconds ago": 61}, False),
    ],
)
def test_whether_a_run_is_alive(changes: dict[str, Any], expected: bool, tmp_path: Path) -> None:
    if "seconds ago" in changes:
        changes = {**changes, "time": ago(changes["seconds ago"])}
    (tmp_path / HEARTBEAT).write_text(json.dumps(alive(**changes)))
    assert is_alive(tmp_path) == expected


def test_a_run_whose_process_has_ended_is_not_alive(tmp_path: Path) -> None:
    (tmp_path / HEARTBEAT).write_text(json.dumps(alive(pid=ended())))
    assert not is_alive(tmp_path)


def test_a_directory_without_a_heartbeat_is_not_alive(tmp_path: Path) -> None:
    assert not is_alive(tmp_path)
    assert not is_alive(tmp_path / "nowhere")
    (tmp_path / HEARTBEAT).mkdir()
    assert not is_alive(tmp_path)


@given(
    content=st.binary(max_size=40)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode())
)
def test_a_file_with_any_other_content_is_not_alive(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = tmp_path_factory.mktemp("run")
    (run / HEARTBEAT).write_bytes(content)
    assert not is_alive(run)
    shutil.rmtree(run)


def test_a_file_with_deeply_nested_json_is_not_alive(tmp_path: Path) -> None:
    (tmp_path / HEARTBEAT).write_text("[" * 100_000)
    assert not is_alive(tmp_path)


def test_a_run_that_is_alive_is_listed_as_running(digits_run: Path, here: Command, tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("*.ckpt", "exported", "predictions", "tensorboard")
    runs = tmp_path / "runs"
    for name in ("trained", "working", "killed", "elsewhere"):
        shutil.copytree(digits_run, runs / name, ignore=ignored if name != "trained" else None)
    for name, changes in {"trained": {}, "working": {}, "killed": {"pid": ended()}, "elsewhere": {"host": "x"}}.items():
        (runs / name / HEARTBEAT).write_text(json.dumps(alive(**changes)))
    expected = {"trained": "finished", "working": "running", "killed": "unfinished", "elsewhere": "running"}
    done = here("runs", "--json")
    assert {row["name"]: row["state"] for row in json.loads(done.stdout)} == expected
    listing = list_runs(runs, sort="state")
    assert {row["name"]: row["state"] for row in listing.rows} == expected
    lines = [line.split("\t") for line in here("runs").stdout.splitlines()]
    assert {line[0]: line[2] for line in lines[1:]} == expected


def test_is_alive_does_not_import_torch(tmp_path: Path) -> None:
    (tmp_path / HEARTBEAT).write_text(json.dumps(alive()))
    code = (
        "import sys; from pathlib import Path; from sightline.runs.alive import is_alive; "
        "print(is_alive(Path(sys.argv[1])), 'torch' in sys.modules)"
    )
    assert python(code, str(tmp_path)).split() == ["True", "False"]
