"""Signals: what each one does to a training and to every other command, the exit codes, and the command that a
scheduler is answered with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sightline import cli
from sightline.engine import signals, termination
from sightline.engine.callbacks import Callback
from sightline.engine.signals import StopOnSignal, requeue
from sightline.engine.tasks import SupervisedTask
from sightline.engine.termination import Terminated
from sightline.engine.trainer import Trainer
from sightline.types import Batch, FitResult, StepOutput, TrainState

LISTENED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def listeners() -> Iterator[None]:
    """The signals are afterwards heard as before."""
    before = {number: signal.getsignal(number) for number in LISTENED}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class At(Callback):
    """Does something after a step, and counts the checkpoints that were asked for."""

    def __init__(self, step: int, do: Callable[[], None]):
        self.step = step
        self.do = do
        self.asked: list[int] = []

    def on_step_end(self, trainer: Trainer, output: StepOutput) -> None:
        if trainer.state.step == self.step:
            self.do()

    def on_checkpoint(self, trainer: Trainer) -> None:
        self.asked.append(trainer.state.step)


def sent(*numbers: int) -> Callable[[], None]:
    """Sends these signals to this process."""

    def send() -> None:
        for number in numbers:
            signal.raise_signal(number)

    return send


def trained(*callbacks: Callback) -> FitResult:
    """Two epochs of four steps."""
    model = nn.Linear(4, 2)
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1))
    batches = [Batch(torch.randn(2, 4), torch.tensor([0, 1])) for _ in range(4)]
    return Trainer(
        SupervisedTask(nn.CrossEntropyLoss()), state, batches, max_epochs=2, callbacks=(*callbacks, StopOnSignal())
    ).fit()


# --- in a training


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_training_after_its_step(number: int) -> None:
    before = [signal.getsignal(number) for number in LISTENED]
    watched = At(3, sent(number))
    result = trained(watched)
    assert (result.interrupted, result.steps, result.signal) == (True, 3, number)
    assert watched.asked == ([3] if number == signal.SIGTERM else [])
    assert [signal.getsignal(number) for number in LISTENED] == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_is_delivered_twice_is_one(number: int) -> None:
    """timeout(1) sends to the process and to its group."""
    result = trained(At(3, sent(number, number)))
    assert (result.steps, result.signal) == (3, number)


@pytest.mark.parametrize(
    ("numbers", "raised"),
    [
        ((signal.SIGINT, signal.SIGINT), KeyboardInterrupt),
        ((signal.SIGTERM, signal.SIGTERM), Terminated),
        ((signal.SIGTERM, signal.SIGINT), KeyboardInterrupt),
    ],
)
def test_a_second_signal_ends_it_at_once(
    numbers: tuple[int, ...], raised: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(termination, "_TWICE", 0.0)
    before = [signal.getsignal(number) for number in LISTENED]
    with pytest.raises(KeyboardInterrupt) as error:
        trained(At(3, sent(*numbers)))
    assert error.type is raised
    assert [signal.getsignal(number) for number in LISTENED] == before


def test_a_warning_asks_for_a_checkpoint_and_training_goes_on() -> None:
    watched = At(3, sent(signal.SIGUSR1))
    before = signal.getsignal(signal.SIGUSR1)
    result = trained(watched)
    assert (result.interrupted, result.steps, result.signal) == (False, 8, None)
    assert watched.asked == [3]
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_handler_of_ones_own_for_the_warning_stays() -> None:
    """As submitit has one."""
    heard: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    watched = At(3, sent(signal.SIGUSR1))
    trained(watched)
    assert heard == [signal.SIGUSR1]
    assert watched.asked == []


def test_what_raises_hands_the_signals_back() -> None:
    before = [signal.getsignal(number) for number in LISTENED]

    def fail() -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        trained(At(3, fail))
    assert [signal.getsignal(number) for number in LISTENED] == before


def test_another_thread_trains_without_signals() -> None:
    results: list[FitResult] = []
    thread = threading.Thread(target=lambda: results.append(trained()))
    thread.start()
    thread.join()
    assert results[0].steps == 8


# --- the hook


def test_the_hook_knows_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.chdir(tmp_path)
    requeue('echo "$SIGHTLINE_RUN" > told.txt', Path("runs/mine"))
    assert Path("told.txt").read_text().strip() == str(tmp_path / "runs" / "mine")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("echo no such job >&2; exit 3", "`echo no such job >&2; exit 3` ended with exit code 3"),
        ("sleep 60", "`sleep 60` had not ended after 0.2 s and was stopped"),
        ("a\0b", "could not be started: embedded null byte"),
    ],
)
def test_a_hook_that_fails_is_told(
    command: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(signals, "_PATIENCE", 0.2 if command.startswith("sleep") else 60)
    requeue(command, tmp_path)
    shown = capfd.readouterr().err
    assert f"sightline: run.requeue: {told}" in shown or (f"{told}; the checkpoint is saved" in shown)


def test_a_hook_that_fails_where_nobody_listens_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = (tmp_path / "closed").open("w")
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    requeue("exit 1", tmp_path)


# --- on the command line

SMALL = ["trainer.max_epochs=1", "module.network.width=4"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`here("train", …)` runs the command in this process: (exit code, what it said on standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*words: str | Path) -> tuple[int, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(word) for word in words])
        return int(ended.value.code or 0), capsys.readouterr().err

    return run


PLACES = {
    "packing": "sightline.config.data.pack_splits",
    "the export": "sightline.config.build.export_model",
    "the last evaluation": "sightline.config.build.evaluate_split",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_outside_training(
    place: str, number: int, code: int, here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PLACES[place], lambda *_, **__: sent(number)())
    status, told = here("train", *SMALL, "run.name=cut")
    assert status == code
    assert "Traceback" not in told


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_evaluate(
    number: int, code: int, here: Any, digits_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sightline.runs.evaluate.evaluate_split", lambda *_, **__: sent(number)())
    status, told = here("evaluate", digits_run)
    assert (status, told) == (code, f"sightline: {'interrupted' if code == 130 else 'terminated'}\n")


def test_a_warning_outside_training_ends_nothing(here: Any, digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline.runs import evaluate

    heard: list[object] = []
    measure = evaluate.evaluate_split

    def warned(*given: Any) -> Any:
        sent(signal.SIGUSR1)()
        heard.append(given)
        return measure(*given)

    monkeypatch.setattr(evaluate, "evaluate_split", warned)
    assert here("evaluate", digits_run)[0] == 0
    assert heard


@pytest.mark.slow
def test_a_scheduler_warns_and_ends_a_run(tmp_path: Path) -> None:
    """Real signals to a real process: SIGUSR1 saves and goes on, SIGTERM saves and ends; the hook is run after both,
    where the checkpoint is there already."""
    hook = 'cp "$SIGHTLINE_RUN/checkpoints/last.ckpt" "copy-$$.ckpt" && echo "copy-$$.ckpt" >> saved.txt'
    words = ["train", "trainer.max_epochs=5000", "data.batch_size=32", "run.name=long", f"run.requeue='{hook}'"]
    with subprocess.Popen(
        [sys.executable, "-m", "sightline", *words, "module.network.width=8"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch    3/5000"):
                process.send_signal(signal.SIGUSR1)
            if line.startswith("epoch") and (tmp_path / "saved.txt").exists():
                process.send_signal(signal.SIGTERM)
                break
        told = process.stdout.read()
        assert process.wait(60) == 143, told
    assert "Traceback" not in told
    assert "sightline resume runs/long" in told
    steps = [
        torch.load(tmp_path / name, weights_only=True)["step"] for name in (tmp_path / "saved.txt").read_text().split()
    ]
    assert len(steps) == 2
    assert 0 < steps[0] < steps[1]


def test_the_command_line_ends_with_143_wherever_it_is(tmp_path: Path) -> None:
    """A real SIGTERM while a command waits, in a process that has not loaded torch."""
    code = (
        "import sys, time, types; from sightline import cli\n"
        "def main(words):\n    print('here', flush=True); time.sleep(60)\n"
        "sys.modules['sightline.commands.load'] = types.SimpleNamespace(main=main)\n"
        "cli.main(['load'])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.stderr.read() == "sightline: terminated\n"
        assert process.wait(60) == 143
