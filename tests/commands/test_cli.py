"""The command line: its messages, its exit codes, and that no error loses files.

Tests that need signals, a terminal, a pipe or user code start the command in a separate process."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pexpect
import pytest
import torch
from PIL import Image

from helpers import waiting
from helpers.commands import Command
from helpers.images import noise, write_image
from helpers.processes import ended, started, until
from sightline import cli
from sightline.commands import evaluate
from sightline.core.errors import ConfigError

SMALL = ("trainer.max_epochs=1", "module.network.width=4", "data.preprocess.size=8")


def write_noise(path: Path, seed: int = 0, size: tuple[int, int] = (8, 8)) -> Path:
    """Writes a gray PNG of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def folders(root: Path, *classes: str, images: int = 6) -> Path:
    """Writes one folder of images for each class."""
    for position, name in enumerate(classes):
        for i in range(images):
            write_noise(root / name / f"{i}.png", seed=position * 1000 + i)
    return root


def table(root: Path, rows: list[str], header: str = "file,target") -> Path:
    """Writes the images 0.png to 9.png and a CSV beside them."""
    for i in range(10):
        write_noise(root / f"{i}.png", seed=i)
    (root / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    return root


GOOD_ROWS = [f"{i}.png,{i % 2}" for i in range(10)]


def refused(done: subprocess.CompletedProcess[str], *parts: str, code: int = 2) -> None:
    """Asserts that the command ended with `code` and printed each of `parts` to standard error, without a traceback."""
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr, done.stderr


def assert_no_runs(folder: Path) -> None:
    assert not (folder / "runs").exists()


# ---- data ----


def test_a_path_that_does_not_exist(here: Command, tmp_path: Path) -> None:
    folders(tmp_path / "images", "a", "b")
    refused(here("train", "data.root=imgaes"), "data.root: 'imgaes' does not exist", "Did you mean 'images'?")
    assert_no_runs(tmp_path)


def test_an_empty_folder(here: Command, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    refused(here("train", "data.root=images"), "No class folders in 'images'", "it is empty")
    folders(tmp_path / "images", "a", "b")
    (tmp_path / "images" / "c").mkdir()
    refused(here("train", "data.root=images"), "images/c' contains no images", "the class 'c' is empty")
    assert_no_runs(tmp_path)


def test_one_class_only(here: Command, tmp_path: Path) -> None:
    folders(tmp_path / "images", "a")
    refused(here("train", "data.root=images"), "only one class, 'a'")
    assert_no_runs(tmp_path)


def test_a_class_in_val_that_train_lacks(here: Command, tmp_path: Path) -> None:
    folders(tmp_path / "images" / "train", "cat", "dog")
    folders(tmp_path / "images" / "val", "cat", "dgo")
    done = here("train", "data.root=images")
    refused(done, "the class 'dgo' is in the val split but not in train", "Did you mean 'dog'?", "val/dgo/0.png")
    assert_no_runs(tmp_path)


def test_a_csv_row_whose_file_is_missing_or_outside(here: Command, tmp_path: Path) -> None:
    table(tmp_path / "data", [*GOOD_ROWS, "11.png,1"])
    refused(here("train", "data.root=data"), "labels.csv, row 12", "11.png' does not exist", "Did you mean '1.png'?")
    write_noise(tmp_path / "secret.png")
    table(tmp_path / "data", [*GOOD_ROWS, "../secret.png,1"])
    done = here("train", "data.root=data")
    refused(done, "labels.csv, row 12", "'../secret.png' is outside the data directory")
    assert_no_runs(tmp_path)


def test_a_label_out_of_range(here: Command, tmp_path: Path) -> None:
    table(tmp_path / "data", [*GOOD_ROWS[:9], "9.png,7"])
    done = here("train", "data.root=data", "data.classes=2")
    refused(done, "labels.csv, row 11", "label '7' is out of range", "0 to 1")
    assert_no_runs(tmp_path)


def test_a_file_that_is_not_an_image(here: Command, tmp_path: Path) -> None:
    folders(tmp_path / "images", "a", "b")
    (tmp_path / "images" / "a" / "note.png").write_text("hello")
    refused(here("train", "data.root=images", *SMALL), "images/a/note.png' is not an image", "b'hello'")
    assert_no_runs(tmp_path)


# ---- network and config ----


@pytest.mark.rows("AB2")
def test_a_network_that_does_not_fit_the_images(here: Command, tmp_path: Path) -> None:
    layers = "[{_target_: torch.nn.Conv2d, in_channels: auto, out_channels: 4, kernel_size: 11},"
    layers += "{_target_: torch.nn.Flatten}, {_target_: torch.nn.Linear, in_features: 64, out_features: auto}]"
    done = here("train", f"module.network={{layers: {layers}}}")
    refused(done, "images of 8 x 8", "layer '0', Conv2d, got 1 x 8 x 8", "at least 11 x 11", "takes is 14 x 14")
    assert_no_runs(tmp_path)


@pytest.mark.rows("AB1")
def test_a_layer_of_the_wrong_width(here: Command, tmp_path: Path) -> None:
    layers = "[{_target_: torch.nn.Conv2d, in_channels: 1, out_channels: 4, kernel_size: 3},"
    layers += "{_target_: torch.nn.BatchNorm2d, num_features: 5}]"
    done = here("train", f"module.network={{layers: {layers}}}")
    refused(done, "layer '1', BatchNorm2d, got 4 x 6 x 6 but needs 5 channels", "set num_features: 4")
    assert_no_runs(tmp_path)


@pytest.mark.rows("D04", "D05")
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["trainer.max_epoch=3"], ["unknown key 'trainer.max_epoch'", "Did you mean 'trainer.max_epochs'?"]),
        (["max_epochs=3"], ["unknown key 'max_epochs'", "Did you mean 'trainer.max_epochs'?"]),
        (["trainer.max_epochs=3.5"], ["trainer.max_epochs: expected an integer, found the number 3.5"]),
        (
            ["experiment=mnits"],
            ["this preset does not exist", "Did you mean 'mnist'?", "cifar10, digits, fashionmnist"],
        ),
        (["experimnt=mnist"], ["unknown key 'experimnt'", "Did you mean 'experiment'?"]),
        (["dtaa=folder"], ["unknown key 'dtaa'", "Did you mean 'data'?"]),
        (["max_epochs"], ["'max_epochs' is not a config override", "key=value"]),
        (["seed=1,2"], ["lists several values"]),
        (["data=digits", "data.root=x"], ["data.source=digits has no directory"]),
        (
            ["module.optimizer._target_=torch.optim.Adma"],
            ["module.optimizer._target_: 'torch.optim' has no attribute 'Adma'", "Did you mean 'Adam'?"],
        ),
        (
            ["module.optimizer._target_=adabelief_pytorch.AdaBelief"],
            ["module.optimizer._target_", "'adabelief_pytorch' is not installed. Install the package that provides it"],
        ),
        (["module.network._target_=torhc.nn.Flatten"], ["'torhc' is not installed. Did you mean 'torch'?"]),
        (["+module.optimizer._args_=[0.1]"], ["module.optimizer._args_", "Set the others by name"]),
        (["module.optimizer.lrr=0.1"], ["module.optimizer", "has no argument 'lrr'", "Did you mean 'lr'?"]),
        (["module.optimizer.lr=-1"], ["module.optimizer", "Invalid learning rate"]),
        (["module.loss._target_=torch.nn.MSELoss"], ["module.loss: MSELoss cannot compare", "int64 [batch]"]),
        (["+module.loss.reduction=none"], ["module.loss: expected one number for a batch, found a tensor [11]"]),
        (["module.optimizer={_target_: torch.optim.LBFGS}"], ["LBFGS.step() needs 'closure'"]),
        (["module.loss._target_=torch.nn"], ["module.loss._target_", "expected a class or a function"]),
        (["trainer.device=cuda:7"], ["trainer.device: 'cuda:7' is not available"]),
    ],
)
def test_a_wrong_key_group_or_target(overrides: list[str], expected: list[str], here: Command, tmp_path: Path) -> None:
    refused(here("train", *overrides), *expected)
    assert_no_runs(tmp_path)


