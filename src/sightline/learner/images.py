"""Helpers for images and classes: load one image, name an ImageNet class, encode labels."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sightline.core import locate
from sightline.data.images.decode import decode_image, height_width
from sightline.data.images.preprocess import Preprocess
from sightline.learner.plan import LearnerError


def load_image(
    file: str | Path,
    grayscale: bool = False,
    target_size: int | tuple[int, int] | None = None,
    to_tensor: bool = True,
    mean: Any = 0.5,
    std: Any = 0.5,
) -> Tensor | Image.Image:
    """An image file as float32 [C,H,W], (value in 0..1 - mean) / std, or as a Pillow image. `target_size` is
    (height, width), or one number for both: the shorter side is scaled to it and the centre cut out. Raises ImageError
    for a file that is no image."""
    name = f"'{file}'"
    image = decode_image(Path(file), name)
    height, width = (target_size, target_size) if isinstance(target_size, int) else target_size or height_width(image)
    channels = 1 if grayscale else 3
    mean, std = ((value if isinstance(value, tuple | list) else (value,)) for value in (mean, std))
    preprocess = Preprocess(height, width, channels, tuple(mean), tuple(std), "crop")
    pixels = preprocess.decode(image, name)
    if not to_tensor:
        return Image.fromarray(pixels[0] if grayscale else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    return preprocess.normalizer()(torch.from_numpy(pixels)[None])[0]


def decode_imagenet(class_index: int | Tensor) -> str:
    """The name of one of ImageNet's 1,000 classes, as torchvision's weights have them in their order."""
    names = locate.import_optional("torchvision.models").ResNet18_Weights.DEFAULT.meta["categories"]
    index = int(class_index)
    if not 0 <= index < len(names):
        raise LearnerError(f"decode_imagenet: there are classes 0 to {len(names) - 1}, not {index}.")
    return str(names[index])


def one_hot(input: Tensor, num_classes: int) -> Tensor:  # noqa: A002 the published name
    """1 at each index and 0 elsewhere, along a last dimension of `num_classes`, in the type of `input`, whose own last
    dimension of one is taken for it."""
    index = input.long()
    index = index.squeeze(-1) if index.ndim > 1 and index.shape[-1] == 1 else index
    if index.numel() and (int(index.min()) < 0 or int(index.max()) >= num_classes):
        raise LearnerError(
            f"one_hot: the indices are {int(index.min())} to {int(index.max())}, of {num_classes} classes."
        )
    return torch.nn.functional.one_hot(index, num_classes).to(input.dtype)
