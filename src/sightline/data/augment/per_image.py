"""Transforms of single images, from torchvision or custom, applied to each image of a batch.

`PerImage` applies them to uint8 images as a batched augmentation, `TransformedLoader` to float32 [C, H, W] after
normalisation. Both seed the global random generators for each image."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from sightline.core import locate
from sightline.core.errors import ConfigError, DataError, arg, first_line
from sightline.core.rng import derive_key, fork_rng, random_bits, seed_global_generators
from sightline.core.types import Batch, Loader

_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class PerImage:
    """Applies a transform, or a list or tuple of transforms in sequence, to each image of a batch.

    Often much slower than the batched augmentations: it makes one call per image, in the thread that consumes the
    batches.

    The image is a uint8 tensor [C, H, W] (`kind="tensor"`), a PIL image of mode RGB or L ("pil"), or a uint8 array
    [H, W, C] ("numpy"); C is 1 or 3. It is a copy, which the transform may change. The transform may return any of the
    three kinds, uint8 and of the same shape; or an array [H, W] if C is 1.

    For each image, torch's CPU generator, `random` and NumPy's global generator are seeded once from (seed, epoch,
    row), and restored afterwards. Transforms that use these generators give the same result for a row in any batch;
    each continues with the generator state of the one before it, so that they are independent. A transform with a
    separate generator is not reproducible in this way.

    Raises DataError, naming the transform, when it fails or returns anything else."""

    transform: Callable[[Any], Any] | Sequence[Callable[[Any], Any]]
    kind: str = "tensor"

    threaded: ClassVar[bool] = False
    """Whether the loader may call it in another thread than the consumer's. It may not, since it seeds the global
    generators."""

    def __post_init__(self) -> None:
        if self.kind not in ("tensor", "pil", "numpy"):
            raise ValueError(f"PerImage: kind: expected one of: 'tensor', 'pil', 'numpy', found {self.kind!r}.")
        several = isinstance(self.transform, list | tuple)
        for transform in self.transform if several else (self.transform,):  # type: ignore[union-attr]
            if not callable(transform):
                raise TypeError(f"PerImage: expected a transform or a list of them, found {type(transform).__name__}")
        if several:
            object.__setattr__(self, "transform", tuple(self.transform))  # type: ignore[arg-type]

    def __call__(self, images: Tensor, index: NDArray[np.int64], seed: int, epoch: int) -> Tensor:
        """Returns the transformed images, uint8 [B, C, H, W]."""
        out = torch.empty_like(images)
        transforms = self.transform if isinstance(self.transform, tuple) else (self.transform,)
        keys = random_bits(derive_key(seed, epoch, "per sample"), index).tolist()
        with fork_rng():
            for i, (image, key) in enumerate(zip(images.cpu(), keys, strict=True)):
                seed_global_generators(key)
                for transform in transforms:
                    image = self._transformed(transform, image)  # noqa: PLW2901
                out[i] = image
        return out

    def _transformed(self, transform: Callable[[Any], Any], image: Tensor) -> Tensor:
        """Returns the transformed image, uint8 [C, H, W]."""
        try:
            output = transform(self._as_kind(image))
        except Exception as error:
            raise DataError(
                f"{arg.augment}: {transform_name(transform)} failed on {describe_image(image)}: "
                f"{type(error).__name__}: {error}"
            ) from error
        result = _to_tensor(output)
        if result is None or result.dtype != torch.uint8 or result.shape != image.shape:
            raise DataError(
                f"{arg.augment}: {transform_name(transform)} received {describe_image(image)} and returned "
                f"{describe_image(output)}. Expected uint8 of the same shape. Leave out ToTensor, ToDtype and "
                f"Normalize ({arg.preprocess} normalises) and Resize ({arg.size} sets the size)."
            )
        return result.cpu()

    def _as_kind(self, image: Tensor) -> Tensor | Image.Image | NDArray[np.uint8]:
        """Returns a copy of an image, uint8 [C, H, W], in the form that `kind` names."""
        if self.kind == "tensor":
            return image.clone(memory_format=torch.contiguous_format)
        array: NDArray[np.uint8] = np.array(image.numpy().transpose(1, 2, 0), order="C")
        if self.kind == "numpy":
            return array
        return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def _to_tensor(output: object) -> Tensor | None:
    """Returns the output of a transform as a tensor [C, H, W]; None if it is not an image."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Image.Image):
        if output.mode not in _MODES.values():  # 3 bytes per pixel may also be HSV, 1 byte a palette index
            return None
        output = np.asarray(output)
    if isinstance(output, np.ndarray) and output.dtype == np.uint8 and output.ndim in (2, 3):
        array = np.array(output[:, :, None] if output.ndim == 2 else output)  # a copy without negative strides
        return torch.from_numpy(array).permute(2, 0, 1)
    return None