@pytest.mark.rows("DB2")
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["module.monitor=val_acuracy"], ["module.monitor: there is no metric 'val_acuracy'", "'val_accuracy'?"]),
        (["data.val=0"], ["no metric 'val_loss'", "no validation split: set data.val", "train_loss, train_accuracy"]),
    ],
)
def test_a_monitor_that_no_metric_matches(
    overrides: list[str], expected: list[str], here: Command, tmp_path: Path
) -> None:
    done = here("train", *overrides)
    refused(done, *expected, "Expected one of: train_loss")
    assert "epoch" not in done.stdout
    assert_no_runs(tmp_path)


def test_a_warning_of_this_package_is_shown_without_its_place_in_the_code() -> None:
    shown = [cli._format_warning("x", UserWarning, file, 3, "f()") for file in (cli.__file__, "/a/net.py")]
    assert shown == ["sightline: warning: x\n", "/a/net.py:3: UserWarning: x\n  f()\n"]


def test_an_unknown_command_and_an_unknown_option(here: Command) -> None:
    refused(here("trian"), "unknown command 'trian'", "Did you mean 'train'?")
    refused(here("train", "--epochs", "3"), "unrecognized arguments: --epochs")


# ---- the run itself ----


def test_a_loss_that_becomes_nan(here: Command, tmp_path: Path) -> None:
    overrides = ("module.optimizer.lr=1e30", "module.lr_scheduler=null", "run.name=broken", "trainer.log_every=1")
    done = here("train", *overrides)
    refused(done, "at step 2", "epoch 0, batch 1", "learning rate", code=1)
    assert (tmp_path / "runs" / "broken" / "config.yaml").is_file()
    assert not (tmp_path / "runs" / "broken" / "exported").exists()


