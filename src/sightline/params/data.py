"""Loads the images in `datadir/train` and `datadir/test`, for the engine or as a torch Dataset and DataLoader."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sightline.compose.data import config_source, data_record, open_data
from sightline.config.schema import TrainConfig
from sightline.core.errors import DataError, argument_names, did_you_mean
from sightline.data.augment.per_image import Transform, TransformedLoader, apply_transforms, build_transforms
from sightline.data.augment.pipeline import augmentation_pipeline
from sightline.data.cache.dataset import PackedDataset
from sightline.data.images.preprocess import Preprocess
from sightline.data.loading.loader import BatchLoader
from sightline.data.records import DataSource
from sightline.params.settings import NAMES, as_config, with_defaults

KINDS = ("train", "test")


class FashionMNIST(Dataset[tuple[Tensor, Tensor]]):
    """A torch Dataset of the images that `datadir/<kind>/info.csv` lists, as (float32 [C, H, W], int64 label).

    `kind` is "train" or "test". Values are in [0, 1], or normalised if `params['normalise_images']`; size and colour
    are those of the dict. With `flip_images`, "train" images are flipped at random, by torch's global generator. Raises
    DataError or ConfigError for invalid data or an invalid dict."""

    def __init__(self, params: Mapping[str, Any], kind: str, datadir: str | Path = "data"):
        if kind not in KINDS:
            raise DataError(f"kind: expected 'train' or 'test', found {kind!r}.{did_you_mean(str(kind), KINDS)}")
        settings = with_defaults(params)
        data, preprocess, _ = open_splits(settings, datadir)
        self.packed = data[kind]
        self.classes = self.packed.classes
        self._normalize = preprocess.normalizer()
        self._flip = settings["flip_probability"] if kind == "train" and settings["flip_images"] else 0.0
        self._transforms = additional_transforms(settings, preprocess, kind == "train")

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Returns one image and its label."""
        image = self._normalize(self.packed.pixels([range(len(self))[index]]))[0]
        if self._flip:
            image = image.flip([axis for axis in (1, 2) if torch.rand(()) < self._flip])
        if self._transforms:
            with argument_names(NAMES):
                image = apply_transforms(self._transforms, image)
        return image, self.packed.labels[index]


def get_dataloader(
    params: Mapping[str, Any], kind: str, datadir: str | Path = "data"
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Returns a DataLoader over `FashionMNIST(params, kind, datadir)`.

    Batches of "train" have `batch_size` images and are shuffled if `shuffle_dataset`. Batches of "test" have
    `eval_batch_size` images, in order."""
    dataset, settings = FashionMNIST(params, kind, datadir), with_defaults(params)
    if kind == "test":
        return DataLoader(dataset, batch_size=settings["eval_batch_size"])
    return DataLoader(dataset, batch_size=settings["batch_size"], shuffle=settings["shuffle_dataset"])


def open_splits(
    settings: Mapping[str, Any], datadir: str | Path
) -> tuple[dict[str, PackedDataset], Preprocess, dict[str, Any]]:
    """Returns (the packed dataset of each split, their preprocessing, the record of the data).

    Raises DataError if there are no test images."""
    config = as_config(settings, datadir)
    with argument_names(NAMES):
        source = _source(config)
        if "test" not in source.splits:
            raise DataError(
                f"datadir: '{datadir}' has no test images. Put them into '{Path(datadir) / 'test'}', with a table "
                f"info.csv that has the columns files and type, as in 'train'."
            )
        data, preprocess = open_data(config, source)
        return data, preprocess, data_record(data, source)


def _source(config: TrainConfig) -> DataSource:
    """The data source, whose labels are 0 to n_classes - 1, or n_classes different names."""
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
) -> tuple[BatchLoader | TransformedLoader, BatchLoader | TransformedLoader]:
    """Returns (train loader, test loader). Only training images are shuffled and flipped, as the dict says."""
    flip = settings["flip_probability"] if settings["flip_images"] else 0.0
    train = BatchLoader(
        data["train"],
        preprocess,
        settings["batch_size"],
        shuffle=settings["shuffle_dataset"],
        augment=augmentation_pipeline(flip=flip, vertical_flip=flip),
        seed=settings["manual_seed"],
        device=device,
    )
    test = BatchLoader(data["test"], preprocess, settings["eval_batch_size"], device=device)
    transforms = [additional_transforms(settings, preprocess, training) for training in (True, False)]
    return (
        TransformedLoader(train, transforms[0], settings["manual_seed"]) if transforms[0] else train,
        TransformedLoader(test, transforms[1], settings["manual_seed"]) if transforms[1] else test,
    )


def additional_transforms(settings: Mapping[str, Any], preprocess: Preprocess, training: bool) -> list[Transform]:
    """Returns those of `params['additional_transforms']` that apply to training or to evaluation."""
    transforms, key = settings["additional_transforms"], "params['additional_transforms']"
    with argument_names(NAMES):
        return build_transforms(transforms, preprocess.shape, training=training, key=key)
