"""The files of the learner: models, plots and logs under their published names, and what it never overwrites."""

from __future__ import annotations

import inspect
import io
import json
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import sightline.learner as tf
from helpers.learner_problem import QUIET, X, Y, files, loader, network, same, train, weights, with_test_split
from sightline.core.errors import ArtifactError, MissingExtraError, SightlineError
from sightline.learner.batchlog import BatchLog
from sightline.learner.plots import file_names


@pytest.mark.rows("B11", "B15", "B16", "B17", "BB8")
def test_every_file_has_its_published_name(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "models"
    train(tf.StandardModel(network()), directory, **with_test_split(save_metrics=True))
    names = files(directory)
    best = [name for name in names if name.startswith("best_models/")]
    assert best[0] == "best_models/model_0.pth"
    assert [name for name in names if name not in best] == [
        "all_models/model_0.pth",
        "all_models/model_1.pth",
        "epoch_0_loss.png",
        "epoch_1_loss.png",
        "metric_files.json",
        "test_Top_1_Acc_epoch_0.png",
        "test_Top_1_Acc_epoch_1.png",
        "train_Accuracy_epoch_0.png",
        "train_Accuracy_epoch_1.png",
    ]
    assert json.loads((directory / "metric_files.json").read_text())["Top 1 Acc "] == "Top_1_Acc"
    assert all((directory / name).read_bytes().startswith(b"\x89PNG") for name in names if name.endswith(".png"))


@pytest.mark.rows("B26")
def test_the_later_learner_counts_from_one_and_saves_every_n_epochs(tmp_path: Path) -> None:
    metrics = [tf.Accuracy()], [tf.Accuracy()]
    learner = tf.StandardLearner(network())
    learner.train(
        loader(),
        nn.CrossEntropyLoss(),
        torch.optim.SGD(learner.model.parameters(), 0.1),
        metrics[0],
        None,
        None,
        loader(),
        metrics[1],
        4,
        None,
        "all",
        tmp_path,
        2,
        batch_log=False,
    )
    names = files(tmp_path)
    assert [name for name in names if "best" not in name] == ["all_models/model_2.pth", "all_models/model_4.pth"]
    assert names[-1].startswith("best_models/model_")  # selected by the validation metric, without a test split
    assert learner.get_train_history()["val_Accuracy"][-1] == metrics[1][0].getValue()


@pytest.mark.rows("B16")
def test_save_models_best_saves_only_the_best_models(tmp_path: Path) -> None:
    train(tf.StandardModel(network()), tmp_path, **with_test_split(save_models="best"))
    assert files(tmp_path)
    assert {name.partition("/")[0] for name in files(tmp_path)} == {"best_models"}


@pytest.mark.rows("B17", "BB4")
def test_the_best_epoch_of_an_error_metric_is_the_lowest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = X.sum(1, keepdim=True)
    data = loader(X, targets)
    learner = tf.StandardModel(network(1))
    metric = tf.MSE("Squared Error")
    train(
        learner,
        tmp_path,
        epochs=6,
        train_loader=data,
        loss_fn=nn.MSELoss(),
        train_metrics=[tf.MAE()],
        test_loader=data,
        test_metrics=[metric],
        lr=0.05,
    )
    errors = learner.get_train_history()["test_Squared Error"]
    assert errors[-1] < errors[0] / 3
    best = [epoch for epoch, error in enumerate(errors) if error < min(errors[:epoch], default=float("inf"))]
    expected = [f"best_models/model_{epoch}.pth" for epoch in best]
    assert [name for name in files(tmp_path) if name.startswith("best")] == expected
    output = capsys.readouterr().out
    assert f"Squared Error improved from inf to {errors[0]} New Best Model saved in {tmp_path}" in output


@pytest.mark.rows("B14")
def test_the_text_log_has_the_published_lines_and_is_appended_to(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "logs.txt"
    log.parent.mkdir()
    log.write_text("from before\n")
    learner = tf.StandardModel(network())
    train(learner, tmp_path / "models", **with_test_split(save_logs=log))
    lines = log.read_text().splitlines()
    history = learner.get_train_history()
    assert lines[:2] == [
        "from before",
        f"Epoch: 0, Duration: {history['duration'][0]} , Train Loss: {history['train_loss'][0]}",
    ]
    accuracy = history["test_Top 1 Acc "][0]
    file = tmp_path / "models" / "best_models" / "model_0.pth"
    assert lines[2:5] == [
        f"Top 1 Acc  improved from 0.0 to {accuracy} New Best Model saved in {file}",
        f"Test Top 1 Acc  : {accuracy}",
        f"Train Accuracy : {history['train_Accuracy'][0]}",
    ]
    assert lines[5].startswith("Epoch: 1, Duration: ")


@pytest.mark.rows("B27")
def test_tensorboard_curves_have_the_published_tags(tmp_path: Path) -> None:
    learner = tf.StandardLearner(network())
    for epochs in (1, 2):  # the second call resumes
        train(learner, tmp_path, epochs, **with_test_split(tensorboard_log="curves"))
    events = EventAccumulator(str(tmp_path / "curves"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert set(tags) == {"logs/train_loss", "logs/train_metrics/Accuracy", "logs/test_metrics/Top 1 Acc "}
    points = events.Scalars("logs/train_loss")
    assert [point.step for point in points] == [1, 2]
    assert [point.value for point in points] == pytest.approx(learner.get_train_history()["train_loss"])


@pytest.mark.rows("B27")
def test_visdom_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    class Visdom:
        """A client that records its calls."""

        def __init__(self, **options: Any):
            assert (options["server"], options["port"]) == ("http://here", 8097)

        def __getattr__(self, name: str) -> Any:
            return lambda *values, **options: calls.append((name, options))

    monkeypatch.setitem(sys.modules, "visdom", types.SimpleNamespace(Visdom=Visdom))
    logger = tf.VisdomLogger(server="http://here")
    learner = tf.StandardLearner(network())
    train(learner, tmp_path, visdom_log=logger, **with_test_split())
    assert [options["win"] for _, options in calls] == ["train_loss", "train_Accuracy", "test_Top 1 Acc "] * 2
    last = calls[-3][1]
    assert last["Y"].tolist() == pytest.approx(learner.get_train_history()["train_loss"])
    assert last["X"].tolist() == [1, 2]
    logger.plot_pie([1, 2], "pie", title="shares")
    logger.plot_bar([1, 2], ["a", "b"], "bar")
    logger.log_text("text", "words")
    logger.log_image(X, "image")
    assert [name for name, _ in calls[-5:]] == ["pie", "bar", "win_exists", "text", "image"]


def test_without_visdom_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "visdom", None)
    with pytest.raises(MissingExtraError, match="visdom"):
        tf.VisdomLogger()


@pytest.mark.rows("B10", "B11")
def test_plots_need_no_display_and_matplotlib_is_checked_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    train(tf.StandardModel(network()), tmp_path / "a", epochs=1, display_metrics=True)
    assert "all_models/model_0.pth" in files(tmp_path / "a")
    tf.visualize(
        [1, 2], [tf.PlotInput([0.1, 0.2], "a", "red"), tf.PlotInput([1, 2], "b", "b")], save_path=tmp_path / "two.png"
    )
    assert (tmp_path / "two.png").stat().st_size > 5000
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match="matplotlib"):
        train(tf.StandardModel(network()), tmp_path / "b", epochs=1, display_metrics=True)
    assert not (tmp_path / "b").exists()


@pytest.mark.rows("B10", "B13")
def test_a_notebook_shows_the_plots_and_overwrites_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[Any] = []
    shell = types.SimpleNamespace(kernel=True)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell, version_info=(9, 0)))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=shown.append))
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # as on Colab
    monkeypatch.setattr("sightline.learner.fitting.BatchLog", partial(BatchLog, every=0.0))
    train(tf.StandardModel(network()), tmp_path, epochs=1, display_metrics=True, batch_log=True, notebook_mode=True)
    assert len(shown) == 2
    output = capsys.readouterr().out
    assert "\r8/8 batches  Train Loss: " in output
    assert "Train Accuracy: " in output


