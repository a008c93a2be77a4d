"""Sessions: how a process opens a run, trains with the caller's own loop, and resumes."""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

import sightline
from helpers import numpy_loop
from sightline.compose import assemble
from sightline.core.errors import (
    AnotherTrainingError,
    ArtifactError,
    ConfigError,
    RunFailedError,
    argument_names,
    render_argument,
)
from sightline.core.files import read_json
from sightline.core.ranks import Ranks
from sightline.engine.driver import LoopHooks
from sightline.engine.runtime import Runtime
from sightline.runs.directory import Run
from sightline.runs.recorders import JsonlRecorder
from sightline.session import CheckpointPolicy, Session, preserve_process_state

SCRIPT = Path(numpy_loop.__file__)


def started(directory: Path, epochs: int = 6, pause: float = 0.01, **environment: str) -> subprocess.Popen[str]:
    """Starts the NumPy loop in a separate process."""
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(directory), str(epochs), str(pause)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def points(directory: Path) -> list[dict[str, float]]:
    """The log without its times."""
    rows = [json.loads(line) for line in Run(directory).log.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Waits until the process ends: (exit code, standard error)."""
    _, stderr = process.communicate(timeout=120)
    return process.returncode, stderr


def wait_for_training(directory: Path, process: subprocess.Popen[str]) -> None:
    """Waits until the process is training."""
    while process.poll() is None:
        try:
            if read_json(directory / "heartbeat.json")["pid"] == process.pid:
                return
        except (OSError, ValueError):
            pass
        time.sleep(0.01)


def test_a_numpy_loop_that_is_killed_six_times_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """SIGKILL and SIGTERM at random moments of training; weights and log are bitwise equal."""
    uninterrupted, interrupted = tmp_path / "uninterrupted", tmp_path / "killed"
    assert ended(started(uninterrupted, pause=0))[0] == 0
    draw = random.Random(0)
    for number in [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM] * 2:
        process = started(interrupted)
        wait_for_training(interrupted, process)
        time.sleep(draw.uniform(0.0, 0.2))
        process.send_signal(number)
        status, stderr = ended(process)
        assert status == (130 if number == signal.SIGTERM else -number), stderr
    assert ended(started(interrupted, pause=0))[0] == 0
    assert (interrupted / "final.npy").read_bytes() == (uninterrupted / "final.npy").read_bytes()
    assert points(interrupted) == points(uninterrupted)
    assert len(points(uninterrupted)) == 6 * 13


def test_a_finished_loop_is_returned_unchanged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, model = numpy_loop.fit(tmp_path / "run", 2)
    before = (tmp_path / "run" / "log.jsonl").read_bytes()
    with caplog.at_level("INFO", "sightline"):
        again, loaded = numpy_loop.fit(tmp_path / "run", 2)
    assert "is already finished (2 epochs). Increase trainer.max_epochs to continue" in caplog.text
    assert again.history == first.history
    assert again.steps == first.steps == 24
    assert loaded.weights.tobytes() == model.weights.tobytes()
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == before
    assert read_json(tmp_path / "run" / "heartbeat.json")["state"] == "finished"
    longer, _ = numpy_loop.fit(tmp_path / "run", 3)
    assert longer.epochs == 3
    assert longer.history[:2] == first.history
    assert longer.best == max(record["train_accuracy"] for record in longer.history)


def test_another_training_is_refused_and_nothing_is_overwritten(tmp_path: Path) -> None:
    numpy_loop.fit(tmp_path / "run", 1)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(AnotherTrainingError, match=r"holds another training: rate was 0\.1 and is now 0\.2\. Choose"):
        numpy_loop.fit(tmp_path / "run", 2, rate=0.2)
    with pytest.raises(AnotherTrainingError, match="another interface, numpy"):
        Session(Run(tmp_path / "run"), assemble.INTERFACE).__enter__()
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "weights.npy").touch()
    with pytest.raises(AnotherTrainingError, match=r"without a checkpoint to resume from: weights\.npy"):
        numpy_loop.fit(tmp_path / "theirs", 1)


def test_a_failing_loop_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    def loop(hooks: LoopHooks) -> None:
        hooks.epoch_end({"train_loss": 1.0})
        hooks.log(7, {"loss": 2.0})
        raise ZeroDivisionError("theirs")

    policy = CheckpointPolicy("train_loss", "min")
    with Session(Run(tmp_path), numpy_loop.INTERFACE) as session, pytest.raises(ZeroDivisionError) as failed:
        session.drive(loop, numpy_loop.Regression(), max_epochs=3, checkpoints=policy)
    (note,) = failed.value.__notes__
    assert "In epoch 1" in note
    assert "The last good checkpoint, of step 1" in note
    assert "the same command resumes from it" in note
    assert read_json(tmp_path / "heartbeat.json")["state"] == "failed"
    with Session(Run(tmp_path), numpy_loop.INTERFACE) as again:
        assert again.saved is not None
        assert again.saved.position == (1, 1)


def test_a_loop_that_saves_nothing_is_an_error(tmp_path: Path) -> None:
    class Empty(numpy_loop.Regression):
        def save(self, path: Path) -> None: ...

    with (
        Session(Run(tmp_path), numpy_loop.INTERFACE) as session,
        pytest.raises(RunFailedError, match=r"Empty\.save wrote"),
    ):
        session.drive(lambda hooks: None, Empty(), max_epochs=1, checkpoints=CheckpointPolicy("loss"))


def test_a_loop_that_a_callback_stopped_is_finished(tmp_path: Path) -> None:
    class Stop(sightline.Callback):
        def on_epoch_end(self, trainer: sightline.Trainer, record: dict[str, float]) -> None:
            trainer.should_stop = True

    def loop(hooks: LoopHooks) -> None:
        for _ in range(3):
            hooks.epoch_end({"loss": 1.0})
            if hooks.should_stop:
                return

    for _ in range(2):
        with Session(Run(tmp_path), numpy_loop.INTERFACE) as session:
            result = session.drive(
                loop,
                numpy_loop.Regression(),
                max_epochs=3,
                checkpoints=CheckpointPolicy("loss", "min"),
                callbacks=[Stop()],
                recorders=[JsonlRecorder()],
            )
        assert result.epochs == result.steps == 1
        assert result.run == tmp_path
    assert [row["epoch"] for row in points(tmp_path)] == [0]
    with Session(Run(tmp_path), numpy_loop.INTERFACE) as session:  # with more epochs it trains again
        longer = session.drive(loop, numpy_loop.Regression(), max_epochs=5, checkpoints=CheckpointPolicy("loss", "min"))
    assert longer.epochs == 4


def test_overlapping_trainings_do_not_change_the_settings_of_torch() -> None:
    first, second = Runtime("cpu"), Runtime("cpu")
    before = torch.are_deterministic_algorithms_enabled()
    with ExitStack() as one, ExitStack() as two:
        for stack, runtime in ((one, first), (two, second)):
            stack.enter_context(preserve_process_state())
            stack.enter_context(runtime.active())
        one.close()
    assert torch.are_deterministic_algorithms_enabled() == before


def test_a_copy_of_only_the_checkpoints_can_be_resumed_repeatedly(tmp_path: Path) -> None:
    numpy_loop.fit(tmp_path / "one", 1)
    (tmp_path / "two").mkdir()
    shutil.copytree(tmp_path / "one" / "checkpoints", tmp_path / "two" / "checkpoints")
    for _ in range(2):
        with Session(Run(tmp_path / "two"), numpy_loop.INTERFACE) as session, pytest.raises(ZeroDivisionError):
            session.drive(
                lambda hooks: 1 / 0,  # type: ignore[arg-type,return-value]
                numpy_loop.Regression(),
                max_epochs=3,
                checkpoints=CheckpointPolicy("train_loss", "min"),
            )
    assert numpy_loop.fit(tmp_path / "two", 2)[0].epochs == 2


def free_port() -> str:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return str(listening.getsockname()[1])


def ranks(tmp_path: Path, epochs: int) -> list[tuple[int, str]]:
    """(exit code, standard error) of two processes that share a run."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    processes = [started(tmp_path / "run", epochs, 0, RANK=str(rank), **shared) for rank in (1, 0)]
    return [ended(process) for process in processes]


def test_two_ranks_create_one_directory_and_agree_on_the_checkpoint(tmp_path: Path) -> None:
    numpy_loop.fit(tmp_path / "alone", 2)
    assert ranks(tmp_path, 2) == [(0, ""), (0, "")]
    assert [path.name for path in tmp_path.iterdir() if path.name != "alone"] == ["run"]
    assert points(tmp_path / "run") == points(tmp_path / "alone"), "one of two ranks writes"
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-100])  # the newest is damaged: both ranks resume from the one before
    results = ranks(tmp_path, 3)
    assert [status for status, _ in results] == [0, 0]
    assert sum("last.ckpt.damaged" in stderr for _, stderr in results) == 1
    numpy_loop.fit(tmp_path / "alone", 3)
    assert points(tmp_path / "run") == points(tmp_path / "alone")