def test_a_run_that_exists_is_not_touched(here: Command, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "precious.txt").write_text("years of work")
    refused(here("train", "run.name=mine"), "'runs/mine' exists", "never overwritten", "sightline resume runs/mine")
    assert [entry.name for entry in run.iterdir()] == ["precious.txt"]


def csv_contents(run: Path) -> dict[str, bytes]:
    return {str(f.relative_to(run)): f.read_bytes() for f in sorted(run.rglob("*.csv"))}


def test_ctrl_c_saves_and_resume_finishes_with_the_same_predictions(here: Command, tmp_path: Path) -> None:
    """A real SIGINT during training; the predictions of the resumed run equal those of an uninterrupted run exactly."""
    waiting.copy_to(tmp_path)
    arguments = ["train", *waiting.NETWORK, "trainer.max_epochs=3", "data.batch_size=32", "run.name=interrupted"]
    with started("-m", "sightline", *arguments, cwd=tmp_path) as process:
        until(process, "waiting")
        process.send_signal(signal.SIGINT)
        (tmp_path / "go").touch()
        code, output = ended(process)
    assert code == 130, output
    assert "Traceback" not in output
    assert "interrupted after step" in output
    assert "sightline resume runs/interrupted" in output
    interrupted = tmp_path / "runs" / "interrupted"
    assert (interrupted / "checkpoints" / "last.ckpt").is_file()
    assert not (interrupted / "exported").exists()

    done = here("resume", "runs/interrupted")
    assert done.returncode == 0, done.stderr
    uninterrupted = here("train", *arguments[1:-1], "run.name=uninterrupted")
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    assert csv_contents(interrupted) == csv_contents(tmp_path / "runs" / "uninterrupted")
    steps = [json.loads(line)["step"] for line in (interrupted / "log.jsonl").read_text().splitlines()]
    other = [json.loads(line)["step"] for line in (tmp_path / "runs/uninterrupted/log.jsonl").read_text().splitlines()]
    assert steps == other


def test_resume_refuses_missing_runs_and_unsupported_changes(here: Command, digits_run: Path, tmp_path: Path) -> None:
    refused(here("resume", "nowhere"), "there is no run 'nowhere'")
    refused(here("resume", tmp_path), "is not a run directory: it has no config.yaml")
    refused(here("resume", digits_run, "data.batch_size=3"), "data.batch_size was 64 and is now 3.", "--allow-drift")
    refused(
        here("resume", digits_run, "run.name=other"),
        "run.name: resume cannot change this key. Keys it can change: trainer.…, data.…",
    )
    refused(here("resume", digits_run, "trainer.max_epochs=9"), "OneCycleLR of total_steps 40")
    copied = shutil.copytree(digits_run, tmp_path / "copied")
    content = json.loads((copied / "data.json").read_text())
    content["fingerprint"]["train"] = "0" * 64
    (copied / "data.json").write_text(json.dumps(content))
    refused(here("resume", copied), "holds a training with other images or labels", "the train split")


