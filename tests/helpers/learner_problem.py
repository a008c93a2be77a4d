"""A small problem that any network learns, and functions that read the files of a learner's run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sightline.learner as tf

COUNT, FEATURES, CLASSES, SIZE = 60, 6, 3, 8
X = torch.randn(COUNT, FEATURES, generator=torch.Generator().manual_seed(0))
Y = X[:, :CLASSES].argmax(1)
QUIET: dict[str, Any] = {"batch_log": False, "display_metrics": False, "save_metrics": False}
"""Switches off the output that most tests do not need."""


def loader(x: Tensor = X, y: Tensor = Y, **options: Any) -> DataLoader[Any]:
    """Batches of 8 in random order."""
    return DataLoader(TensorDataset(x, y), **{"batch_size": SIZE, "shuffle": True, **options})


def network(out: int = CLASSES) -> nn.Sequential:
    """A small network with the same weights each time."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, out))


def train(learner: tf.BaseModel, directory: Path | None, epochs: int = 2, **options: Any) -> None:
    """Trains with a plain loader, loss, optimiser and seed, unless `options` has others."""
    torch.manual_seed(options.pop("seed", 7))
    optimizer = options.pop("optimizer", None) or torch.optim.SGD(learner.model.parameters(), lr=options.pop("lr", 0.1))
    metrics = options.pop("train_metrics", [tf.Accuracy()])
    loss = options.pop("loss_fn", nn.CrossEntropyLoss())
    train_loader = options.pop("train_loader", None)
    train_loader = loader() if train_loader is None else train_loader
    learner.train(
        train_loader, loss, optimizer, metrics, num_epochs=epochs, model_dir=directory, **{**QUIET, **options}
    )


def with_test_split(**options: Any) -> dict[str, Any]:
    """The arguments for a test split with one metric."""
    return {"test_loader": loader(shuffle=False), "test_metrics": [tf.Accuracy("Top 1 Acc ")], **options}


def files(directory: Path, *hidden: str) -> list[str]:
    """The files of a directory, without those that every run has."""
    hidden = (*hidden, "checkpoints", "log.jsonl", "environment.json", "heartbeat.json")
    paths = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in paths if path.parts[0] not in hidden)


def weights(path: Path) -> dict[str, Tensor]:
    """The weights in a file that the learner wrote."""
    content: dict[str, Tensor] = torch.load(path, weights_only=True)
    return content


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two state dicts are bitwise equal."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def without_time(history: dict[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    """A history without the durations."""
    return {name: values for name, values in history.items() if name != "duration"}
