"""The named networks the presets use."""

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
    """A convolutional network that learns small colour pictures (16 x 16 and up, made for 32 x 32) in few passes: 2 x 2
    patches, decorrelated; then for each width a stage of two 3 x 3 convolutions, the first one pooled, each with batch
    normalisation and GELU; global maximum pooling and one linear layer, whose answer is scaled down by 9.

    After the networks of the CIFAR-10 speed records (Page, "How to Train Your ResNet", 2018; Jordan, "94% on CIFAR-10
    in 3.29 Seconds on a Single GPU", 2024), from which these are taken: the first convolution whitens patches and is
    not trained, but for its bias (`initialize_from` fits it to the training images); the others begin as the identity;
    and with `mirror`, evaluation answers with the mean over a picture and its mirror image, at twice the cost.

    float32 [B,in_channels,H,W] -> logits float32 [B,num_classes]."""

    def __init__(
        self, in_channels: int = 3, num_classes: int = 10, widths: Sequence[int] = (64, 128, 256), mirror: bool = False
    ):
        super().__init__()
        self.mirror = mirror
        before = 2 * 4 * in_channels  # each decorrelated direction of a patch, and its negative
        self.whiten = nn.Conv2d(in_channels, before, 2)
        self.whiten.weight.requires_grad_(False)
        layers: list[nn.Module] = [nn.GELU()]
        for width in widths:
            layers += [_identity(before, width), nn.MaxPool2d(2), nn.BatchNorm2d(width), nn.GELU()]
            layers += [_identity(width, width), nn.BatchNorm2d(width), nn.GELU()]
            before = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(before, num_classes, bias=False)

    @torch.no_grad()
    def initialize_from(self, images: Tensor) -> None:
        """Fits the first convolution to training images, float32 [N,C,H,W] as they are normalised: the eigenvectors of
        their patches' covariance, each divided by its standard deviation, with 0.01 added to the variance: what hardly
        varies is noise."""
        patches = images.double().unfold(2, 2, 1).unfold(3, 2, 1)  # [N,C,H-1,W-1,2,2]
        patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 4 * images.shape[1])
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / (values + 1e-2).sqrt()).T.reshape(-1, images.shape[1], 2, 2)
        self.whiten.weight.copy_(torch.cat((filters, -filters)))

    def forward(self, x: Tensor) -> Tensor:
        logits = self._logits(x)
        if self.mirror and not self.training:
            logits = (logits + self._logits(x.flip(3))) / 2
        return logits

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(self.whiten(x)).amax((2, 3)))
        return logits / 9


def _identity(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3 x 3 convolution whose first outputs are its inputs, as far as there are as many."""
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.dirac_(convolution.weight.data[:in_channels])
    return convolution


def _block(in_channels: int, out_channels: int) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