@pytest.mark.rows("B10")
def test_with_a_window_backend_one_window_is_updated_without_blocking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    calls: list[Any] = []
    plt.switch_backend("agg")  # draws like a window backend, without a display
    monkeypatch.setattr(mpl, "get_backend", lambda: "TkAgg")
    monkeypatch.setattr(plt, "show", lambda **options: calls.append(options))
    monkeypatch.setattr(plt, "pause", calls.append)
    train(tf.StandardModel(network()), tmp_path, epochs=2, display_metrics=True)
    assert calls == [{"block": False}, 0.001] * 4
    assert plt.get_figlabels() == ["sightline"]
    plt.close("all")
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.rows("BB8")
def test_metric_names_become_safe_and_different_file_names() -> None:
    names = file_names(["Top 1 Acc ", "Top/1\\Acc", "..", "top 1 acc", "Genauigkeit (für µ)", "a" * 300, ""])
    assert list(names.values())[:5] == ["Top_1_Acc", "Top_1_Acc_2", "metric", "top_1_acc_3", "Genauigkeit_für_µ"]
    assert len(names["a" * 300]) == 100
    assert len({value.lower() for value in names.values()}) == len(names)


@pytest.mark.rows("B16")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save_models": "some"}, "expected 'all' or 'best', found 'some'"),
        ({"save_models": "best"}, "Pass test_loader and test_metrics"),
        ({"test_loader": [1]}, "expected at least one metric, because test_loader is set"),
        ({"test_loader": [1], "test_metrics": []}, "expected at least one metric, because test_loader is set"),
        ({"val_loader": [1]}, "expected at least one metric, because val_loader is set"),
        ({"train_metrics": [print]}, "is not a metric; it has no name, reset, update"),
        ({"num_epochs": 0}, "num_epochs: expected an integer >= 1, found 0"),
        ({"clip_grads": (1, -1)}, "the lowest value 1 is not below the highest, -1"),
        ({"clip_grads": 1.0}, "expected a lowest and a highest value"),
        ({"lr_schedule": 0.1}, "expected a function of the epoch or a torch scheduler, found 0.1"),
        ({"lr_schedule": lambda epoch: None}, r"lr_schedule\(0\) returned None; expected a number, the learning rate"),
        ({"lr_schedule": len, "lr_scheduler": len}, "Pass only one of them"),
        ({"optimizer": "Adam"}, "expected a torch optimiser, found a str"),
        ({"train_loader": iter([1])}, "train_loader: expected a DataLoader or a list of batches"),
    ],
)
def test_a_wrong_argument_is_a_value_error_that_says_what_is_expected(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    learner = tf.StandardModel(network())
    epochs = options.pop("num_epochs", 1)
    with pytest.raises(ValueError, match=message) as error:
        train(learner, tmp_path / "models", epochs, **options)
    assert isinstance(error.value, SightlineError)


def test_an_unknown_argument_is_reported_with_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"no argument 'val_metric'\. Did you mean 'val_metrics'\?"):
        train(tf.StandardModel(network()), tmp_path, val_metric=[])


