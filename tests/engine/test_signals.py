"""Signals: their effect on training and on every other command, the exit codes, and the hook of `run.requeue`."""

from __future__ import annotations

import pkgutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers.processes import ended, started, until
from sightline import cli
from sightline.core.types import Batch, FitResult, StepOutput, TrainState
from sightline.engine import termination
from sightline.engine.signals import StopOnSignal, checkpoint_on_request, requeue
from sightline.engine.tasks import SupervisedTask
from sightline.engine.termination import Terminated
from sightline.engine.trainer import Callback, Trainer

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def restored_handlers() -> Iterator[None]:
    """Restores the signal handlers after the test."""
    before = {number: signal.getsignal(number) for number in HANDLED}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class At(Callback):
    """Calls `do` after `step`, and records the steps of requested checkpoints."""

    def __init__(self, step: int, do: Callable[[], None]):
        self.step = step
        self.do = do
        self.requested: list[int] = []

    def on_step_end(self, trainer: Trainer, output: StepOutput) -> None:
        if trainer.state.step == self.step:
            self.do()

    def on_checkpoint(self, trainer: Trainer) -> None:
        self.requested.append(trainer.state.step)


def sending(*numbers: int) -> Callable[[], None]:
    """A function that sends these signals to this process."""

    def send() -> None:
        for number in numbers:
            signal.raise_signal(number)

    return send


def train(*callbacks: Callback) -> FitResult:
    """Two epochs of four steps."""
    model = nn.Linear(4, 2)
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1))
    batches = [Batch(torch.randn(2, 4), torch.tensor([0, 1])) for _ in range(4)]
    return Trainer(
        SupervisedTask(nn.CrossEntropyLoss()), state, batches, max_epochs=2, callbacks=(*callbacks, StopOnSignal())
    ).fit()


# --- during training


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_after_the_current_step(number: int) -> None:
    before = [signal.getsignal(number) for number in HANDLED]
    watched = At(3, sending(number))
    result = train(watched)
    assert (result.interrupted, result.steps, result.signal) == (True, 3, number)
    assert watched.requested == ([3] if number == signal.SIGTERM else [])
    assert [signal.getsignal(number) for number in HANDLED] == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_is_delivered_twice_counts_once(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """timeout(1) sends its signal to the process and to its group."""
    monkeypatch.setattr(termination.SignalDeduplicator, "window", 3600.0)
    result = train(At(3, sending(number, number)))
    assert (result.steps, result.signal) == (3, number)


@pytest.mark.parametrize(
    ("numbers", "raised"),
    [
        ((signal.SIGINT, signal.SIGINT), KeyboardInterrupt),
        ((signal.SIGTERM, signal.SIGTERM), Terminated),
        ((signal.SIGTERM, signal.SIGINT), KeyboardInterrupt),
    ],
)
def test_a_second_signal_ends_training_at_once(
    numbers: tuple[int, ...], raised: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(termination.SignalDeduplicator, "window", 0.0)
    before = [signal.getsignal(number) for number in HANDLED]
    with pytest.raises(KeyboardInterrupt) as error:
        train(At(3, sending(*numbers)))
    assert error.type is raised
    assert [signal.getsignal(number) for number in HANDLED] == before


def test_sigusr1_requests_a_checkpoint_and_training_continues() -> None:
    watched = At(3, sending(signal.SIGUSR1))
    before = signal.getsignal(signal.SIGUSR1)
    result = train(watched)
    assert (result.interrupted, result.steps, result.signal) == (False, 8, None)
    assert watched.requested == [3]
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_custom_handler_of_sigusr1_is_kept() -> None:
    """submitit installs one."""
    received: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: received.append(number))
    watched = At(3, sending(signal.SIGUSR1))
    train(watched)
    assert received == [signal.SIGUSR1]
    assert watched.requested == []


def test_an_exception_restores_the_handlers() -> None:
    before = [signal.getsignal(number) for number in HANDLED]

    def fail() -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        train(At(3, fail))
    assert [signal.getsignal(number) for number in HANDLED] == before


def test_training_in_another_thread_handles_no_signals() -> None:
    results: list[FitResult] = []
    thread = threading.Thread(target=lambda: results.append(train()))
    thread.start()
    thread.join()
    assert results[0].steps == 8


# --- after training, when everything is saved


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_after_training_ends_the_remaining_work_at_once(number: int, raised: type[BaseException]) -> None:
    before = [signal.getsignal(number) for number in HANDLED]
    with pytest.raises(KeyboardInterrupt) as error, checkpoint_on_request(None):
        sending(number)()
    assert error.type is raised
    assert [signal.getsignal(number) for number in HANDLED] == before


def test_sigusr1_after_training_calls_the_hook_at_once_and_the_work_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(termination.SignalDeduplicator, "window", 3600.0)
    before = [signal.getsignal(number) for number in HANDLED]
    events: list[str] = []
    with checkpoint_on_request(lambda: events.append("hook")):
        sending(signal.SIGUSR1, signal.SIGUSR1)()  # delivered twice, it counts once
        events.append("continued")
    assert events == ["hook", "continued"]
    assert [signal.getsignal(number) for number in HANDLED] == before


def test_a_signal_while_handlers_are_restored_does_not_keep_any_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [signal.getsignal(number) for number in HANDLED]
    original, restored = signal.signal, []

    def set_handler(number: int, handler: Any) -> None:
        original(number, handler)
        if handler == before[0] and not restored:
            restored.append(number)
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(Terminated), checkpoint_on_request(None):
        patch.setattr(signal, "signal", set_handler)
    assert restored == [signal.SIGINT]
    assert [signal.getsignal(number) for number in HANDLED] == before


# --- the hook


def test_the_hook_gets_the_directory_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.chdir(tmp_path)
    requeue('echo "$SIGHTLINE_RUN" > hook.txt', Path("runs/mine"))
    assert Path("hook.txt").read_text().strip() == str(tmp_path / "runs" / "mine")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("echo no such job >&2; exit 3", "`echo no such job >&2; exit 3` failed with exit code 3"),
        ("sleep 60", "`sleep 60` did not end within 0.2 s and was stopped"),
        ("a\0b", "could not be started: embedded null byte"),
    ],
)
def test_a_hook_that_fails_prints_an_error(command: str, message: str, tmp_path: Path, capfd: Any) -> None:
    requeue(command, tmp_path, timeout=0.2 if command.startswith("sleep") else 60)
    errors = capfd.readouterr().err
    assert f"sightline: run.requeue: {message}" in errors or (f"{message}. The checkpoint is saved" in errors)


