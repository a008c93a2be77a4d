"""The learner's `train`: it learns, resumes where it ended, calls the documented callbacks, and reads back from the
device only what it needs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils._python_dispatch import TorchDispatchMode

import sightline.learner as tf
from helpers.learner_problem import (
    COUNT,
    FEATURES,
    SIZE,
    X,
    Y,
    files,
    loader,
    network,
    same,
    train,
    weights,
    with_test_split,
    without_time,
)
from sightline.core.errors import NonFiniteLossError
from sightline.engine.termination import Terminated
from sightline.learner.batchlog import BatchLog

BATCHES = -(-COUNT // SIZE)


@pytest.mark.rows("B01", "B02", "B08", "B18")
def test_training_equals_a_hand_written_loop(tmp_path: Path) -> None:
    """Over batches in a fixed order: bitwise equal weights, the same mean loss, the same accuracy."""
    batches = [(X[i : i + SIZE], Y[i : i + SIZE]) for i in range(0, COUNT, SIZE)]
    net, loss_fn = network(), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(3):
        total, correct = 0.0, 0
        for x, y in batches:
            optimizer.zero_grad()
            output = net(x)
            loss = loss_fn(output, y)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(y)
            correct += int((output.argmax(1) == y).sum())
    learner = tf.StandardModel(network(), use_cuda_if_available=False)
    adam = torch.optim.Adam(learner.model.parameters(), lr=0.01)
    metric = tf.Accuracy()
    train(learner, tmp_path, 3, train_loader=batches, optimizer=adam, train_metrics=[metric])
    assert same(net.state_dict(), learner.model.state_dict())
    assert learner.loss_history[-1] == pytest.approx(total / COUNT, rel=1e-6)
    assert metric.getValue() == correct / COUNT
    assert metric.history == learner.get_train_history()["train_Accuracy"]
    assert learner.iterations == 3 * len(batches)


@pytest.mark.rows("B01")
def test_a_regression_learns_with_mse(tmp_path: Path) -> None:
    data = loader(X, (X[:, :2] * 2 + 1))
    learner = tf.StandardModel(network(2))
    train(learner, tmp_path, 30, train_loader=data, loss_fn=nn.MSELoss(), train_metrics=[tf.MSE(), tf.MAE()], lr=0.05)
    history = learner.get_train_history()
    assert history["train_MSE"][-1] < history["train_MSE"][0] / 10
    assert history["train_MSE"] == pytest.approx(history["train_loss"], rel=1e-4)


@pytest.mark.rows("B29")
def test_training_with_several_inputs_and_outputs(tmp_path: Path) -> None:
    class Two(nn.Module):
        """A network with two inputs and two outputs."""

        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(FEATURES, 3), nn.Linear(FEATURES, 3)

        def forward(self, inputs: Any) -> tuple[Tensor, Tensor]:
            a, b = inputs
            first = self.left(a)
            return first, self.right(b) + first

    def loss(outputs: Any, targets: Any) -> Tensor:
        return sum(nn.functional.cross_entropy(*pair) for pair in zip(outputs, targets, strict=True))

    starts = range(0, COUNT, SIZE)
    batches = [([X[i : i + SIZE], -X[i : i + SIZE]], (Y[i : i + SIZE], Y[i : i + SIZE])) for i in starts]
    learner = tf.StandardLearner(Two())
    metric = tf.Accuracy()
    train(learner, tmp_path, 20, train_loader=batches, loss_fn=loss, test_loader=batches, test_metrics=[metric])
    assert metric.getValue() > 0.8
    first, second = learner.predict([X, -X])
    assert first.shape == second.shape == (COUNT, 3)
    table = learner.summary([(FEATURES,), (FEATURES,)], [torch.FloatTensor, torch.float32])
    assert "Linear : 2 layers" in table
    assert "Total Parameters: 42" in table


# --- ended and resumed


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from helpers.learner_problem import loader, network, train, with_test_split
import sightline.learner as tf

class Killed(tf.StandardModel):
    def on_batch_end(self, epoch, batch_num, train_metrics, train_loss):
        if (epoch, batch_num) == (2, 3):
            os.kill(os.getpid(), signal.SIGKILL)

train(Killed(network()), Path(sys.argv[1]), 4, seed=11, train_loader=loader(num_workers=2), **with_test_split())
"""