@pytest.mark.rows("B26")
def test_help_shows_the_arguments_of_either_generation_in_their_order() -> None:
    first, later = (inspect.signature(kind.train).parameters for kind in (tf.StandardModel, tf.StandardLearner))
    common = ["train_loader", "loss_fn", "optimizer", "train_metrics", "test_loader", "test_metrics"]
    assert list(first)[1:9] == [*common, "num_epochs", "lr_schedule"]
    assert list(later)[1:11] == [*common, "val_loader", "val_metrics", "num_epochs", "lr_scheduler"]
    assert (first["display_metrics"].default, later["display_metrics"].default) == (True, False)
    assert set(first) == set(later)
    with pytest.raises(TypeError, match="missing a required argument: 'train_metrics'"):
        tf.StandardModel(network()).train([], None, None)


@pytest.mark.rows("B22")
def test_weights_of_an_old_torch_without_batch_counts_load_from_a_file_or_stream(tmp_path: Path) -> None:
    old, net = network().append(nn.BatchNorm1d(3)), network().append(nn.BatchNorm1d(3))
    with torch.no_grad():
        old[3].weight.fill_(2)
    torch.save({k: v for k, v in old.state_dict().items() if "num_batches" not in k}, tmp_path / "old.pth")
    with (tmp_path / "old.pth").open("rb") as stream:
        tf.StandardModel(net).load_model(stream)
    assert same(net.state_dict(), old.state_dict())
    torch.save(network().state_dict(), tmp_path / "other.pth")
    stream = io.BytesIO((tmp_path / "other.pth").read_bytes())
    message = r"load_model: the stream does not fit the network\. Not in the file: 3\."
    with pytest.raises(tf.LearnerError, match=message):
        tf.StandardModel(net).load_model(stream)


