"""One mistake, three interfaces: each names what is wrong as its user has written it, and leaves paths as they are."""

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
"""A directory whose name looks like keys of the config."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few digits as PNG files with a table, in `train` and `test`."""
    return small_digits(tmp_path_factory.mktemp("small") / PLACE / "data")


def by_config(images: Path, place: Path, **changes: Any) -> None:
    """Trains by a config."""
    config = {
        "data": {"root": str(images), "source": "csv", "val": 0.2, **changes.pop("data", {})},
        "module": {"network": changes.pop("network", {"width": 4})},
        "trainer": {"max_epochs": 1, "progress": False, "device": "cpu"},
        "run": {"dir": str(place), "name": "run"},
    }
    sightline.fit(config | changes)


def by_params(images: Path, place: Path, **changes: Any) -> None:
    """Trains by the params dict."""
    settings = small(num_epochs=1, **changes)
    model = (
        build_classifier(settings) if "learning_rate" not in changes else nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    )
    train_params(settings, model, train_step, test_step_for(settings), images, place / "run")


def damaged(images: Path, place: Path) -> Path:
    """The data without one of its images, somewhere else."""
    copied = Path(shutil.copytree(images, place / PLACE / "copy"))
    sorted((copied / "train").glob("*.png"))[0].unlink()
    return copied


def empty(_: Path, place: Path) -> None:
    """What a batch size of 0 comes to in a loop over a loader."""
    learn(tf.StandardModel(network()), place / "run", train_loader=[(X[:0], Y[:0])])


def no_file(_: Path, place: Path) -> None:
    tf.load_image(str(place / PLACE / "x.png"))


def misfit(_: Path, place: Path) -> None:
    tf.StandardModel(nn.Sequential(nn.Linear(FEATURES, 16), nn.Linear(8, 3))).summary((FEATURES,))


def other_run(images: Path, place: Path, interface: str) -> None:
    """Trains, and then once more there with other settings."""
    run = place / PLACE
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
        lambda images, place: by_config(images, place, data={"batch_size": 0}),
        "data.batch_size: expected a number of at least 1, found 0.",
    ),
    ("batch size", "params"): (
        lambda images, place: by_params(images, place, batch_size=0),
        "params['batch_size']: expected a number of at least 1, found 0.",
    ),
    ("batch size", "learner"): (empty, "the loader gave an empty batch."),
    ("missing image", "config"): (lambda images, place: by_config(damaged(images, place), place), "does not exist"),
    ("missing image", "params"): (lambda images, place: by_params(damaged(images, place), place), "does not exist"),
    ("missing image", "learner"): (no_file, "x.png': No such file"),
    ("network", "config"): (
        lambda images, place: by_config(images, place, network=NETWORK),
        "needs at least 9 x 9 pixels for its kernel",
    ),
    ("network", "params"): (lambda images, place: by_params(images, place, net_arch=ARCH), "params['net_arch']: "),
    ("network", "learner"): (misfit, "layer '1'"),
    ("another run", "config"): (
        lambda images, place: other_run(images, place, "config"),
        "data.batch_size was 64; now it is 5. Start a new run for it",
    ),
    ("another run", "params"): (
        lambda images, place: other_run(images, place, "params"),
        "learning_rate was 0.1; now it is 0.2. Restore what it began with to resume it, or choose another logdir",
    ),
    ("another run", "learner"): (
        lambda images, place: other_run(images, place, "learner"),
        "initial_lr was 0.1; now it is 0.5. Use what it began with to resume it, or choose another model_dir",
    ),
}


@pytest.mark.parametrize(("mistake", "interface"), MISTAKES)
def test_a_mistake_is_named_as_its_user_has_written_it(
    mistake: str, interface: str, images: Path, tmp_path: Path
) -> None:
    make, expected = MISTAKES[mistake, interface]
    with argument_names({}), pytest.raises(SightlineError) as found:
        make(images, tmp_path)
    said = str(found.value)
    assert expected in said
    without_paths = said.replace(PLACE, "")
    if interface != "config":
        for group in ("data.", "module.", "trainer.", "run."):
            assert group not in without_paths
    if interface != "params":
        assert "params[" not in said
    if mistake in ("missing image", "another run"):
        assert PLACE in said, "a path is shown as it is"
