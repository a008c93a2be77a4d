"""The named networks the presets use."""

from __future__ import annotations

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


def _block(in_channels: int, out_channels: int) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
