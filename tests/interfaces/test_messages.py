"""The same mistake in three interfaces: each message uses the names of its interface and shows paths unchanged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import sightline
import sightline.learner as tf
from helpers.learner_problem import FEATURES, X, Y, network
from helpers.learner_problem import train as learn
from helpers.params_digits import small_digits
from helpers.params_user import small, test_step_for, train_step
from helpers.params_user import train as train_params
from sightline.core.errors import SightlineError, argument_names
from sightline.params import build_classifier

PLACE = "run.directory data.root"
"""A directory whose name looks like config keys."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few digits as PNG files with a table, in `train` and `test`."""
    return small_digits(tmp_path_factory.mktemp("small") / PLACE / "data")


def by_config(images: Path, directory: Path, **changes: Any) -> None:
    """Trains with a config."""
    config = {
        "data": {"root": str(images), "source": "csv", "val": 0.2, **changes.pop("data", {})},
        "module": {"network": changes.pop("network", {"width": 4})},
        "trainer": {"max_epochs": 1, "progress": False, "device": "cpu"},
        "run": {"dir": str(directory), "name": "run"},
    }
    sightline.fit(config | changes)


def by_params(images: Path, directory: Path, **changes: Any) -> None:
    """Trains with the params dict."""
    settings = small(num_epochs=1, **changes)
    model = (
        build_classifier(settings) if "learning_rate" not in changes else nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    )
    train_params(settings, model, train_step, test_step_for(settings), images, directory / "run")


def damaged(images: Path, directory: Path) -> Path:
    """Copies the data without one of its images."""
    copy = Path(shutil.copytree(images, directory / PLACE / "copy"))
    sorted((copy / "train").glob("*.png"))[0].unlink()
    return copy


def empty(_: Path, directory: Path) -> None:
    """Trains on a loader with an empty batch, the counterpart of a batch size of 0."""
    learn(tf.StandardModel(network()), directory / "run", train_loader=[(X[:0], Y[:0])])


def no_file(_: Path, directory: Path) -> None:
    tf.load_image(str(directory / PLACE / "x.png"))


def misfit(_: Path, directory: Path) -> None:
    tf.StandardModel(nn.Sequential(nn.Linear(FEATURES, 16), nn.Linear(8, 3))).summary((FEATURES,))


def other_run(images: Path, directory: Path, interface: str) -> None:
    """Trains twice in the same directory, with different settings."""
    run = directory / PLACE
    if interface == "config":
        by_config(images, run)
        sightline.resume(run / "run", {"data": {"batch_size": 5}})
    elif interface == "params":
        by_params(images, run, learning_rate=0.1)
        by_params(images, run, learning_rate=0.2)
    else:
        learn(tf.StandardModel(network()), run / "run", 1)
        learn(tf.StandardModel(network()), run / "run", 1, lr=0.5)


CONV = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 4, "kernel_size": 9}
NETWORK = {
    "layers": [
        CONV,
        {"_target_": "torch.nn.Flatten"},
        {"_target_": "torch.nn.Linear", "in_features": "auto", "out_features": "auto"},
    ]
}
ARCH = [{"class": nn.Conv2d, "kwargs": {"in_channels": 1, "out_channels": 4, "kernel_size": 9}}]
MISTAKES: dict[tuple[str, str], tuple[Callable[[Path, Path], None], str]] = {
    ("batch size", "config"): (
        lambda images, directory: by_config(images, directory, data={"batch_size": 0}),
        "data.batch_size: expected an integer >= 1, found 0.",
    ),
    ("batch size", "params"): (
        lambda images, directory: by_params(images, directory, batch_size=0),
        "params['batch_size']: expected an integer >= 1, found 0.",
    ),
    ("batch size", "learner"): (empty, "the batch is empty; expected at least one sample."),
    ("missing image", "config"): (
        lambda images, directory: by_config(damaged(images, directory), directory),
        "does not exist",
    ),
    ("missing image", "params"): (
        lambda images, directory: by_params(damaged(images, directory), directory),
        "does not exist",
    ),
    ("missing image", "learner"): (no_file, "x.png': No such file"),
    ("network", "config"): (
        lambda images, directory: by_config(images, directory, network=NETWORK),
        "needs at least 9 x 9 pixels for its kernel",
    ),
    ("network", "params"): (
        lambda images, directory: by_params(images, directory, net_arch=ARCH),
        "params['net_arch']: ",
    ),
    ("network", "learner"): (misfit, "layer '1'"),
    ("another run", "config"): (
        lambda images, directory: other_run(images, directory, "config"),
        "data.batch_size was 64 and is now 5. Start a new run, or",
    ),
    ("another run", "params"): (
        lambda images, directory: other_run(images, directory, "params"),
        "learning_rate was 0.1 and is now 0.2. Restore the original settings to resume, or choose another logdir",
    ),
    ("another run", "learner"): (
        lambda images, directory: other_run(images, directory, "learner"),
        "initial_lr was 0.1 and is now 0.5. Restore the original settings to resume, or choose another model_dir",
    ),
}


@pytest.mark.parametrize(("mistake", "interface"), MISTAKES)
def test_a_message_uses_the_names_of_its_interface(mistake: str, interface: str, images: Path, tmp_path: Path) -> None:
    make, expected = MISTAKES[mistake, interface]
    with argument_names({}), pytest.raises(SightlineError) as error:
        make(images, tmp_path)
    message = str(error.value)
    assert expected in message
    without_paths = message.replace(PLACE, "")
    if interface != "config":
        for group in ("data.", "module.", "trainer.", "run."):
            assert group not in without_paths
    if interface != "params":
        assert "params[" not in message
    if mistake in ("missing image", "another run"):
        assert PLACE in message, "a path is shown unchanged"
