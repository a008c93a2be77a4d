"""The convolutional networks that the presets use."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SmallCNN(nn.Module):
    """A convolutional network for small images (8 x 8 pixels and larger).

    Four blocks of 3 x 3 convolution, batch normalisation and ReLU, with 2 x 2 max pooling after the second and the
    third; then global average and maximum pooling, dropout and one linear layer. Takes float32 [B,in_channels,H,W];
    returns logits float32 [B,num_classes]."""

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
    """A convolutional network that trains in few epochs on small colour images (16 x 16 and larger, designed for 32).

    A 2 x 2 whitening convolution; for each of `widths` a stage of two 3 x 3 convolutions with batch normalisation and
    GELU, the first followed by max pooling; global maximum pooling and one linear layer. Logits are divided by 9.

    After the networks of the CIFAR-10 speed records (Page, "How to Train Your ResNet", 2018; Jordan, "94% on CIFAR-10
    in 3.29 Seconds on a Single GPU", 2024). Of the whitening convolution only the bias is trained; `initialize_from`
    sets its weights from training images. The other convolutions are initialised as the identity. With `mirror`,
    evaluation averages the logits of an image and its mirror image, at twice the cost.

    Takes float32 [B,in_channels,H,W]; returns logits float32 [B,num_classes]."""

    def __init__(
        self, in_channels: int = 3, num_classes: int = 10, widths: Sequence[int] = (64, 128, 256), mirror: bool = False
    ):
        super().__init__()
        self.mirror = mirror
        channels = 2 * 4 * in_channels  # every whitening filter and its negative
        self.whiten = nn.Conv2d(in_channels, channels, 2)
        self.whiten.weight.requires_grad_(False)
        layers: list[nn.Module] = [nn.GELU()]
        for width in widths:
            layers += [_identity(channels, width), nn.MaxPool2d(2), nn.BatchNorm2d(width), nn.GELU()]
            layers += [_identity(width, width), nn.BatchNorm2d(width), nn.GELU()]
            channels = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, num_classes, bias=False)

    @torch.no_grad()
    def initialize_from(self, images: Tensor) -> None:
        """Sets the whitening filters from training images, float32 [N,C,H,W], already normalised.

        The filters are the eigenvectors of the covariance of all 2 x 2 patches, each divided by its standard deviation.
        Adding 0.01 to the variances keeps directions of almost no variance, which are noise, from being amplified."""
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
    """A 3 x 3 convolution whose first min(in, out) output channels are its input channels."""
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.dirac_(convolution.weight.data[:in_channels])
    return convolution


def _block(in_channels: int, out_channels: int) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