@pytest.mark.rows("D07")
def test_the_files_of_a_run(digits_run: Path) -> None:
    run = digits_run
    names = {"config.yaml", "environment.json", "data.json", "images.csv.gz", "log.jsonl", "heartbeat.json"}
    names |= {"config-unresolved.yaml", "tensorboard", "checkpoints", "exported", "predictions"}
    assert {entry.name for entry in run.iterdir()} == names
    assert sorted(f.name for f in (run / "checkpoints").iterdir()) == ["best.ckpt", "last-1.ckpt", "last.ckpt"]
    assert sorted(f.name for f in (run / "exported").iterdir()) == ["model.safetensors", "sightline.json"]
    assert any((run / "tensorboard").iterdir())
    environment = json.loads((run / "environment.json").read_text())
    assert environment["torch"]["version"] == torch.__version__
    assert {"python", "packages", "git", "command"} <= set(environment)
    data = json.loads((run / "data.json").read_text())
    assert (
        data["splits"]["train"]["images"] + data["splits"]["val"]["images"] + data["splits"]["test"]["images"] == 1797
    )
    manifest = json.loads((run / "exported" / "sightline.json").read_text())
    assert manifest["classes"] == [str(i) for i in range(10)]
    assert manifest["provenance"]["config"]["trainer"]["max_epochs"] == 2
    assert set(manifest["metrics"]) == {"val", "test"}
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    epochs = [row for row in rows if "val_loss" in row]
    assert [row["epoch"] for row in epochs] == [0, 1]
    with (run / "predictions" / "test.csv").open() as file:
        predictions = list(csv.DictReader(file))
    assert list(predictions[0]) == ["id", "label", "prediction", "confidence", "loss", *(f"p_{i}" for i in range(10))]
    assert len(predictions) == data["splits"]["test"]["images"]
    accuracy = sum(row["label"] == row["prediction"] for row in predictions) / len(predictions)
    assert accuracy == pytest.approx(manifest["metrics"]["test"]["accuracy"])
    for row in predictions[:20]:
        probabilities = [float(row[f"p_{i}"]) for i in range(10)]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert float(row["confidence"]) == max(probabilities)
        assert float(row["loss"]) == pytest.approx(-np.log(probabilities[int(row["label"])]), rel=1e-3, abs=1e-5)


def test_the_config_of_a_run_makes_the_same_run(digits_run: Path, tmp_path: Path) -> None:
    """config.yaml is complete: training from it without presets or overrides gives exactly the same predictions."""
    import sightline as library
    from sightline.core.yamlfile import read_yaml

    config = read_yaml(digits_run / "config.yaml")
    config["run"] = {"dir": str(tmp_path / "again"), "name": "again"}
    config["trainer"]["progress"] = False
    result = library.fit(config)
    assert result.run is not None
    assert csv_contents(result.run) == csv_contents(digits_run)


def test_evaluate_reproduces_the_table_of_the_run(digits_run: Path, here: Command, tmp_path: Path) -> None:
    copied = shutil.copytree(digits_run, tmp_path / "copied")
    before = csv_contents(copied)
    done = here("evaluate", copied)
    assert done.returncode == 0, done.stderr
    assert "precision" in done.stdout
    assert csv_contents(copied) == before
    refused(here("evaluate", copied, "--split", "tset"), "there is no split 'tset'", "Did you mean 'test'?")


def test_evaluate_on_other_data_keeps_the_table_of_the_run(digits_run: Path, here: Command, tmp_path: Path) -> None:
    copied = shutil.copytree(digits_run, tmp_path / "copied")
    before = csv_contents(copied)
    folders(tmp_path / "other", *map(str, range(10)), images=3)
    overrides = ("data.source=folder", f"data.root={tmp_path / 'other'}")
    done = here("evaluate", copied, *overrides)
    assert done.returncode == 0, done.stderr
    after = csv_contents(copied)
    assert {name: after[name] for name in before} == before
    (new,) = set(after) - set(before)
    assert re.fullmatch(r"predictions/all-[0-9a-f]{8}\.csv", new)
    folders(tmp_path / "fewer", "a", "b")
    done = here("evaluate", copied, "data.source=folder", f"data.root={tmp_path / 'fewer'}")
    refused(done, "The data's classes are a, b; the model's are 0, 1, 2")


