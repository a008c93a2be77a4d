"""Signals: what each one does to a training and to every other command, the exit codes, and the command that a
scheduler is answered with."""

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
def test_a_signal_that_is_delivered_twice_is_one(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """timeout(1) sends to the process and to its group."""
    monkeypatch.setattr(termination.SignalDeduplicator, "window", 3600.0)
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
    monkeypatch.setattr(termination.SignalDeduplicator, "window", 0.0)
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


# --- after it, when all is saved


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_what_is_left_to_do_is_ended_at_once(number: int, raised: type[BaseException]) -> None:
    before = [signal.getsignal(number) for number in LISTENED]
    with pytest.raises(KeyboardInterrupt) as error, checkpoint_on_request(None):
        sent(number)()
    assert error.type is raised
    assert [signal.getsignal(number) for number in LISTENED] == before


def test_a_warning_is_answered_at_once_and_what_is_left_to_do_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(termination.SignalDeduplicator, "window", 3600.0)
    before = [signal.getsignal(number) for number in LISTENED]
    answered: list[str] = []
    with checkpoint_on_request(lambda: answered.append("told")):
        sent(signal.SIGUSR1, signal.SIGUSR1)()  # delivered twice, it is one
        answered.append("went on")
    assert answered == ["told", "went on"]
    assert [signal.getsignal(number) for number in LISTENED] == before


def test_a_signal_that_comes_while_they_are_handed_back_keeps_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [signal.getsignal(number) for number in LISTENED]
    true, handed = signal.signal, []

    def hands(number: int, handler: Any) -> None:
        true(number, handler)
        if handler == before[0] and not handed:
            handed.append(number)
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(Terminated), checkpoint_on_request(None):
        patch.setattr(signal, "signal", hands)
    assert handed == [signal.SIGINT]
    assert [signal.getsignal(number) for number in LISTENED] == before


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
def test_a_hook_that_fails_is_told(command: str, told: str, tmp_path: Path, capfd: Any) -> None:
    requeue(command, tmp_path, timeout=0.2 if command.startswith("sleep") else 60)
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
    "packing": "sightline.compose.data.pack_splits",
    "the export": "sightline.compose.assemble.export_model",
    "the last evaluation": "sightline.compose.assemble.evaluate_split",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_outside_training(
    place: str, number: int, code: int, here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler is answered where there is a run to queue again; its signal coming twice does not end the hook."""
    monkeypatch.setattr(termination.SignalDeduplicator, "window", 60.0)
    monkeypatch.setattr(PLACES[place], lambda *_, **__: sent(number)())
    status, told = here("train", *SMALL, "run.name=cut", "run.requeue='kill -TERM $PPID; echo told >> told.txt'")
    assert status == code
    assert "Traceback" not in told
    assert (tmp_path / "told.txt").exists() is (number == signal.SIGTERM and place != "packing")


@pytest.mark.parametrize("place", ["the export", "the last evaluation"])
def test_a_warning_after_training(place: str, here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = pkgutil.resolve_name(PLACES[place])
    warned: list[Path] = []

    def warns(*given: Any, **named: Any) -> Any:
        if not warned:
            warned.append(tmp_path / "told.txt")
            sent(signal.SIGUSR1)()
            assert warned[0].read_text() == f"{tmp_path / 'runs' / 'warned'}\n"
        return true(*given, **named)

    monkeypatch.setattr(PLACES[place], warns)
    status, told = here("train", *SMALL, "run.name=warned", "run.requeue='echo $SIGHTLINE_RUN >> told.txt'")
    assert (status, told) == (0, "")
    assert warned[0].read_text().count("\n") == 1
    assert (tmp_path / "runs" / "warned" / "predictions" / "test.csv").is_file()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_evaluate(
    number: int, code: int, here: Any, digits_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sightline.inference.evaluate.evaluate_split", lambda *_, **__: sent(number)())
    status, told = here("evaluate", digits_run)
    assert (status, told) == (code, f"sightline: {'interrupted' if code == 130 else 'terminated'}\n")


def test_a_warning_outside_training_ends_nothing(here: Any, digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline.inference import evaluate

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
    with started("-m", "sightline", *words, "module.network.width=8", cwd=tmp_path) as process:
        until(process, "epoch    3/5000")
        process.send_signal(signal.SIGUSR1)
        while not (tmp_path / "saved.txt").exists():
            until(process, "epoch")
        process.send_signal(signal.SIGTERM)
        code, told = ended(process)
    assert code == 143, told
    assert "Traceback" not in told
    assert "sightline resume runs/long" in told
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
    true = getattr(assemble, name)

    def stand_in(*given, **named):
        print(name, flush=True)
        sys.stdin.readline()
        return true(*given, **named)

    setattr(assemble, name, stand_in)

waits("export_model")
waits("evaluate_split")
cli.main(sys.argv[1:])
"""
"""The command, which says that it has come to the export, or to an evaluation after it, and waits for a line."""


def test_a_scheduler_warns_an_export_and_ends_an_evaluation(here: Any, tmp_path: Path) -> None:
    """Real signals to a real process: the hook is run after both, and what was ended is made up for."""
    words = ["train", *SMALL, "run.name=late", "run.requeue='echo $SIGHTLINE_RUN >> told.txt'"]
    run = tmp_path / "runs" / "late"
    with started("-c", AT_THE_END, *words, cwd=tmp_path) as process:
        assert process.stdin is not None
        until(process, "export_model")
        process.send_signal(signal.SIGUSR1)
        process.stdin.write("go on\n")
        process.stdin.flush()
        until(process, "evaluate_split")
        assert (tmp_path / "told.txt").read_text() == f"{run}\n"
        process.send_signal(signal.SIGTERM)
        code, told = ended(process)
    assert code == 143, told
    assert "Traceback" not in told
    assert "sightline resume runs/late" in told
    assert (tmp_path / "told.txt").read_text() == f"{run}\n{run}\n"
    assert not (run / "predictions").exists()
    assert here("resume", run) == (0, "")
    assert (run / "predictions" / "test.csv").is_file()


def test_the_command_line_ends_with_143_wherever_it_is(tmp_path: Path) -> None:
    """A real SIGTERM while a command waits, in a process that has not loaded torch."""
    code = (
        "import sys, time, types; from sightline import cli\n"
        "def main(words):\n    print('here', flush=True); time.sleep(60)\n"
        "sys.modules['sightline.commands.load'] = types.SimpleNamespace(main=main)\n"
        "cli.main(['load'])"
    )
    with started("-c", code, cwd=tmp_path) as process:
        until(process, "here")
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (143, "sightline: terminated\n")
