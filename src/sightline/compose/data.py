"""Builds the data source, packed splits, loaders and augmentations that a config's `data` node describes."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from sightline.config.schema import DataConfig, PreprocessConfig, TrainConfig
from sightline.core import locate
from sightline.core.console import progress_bar
from sightline.core.errors import ConfigError
from sightline.core.types import Augmentation
from sightline.data.augment.per_image import PerImage
from sightline.data.augment.pipeline import augmentation_pipeline
from sightline.data.cache.dataset import PackedDataset
from sightline.data.cache.directory import GIB, Cache
from sightline.data.cache.pack import PackOptions, pack_splits
from sightline.data.images.preprocess import Preprocess
from sightline.data.loading.loader import BatchLoader
from sightline.data.records import DataSource
from sightline.data.sources.adapt import as_source
from sightline.data.sources.listing import ListSource
from sightline.data.sources.open import open_source
from sightline.engine.runtime import Runtime

_WHERE = ("root", "csv", "images", "image_column", "label_column", "split_column", "group_column", "dataset")
"""Keys of `data` that say where the data is and which of it to read."""


def config_source(config: TrainConfig, known: Sequence[str] = ()) -> DataSource:
    """Opens the data source that the config describes, without decoding images.

    `known` are the class names of a run that was trained on it. Folders with these names are read as class folders,
    even if they look like splits. Raises ConfigError for pretrained weights without data, and DataError for data that
    cannot be used."""
    data = config.data
    unspecified = data.source == "auto" and data.root is None and data.dataset is None and data.csv is None
    if config.module.pretrained and unspecified and not known:
        raise ConfigError(
            "data.root: pretrained weights are for your own images, and no data is set. Set data.root=PATH, or "
            "data.source=digits for the embedded digits."
        )
    location = {name: getattr(data, name) for name in _WHERE}
    return open_source(
        data.source,
        **location,
        download=data.download,
        classes=data.classes,
        val=data.val,
        test=data.test,
        seed=config.seed,
        numbers=data.target == "number",
        known=known,
    )


def data_source(config: TrainConfig, given: Any = None, known: Sequence[str] = ()) -> DataSource:
    """Returns `given` as a data source, or opens the one the config describes if `given` is None.

    `given` is any data that `as_source` accepts, `known` is as in `config_source`. Raises ConfigError for a config key
    that has no effect on `given`."""
    if given is None:
        return config_source(config, known)
    data = config.data
    changed = [field.name for field in fields(data) if getattr(data, field.name) != getattr(DataConfig(), field.name)]
    for name in ("source", *_WHERE, "download"):
        if name in changed:
            raise ConfigError(
                f"data.{name}: the source was passed in from Python, so this key has no effect. Remove it."
            )
    numbers = data.target == "number"
    source = as_source(given, classes=data.classes, val=data.val, test=data.test, seed=config.seed, numbers=numbers)
    for name in ("classes", "val", "test"):
        if source is given and name in changed and getattr(data, name) != 0:  # 0 holds out nothing, as here
            raise ConfigError(
                f"data.{name}: the source passed in from Python defines its classes and splits, so this key has no "
                f"effect. Remove it."
            )
    return source


def with_saved_splits(source: DataSource, record: Mapping[str, Any]) -> DataSource:
    """Returns the source with val and test held out in the way that the run with this data.json (`record`) used.

    Runs of earlier versions ordered the rows by a checksum of the pixels, later ones by the content key."""
    drawn = getattr(source, "drawn", None)
    if not isinstance(source, ListSource) or drawn is None or "drawn_by" in record:
        return source
    return replace(source, drawn=drawn._replace(checksum=True))


def open_data(
    config: TrainConfig,
    source: DataSource,
    preprocess: Preprocess | PreprocessConfig | None = None,
    only: Collection[str] | None = None,
) -> tuple[dict[str, PackedDataset], Preprocess]:
    """Decodes or loads from the cache every split of the source, and returns the packed splits and the preprocessing.

    `only` limits the splits. `preprocess` replaces the config's `data.preprocess`: the preprocessing of a model, or the
    keys that pretrained weights expect, see `resolve_preprocess_keys`."""
    shown = config.trainer.progress
    wanted = preprocess if isinstance(preprocess, Preprocess) else asdict(preprocess or config.data.preprocess)
    with progress_bar("decoding", sum(len(samples) for samples in source.splits.values()), shown) as progress:
        return pack_splits(source, wanted, progress, only, _pack_options(config.data))


def train_loader(config: TrainConfig, data: PackedDataset, preprocess: Preprocess, runtime: Runtime) -> BatchLoader:
    """Returns the loader of the training split `data`, with shuffling and augmentation.

    A batch of the loader is one optimiser step, `data.batch_size * trainer.accumulate_grad_batches` images. Raises
    ConfigError if `data.drop_last` would drop all images."""
    settings = config.data
    size = settings.batch_size * config.trainer.accumulate_grad_batches
    if settings.drop_last and len(data) < size:
        raise ConfigError(
            f"data.drop_last: the {len(data)} training images do not fill one step of {size} images, so all would be "
            f"dropped. Set data.drop_last=false, or reduce data.batch_size or trainer.accumulate_grad_batches."
        )
    return BatchLoader(
        data,
        preprocess,
        size,
        drop_last=settings.drop_last,
        shuffle=True,
        balanced=settings.sampler == "balanced",
        augment=build_augmentations(settings),
        seed=config.seed,
        **_prefetch_batches(settings, runtime),
    )


def evaluated_splits(splits: Collection[str]) -> list[str]:
    """Returns the splits that are evaluated during training, at most `val`.

    The test split is evaluated once, after training: data that selects the best checkpoint must not be the data whose
    metrics are reported."""
    return [split for split in splits if split == "val"]


def eval_loaders(
    config: TrainConfig, data: Mapping[str, PackedDataset], preprocess: Preprocess, runtime: Runtime
) -> dict[str, BatchLoader]:
    """Returns a loader for each split that is evaluated during training. `config` must be resolved."""
    size: Any = config.data.eval_batch_size
    return {
        split: BatchLoader(data[split], preprocess, size, **_prefetch_batches(config.data, runtime))
        for split in evaluated_splits(data)
    }


def _prefetch_batches(settings: DataConfig, runtime: Runtime) -> dict[str, Any]:
    return {"workers": loader_workers(settings), "prefetch": settings.prefetch, "device": runtime.device}


def build_augmentations(data: DataConfig) -> Sequence[Augmentation]:
    """Returns the augmentations that are enabled, in the order in which they are applied."""
    values = asdict(data.augment)
    nodes = values.pop("transforms")
    transforms = [
        locate.instantiate(node, key=f"data.augment.transforms[{position}]") for position, node in enumerate(nodes)
    ]
    # one PerImage for all transforms, because separate ones would draw from the same random stream
    return augmentation_pipeline(**values, transforms=[PerImage(transforms)] if transforms else [])


def data_record(data: Mapping[str, PackedDataset], source: DataSource) -> dict[str, Any]:
    """Returns the content of data.json: name, root, classes, counts and fingerprints of the data, and left-out images.

    For regression it has statistics of the labels instead of counts by class."""
    fingerprints = {split: packed.fingerprint() for split, packed in data.items()}
    drawn = getattr(source, "drawn", None)
    method = {} if drawn is not None and drawn.checksum else {"drawn_by": "content key"}
    return method | {
        "name": source.info.name,
        "root": str(source.info.root.resolve()) if source.info.root else None,
        "classes": list(source.info.classes),
        "splits": {
            split: {"images": len(packed)}
            | ({"classes": packed.counts} if packed.classes else {"labels": packed.spread})
            for split, packed in data.items()
        },
        "fingerprint": fingerprints,
        "left_out": [
            {"split": split, "id": name, "reason": reason}
            for split, packed in data.items()
            for name, reason in packed.left_out
        ],
    }


def file_sizes(source: DataSource) -> dict[str, int]:
    """Returns the file size in bytes of every sample by id, for the samples that are separate files."""
    sizes = {}
    for samples in source.splits.values():
        for sample in samples:
            if isinstance(sample.image, Path):
                with suppress(OSError):  # a missing file is reported by the decoder
                    sizes[sample.id] = os.stat(sample.image).st_size  # noqa: PTH116 three times as fast as Path.stat
    return sizes


def _pack_options(data: DataConfig) -> PackOptions:
    cache = Cache(data.cache_dir, data.cache_limit * GIB) if data.cache else None
    return PackOptions(data.store, cache, data.on_bad, crops=data.augment.crop is not None)


def loader_workers(data: DataConfig) -> int | None:
    """Returns the number of threads of a loader, or None if the loader is to choose it."""
    return None if data.workers == "auto" else data.workers
