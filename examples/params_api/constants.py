"""The parameters of the run: the defaults of `sightline.params` with changes."""

import torch
from torch import nn

from sightline.params import params as defaults


def block(channels):
    """Returns a block of convolution, normalisation, activation and pooling; input channels are inferred."""
    return [
        {"class": nn.Conv2d, "kwargs": {"in_channels": "auto", "out_channels": channels, "kernel_size": 3}},
        {"class": nn.BatchNorm2d, "kwargs": {"num_features": channels}},
        {"class": nn.ELU, "kwargs": {}},
        {"class": nn.MaxPool2d, "kwargs": {"kernel_size": 2, "stride": 2}},
    ]


params = {
    **defaults,
    # a flipped digit is not the same digit
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
