"""Transforms of finished images, float32 [C,H,W] as a network takes them: any, one image after the other."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline import locate
from sightline.data.generators import preserved, seed_all
from sightline.data.persample import describe, name_of
from sightline.errors import ConfigError, DataError, arg, first_line
from sightline.random import bits, derive
from sightline.types import Batch, Loader

Transform = Callable[[Tensor], Any]


class Transformed(Loader):
    """A loader whose finished images go one by one through further transforms. What these draw from torch's CPU
    generator, `random` and NumPy's global one is a function of (seed, epoch, row), as with `PerSample`."""

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
        key = derive(self.seed, epoch, "additional transforms")
        for batch in self.loader:
            assert isinstance(batch.x, Tensor)
            assert batch.index is not None
            images = batch.x
            with preserved():
                for row, seed in enumerate(bits(key, batch.index.cpu().numpy()).tolist()):
                    seed_all(seed)
                    images[row] = transformed(self.transforms, images[row])
            yield batch


def transformed(transforms: Sequence[Transform], image: Tensor) -> Tensor:
    """float32 [C,H,W] through every transform. Raises DataError where one fails or gives something else."""
    for transform in transforms:
        given = f"{name_of(transform)} was given {describe(image)}"
        try:
            found = transform(image)
        except Exception as error:  # the transform's own code
            raise DataError(f"{given} and failed with {type(error).__name__}: {first_line(error)}") from error
        if not isinstance(found, Tensor) or found.shape != image.shape or not found.is_floating_point():
            raise DataError(
                f"{given} and gave back {describe(found)}; expected floats of the same shape. The size of images is "
                f"{arg.size}."
            )
        image = found
    return image


def checked_transforms(given: Any, shape: tuple[int, int, int], *, training: bool, key: str) -> list[Transform]:
    """`given`, one transform, several or None, as a list: nodes instantiated, sequences taken apart. One that draws
    random numbers is an augmentation, and for `training` alone. Raises ConfigError, naming `key`, for what cannot be
    called, and for what fails on an image of `shape`."""
    if given is None:
        return []
    transforms: list[Transform] = []
    for position, item in enumerate(given if isinstance(given, list | tuple | nn.Sequential) else [given]):
        place = f"{key}[{position}]"
        made = locate.instantiate(item, key=place) if isinstance(item, Mapping) else item
        for transform in _taken_apart(made):
            if not callable(transform):
                raise ConfigError(f"{place}: expected a transform, found {type(transform).__name__}.")
            try:
                draws = _draws(transform, shape)
            except DataError as error:
                raise ConfigError(f"{place}: {error}") from error
            if training or not draws:
                transforms.append(transform)
    return transforms


def _taken_apart(transform: Any) -> list[Any]:
    if isinstance(transform, nn.Sequential):
        return [part for item in transform for part in _taken_apart(item)]
    if type(transform).__name__ == "Compose" and hasattr(transform, "transforms"):
        return [part for item in transform.transforms for part in _taken_apart(item)]
    return [transform]


def _draws(transform: Transform, shape: tuple[int, int, int]) -> bool:
    """Whether a transform draws from torch's generator, `random` or NumPy's, by trying it."""
    with preserved():
        seed_all(0)
        before = _places()
        transformed([transform], torch.zeros(shape))
        return _places() != before


def _places() -> tuple[Any, ...]:
    """Where the generators are: equal as long as nothing was drawn."""
    state: Any = np.random.get_state()  # noqa: NPY002
    return bytes(torch.get_rng_state().numpy()), random.getstate(), bytes(state[1]), state[2:]