@pytest.mark.parametrize("overrides", [[], ["data.workers=0"], ["data.cache=false", "data.eval_batch_size=7"]])
def test_evaluate_refuses_a_split_that_is_not_the_one_of_the_run(
    overrides: list[str], here: Command, tmp_path: Path
) -> None:
    """With any other overrides too: a split that is drawn again contains images that the model was trained on."""
    for number in range(40):
        write_image(tmp_path / "images" / "ab"[number % 2] / f"{number}.png", noise(8, 8, seed=number))
    assert here("train", "data.root=images", "run.name=r", *SMALL).returncode == 0
    assert here("evaluate", "runs/r", *overrides).returncode == 0
    for number in range(40, 80):
        write_image(tmp_path / "images" / "ab"[number % 2] / f"{number}.png", noise(8, 8, seed=number))
    refused(here("evaluate", "runs/r", *overrides), "split is not the one", "was trained with", "data.root=PATH")


@pytest.mark.rows("DB4")
def test_evaluate_runs_no_code_that_the_runs_config_names(digits_run: Path, here: Command, tmp_path: Path) -> None:
    """A run directory may come from elsewhere, so its loss is checked against the same list as its network."""
    copied = shutil.copytree(digits_run, tmp_path / "copied")
    text = (copied / "config.yaml").read_text()
    node = f"_target_: os.mkdir\n    path: {tmp_path / 'executed'}"
    assert "_target_: torch.nn.CrossEntropyLoss" in text
    (copied / "config.yaml").write_text(text.replace("_target_: torch.nn.CrossEntropyLoss", node))
    refused(here("evaluate", copied), "module.loss._target_: 'os.mkdir' is not on the list")
    assert not (tmp_path / "executed").exists()
    node = "_target_: torch.nn.Sequential\n    _args_: [{_target_: timm.create_model, model_name: 'hf-hub:a/b'}]"
    (copied / "config.yaml").write_text(text.replace("_target_: torch.nn.CrossEntropyLoss", node))
    with pytest.raises(ConfigError, match=r"^module\.loss\._args_\[0\]\._target_: 'timm\.create_model' is not on the"):
        evaluate.main([str(copied)])


def test_evaluate_asks_for_data_that_was_passed_in_from_python(digits_run: Path, here: Command, tmp_path: Path) -> None:
    copied = shutil.copytree(digits_run, tmp_path / "copied")
    content = json.loads((copied / "environment.json").read_text())
    assert content["given"] == []
    (copied / "environment.json").write_text(json.dumps(content | {"given": ["source"]}))
    refused(here("evaluate", copied), "trained on a data source passed in from Python", "data.root=PATH")


def test_predict_files_folders_and_patterns(digits_run: Path, here: Command, tmp_path: Path) -> None:
    folders(tmp_path / "in", "x", images=3)
    one = here("predict", digits_run, "in/x/0.png", "--json")
    assert one.returncode == 0, one.stderr
    (answer,) = [json.loads(line) for line in one.stdout.splitlines()]
    assert answer["path"] == "in/x/0.png"
    assert answer["confidence"] == max(answer["probabilities"].values())
    assert answer["probabilities"][answer["prediction"]] == answer["confidence"]
    folder = here("predict", digits_run, "in", "in/x/0.png", "--json")
    pattern = here("predict", digits_run, "in/**/*.png", "--json")
    assert folder.stdout == pattern.stdout
    assert len(folder.stdout.splitlines()) == 3
    plain = here("predict", digits_run, "in")
    assert plain.stdout.splitlines()[0].split("\t") == ["image", "prediction", "confidence", "next"]
    assert len(plain.stdout.splitlines()) == 4


def test_predict_answers_for_good_files_and_names_bad_ones(digits_run: Path, here: Command, tmp_path: Path) -> None:
    folders(tmp_path / "in", "x", images=2)
    (tmp_path / "in" / "x" / "bad.png").write_bytes(b"")
    done = here("predict", digits_run, "in", "--json")
    assert done.returncode == 2
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert ["error" in answer for answer in answers] == [False, False, True]
    assert "the file is empty" in answers[2]["error"]
    assert "1 of 3 files could not be read" in done.stderr
    refused(here("predict", digits_run, "out"), "'out' does not exist and matches no file")
    refused(here("predict", "nowhere", "in"), "there is no run 'nowhere'")


