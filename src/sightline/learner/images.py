"""Helpers to load an image, to name an ImageNet class and to one-hot encode labels."""

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
    """Reads an image file as a tensor float32 [C, H, W], or with `to_tensor=False` as a Pillow image.

    Tensor values are (pixel / 255 - mean) / std. `target_size` in pixels is (height, width), or one number for both:
    the shorter side is scaled to it and the centre is cropped. Raises ImageError if the file is not a valid image."""
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
    """Returns the name of one of the 1,000 ImageNet classes, in the order of torchvision's weights.

    Raises LearnerError for an index outside 0 to 999."""
    names = locate.import_optional("torchvision.models").ResNet18_Weights.DEFAULT.meta["categories"]
    index = int(class_index)
    if not 0 <= index < len(names):
        raise LearnerError(f"decode_imagenet: expected a class_index in [0, {len(names) - 1}], found {index}.")
    return str(names[index])


def one_hot(input: Tensor, num_classes: int) -> Tensor:  # noqa: A002 the published name
    """One-hot encodes class indices along a new last dimension of size `num_classes`, in the dtype of `input`.

    An existing last dimension of size 1 is replaced. Raises LearnerError for an index that is out of range."""
    index = input.long()
    index = index.squeeze(-1) if index.ndim > 1 and index.shape[-1] == 1 else index
    if index.numel() and (int(index.min()) < 0 or int(index.max()) >= num_classes):
        raise LearnerError(
            f"one_hot: expected indices in [0, {num_classes - 1}], found {int(index.min())} to {int(index.max())}."
        )
    return torch.nn.functional.one_hot(index, num_classes).to(input.dtype)