@pytest.mark.rows("B22")
def test_weights_are_saved_and_loaded(tmp_path: Path) -> None:
    learner, other = tf.StandardModel(network()), tf.StandardModel(nn.Sequential(*network()))
    learner.save_model(tmp_path / "deep" / "model.pth")
    other.load_model(tmp_path / "deep" / "model.pth")
    assert same(weights(tmp_path / "deep" / "model.pth"), other.model.state_dict())
    parallel = {f"module.{name}": value + 1 for name, value in learner.model.state_dict().items()}
    torch.save(parallel, tmp_path / "parallel.pth")
    other.load_model(tmp_path / "parallel.pth")
    assert torch.equal(other.model[0].bias, learner.model[0].bias + 1)


@pytest.mark.rows("BB9", "BB10")
def test_weights_of_another_network_are_refused_by_name_and_nothing_is_loaded(tmp_path: Path) -> None:
    learner = tf.StandardModel(network())
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    for other, message in (
        (network(5), r"Different shape: 2.weight \(5 x 16 in the file, 3 x 16 in the network\)"),
        (network()[:2], "Not in the file: 2.weight, 2.bias"),
        (nn.Sequential(nn.Identity(), *network()), "Not in the network: 1.weight"),
    ):
        torch.save(other.state_dict(), tmp_path / "other.pth")
        with pytest.raises(tf.LearnerError, match=message):
            learner.load_model(tmp_path / "other.pth")
    torch.save(learner.model, tmp_path / "object.pth")
    with pytest.raises(tf.LearnerError, match="contains Python objects besides its weights"):
        learner.load_model(tmp_path / "object.pth")
    with pytest.raises(tf.LearnerError, match="there is no file"):
        learner.load_model(tmp_path / "none.pth")
    assert same(before, learner.model.state_dict())


@pytest.mark.rows("BB10", "B26")
def test_an_architecture_is_saved_as_data_and_loaded_without_code(tmp_path: Path) -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)),
        tf.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(4 * 7 * 7, 3),
    )
    images, labels = torch.randn(16, 1, 14, 14), torch.arange(16) % 3
    learner = tf.StandardLearner(net)
    train(learner, tmp_path, 1, train_loader=loader(images, labels), save_architecture=True)
    kinds = ["json", "pth", "safetensors"]
    assert files(tmp_path) == [f"all_models/model_1.{kind}" for kind in kinds]
    loaded = tf.load_network(tmp_path / "all_models" / "model_1.pth")
    assert torch.equal(loaded.eval()(images), net.eval()(images))
    (tmp_path / "all_models" / "model_1.safetensors").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="is not the file that was saved"):
        tf.load_network(tmp_path / "all_models" / "model_1.pth")


def test_an_architecture_that_cannot_be_saved_as_data_is_refused(tmp_path: Path) -> None:
    class WithArgument(nn.Module):
        """A network whose constructor has an argument."""

        def __init__(self, width: int):
            super().__init__()
            self.linear = nn.Linear(width, 2)

    with pytest.raises(tf.LearnerError, match="save_architecture"):
        tf.StandardModel(WithArgument(3)).save_model(tmp_path / "custom.pth", save_architecture=True)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ArtifactError, match="written by save_architecture=True"):
        tf.load_network(tmp_path / "custom.pth")


@pytest.mark.rows("B15")
def test_models_of_another_training_are_never_overwritten(tmp_path: Path) -> None:
    theirs = tmp_path / "all_models" / "model_0.pth"
    theirs.parent.mkdir()
    theirs.write_bytes(b"theirs")
    with pytest.raises(
        tf.LearnerError,
        match=r"without a checkpoint to resume from: all_models/model_0\.pth\. Choose another model_dir",
    ):
        train(tf.StandardModel(network()), tmp_path)
    assert files(tmp_path) == ["all_models/model_0.pth"]
    assert theirs.read_bytes() == b"theirs"


def test_by_default_files_are_written_to_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    learner = tf.StandardModel(network())
    learner.train(
        [[X, Y]], nn.CrossEntropyLoss(), torch.optim.SGD(learner.model.parameters(), 0.1), [], num_epochs=1, **QUIET
    )
    assert files(tmp_path) == ["all_models/model_0.pth"]