@pytest.mark.rows("B16", "B25")
def test_a_run_killed_in_mid_epoch_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    """Resumes at once, while the loader's worker processes of the killed run may still exist."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    with (tmp_path / "output").open("wb") as output:  # with a pipe, its end would also end the workers
        command = [sys.executable, "-c", KILLED, tmp_path / "killed"]
        killed = subprocess.run(command, env=environment, stdout=output, stderr=output, check=False)
    assert killed.returncode == -signal.SIGKILL, (tmp_path / "output").read_text()
    resumed, uninterrupted = tf.StandardModel(network()), tf.StandardModel(network())
    train(
        uninterrupted, tmp_path / "uninterrupted", 4, seed=11, train_loader=loader(num_workers=2), **with_test_split()
    )
    metrics = with_test_split(seed=5)  # the run has a seed already
    train(resumed, tmp_path / "killed", 4, train_loader=loader(num_workers=2), **metrics)
    assert same(weights(tmp_path / "killed" / "all_models" / "model_3.pth"), uninterrupted.model.state_dict())
    assert without_time(resumed.get_train_history()) == without_time(uninterrupted.get_train_history())
    assert resumed.loss_history == uninterrupted.loss_history
    assert metrics["test_metrics"][0].history == uninterrupted.get_train_history()["test_Top 1 Acc "]
    assert files(tmp_path / "killed") == files(tmp_path / "uninterrupted")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_between_two_steps_and_no_batch_is_repeated(tmp_path: Path, number: int) -> None:
    batches = [(X[i : i + SIZE], Y[i : i + SIZE]) for i in range(0, COUNT, SIZE)]
    seen: list[tuple[int, int]] = []

    def record(epoch: int, batch: int, data: dict[str, float]) -> None:
        seen.append((epoch, batch))
        if len(seen) == BATCHES + 3:
            os.kill(os.getpid(), number)

    learner = tf.StandardModel(network())
    learner.add_on_batch_end(record)
    metric = tf.Accuracy()
    with pytest.raises(Terminated if number == signal.SIGTERM else KeyboardInterrupt):
        train(learner, tmp_path / "a", 3, train_loader=batches, train_metrics=[metric])
    resumed, resumed_metric = tf.StandardModel(network()), tf.Accuracy()
    resumed.add_on_batch_end(record)
    train(resumed, tmp_path / "a", 3, train_loader=batches, train_metrics=[resumed_metric])
    assert seen == [(epoch, batch) for epoch in (1, 2, 3) for batch in range(1, BATCHES + 1)]
    uninterrupted, uninterrupted_metric = tf.StandardModel(network()), tf.Accuracy()
    train(uninterrupted, tmp_path / "b", 3, train_loader=batches, train_metrics=[uninterrupted_metric])
    assert same(resumed.model.state_dict(), uninterrupted.model.state_dict())
    assert resumed.loss_history == pytest.approx(uninterrupted.loss_history, rel=1e-12)
    assert resumed_metric.history == uninterrupted_metric.history


def test_a_custom_metric_keeps_its_counts_over_an_interruption(tmp_path: Path) -> None:
    class Seen:
        """Counts samples. It is not a `Metric`, but follows the protocol."""

        name = "seen"

        def reset(self) -> None:
            self.counts = {"all": 0}
            self.by_class = torch.zeros(3)

        def update(self, outputs: Tensor, targets: Tensor) -> None:
            self.counts["all"] += len(targets)
            self.by_class += torch.bincount(targets, minlength=3)

        def getValue(self) -> float:
            assert self.by_class.sum() == self.counts["all"]
            return self.counts["all"]

    class Ended(tf.StandardModel):
        """Interrupts training once."""

        ends = True

        def on_batch_end(self, epoch: int, batch_num: int, train_metrics: Any, train_loss: float) -> None:
            if batch_num == 4 and self.ends:
                Ended.ends = False
                os.kill(os.getpid(), signal.SIGINT)

    batches = [(X[i : i + SIZE], Y[i : i + SIZE]) for i in range(0, COUNT, SIZE)]
    with pytest.raises(KeyboardInterrupt):
        train(Ended(network()), tmp_path, 1, train_loader=batches, train_metrics=[Seen()])
    learner = Ended(network())
    train(learner, tmp_path, 1, train_loader=batches, train_metrics=[Seen()])
    assert learner.get_train_history()["train_seen"] == [COUNT]


@pytest.mark.rows("B15")
def test_another_call_resumes_with_more_epochs_and_refuses_other_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tf.StandardModel(network()), tmp_path / "a", 2, **with_test_split())
    before = {name: (tmp_path / "a" / name).read_bytes() for name in files(tmp_path / "a")}
    for changes, message in (
        ({"epochs": 1}, r"num_epochs: expected an integer >= 2, .*, found 1\. Increase num_epochs, which is the total"),
        ({"lr": 0.5}, r"optimizer's settings: \[0\]\.initial_lr was 0\.1 and is now 0\.5"),
        ({"optimizer": torch.optim.Adam(network().parameters())}, "optimizer was SGD and is now Adam"),
        ({"loss_fn": nn.NLLLoss()}, "loss_fn was CrossEntropyLoss and is now NLLLoss"),
        ({"train_metrics": [tf.MSE()]}, "train_metrics was Accuracy and is now MSE"),
        ({"clip_grads": (-1, 1)}, r"clip_grads was None and is now \(-1, 1\)"),
    ):
        with pytest.raises(tf.LearnerError, match=message):
            train(tf.StandardModel(network()), tmp_path / "a", **{"epochs": 3, **with_test_split(**changes)})
    with pytest.raises(tf.LearnerError, match=r"network: parameter 2\.weight was \[3, 16\] and is now \[7, 16\]"):
        train(tf.StandardModel(network(7)), tmp_path / "a", 3, **with_test_split())
    assert {name: (tmp_path / "a" / name).read_bytes() for name in files(tmp_path / "a")} == before
    learner, metric = tf.StandardModel(network()), tf.Accuracy()
    capsys.readouterr()
    train(learner, tmp_path / "a", 2, **with_test_split(train_metrics=[metric]))
    assert "is already finished (2 epochs)" in capsys.readouterr().out
    assert same(learner.model.state_dict(), weights(tmp_path / "a" / "all_models" / "model_1.pth"))
    assert learner.get_train_history()["epoch"] == [1, 2]
    assert metric.getValue() == metric.history[-1]
    train(learner, tmp_path / "a", 4, **with_test_split())
    uninterrupted = tf.StandardModel(network())
    train(uninterrupted, tmp_path / "b", 4, **with_test_split())
    assert same(learner.model.state_dict(), uninterrupted.model.state_dict())
    assert {name: (tmp_path / "a" / name).read_bytes() for name in before} == before


def test_a_loader_with_a_generator_gives_each_epoch_its_order(tmp_path: Path) -> None:
    """It does so in any process: each call creates a new loader."""
    results = []
    for name, calls in (("a", (1, 3)), ("b", (3,))):
        learner = tf.StandardModel(network())
        for epochs in calls:
            generator = torch.Generator().manual_seed(5)
            train(learner, tmp_path / name, epochs, train_loader=loader(generator=generator))
            assert generator.initial_seed() == 5
        results.append(learner.model.state_dict())
    other = tf.StandardModel(network())
    train(other, tmp_path / "c", 3, train_loader=loader(generator=torch.Generator().manual_seed(6)))
    assert same(*results)
    assert not same(results[0], other.model.state_dict())


def test_evaluation_data_has_the_same_order_each_time(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    class Watching(tf.StandardModel):
        """Records the evaluation inputs."""

        def __eval_function__(self, data: Any, metrics: Any) -> None:
            seen.append(data[0])
            super().__eval_function__(data, metrics)

    shuffled = loader(generator=torch.Generator().manual_seed(5))
    train(Watching(network()), tmp_path, 2, test_loader=shuffled, test_metrics=[tf.Accuracy()])
    assert len(seen) == 2 * BATCHES
    assert torch.equal(torch.cat(seen[:BATCHES]), torch.cat(seen[BATCHES:]))
    assert not torch.equal(torch.cat(seen[:BATCHES]), X)


def test_the_same_learner_resumes_in_the_same_process_with_its_schedule(tmp_path: Path) -> None:
    results = []
    for name, calls in (("a", (1, 3)), ("b", (3,))):
        learner = tf.StandardModel(network())
        optimizer = torch.optim.SGD(learner.model.parameters(), lr=0.3, momentum=0.9)
        scheduler = StepLR(optimizer, 1, 0.5)
        for epochs in calls:
            train(learner, tmp_path / name, epochs, optimizer=optimizer, lr_scheduler=scheduler)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.3 / 8)
        results.append(learner.model.state_dict())
    assert same(*results)


def test_two_trainings_at_once_in_one_directory_are_refused(tmp_path: Path) -> None:
    def again(epoch: int) -> None:
        train(tf.StandardModel(network()), tmp_path)

    learner = tf.StandardModel(network())
    learner.add_on_epoch_start(again)
    with pytest.raises(Exception, match="is being trained by another process"):
        train(learner, tmp_path)


def test_a_loss_that_is_not_a_number_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match="training loss became nan"):
        train(tf.StandardModel(network()), tmp_path, lr=1e30, epochs=3)


# --- the learning rate


def rates_of(learner: tf.BaseModel, optimizer: Any) -> list[float]:
    """The learning rate of each batch."""
    rates: list[float] = []
    learner.add_on_batch_start(lambda epoch, batch: rates.append(optimizer.param_groups[-1]["lr"]))
    return rates


@pytest.mark.rows("B09", "BB3")
@pytest.mark.parametrize(("late", "expected"), [(False, [1.0, 0.5, 0.25]), (True, [0.125, 1.0, 0.5])])
def test_the_learning_rate_is_set_before_its_epoch(tmp_path: Path, late: bool, expected: list[float]) -> None:
    learner = tf.StandardModel(network())
    layers = list(learner.model)
    groups = [{"params": layers[0].parameters(), "lr": 9.0}, {"params": layers[2].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.125)
    rates = rates_of(learner, optimizer)
    schedule = {0: 1.0, 1: 0.5, 2: 0.25}
    train(learner, tmp_path, 3, optimizer=optimizer, lr_schedule=schedule.__getitem__, lr_schedule_late=late)
    assert rates[::BATCHES] == expected
    assert optimizer.param_groups[0]["lr"] == optimizer.param_groups[1]["lr"]


@pytest.mark.rows("B26")
def test_a_plateau_monitors_the_first_validation_metric(tmp_path: Path) -> None:
    learner = tf.StandardLearner(network())
    optimizer = torch.optim.SGD(learner.model.parameters(), lr=0.5)
    rates = rates_of(learner, optimizer)

    class Fixed(tf.Metric):
        """A metric that never improves after the first epoch."""

        better = "max"

        def __compute__(self, prediction: Tensor, label: Tensor) -> float:
            return 0.5 * len(label)

    plateau = ReduceLROnPlateau(optimizer, mode="max", factor=0.1, patience=1)
    train(
        learner, tmp_path, 5, optimizer=optimizer, lr_scheduler=plateau, val_loader=loader(), val_metrics=[Fixed("f")]
    )
    assert rates[::BATCHES] == pytest.approx([0.5, 0.5, 0.5, 0.05, 0.05])


def test_a_plateau_in_the_wrong_mode_warns(tmp_path: Path) -> None:
    learner = tf.StandardLearner(network())
    optimizer = torch.optim.SGD(learner.model.parameters(), lr=0.5)
    with pytest.warns(UserWarning, match="mode='max'"):
        train(learner, tmp_path, 1, optimizer=optimizer, lr_scheduler=ReduceLROnPlateau(optimizer))


# --- callbacks


class RecordsCalls(tf.StandardModel):
    """Records the calls of every published method."""

    def __init__(self, net: nn.Module):
        super().__init__(net)
        self.calls: list[tuple[Any, ...]] = []

    def on_epoch_start(self, epoch: int) -> None:
        self.calls.append(("epoch_start", epoch))

    def on_epoch_end(
        self, epoch: int, train_metrics: Any, test_metrics: Any, train_loss: float, duration: float
    ) -> None:
        assert duration > 0
        values = [metric.getValue() for metric in (*train_metrics, *test_metrics)]
        assert values == [self.get_train_history()[name][-1] for name in ("train_Accuracy", "test_Top 1 Acc ")]
        self.calls.append(("epoch_end", epoch, train_loss))

    def on_batch_start(self, epoch: int, batch_num: int) -> None:
        self.calls.append(("batch_start", epoch, batch_num))

    def on_batch_end(self, epoch: int, batch_num: int, train_metrics: Any, train_loss: float) -> None:
        assert train_metrics[0].getValue() >= 0
        self.calls.append(("batch_end", epoch, batch_num, train_loss))

    def on_training_completed(self, train_metrics: Any, test_metrics: Any, train_duration: float) -> None:
        self.calls.append(("completed", train_duration > 0))


@pytest.mark.rows("B23")
def test_the_published_methods_are_called_in_order(tmp_path: Path) -> None:
    learner = RecordsCalls(network())
    train(learner, tmp_path, **with_test_split())
    kinds = [call[0] for call in learner.calls]
    epoch = ["epoch_start", *["batch_start", "batch_end"] * BATCHES, "epoch_end"]
    assert kinds == [*epoch, *epoch, "completed"]
    assert learner.calls[:2] == [("epoch_start", 0), ("batch_start", 0, 0)]
    assert [call[1:3] for call in learner.calls if call[0] == "batch_end"][-1] == (1, BATCHES - 1)
    losses = [call[2] for call in learner.calls if call[0] == "epoch_end"]
    assert losses == learner.loss_history
    assert [call[3] for call in learner.calls if call[0] == "batch_end"][-1] == losses[-1]


@pytest.mark.rows("B24", "B25")
def test_added_functions_count_from_one_and_receive_values(tmp_path: Path) -> None:
    learner = tf.StandardModel(network())
    calls: dict[str, list[Any]] = {}
    for name in ("epoch_start", "epoch_end", "batch_start", "batch_end", "training_completed"):
        getattr(learner, f"add_on_{name}")(lambda *values, name=name: calls.setdefault(name, []).append(values))
    train(learner, tmp_path, **with_test_split(val_loader=loader(), val_metrics=[tf.Accuracy("v")]))
    assert calls["epoch_start"] == [(1,), (2,)]
    assert calls["batch_start"][0] == (1, 1)
    assert calls["batch_start"][-1] == (2, BATCHES)
    epoch, batch, data = calls["batch_end"][-1]
    assert (epoch, batch) == (2, BATCHES)
    history = learner.get_train_history()
    assert data == {name: history[name][-1] for name in ("train_loss", "train_Accuracy")}
    names = ("train_loss", "duration", "train_Accuracy", "test_Top 1 Acc ", "val_v")
    assert calls["epoch_end"][-1] == (2, {name: history[name][-1] for name in names})
    ((completed,),) = calls["training_completed"]
    assert set(completed) == {"train_duration", "train_loss", "train_Accuracy", "test_Top 1 Acc ", "val_v"}
    assert list(history) == ["epoch", "duration", "train_loss", *names[2:]]
    assert history["epoch"] == [1, 2]


@pytest.mark.rows("B23")
def test_an_input_hook_changes_training_inputs_and_not_evaluation_inputs(tmp_path: Path) -> None:
    learner = tf.StandardModel(network())
    seen: list[Tensor] = []
    learner.model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    learner.add_input_hook(lambda x: x * 0)
    learner.add_input_hook(lambda x: x + 2)
    train(learner, tmp_path, 1, **with_test_split())
    assert all(bool((x == 2).all()) for x in seen[:BATCHES])
    assert torch.equal(torch.cat(seen[BATCHES:]), X)


# --- reading back from the device


class ReadBacks(TorchDispatchMode):
    """Counts how often a number is read from a tensor."""

    count = 0

    def __torch_dispatch__(self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "_local_scalar_dense" in str(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.rows("B12")
def test_the_device_is_not_read_back_for_every_batch_even_with_batch_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batches = [(X[i : i + 2], Y[i : i + 2]) for i in range(0, COUNT, 2)] * 10
    metrics = [tf.Accuracy(), tf.Accuracy("Top 2", topK=2)]
    with ReadBacks() as counted:
        train(tf.StandardModel(network()), tmp_path, 1, train_loader=batches, train_metrics=metrics, batch_log=True)
    assert len(batches) == 300
    assert counted.count < 30


@pytest.mark.rows("B12")
def test_without_a_terminal_progress_is_occasional_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sightline.learner.fitting.BatchLog", partial(BatchLog, every=0.0))
    train(tf.StandardModel(network()), tmp_path, 1, batch_log=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if "batches" in line]
    assert len(lines) == BATCHES
    assert lines[0].startswith("1/8 batches  Train Loss: ")
    assert "Train Accuracy: " in lines[-1]


@pytest.mark.rows("B12")
def test_on_a_terminal_progress_is_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sightline.learner.fitting.BatchLog", partial(BatchLog, every=0.0))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    train(tf.StandardModel(network()), tmp_path, 1, batch_log=True)
    output = capsys.readouterr().out
    assert "8/8 batches" in output
    assert "Train Loss: " in output
    assert "Epoch: 0, Duration: " in output


# --- precision and clipping


@pytest.mark.rows("B28", "BB6")
def test_half_trains_in_mixed_precision_with_float32_weights(tmp_path: Path) -> None:
    dtypes: list[torch.dtype] = []
    learner = tf.StandardModel(network())
    learner.model[0].register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    learner.half()
    metrics = with_test_split()
    train(learner, tmp_path, 20, lr=0.5, **metrics)
    assert set(dtypes) == {torch.bfloat16}
    assert {value.dtype for value in learner.model.state_dict().values()} == {torch.float32}
    assert metrics["test_metrics"][0].getValue() > 0.8
    assert learner.predict(X).dtype == torch.float32
    assert not learner.model._forward_pre_hooks


class Outputs(NamedTuple):
    """Outputs of a network with an auxiliary head."""

    scores: Tensor
    aux: tuple[Tensor, Tensor]


class TwoHeads(nn.Module):
    """Returns a named tuple that contains a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, x: Tensor) -> Outputs:
        if x.shape[1] != FEATURES:
            raise ValueError("not for me")
        scores = self.body(x)
        return Outputs(scores, (scores * 2, scores.argmax(1)))


