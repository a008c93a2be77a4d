"""The named networks the presets use."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SmallCNN(nn.Module):
    """A convolutional network for small images, 8 x 8 and up: three blocks of 3 x 3 convolution, batch normalisation
    and ReLU with 2 x 2 max pooling between them, global average and maximum pooling, dropout, one linear layer.

    float32 [B,in_channels,H,W] -> logits float32 [B,num_classes]."""

    def __init__(self, in_channels: int = 1, num_classes: int = 10, width: int = 32, dropout: float = 0.2):
        super().__init__()
        self.features = nn.Sequential(
            *_block(in_channels, width),
            *_block(width, width),
            nn.MaxPool2d(2),
            *_block(width, 2 * width),
            nn.MaxPool2d(2),
            *_block(2 * width, 4 * width),
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        pooled = torch.cat((x.mean((2, 3)), x.amax((2, 3))), dim=1)
        logits: Tensor = self.head(self.dropout(pooled))
        return logits


class FastCNN(nn.Module):
    """A convolutional network that learns small colour pictures (16 x 16 and up, made for 32 x 32) in few passes: a
    2 x 2 convolution, then for each width a stage of two 3 x 3 convolutions, the first one pooled, each with batch
    normalisation and GELU; global maximum pooling and one linear layer, whose answer is scaled down by 9.

    After the networks of the CIFAR-10 speed records (Page, "How to Train Your ResNet", 2018; Jordan, "94% on CIFAR-10
    in 3.29 Seconds on a Single GPU", 2024), from which the convolutions' identity initialisation is taken, too.

    float32 [B,in_channels,H,W] -> logits float32 [B,num_classes]."""

    def __init__(
        self, in_channels: int = 3, num_classes: int = 10, widths: Sequence[int] = (64, 128, 256), stem: int = 24
    ):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, stem, 2, bias=False), nn.BatchNorm2d(stem), nn.GELU()]
        before = stem
        for width in widths:
            layers += [_identity(before, width), nn.MaxPool2d(2), nn.BatchNorm2d(width), nn.GELU()]
            layers += [_identity(width, width), nn.BatchNorm2d(width), nn.GELU()]
            before = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(before, num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x).amax((2, 3)))
        return logits / 9


def _identity(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3 x 3 convolution whose first outputs are its inputs, as far as there are as many."""
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.dirac_(convolution.weight.data[:in_channels])
    return convolution


def _block(in_channels: int, out_channels: int) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