def test_a_custom_config_and_a_custom_class(sightline: Command, here: Command, tmp_path: Path) -> None:
    """A preset directory and a network in the current directory; the stored network is imported only with --allow."""
    preset = (
        "# @package _global_\nmodule:\n  network: {_target_: mynet.Tiny, classes: auto}\ntrainer: {max_epochs: 1}\n"
    )
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(preset)
    (tmp_path / "mynet.py").write_text(
        "from torch import nn\n\n\nclass Tiny(nn.Sequential):\n    def __init__(self, classes):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, classes))\n"
    )
    done = sightline("train", "--config-dir", "conf", "experiment=mine", "run.name=custom")
    assert done.returncode == 0, done.stderr
    write_noise(tmp_path / "0.png")
    refused(
        here("predict", "runs/custom", "0.png"), "'mynet.Tiny' is not on the list of names that a stored model may use"
    )
    done = sightline("predict", "runs/custom", "0.png", "--allow", "mynet")
    assert done.returncode == 0, done.stderr
    done = sightline("evaluate", "runs/custom", "--allow", "mynet", "--device", "auto")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("overrides", "key", "expected"),
    [
        (["module.optimizer._target_=torch.optim.AdamW"], "optimizer", {"_target_": "torch.optim.AdamW"}),
        (
            ["module.optimizer._target_=torch.optim.Adam", "module.optimizer.lr=0.1"],
            "optimizer",
            {"_target_": "torch.optim.Adam", "lr": 0.1},
        ),
        (
            ["module.optimizer={_target_: torch.optim.Adam, betas: [0.9, 0.98]}"],
            "optimizer",
            {"_target_": "torch.optim.Adam", "betas": [0.9, 0.98]},
        ),
        (["module.optimizer.class=torch.optim.Adam"], "optimizer", {"class": "torch.optim.Adam"}),
        (
            ["module.lr_scheduler._target_=torch.optim.lr_scheduler.StepLR", "module.lr_scheduler.step_size=2"],
            "lr_scheduler",
            {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 2},
        ),
        (["module.loss._target_=torch.nn.MultiMarginLoss"], "loss", {"_target_": "torch.nn.MultiMarginLoss"}),
        (["module.network._target_=my.Net"], "network", {"_target_": "my.Net"}),
        (
            ["module.optimizer._target_=torch.optim.SGD", "module.optimizer.lr=0.1"],
            "optimizer",
            {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0005},
        ),
    ],
)
def test_another_class_replaces_the_node_of_a_preset(
    overrides: list[str], key: str, expected: dict[str, object]
) -> None:
    """A preset's arguments belong to its class, so they are not passed to another class that an override names."""
    from sightline.commands.hydra_config import compose_config

    config = compose_config(["experiment=cifar10", *overrides])
    assert getattr(config.module, key) == expected
    assert config.trainer.max_epochs == 18


@pytest.mark.parametrize("path", ["/tmp/a (1)", "/tmp/O'Brien", "a,b=[c", "a b=c"])
def test_a_path_of_any_characters_works_beside_another_class(path: str, tmp_path: Path) -> None:
    from sightline.commands.hydra_config import compose_config

    overrides = [f"data.root={path}", "module.loss._target_=torch.nn.NLLLoss"]
    for config_dir in (None, str(tmp_path)):
        config = compose_config(overrides, config_dir)
        assert config.data.root == path
        assert config.module.loss == {"_target_": "torch.nn.NLLLoss"}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (
            {"_target_": "a.B", "layers": [2, 2], "x": 1},
            {"layers": [1, 1]},
            {"_target_": "a.B", "layers": [1, 1], "x": 1},
        ),
        ({"_target_": "a.B", "x": 1}, {"layers": [{"_target_": "c.D"}]}, {"layers": [{"_target_": "c.D"}]}),
        ({"layers": [{"_target_": "c.D"}]}, {"_target_": "a.B"}, {"_target_": "a.B"}),
        ({"_target_": "a.B", "layers": [1]}, {"_target_": "a.C"}, {"_target_": "a.C"}),
        ({"class": "a.B", "kwargs": {"x": 1}}, {"_target_": "a.B"}, {"_target_": "a.B"}),
        (
            {"class": {"_target_": "m.A", "n": 1}, "f1": {"_target_": "m.B"}},
            {"class": {"n": 3}},
            {"class": {"_target_": "m.A", "n": 3}, "f1": {"_target_": "m.B"}},
        ),
        ({"x": 1}, {"_target_": "a.B"}, {"x": 1, "_target_": "a.B"}),
    ],
)
def test_which_changes_replace_a_node(
    before: dict[str, object], after: dict[str, object], expected: dict[str, object]
) -> None:
    from sightline.config.typed import merge

    assert merge({"node": before}, {"node": after}) == {"node": expected}


