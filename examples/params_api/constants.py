"""What this run is: the usual parameters, and what is different here."""

import torch
from torch import nn

from sightline.params import params as usual


def block(channels):
    """Convolution, normalisation, activation, pooling; each layer takes the channels that come to it."""
    return [
        {"class": nn.Conv2d, "kwargs": {"in_channels": "auto", "out_channels": channels, "kernel_size": 3}},
        {"class": nn.BatchNorm2d, "kwargs": {"num_features": channels}},
        {"class": nn.ELU, "kwargs": {}},
        {"class": nn.MaxPool2d, "kwargs": {"kernel_size": 2, "stride": 2}},
    ]


params = {
    **usual,
    # digits are not the same digit upside down
    "flip_images": False,
    "image_height": 16,
    "image_width": 16,
    "net_arch": [*block(16), *block(32)],
    "batch_size": 64,
    "num_epochs": 10,
    "eval_freq": 3,
    "save_freq": 3,
    "eval_batch_size": 256,
    "optim_class": torch.optim.SGD,
    "optim_kwargs": {"momentum": 0.9, "weight_decay": 1e-4},
    "learning_rate": 0.05,
    "learning_rate_schedule": [
        {"name": "Exponential", "class": torch.optim.lr_scheduler.ExponentialLR, "kwargs": {"gamma": 0.9}},
        {
            "name": "Plateau",
            "class": torch.optim.lr_scheduler.ReduceLROnPlateau,
            "kwargs": {"mode": "max", "factor": 0.5, "patience": 1},
            "monitor": "test_Accuracy",
        },
    ],
}
