"""The code of a user who trains with a dict: parameters, two steps, collections of metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.params import build_classifier, params, set_seeds, torchmetrics, train

SMALL = [
    {"class": nn.Conv2d, "kwargs": {"in_channels": 1, "out_channels": 6, "kernel_size": 3}},
    {"class": nn.BatchNorm2d, "kwargs": {"num_features": 6}},
    {"class": nn.ELU, "kwargs": {}},
    {"class": nn.MaxPool2d, "kwargs": {"kernel_size": 2, "stride": 2}},
]


def small(**changes: Any) -> dict[str, Any]:
    """A dict for the embedded digits: a network of one block, three epochs of about a second."""
    defaults = {
        "image_height": 8, "image_width": 8, "net_arch": SMALL, "batch_size": 32, "num_epochs": 3, "eval_freq": 2,
        "save_freq": 2, "flip_images": False, "device": "cpu", "eval_batch_size": 16,
    }  # fmt: skip
    return params | defaults | changes


def loss_func(y_pred: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(y_pred, y)


def train_step(x: Tensor, y: Tensor, model: nn.Module, optim: torch.optim.Optimizer, **kwargs: Any) -> tuple[Any, Any]:
    optim.zero_grad()
    y_pred = model(x)
    loss = loss_func(y_pred, y)
    loss.backward()
    optim.step()
    metrics = None
    if "train_torchmetrics" in kwargs:
        metrics = {key: value.item() for key, value in kwargs["train_torchmetrics"](y_pred, y).items()}
    return loss.item(), metrics


def test_step_for(settings: dict[str, Any]) -> Callable[..., tuple[Any, Any]]:
    """A test step that reads `eval_metric_compute_freq` from the dict."""

    def test_step(x: Tensor, y: Tensor, model: nn.Module, **kwargs: Any) -> tuple[Any, Any]:
        with torch.no_grad():
            y_pred = model(x)
        metrics = None
        if "test_torchmetrics" in kwargs:
            metrics = kwargs["test_torchmetrics"](y_pred, y)
            by_epoch = settings["eval_metric_compute_freq"] == "epoch"
            metrics = None if by_epoch else {key: value.item() for key, value in metrics.items()}
        return loss_func(y_pred, y).item(), metrics

    return test_step


test_step_for.__test__ = False  # type: ignore[attr-defined] not a test


def collection(**options: Any) -> Any:
    """The four metrics, constructed as torchmetrics was called in 2022."""
    names = ("Accuracy", "Precision", "Recall", "F1Score")
    metrics = [getattr(torchmetrics, name)(num_classes=10, average="macro", **options) for name in names]
    return torchmetrics.MetricCollection(metrics)


def run(
    settings: dict[str, Any],
    data: Path,
    logdir: Path,
    *,
    step: Any = train_step,
    test: Any = None,
    metrics: bool = True,
) -> tuple[bool, nn.Module]:
    """Trains a new network with logits; returns (the result of `train`, the network)."""
    set_seeds(settings["manual_seed"])
    model = build_classifier(settings, outputs="logits")
    collections = {"train_torchmetrics": collection(), "test_torchmetrics": collection()} if metrics else {}
    return train(settings, model, step, test or test_step_for(settings), data, logdir, **collections), model