def test_a_hook_that_fails_with_stderr_closed_raises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = (tmp_path / "closed").open("w")
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    requeue("exit 1", tmp_path)


# --- on the command line

SMALL = ["trainer.max_epochs=1", "module.network.width=4"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`here("train", …)` runs the command in this process: (exit code, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: str | Path) -> tuple[int, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main([str(argument) for argument in arguments])
        return int(caught.value.code or 0), capsys.readouterr().err

    return run


PLACES = {
    "packing": "sightline.compose.data.pack_splits",
    "the export": "sightline.compose.assemble.export_model",
    "the last evaluation": "sightline.compose.assemble.evaluate_split",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_outside_training(
    place: str, number: int, code: int, here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hook runs if there is a run to queue again; a signal that is delivered twice does not end the hook."""
    monkeypatch.setattr(termination.SignalDeduplicator, "window", 60.0)
    monkeypatch.setattr(PLACES[place], lambda *_, **__: sending(number)())
    status, errors = here("train", *SMALL, "run.name=cut", "run.requeue='kill -TERM $PPID; echo hook >> hook.txt'")
    assert status == code
    assert "Traceback" not in errors
    assert (tmp_path / "hook.txt").exists() is (number == signal.SIGTERM and place != "packing")


@pytest.mark.parametrize("place", ["the export", "the last evaluation"])
def test_sigusr1_after_training(place: str, here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = pkgutil.resolve_name(PLACES[place])
    outputs: list[Path] = []

    def replacement(*args: Any, **kwargs: Any) -> Any:
        if not outputs:
            outputs.append(tmp_path / "hook.txt")
            sending(signal.SIGUSR1)()
            assert outputs[0].read_text() == f"{tmp_path / 'runs' / 'warned'}\n"
        return original(*args, **kwargs)

    monkeypatch.setattr(PLACES[place], replacement)
    status, errors = here("train", *SMALL, "run.name=warned", "run.requeue='echo $SIGHTLINE_RUN >> hook.txt'")
    assert (status, errors) == (0, "")
    assert outputs[0].read_text().count("\n") == 1
    assert (tmp_path / "runs" / "warned" / "predictions" / "test.csv").is_file()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_evaluate(
    number: int, code: int, here: Any, digits_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sightline.inference.evaluate.evaluate_split", lambda *_, **__: sending(number)())
    status, errors = here("evaluate", digits_run)
    assert (status, errors) == (code, f"sightline: {'interrupted' if code == 130 else 'terminated'}\n")


def test_sigusr1_outside_training_ends_nothing(here: Any, digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline.inference import evaluate

    calls: list[object] = []
    original = evaluate.evaluate_split

    def replacement(*args: Any) -> Any:
        sending(signal.SIGUSR1)()
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(evaluate, "evaluate_split", replacement)
    assert here("evaluate", digits_run)[0] == 0
    assert calls


@pytest.mark.slow
def test_a_scheduler_warns_and_ends_a_run(tmp_path: Path) -> None:
    """Real signals to a real process: SIGUSR1 saves and continues, SIGTERM saves and ends. The hook runs after both,
    when the checkpoint exists."""
    hook = 'cp "$SIGHTLINE_RUN/checkpoints/last.ckpt" "copy-$$.ckpt" && echo "copy-$$.ckpt" >> saved.txt'
    arguments = ["train", "trainer.max_epochs=5000", "data.batch_size=32", "run.name=long", f"run.requeue='{hook}'"]
    with started("-m", "sightline", *arguments, "module.network.width=8", cwd=tmp_path) as process:
        until(process, "epoch    3/5000")
        process.send_signal(signal.SIGUSR1)
        while not (tmp_path / "saved.txt").exists():
            until(process, "epoch")
        process.send_signal(signal.SIGTERM)
        code, output = ended(process)
    assert code == 143, output
    assert "Traceback" not in output
    assert "sightline resume runs/long" in output
    steps = [
        torch.load(tmp_path / name, weights_only=True)["step"] for name in (tmp_path / "saved.txt").read_text().split()
    ]
    assert len(steps) == 2
    assert 0 < steps[0] < steps[1]


AT_THE_END = """
import sys
from sightline import cli
from sightline.compose import assemble

def waits(name):
    original = getattr(assemble, name)

    def replacement(*args, **kwargs):
        print(name, flush=True)
        sys.stdin.readline()
        return original(*args, **kwargs)

    setattr(assemble, name, replacement)

waits("export_model")
waits("evaluate_split")
cli.main(sys.argv[1:])
"""
"""Runs the command; before the export and each evaluation after it, prints a line and waits for one."""


def test_a_scheduler_warns_an_export_and_ends_an_evaluation(here: Any, tmp_path: Path) -> None:
    """Real signals to a real process: the hook runs after both, and resuming repeats the interrupted evaluation."""
    arguments = ["train", *SMALL, "run.name=late", "run.requeue='echo $SIGHTLINE_RUN >> hook.txt'"]
    run = tmp_path / "runs" / "late"
    with started("-c", AT_THE_END, *arguments, cwd=tmp_path) as process:
        assert process.stdin is not None
        until(process, "export_model")
        process.send_signal(signal.SIGUSR1)
        process.stdin.write("continue\n")
        process.stdin.flush()
        until(process, "evaluate_split")
        assert (tmp_path / "hook.txt").read_text() == f"{run}\n"
        process.send_signal(signal.SIGTERM)
        code, output = ended(process)
    assert code == 143, output
    assert "Traceback" not in output
    assert "sightline resume runs/late" in output
    assert (tmp_path / "hook.txt").read_text() == f"{run}\n{run}\n"
    assert not (run / "predictions").exists()
    assert here("resume", run) == (0, "")
    assert (run / "predictions" / "test.csv").is_file()


def test_sigterm_ends_any_command_with_143(tmp_path: Path) -> None:
    """A real SIGTERM while a command waits, in a process that has not loaded torch."""
    code = (
        "import sys, time, types; from sightline import cli\n"
        "def main(arguments):\n    print('here', flush=True); time.sleep(60)\n"
        "sys.modules['sightline.commands.load'] = types.SimpleNamespace(main=main)\n"
        "cli.main(['load'])"
    )
    with started("-c", code, cwd=tmp_path) as process:
        until(process, "here")
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (143, "sightline: terminated\n")