def test_half_with_nested_outputs_and_with_a_network_that_fails(tmp_path: Path) -> None:
    learner = tf.StandardModel(TwoHeads())
    learner.half()
    loss = nn.CrossEntropyLoss()
    train(learner, tmp_path, 1, loss_fn=lambda outputs, y: loss(outputs.scores, y), train_metrics=[])
    outputs = learner.predict(X)
    assert isinstance(outputs, Outputs)
    assert outputs.scores.dtype == outputs.aux[0].dtype == torch.float32
    assert outputs.aux[1].dtype == torch.int64
    with pytest.raises(ValueError, match="not for me"):
        train(learner, tmp_path / "other", 1, train_loader=[(X[:, :2], Y)], train_metrics=[])
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.rows("B28", "BB7")
def test_clip_grads_limits_gradients_and_not_weights(tmp_path: Path) -> None:
    low, high = -0.001, 0.002
    learner = tf.StandardModel(network())
    with torch.no_grad():
        learner.model[0].weight[0, 0] = 5.0
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    train(learner, tmp_path, 1, train_loader=[(X, Y)], lr=1.0, clip_grads=(low, high))
    steps = [learner.model.state_dict()[name] - value for name, value in before.items()]
    assert max(float(step.max()) for step in steps) == pytest.approx(-low, rel=1e-3)
    assert min(float(step.min()) for step in steps) == pytest.approx(-high, rel=1e-3)
    assert float(learner.model[0].weight.detach()[0, 0]) > 4.9


@pytest.mark.rows("BB7")
def test_clip_params_limits_weights(tmp_path: Path) -> None:
    learner = tf.StandardModel(network())
    train(learner, tmp_path, 1, lr=1.0, clip_params=(-0.05, 0.05))
    assert max(float(value.abs().max()) for value in learner.model.state_dict().values()) == pytest.approx(0.05)


class FailsAt(nn.CrossEntropyLoss):
    """A loss that fails at a step."""

    def __init__(self, step: int):
        super().__init__()
        self.remaining = step

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.remaining -= 1
        if not self.remaining:
            raise ZeroDivisionError("theirs")
        return super().forward(outputs, targets)


def test_a_training_that_starts_over_deletes_the_log_of_the_previous_one(tmp_path: Path) -> None:
    """The first call fails in its first epoch, so the next call starts over in its directory, with other arguments."""
    data = {"train_loader": loader(X.repeat(16, 1), Y.repeat(16))}
    with pytest.raises(ZeroDivisionError):
        train(tf.StandardModel(network()), tmp_path, 1, loss_fn=FailsAt(110), **data)
    train(tf.StandardModel(network()), tmp_path, 1, lr=0.5, **data)
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert steps == [50, 100, 120]