def test_another_class_in_a_preset_replaces_the_node_of_the_config_below_it(tmp_path: Path) -> None:
    from sightline.commands.hydra_config import compose_config

    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "below.yaml").write_text(
        "# @package _global_\ndefaults: [{override /lr_scheduler: triangle}]\nmodule:\n"
        "  optimizer: {_target_: torch.optim.AdamW, lr: 0.5, betas: [0.8, 0.9]}\n  ema: 0.99\n"
    )
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [below, _self_]\nmodule:\n"
        "  optimizer: {_target_: torch.optim.SGD, momentum: 0.9}\n"
        "  lr_scheduler: {_target_: torch.optim.lr_scheduler.StepLR, step_size: '${trainer.max_epochs}'}\n"
        "trainer: {max_epochs: 7}\n"
    )
    config = compose_config(["experiment=mine", "module.optimizer.nesterov=true"], str(tmp_path))
    assert config.module.optimizer == {"_target_": "torch.optim.SGD", "momentum": 0.9, "nesterov": True}
    assert config.module.lr_scheduler == {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 7}
    assert config.module.ema == 0.99
    optimizer = compose_config(["experiment=below", "module.optimizer.lr=0.1"], str(tmp_path)).module.optimizer
    assert optimizer == {"_target_": "torch.optim.AdamW", "lr": 0.1, "betas": [0.8, 0.9]}


@pytest.mark.rows("D03")
def test_groups_and_dotted_overrides_compose(here: Command) -> None:
    import yaml

    done = here("train", "experiment=mnist", "trainer.max_epochs=1", "data.root=x", "--cfg", "job")
    config = yaml.safe_load(done.stdout)
    assert config["data"]["source"] == "csv"
    assert config["data"]["test"] == 2000
    assert config["trainer"]["max_epochs"] == 1
    plain = yaml.safe_load(here("train", "--cfg", "job").stdout)
    from sightline.config.schema import TrainConfig

    assert plain == TrainConfig().to_dict()


@pytest.mark.rows("B07")
def test_summary(here: Command) -> None:
    layers = "[{_target_: torch.nn.Flatten}, {_target_: torch.nn.Linear, in_features: auto, out_features: auto}]"
    done = here("summary", f"module.network={{layers: {layers}}}")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["1", "Linear", "10", "650", "640"] in lines
    assert lines[-1] == ["total", "10", "650", "640"]


def test_a_terminal_gets_a_progress_bar_and_a_pipe_plain_lines(sightline: Command, tmp_path: Path) -> None:
    arguments = ["-m", "sightline", "train", "trainer.max_epochs=3", "module.network.width=4", "run.name=terminal"]
    terminal = {**os.environ, "TERM": "xterm-256color"}
    size = (40, 150)
    child = pexpect.spawn(
        sys.executable, arguments, cwd=str(tmp_path), encoding="utf-8", dimensions=size, timeout=300, env=terminal
    )
    output = child.read()
    child.close()
    assert child.exitstatus == 0, output
    assert "\x1b[" in output
    assert "images/s" in output
    assert "━" in output
    assert "left" in output
    piped = sightline("train", *arguments[3:5], "run.name=piped")
    assert piped.returncode == 0, piped.stderr
    assert "\x1b" not in piped.stdout
    assert sum(line.startswith("epoch ") for line in piped.stdout.splitlines()) == 3
    assert "runs/piped/predictions/test.csv" in piped.stdout
    assert piped.stderr == ""