def transform_name(transform: Callable[[Any], Any]) -> str:
    """Returns the name of a transform for messages."""
    return getattr(transform, "__name__", type(transform).__name__)


def describe_image(image: object) -> str:
    """Describes an image for messages: its kind, dtype or mode, and shape; for any other object its type."""
    if isinstance(image, Tensor):
        return f"a {str(image.dtype).removeprefix('torch.')} tensor {list(image.shape)}"
    if isinstance(image, np.ndarray):
        return f"a {image.dtype} array {list(image.shape)}"
    if isinstance(image, Image.Image):
        return f"a PIL image of mode {image.mode}, {image.height}x{image.width}"
    return f"an object of type {type(image).__name__}"


Transform = Callable[[Tensor], Any]


class TransformedLoader(Loader):
    """A loader that applies additional transforms to each normalised image of another loader.

    What they draw from torch's CPU generator, `random` and NumPy's global generator is a function of (seed, epoch,
    row), as with `PerImage`."""

    def __init__(self, loader: Loader, transforms: Sequence[Transform], seed: int):
        self.loader, self.transforms, self.seed = loader, tuple(transforms), seed
        self._epoch = 0

    def __len__(self) -> int:
        return len(self.loader)

    def seek(self, epoch: int, batch: int = 0, position: Mapping[str, Any] | None = None) -> None:
        """Seeks as the wrapped loader does."""
        self._epoch = epoch
        self.loader.seek(epoch, batch, position)

    def position(self) -> Mapping[str, Any] | None:
        """Returns the position of the wrapped loader."""
        return self.loader.position()

    def __iter__(self) -> Iterator[Batch]:
        epoch, self._epoch = self._epoch, self._epoch + 1
        key = derive_key(self.seed, epoch, "additional transforms")
        for batch in self.loader:
            assert isinstance(batch.x, Tensor)
            assert batch.index is not None
            images = batch.x
            with fork_rng():
                for row, seed in enumerate(random_bits(key, batch.index.cpu().numpy()).tolist()):
                    seed_global_generators(seed)
                    images[row] = apply_transforms(self.transforms, images[row])
            yield batch


def apply_transforms(transforms: Sequence[Transform], image: Tensor) -> Tensor:
    """Applies the transforms in sequence to an image, float32 [C, H, W]. Raises DataError, naming the transform, if one
    fails or does not return floats of the same shape."""
    for transform in transforms:
        call = f"{transform_name(transform)} received {describe_image(image)}"
        try:
            output = transform(image)
        except Exception as error:  # raised by the code of the transform
            raise DataError(f"{call} and failed with {type(error).__name__}: {first_line(error)}") from error
        if not isinstance(output, Tensor) or output.shape != image.shape or not output.is_floating_point():
            raise DataError(
                f"{call} and returned {describe_image(output)}. Expected floats of the same shape. "
                f"Set the image size with {arg.size}."
            )
        image = output
    return image


def build_transforms(given: Any, shape: tuple[int, int, int], *, training: bool, key: str) -> list[Transform]:
    """Returns `given` (a transform, several, or None) as a flat list of transforms.

    Config nodes are instantiated; `nn.Sequential` and `Compose` are flattened. A transform that draws random numbers is
    an augmentation and is included only for `training`. Raises ConfigError, naming `key`, for an object that is not
    callable, or that fails on an image of `shape`."""
    if given is None:
        return []
    transforms: list[Transform] = []
    for position, item in enumerate(given if isinstance(given, list | tuple | nn.Sequential) else [given]):
        place = f"{key}[{position}]"
        instance = locate.instantiate(item, key=place) if isinstance(item, Mapping) else item
        for transform in _flatten(instance):
            if not callable(transform):
                raise ConfigError(f"{place}: expected a transform, found {type(transform).__name__}.")
            try:
                draws = _draws_random_numbers(transform, shape)
            except DataError as error:
                raise ConfigError(f"{place}: {error}") from error
            if training or not draws:
                transforms.append(transform)
    return transforms


def _flatten(transform: Any) -> list[Any]:
    if isinstance(transform, nn.Sequential):
        return [part for item in transform for part in _flatten(item)]
    if type(transform).__name__ == "Compose" and hasattr(transform, "transforms"):
        return [part for item in transform.transforms for part in _flatten(item)]
    return [transform]


def _draws_random_numbers(transform: Transform, shape: tuple[int, int, int]) -> bool:
    """Whether a transform draws from torch's, Python's or NumPy's global generator, found out by calling it once."""
    with fork_rng():
        seed_global_generators(0)
        before = _generator_states()
        apply_transforms([transform], torch.zeros(shape))
        return _generator_states() != before


def _generator_states() -> tuple[Any, ...]:
    """Returns the states of the global generators, which are equal as long as nothing is drawn."""
    state: Any = np.random.get_state()  # noqa: NPY002
    return bytes(torch.get_rng_state().numpy()), random.getstate(), bytes(state[1]), state[2:]
