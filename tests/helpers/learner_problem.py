"""A small problem for the learner, that any network learns, and how to look at what a training left."""

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
"""What most tests need not see."""


def loader(x: Tensor = X, y: Tensor = Y, **how: Any) -> DataLoader[Any]:
    """Batches of 8 in an order that is drawn."""
    return DataLoader(TensorDataset(x, y), **{"batch_size": SIZE, "shuffle": True, **how})


def network(out: int = CLASSES) -> nn.Sequential:
    """The same weights each time."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, out))


def train(learner: tf.BaseModel, directory: Path | None, epochs: int = 2, **how: Any) -> None:
    """With a plain loader, loss, optimiser and seed, unless `how` says otherwise."""
    torch.manual_seed(how.pop("seed", 7))
    optimizer = how.pop("optimizer", None) or torch.optim.SGD(learner.model.parameters(), lr=how.pop("lr", 0.1))
    metrics = how.pop("train_metrics", [tf.Accuracy()])
    loss = how.pop("loss_fn", nn.CrossEntropyLoss())
    train_loader = how.pop("train_loader", None)
    train_loader = loader() if train_loader is None else train_loader
    learner.train(train_loader, loss, optimizer, metrics, num_epochs=epochs, model_dir=directory, **{**QUIET, **how})


def with_test_split(**how: Any) -> dict[str, Any]:
    """The arguments of a test split with one metric."""
    return {"test_loader": loader(shuffle=False), "test_metrics": [tf.Accuracy("Top 1 Acc ")], **how}


def files(directory: Path, *hidden: str) -> list[str]:
    """What is there, but for the files that every run has."""
    hidden = (*hidden, "checkpoints", "log.jsonl", "environment.json", "heartbeat.json")
    found = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found if path.parts[0] not in hidden)


def weights(path: Path) -> dict[str, Tensor]:
    """Of a file of the learner."""
    found: dict[str, Tensor] = torch.load(path, weights_only=True)
    return found


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """To the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def without_time(history: dict[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    """A history but for how long it took."""
    return {name: values for name, values in history.items() if name != "duration"}
