"""The dict that configures a run, with its default values."""

from typing import Any

import torch
from torch import nn, optim


def _block(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> list[dict[str, Any]]:
    sizes = {"in_channels": in_channels, "out_channels": out_channels, "kernel_size": kernel_size, "stride": stride}
    return [
        {"class": nn.Conv2d, "kwargs": {**sizes, "padding": 0}},
        {"class": nn.BatchNorm2d, "kwargs": {"num_features": out_channels}},
        {"class": nn.ELU, "kwargs": {}},
        {"class": nn.MaxPool2d, "kwargs": {"kernel_size": 2, "stride": 1, "padding": 0}},
    ]


params: dict[str, Any] = {
    # Google Pub/Sub
    "GOOGLE_APPLICATION_CREDENTIALS": "service-account.json",
    "PUB_SUB_TOPIC": "python-tester",
    "PUB_SUB_PROJECT": "my-project",
    "PUB_SUB_SUBSCRIPTION": "python-tester-sub",
    "TIMEOUT": 3.0,
    # Kafka
    "KAFKA_HOST": "localhost:9092",
    "KAFKA_TOPIC": "python-tester",
    # images
    "batch_size": 512,
    "image_height": 28,
    "image_width": 28,
    "shuffle_dataset": True,
    "flip_images": True,
    "flip_probability": 0.4,
    "normalise_images": False,
    "manual_seed": 17,
    "is_image_color": False,
    "normalise_mean": [0.5],
    "normalise_std": [0.25],
    "additional_transforms": None,
    # network; `build_classifier` appends the output layer
    "net_arch": [*_block(1, 32, 5, 2), *_block(32, 64, 4), *_block(64, 128, 3), *_block(128, 256, 3)],
    "n_classes": 10,
    # training
    "num_epochs": 1000,
    "eval_freq": 5,
    "save_freq": 5,
    "optim_class": optim.SGD,
    "optim_kwargs": {"momentum": 0, "dampening": 0, "weight_decay": 1e-2, "nesterov": False},
    "learning_rate": 1e-1,
    "learning_rate_schedule": [
        {
            "name": "ExponentialLRSchedule",
            "class": optim.lr_scheduler.ExponentialLR,
            "kwargs": {"gamma": 0.99, "last_epoch": -1},
        },
        {
            "name": "ReduceLROnPlateauSchedule",
            "class": optim.lr_scheduler.ReduceLROnPlateau,
            "kwargs": {"mode": "min", "factor": 0.5, "patience": 10, "threshold": 1e-5},
        },
    ],
    "device": "cuda" if torch.cuda.is_available() else "cpu",
    "mode": "notebook",
    "eval_metric_compute_freq": "epoch",
    "eval_batch_size": 1,
}
"""All 32 keys. `mode` has no effect; the first seven are for streaming."""
