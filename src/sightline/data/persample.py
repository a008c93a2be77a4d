"""Any transform of one image as a batched augmentation: torchvision's, or one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sightline.data.generators import preserved, seed_all
from sightline.errors import DataError, arg
from sightline.random import bits, derive

_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class PerSample:
    """Calls `transform` for each image of a batch, or, given a list or tuple of transforms, one after the other. Slower
    than the batched augmentations, often by far: it is one call for each image, in the thread that consumes the
    batches.

    The image is a uint8 tensor [C,H,W] (`kind="tensor"`), a PIL image of mode RGB or L ("pil"), or a uint8 array
    [H,W,C] ("numpy"); C is 1 or 3. It is a copy, which the transform may change. What comes back may be any of the
    three, uint8 and of the same shape; an array [H,W] too where C is 1.

    For each image torch's CPU generator, `random` and NumPy's global generator are seeded once, from (seed, epoch,
    row), and put back afterwards: transforms that draw from these give the same for the same row in any batch, and each
    draws on from where the one before it stopped, so that they are independent. One that draws from a generator of its
    own does not.

    Raises DataError, naming the transform, when one fails or returns anything else."""

    transform: Callable[[Any], Any] | Sequence[Callable[[Any], Any]]
    kind: str = "tensor"

    threaded: ClassVar[bool] = False
    """Whether it may be called in another thread than the consumer's: the global generators may not."""

    def __post_init__(self) -> None:
        if self.kind not in ("tensor", "pil", "numpy"):
            raise ValueError(f"PerSample: kind is 'tensor', 'pil' or 'numpy', not {self.kind!r}")
        several = isinstance(self.transform, list | tuple)
        for transform in self.transform if several else (self.transform,):  # type: ignore[union-attr]
            if not callable(transform):
                raise TypeError(f"PerSample: expected a transform or a list of them, found {type(transform).__name__}")
        if several:
            object.__setattr__(self, "transform", tuple(self.transform))  # type: ignore[arg-type]

    def __call__(self, images: Tensor, index: NDArray[np.int64], seed: int, epoch: int) -> Tensor:
        """uint8 [B,C,H,W] -> the same."""
        out = torch.empty_like(images)
        transforms = self.transform if isinstance(self.transform, tuple) else (self.transform,)
        keys = bits(derive(seed, epoch, "per sample"), index).tolist()
        with preserved():
            for i, (image, key) in enumerate(zip(images.cpu(), keys, strict=True)):
                seed_all(key)
                for transform in transforms:
                    image = self._transformed(transform, image)  # noqa: PLW2901
                out[i] = image
        return out

    def _transformed(self, transform: Callable[[Any], Any], image: Tensor) -> Tensor:
        """uint8 [C,H,W] -> the same."""
        try:
            found = transform(self._given(image))
        except Exception as error:
            raise DataError(
                f"{arg.augment}: {name_of(transform)} failed on {describe(image)}: {type(error).__name__}: {error}"
            ) from error
        result = _tensor(found)
        if result is None or result.dtype != torch.uint8 or result.shape != image.shape:
            raise DataError(
                f"{arg.augment}: {name_of(transform)} was given {describe(image)} and gave back {describe(found)}. A "
                f"per-sample transform gives back uint8 of the size it was given: leave ToTensor, ToDtype and "
                f"Normalize out ({arg.preprocess} normalises) and any Resize ({arg.size} sets the size)."
            )
        return result.cpu()

    def _given(self, image: Tensor) -> Tensor | Image.Image | NDArray[np.uint8]:
        """A copy of uint8 [C,H,W] as the transform takes it."""
        if self.kind == "tensor":
            return image.clone(memory_format=torch.contiguous_format)
        array: NDArray[np.uint8] = np.array(image.numpy().transpose(1, 2, 0), order="C")
        if self.kind == "numpy":
            return array
        return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def _tensor(found: object) -> Tensor | None:
    """What a transform gave back as a tensor [C,H,W] of its own type; None for what is no image."""
    if isinstance(found, Tensor):
        return found
    if isinstance(found, Image.Image):
        if found.mode not in _MODES.values():  # three bytes a pixel may be HSV, one an index of a palette
            return None
        found = np.asarray(found)
    if isinstance(found, np.ndarray) and found.dtype == np.uint8 and found.ndim in (2, 3):
        array = np.array(found[:, :, None] if found.ndim == 2 else found)  # a copy: also of a mirrored view
        return torch.from_numpy(array).permute(2, 0, 1)
    return None


def name_of(transform: Callable[[Any], Any]) -> str:
    """What a transform is called, for an error."""
    return getattr(transform, "__name__", type(transform).__name__)


def describe(image: object) -> str:
    """What it is, for an error: its kind, type and shape."""
    if isinstance(image, Tensor):
        return f"a {str(image.dtype).removeprefix('torch.')} tensor {list(image.shape)}"
    if isinstance(image, np.ndarray):
        return f"a {image.dtype} array {list(image.shape)}"
    if isinstance(image, Image.Image):
        return f"a PIL image of mode {image.mode}, {image.height}x{image.width}"
    return f"an object of type {type(image).__name__}"