def test_ranks_with_different_directories_are_refused(tmp_path: Path) -> None:
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    processes = [started(tmp_path / str(rank), 1, 0, RANK=str(rank), **shared) for rank in (0, 1)]
    errors = [ended(process)[1] for process in processes]
    assert f"rank 1 uses '{tmp_path / '1'}', but rank 0 uses '{tmp_path / '0'}'" in errors[1]
    assert "another rank failed with ConfigError" in errors[0], "rank 0 does not wait for rank 1"
    assert not (tmp_path / "1").exists()


def test_after_an_elastic_restart_no_old_value_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store of torchrun's agent outlives the workers, so it may hold values from before the restart."""
    from torch.distributed import TCPStore

    port = free_port()
    store = TCPStore("127.0.0.1", int(port), is_master=True, wait_for_workers=False)
    code = "from sightline.core.ranks import Ranks\nprint(Ranks.from_environment().broadcast(lambda: {!r}))"
    agent = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "True", "WORLD_SIZE": "2"}
    for restart, value in (("0", "first"), ("1", "second")):
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", code.format(value)],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **agent, "RANK": rank, "TORCHELASTIC_RESTART_COUNT": restart},
            )
            for rank in ("1", "0")
        ]
        assert [process.communicate(timeout=120)[0].strip() for process in processes] == [value] * 2
    del store


