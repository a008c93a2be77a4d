"""Transforms of one image, torchvision's or one's own, applied to each image of a batch: `PerImage` to uint8 images as
a batched augmentation, `TransformedLoader` to float32 [C,H,W] after normalisation. Both seed the global generators for
each image."""

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
            raise ValueError(f"PerImage: kind is 'tensor', 'pil' or 'numpy', not {self.kind!r}")
        several = isinstance(self.transform, list | tuple)
        for transform in self.transform if several else (self.transform,):  # type: ignore[union-attr]
            if not callable(transform):
                raise TypeError(f"PerImage: expected a transform or a list of them, found {type(transform).__name__}")
        if several:
            object.__setattr__(self, "transform", tuple(self.transform))  # type: ignore[arg-type]

    def __call__(self, images: Tensor, index: NDArray[np.int64], seed: int, epoch: int) -> Tensor:
        """uint8 [B,C,H,W] -> the same."""
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
        """uint8 [C,H,W] -> the same."""
        try:
            found = transform(self._given(image))
        except Exception as error:
            raise DataError(
                f"{arg.augment}: {transform_name(transform)} failed on {describe_image(image)}: "
                f"{type(error).__name__}: {error}"
            ) from error
        result = _tensor(found)
        if result is None or result.dtype != torch.uint8 or result.shape != image.shape:
            raise DataError(
                f"{arg.augment}: {transform_name(transform)} was given {describe_image(image)} and gave back "
                f"{describe_image(found)}. A "
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


def transform_name(transform: Callable[[Any], Any]) -> str:
    """What a transform is called, for an error."""
    return getattr(transform, "__name__", type(transform).__name__)


def describe_image(image: object) -> str:
    """What it is, for an error: its kind, type and shape."""
    if isinstance(image, Tensor):
        return f"a {str(image.dtype).removeprefix('torch.')} tensor {list(image.shape)}"
    if isinstance(image, np.ndarray):
        return f"a {image.dtype} array {list(image.shape)}"
    if isinstance(image, Image.Image):
        return f"a PIL image of mode {image.mode}, {image.height}x{image.width}"
    return f"an object of type {type(image).__name__}"


Transform = Callable[[Tensor], Any]


class TransformedLoader(Loader):
    """A loader whose finished images go one by one through further transforms. What these draw from torch's CPU
    generator, `random` and NumPy's global one is a function of (seed, epoch, row), as with `PerImage`."""

    def __init__(self, loader: Loader, transforms: Sequence[Transform], seed: int):
        self.loader, self.transforms, self.seed = loader, tuple(transforms), seed
        self._epoch = 0

    def __len__(self) -> int:
        return len(self.loader)

    def seek(self, epoch: int, batch: int = 0, position: Mapping[str, Any] | None = None) -> None:
        """As that of the loader."""
        self._epoch = epoch
        self.loader.seek(epoch, batch, position)

    def position(self) -> Mapping[str, Any] | None:
        """That of the loader."""
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
    """float32 [C,H,W] through every transform. Raises DataError where one fails or gives something else."""
    for transform in transforms:
        given = f"{transform_name(transform)} was given {describe_image(image)}"
        try:
            found = transform(image)
        except Exception as error:  # the transform's own code
            raise DataError(f"{given} and failed with {type(error).__name__}: {first_line(error)}") from error
        if not isinstance(found, Tensor) or found.shape != image.shape or not found.is_floating_point():
            raise DataError(
                f"{given} and gave back {describe_image(found)}; expected floats of the same shape. The size of images "
                f"is "
                f"{arg.size}."
            )
        image = found
    return image


def build_transforms(given: Any, shape: tuple[int, int, int], *, training: bool, key: str) -> list[Transform]:
    """`given`, one transform, several or None, as a list: nodes instantiated, sequences taken apart. One that draws
    random numbers is an augmentation, and for `training` alone. Raises ConfigError, naming `key`, for what cannot be
    called, and for what fails on an image of `shape`."""
    if given is None:
        return []
    transforms: list[Transform] = []
    for position, item in enumerate(given if isinstance(given, list | tuple | nn.Sequential) else [given]):
        place = f"{key}[{position}]"
        made = locate.instantiate(item, key=place) if isinstance(item, Mapping) else item
        for transform in _flatten(made):
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
    """Whether a transform draws from torch's generator, `random` or NumPy's, by trying it."""
    with fork_rng():
        seed_global_generators(0)
        before = _generator_states()
        apply_transforms([transform], torch.zeros(shape))
        return _generator_states() != before


def _generator_states() -> tuple[Any, ...]:
    """Where the generators are: equal as long as nothing was drawn."""
    state: Any = np.random.get_state()  # noqa: NPY002
    return bytes(torch.get_rng_state().numpy()), random.getstate(), bytes(state[1]), state[2:]