@pytest.mark.slow
def test_mnist_from_its_csv(mnist: Path, sightline: Command, tmp_path: Path) -> None:
    """8,000 of the 10,000 for training and validation, 2,000 for test: the accuracy is at least 98 %, and `predict` on
    the PNG files agrees with the table that `evaluate` wrote."""
    done = sightline("train", "experiment=mnist", f"data.root={mnist}", "run.name=mnist", timeout=900)
    assert done.returncode == 0, done.stderr
    done = sightline("evaluate", "runs/mnist")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "runs" / "mnist" / "predictions" / "test.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2000
    assert sum(row["label"] == row["prediction"] for row in rows) / len(rows) >= 0.98
    chosen = rows[::100]
    done = sightline("predict", "runs/mnist", *(mnist / row["id"] for row in chosen), "--json")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["prediction"] for answer in answers] == [row["prediction"] for row in chosen]
    for answer, row in zip(answers, chosen, strict=True):
        assert answer["confidence"] == pytest.approx(float(row["confidence"]), abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run.name=a/b"], ["run.name: 'a/b' is not a valid directory name"]),
        (["run.dir=taken/runs"], ["run.dir: cannot create a run in 'taken/runs'", "is a file"]),
        (["trainer.device=meta"], ["trainer.device: 'meta' is not a supported device"]),
        (["seed=99999999999999999999999"], ["seed: expected an integer < 2**63"]),
        (["module.optimizer.betas=[0.9]"], ["AdamW does not accept these arguments: IndexError"]),
        (["module.loss.reduction=sum"], ["module.loss: the loss grows with the batch size"]),
        (["module.loss._target_=torch.nn.NLLLoss"], ["NLLLoss takes log-probabilities"]),
        (["data.preprocess.size=1000000"], ["GiB of memory, more than is available"]),
        (["hydra.run.dir=x"], ["Set a run's directory with run.dir and run.name"]),
        (["--config-dir", "conf", "experiment=bare"], ["Its first line must be: # @package _global_"]),
        (["--config-dir", "conf", "experiment=broken"], ["sightline: "]),
        (["data.root=with, comma (and brackets)"], ["'with, comma (and brackets)' does not exist"]),
    ],
)
def test_a_mistake_is_reported_without_a_traceback(
    arguments: list[str], expected: list[str], here: Command, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "bare.yaml").write_text("seed: 3\n")
    (tmp_path / "conf" / "experiment" / "broken.yaml").write_text("a: [\n")
    refused(here("train", *arguments), *expected)
    assert_no_runs(tmp_path)


def test_an_error_in_a_step_names_the_step_and_the_source_line(sightline: Command, tmp_path: Path) -> None:
    """A network that only fails when it trains: exit code 1, the step, the file and line, and a run to resume."""
    (tmp_path / "mynet.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, 10))\n\n    def forward(self, x):\n"
        "        assert not self.training, 'not like this'\n        return super().forward(x)\n"
    )
    done = sightline("train", "module.network._target_=mynet.Net", "run.name=fails")
    expected = (
        "epoch 0, batch 0 (step 1) failed with AssertionError: not like this",
        "mynet.py, line 9",
        "--verbose shows the full traceback",
    )
    refused(done, *expected, code=1)
    assert (tmp_path / "runs" / "fails" / "checkpoints" / "last.ckpt").is_file()
    text = (tmp_path / "mynet.py").read_text()
    (tmp_path / "mynet.py").write_text(text.replace("assert not self.training, 'not like this'", "pass"))
    assert sightline("resume", "runs/fails", "trainer.progress=false").returncode == 0


def test_class_names_with_brackets_and_a_closed_output_pipe(here: Command, tmp_path: Path) -> None:
    """Class names are shown unchanged, and a run does not stop when its output pipe is closed."""
    folders(tmp_path / "images", "[red]", "[bold]", images=8)
    done = here("train", "data.root=images", *SMALL, "run.name=brackets")
    assert done.returncode == 0, done.stderr
    assert "[red]" in done.stdout
    assert "[bold]" in done.stdout
    command = (
        f"{sys.executable} -m sightline train data.root=images {' '.join(SMALL)} trainer.max_epochs=6 run.name=left"
    )
    subprocess.run(f"{command} | head -1", shell=True, cwd=tmp_path, capture_output=True, check=True)
    assert (tmp_path / "runs" / "left" / "exported" / "sightline.json").is_file()


def test_resume_with_the_new_path_of_moved_data(here: Command, tmp_path: Path) -> None:
    folders(tmp_path / "images", "a", "b", images=8)
    assert here("train", "data.root=images", *SMALL, "run.name=moved").returncode == 0
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    refused(here("resume", "runs/moved"), "images' does not exist")
    done = here("resume", "runs/moved", "data.root=elsewhere")
    assert done.returncode == 0, done.stderr