def test_when_rank_0_fails_the_others_report_it(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file", encoding="ascii")
    first, second = ranks(tmp_path, 1)
    assert "rank 0 failed with ConfigError" in first[1]
    assert "cannot create the directory" in second[1]


def test_a_rank_that_starts_after_rank_0_has_failed_reports_it_too() -> None:
    """Earlier versions waited half an hour for a store that no longer existed."""
    code = (
        "from sightline.core.ranks import Ranks\ndef make():\n    print('failing', flush=True)\n    raise "
        "ValueError('no')\n"
        "Ranks.from_environment().broadcast(make)"
    )
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}

    def run(rank: str) -> subprocess.Popen[str]:
        command, pipes = [sys.executable, "-c", code], {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, text=True, env={**os.environ, **shared, "RANK": rank}, **pipes)  # type: ignore[call-overload,no-any-return]

    with run("0") as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "failing\n"
        with run("1") as second:
            assert "rank 0 failed with ValueError: no" in second.communicate(timeout=120)[1]
        assert "ValueError: no" in first.communicate(timeout=120)[1]


@pytest.mark.parametrize(("name", "value"), [("RANK", "2"), ("RANK", "one"), ("WORLD_SIZE", "-1")])
def test_a_wrong_rank_is_an_error(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"environment variable {name}"):
        Ranks.from_environment({"RANK": "0", "WORLD_SIZE": "2", name: value})
    assert Ranks.from_environment({}) == Ranks(0, 1)


def process_state() -> dict[str, object]:
    """The state of the process that training must not change."""
    gc.collect()
    return {
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "files": len([*Path("/proc/self/fd").iterdir()]),
        "python": random.getstate(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002
        "torch": torch.get_rng_state().tolist(),
        "settings": (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()),
    }


def config(directory: Path, number: int) -> dict[str, object]:
    return {
        "run": {"dir": str(directory), "name": f"run-{number}"},
        "trainer": {"max_epochs": 1, "progress": False, "threads": 1},
        "module": {"network": {"width": 4}},
    }


def test_twenty_sessions_do_not_change_the_state_of_the_process(tmp_path: Path) -> None:
    sightline.fit(config(tmp_path, 0))  # for imports and files that are opened once
    numpy_loop.fit(tmp_path / "numpy", 1)
    before = process_state()
    for number in range(1, 11):
        sightline.fit(config(tmp_path, number))
        numpy_loop.fit(tmp_path / f"numpy-{number}", 1)
    assert process_state() == before


def test_two_sessions_at_once_do_not_change_the_state_of_the_process(tmp_path: Path) -> None:
    sightline.fit(config(tmp_path, 0))
    numpy_loop.fit(tmp_path / "numpy", 1)
    alone = sightline.fit(config(tmp_path, 1)).history
    before = process_state()
    with ThreadPoolExecutor(2) as pool:
        futures = [
            pool.submit(numpy_loop.fit, tmp_path / "one", 3, 0.01),
            pool.submit(numpy_loop.fit, tmp_path / "two", 6, 0.01),
        ]
        results = [future.result()[0] for future in futures]
    assert process_state() == before
    assert results[0].history == results[1].history[:3]
    with Session(Run(tmp_path / "open"), numpy_loop.INTERFACE):  # stays open while another one trains
        assert sightline.fit(config(tmp_path, 2)).history == alone
        with pytest.raises(ArtifactError, match="is being trained by another process"):
            numpy_loop.fit(tmp_path / "open", 1)
    assert process_state() == before


def test_names_of_parts_of_an_argument() -> None:
    with argument_names({"network": "net", "data.mean": "params['mean']"}):
        assert render_argument("network.layers[2]._target_") == "net.layers[2]._target_"
        assert render_argument("data.mean[0]") == "params['mean'][0]"
        for name in ("a[0]b", "a[b", "x[a[0]]", "[0]", ".", ""):
            assert render_argument(name) == name


def test_numpy_values_are_logged(tmp_path: Path) -> None:
    def loop(hooks: LoopHooks) -> None:
        hooks.log(1, {"loss": np.float32(0.5)})  # type: ignore[dict-item]
        hooks.epoch_end({"loss": np.float32(0.25)})  # type: ignore[dict-item]

    with Session(Run(tmp_path), numpy_loop.INTERFACE) as session:
        checkpoints = CheckpointPolicy("loss", "min")
        session.drive(loop, numpy_loop.Regression(), max_epochs=1, checkpoints=checkpoints, recorders=[JsonlRecorder()])
    assert [row["loss"] for row in points(tmp_path)] == [0.5, 0.25]
