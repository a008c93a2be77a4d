"""Pictures in `datadir/train` and `datadir/test` -> the engine's batches, or a torch Dataset and DataLoader."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sightline import locate
from sightline.config.data import config_source, data_record, open_data
from sightline.config.schema import TrainConfig
from sightline.data.generators import preserved, seed_all
from sightline.data.loader import BatchLoader
from sightline.data.packed import PackedDataset
from sightline.data.preprocess import Preprocess
from sightline.data.recipe import augmentations
from sightline.errors import ConfigError, DataError, first_line, nearest
from sightline.params.settings import as_config, completed, in_words_of_params
from sightline.random import bits, derive
from sightline.types import Batch, DataSource

KINDS = ("train", "test")
Transform = Callable[[Tensor], Any]


class FashionMNIST(Dataset[tuple[Tensor, Tensor]]):
    """The pictures of `datadir/<kind>` with its `info.csv`, kind "train" or "test": (float32 [C,H,W], int64 label). The
    values are in [0,1], or normalised where `params['normalise_images']` says so; size and colours are those of the
    dict. Those of "train" are flipped at random, by torch's generator; those of "test" never are."""

    def __init__(self, params: Mapping[str, Any], kind: str, datadir: str | Path = "data"):
        if kind not in KINDS:
            raise DataError(f"kind: expected 'train' or 'test', found {kind!r}.{nearest(str(kind), KINDS)}")
        settings = completed(params)
        data, preprocess, _ = open_splits(settings, datadir)
        self.packed = data[kind]
        self.classes = self.packed.classes
        self._normalize = preprocess.normalizer()
        self._flip = settings["flip_probability"] if kind == "train" and settings["flip_images"] else 0.0
        self._further = further_transforms(settings, preprocess.shape, kind == "train")

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One picture and its label."""
        image = self._normalize(self.packed.pixels([range(len(self))[index]]))[0]
        if self._flip:
            image = image.flip([axis for axis in (1, 2) if torch.rand(()) < self._flip])
        for transform in self._further:
            image = transformed(transform, image)
        return image, self.packed.labels[index]


def get_dataloader(
    params: Mapping[str, Any], kind: str, datadir: str | Path = "data"
) -> DataLoader[tuple[Tensor, Tensor]]:
    """A DataLoader over `FashionMNIST(params, kind, datadir)`: in batches of `batch_size`, shuffled where
    `shuffle_dataset` says so, for "train"; of `eval_batch_size`, in order, for "test"."""
    dataset, settings = FashionMNIST(params, kind, datadir), completed(params)
    if kind == "test":
        return DataLoader(dataset, batch_size=settings["eval_batch_size"])
    return DataLoader(dataset, batch_size=settings["batch_size"], shuffle=settings["shuffle_dataset"])


def open_splits(
    settings: Mapping[str, Any], datadir: str | Path
) -> tuple[dict[str, PackedDataset], Preprocess, dict[str, Any]]:
    """(the packed splits, how they are preprocessed, what is noted about them)."""
    config = as_config(settings, datadir)
    with in_words_of_params():
        source = _source(config)
        if "test" not in source.splits:
            raise DataError(
                f"datadir: '{datadir}' has no pictures to measure by; put them into '{Path(datadir) / 'test'}', with a "
                f"table info.csv of the columns files and type, as in 'train'."
            )
        data, preprocess = open_data(config, source)
        return data, preprocess, data_record(data, source)


def _source(config: TrainConfig) -> DataSource:
    """Labels are 0 to n_classes - 1, or as many names."""
    try:
        return config_source(config)
    except DataError:
        with suppress(DataError):
            named = config_source(replace(config, data=replace(config.data, classes=None)))
            if len(named.info.classes) == config.data.classes:
                return named
        raise


def build_loaders(
    settings: Mapping[str, Any], data: Mapping[str, PackedDataset], preprocess: Preprocess, device: torch.device
) -> tuple[BatchLoader | Transformed, BatchLoader | Transformed]:
    """The loaders of train, shuffled and flipped as the dict says, and of test, as it is."""
    flip = settings["flip_probability"] if settings["flip_images"] else 0.0
    train = BatchLoader(
        data["train"],
        preprocess,
        settings["batch_size"],
        shuffle=settings["shuffle_dataset"],
        augment=augmentations(flip=flip, vertical_flip=flip),
        seed=settings["manual_seed"],
        device=device,
    )
    test = BatchLoader(data["test"], preprocess, settings["eval_batch_size"], device=device)
    steps = [further_transforms(settings, preprocess.shape, training) for training in (True, False)]
    return (
        Transformed(train, steps[0], settings["manual_seed"]) if steps[0] else train,
        Transformed(test, steps[1], settings["manual_seed"]) if steps[1] else test,
    )


class Transformed:
    """A loader whose pictures, float32 [C,H,W], go one by one through further transforms. What these draw from the
    global generators is a function of (seed, epoch, sample)."""

    def __init__(self, loader: BatchLoader, steps: Sequence[Transform], seed: int):
        self.loader, self.steps, self.seed = loader, tuple(steps), seed
        self._epoch = 0

    def __len__(self) -> int:
        return len(self.loader)

    def seek(self, epoch: int, batch: int = 0) -> None:
        """As that of the loader."""
        self._epoch = epoch
        self.loader.seek(epoch, batch)

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
                    image = images[row]
                    for step in self.steps:
                        image = transformed(step, image)
                    images[row] = image
            yield batch


def further_transforms(settings: Mapping[str, Any], shape: tuple[int, int, int], training: bool) -> list[Transform]:
    """`additional_transforms`, taken apart where one is a sequence of others. Whichever of them draws random numbers
    is an augmentation, and for training alone. Raises ConfigError for what cannot be called or fails."""
    given = settings["additional_transforms"]
    if given is None:
        return []
    if not isinstance(given, list | tuple | nn.Sequential):
        given = [given]
    steps: list[Transform] = []
    for position, item in enumerate(given):
        key = f"params['additional_transforms'][{position}]"
        made = locate.instantiate(item, key=key) if isinstance(item, Mapping) else item
        for step in _taken_apart(made):
            if not callable(step):
                raise ConfigError(f"{key}: expected a transform, found {type(step).__name__}.")
            if not _draws(step, shape, key) or training:
                steps.append(step)
    return steps


def _taken_apart(transform: Any) -> list[Any]:
    if isinstance(transform, nn.Sequential):
        return [part for item in transform for part in _taken_apart(item)]
    if type(transform).__name__ == "Compose" and hasattr(transform, "transforms"):
        return [part for item in transform.transforms for part in _taken_apart(item)]
    return [transform]


def _draws(step: Transform, shape: tuple[int, int, int], key: str) -> bool:
    """Whether a transform draws from torch's generator, `random` or NumPy's, by trying it."""
    with preserved():
        seed_all(0)
        before = _drawn()
        try:
            transformed(step, torch.zeros(shape))
        except DataError as error:
            raise ConfigError(f"{key}: {error}") from error
        return _drawn() != before


def _drawn() -> tuple[Any, ...]:
    state: Any = np.random.get_state()  # noqa: NPY002
    return bytes(torch.get_rng_state().numpy()), random.getstate(), bytes(state[1]), state[2:]


def transformed(step: Transform, image: Tensor) -> Tensor:
    """float32 [C,H,W] through one transform, checked. Raises DataError where it fails or gives something else."""
    name = getattr(step, "__name__", type(step).__name__)
    told = f"{name} was given float32 {list(image.shape)}"
    try:
        found = step(image)
    except Exception as error:  # the transform's own code
        raise DataError(f"{told} and failed with {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(found, Tensor) or found.shape != image.shape or not found.is_floating_point():
        kind = f"{str(found.dtype)[6:]} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise DataError(
            f"{told} and gave back {kind}; expected floats of the same shape. The size of pictures is "
            f"params['image_height'] and params['image_width']."
        )
    return found
