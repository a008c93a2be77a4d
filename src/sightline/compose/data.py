"""The data node of a config -> source, packed splits and loaders; the part of the composition root that is about
images."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from sightline.compose.console import decoding_bar
from sightline.config.schema import DataConfig, PreprocessConfig, TrainConfig
from sightline.core import locate
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


def config_source(config: TrainConfig, known: Sequence[str] = ()) -> DataSource:
    """The data source the config describes; nothing is decoded yet. `known` are the classes of a run that was made with
    it: folders of these names are classes whatever they look like."""
    data = config.data
    nowhere = data.source == "auto" and data.root is None and data.dataset is None and data.csv is None
    if config.module.pretrained and nowhere and not known:
        raise ConfigError(
            "data.root: published weights are for images of your own, and none are named; set data.root=PATH. For the "
            "embedded digits say data.source=digits."
        )
    where = {name: getattr(data, name) for name in _WHERE}
    return open_source(
        data.source,
        **where,
        download=data.download,
        classes=data.classes,
        val=data.val,
        test=data.test,
        seed=config.seed,
        numbers=data.target == "number",
        known=known,
    )


def data_source(config: TrainConfig, given: Any = None, known: Sequence[str] = ()) -> DataSource:
    """The source that was handed over, which may be any data set that `as_source` takes, or the one the config
    describes; `known` is as in `config_source`. Raises ConfigError for a key that would have no effect on it."""
    if given is None:
        return config_source(config, known)
    data = config.data
    changed = [field.name for field in fields(data) if getattr(data, field.name) != getattr(DataConfig(), field.name)]
    for name in ("source", *_WHERE, "download"):
        if name in changed:
            raise ConfigError(f"data.{name}: the source was handed over in Python, so it says nothing; leave it out.")
    numbers = data.target == "number"
    source = as_source(given, classes=data.classes, val=data.val, test=data.test, seed=config.seed, numbers=numbers)
    for name in ("classes", "val", "test"):
        if source is given and name in changed and getattr(data, name) != 0:  # 0 sets nothing aside, and nothing is
            raise ConfigError(
                f"data.{name}: the source that was handed over brings classes and splits of its own, so it says "
                f"nothing; leave it out."
            )
    return source


def with_saved_splits(source: DataSource, record: Mapping[str, Any]) -> DataSource:
    """The source with its splits drawn as those of the run that has this `data.json`."""
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
    """Every split of the source (or those in `only`), packed, and the finished preprocessing. `preprocess` is used in
    place of the config's own: that of a model, or what the weights of one expect, see `resolve_preprocess_keys`."""
    shown = config.trainer.progress
    given = preprocess if isinstance(preprocess, Preprocess) else asdict(preprocess or config.data.preprocess)
    with decoding_bar(sum(len(samples) for samples in source.splits.values()), shown) as progress:
        return pack_splits(source, given, progress, only, _packing(config.data, shown))


def train_loader(config: TrainConfig, data: PackedDataset, preprocess: Preprocess, runtime: Runtime) -> BatchLoader:
    """The loader of the training split. Raises ConfigError where `data.drop_last` would leave nothing of it."""
    settings = config.data
    size = settings.batch_size * config.trainer.accumulate_grad_batches
    if settings.drop_last and len(data) < size:
        raise ConfigError(
            f"data.drop_last: the {len(data)} training images do not fill one step of {size}, so there is "
            f"nothing to train on. Set data.drop_last=false, or a smaller data.batch_size or "
            f"trainer.accumulate_grad_batches."
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
    """The splits that are measured while training: the test split is measured once, after training, since what picks
    the best checkpoint must not be what is reported."""
    return [split for split in splits if split == "val"]


def eval_loaders(
    config: TrainConfig, data: Mapping[str, PackedDataset], preprocess: Preprocess, runtime: Runtime
) -> dict[str, BatchLoader]:
    """One for each split that is evaluated while training, under the resolved config."""
    size: Any = config.data.eval_batch_size
    return {
        split: BatchLoader(data[split], preprocess, size, **_prefetch_batches(config.data, runtime))
        for split in evaluated_splits(data)
    }


def _prefetch_batches(settings: DataConfig, runtime: Runtime) -> dict[str, Any]:
    return {"workers": loader_workers(settings), "prefetch": settings.prefetch, "device": runtime.device}


def build_augmentations(data: DataConfig) -> Sequence[Augmentation]:
    """The augmentations that are switched on, in the order they are applied."""
    values = asdict(data.augment)
    nodes = values.pop("transforms")
    transforms = [
        locate.instantiate(node, key=f"data.augment.transforms[{position}]") for position, node in enumerate(nodes)
    ]
    # one step for all of them: as steps of their own they would draw from the same random stream
    return augmentation_pipeline(**values, transforms=[PerImage(transforms)] if transforms else [])


def data_record(data: Mapping[str, PackedDataset], source: DataSource) -> dict[str, Any]:
    """What `data.json` says: where the data came from, its classes and counts, or how far its numbers spread, its
    fingerprints, what was left out."""
    prints = {split: packed.fingerprint() for split, packed in data.items()}
    drawn = getattr(source, "drawn", None)
    by = {} if drawn is not None and drawn.checksum else {"drawn_by": "content key"}
    return by | {
        "name": source.info.name,
        "root": str(source.info.root.resolve()) if source.info.root else None,
        "classes": list(source.info.classes),
        "splits": {
            split: {"images": len(packed)}
            | ({"classes": packed.counts} if packed.classes else {"labels": packed.spread})
            for split, packed in data.items()
        },
        "fingerprint": prints,
        "left_out": [
            {"split": split, "id": name, "reason": reason}
            for split, packed in data.items()
            for name, reason in packed.left_out
        ],
    }


def file_sizes(source: DataSource) -> dict[str, int]:
    """The bytes of every sample's file by its id, as far as samples are files."""
    sizes = {}
    for samples in source.splits.values():
        for sample in samples:
            if isinstance(sample.image, Path):
                with suppress(OSError):  # one that is missing is told where it is decoded
                    sizes[sample.id] = os.stat(sample.image).st_size  # noqa: PTH116 a third of the time of Path.stat
    return sizes


def _packing(data: DataConfig, shown: bool) -> PackOptions:
    def note(text: str) -> None:
        if shown:
            print(text, file=sys.stderr)

    cache = Cache(data.cache_dir, data.cache_limit * GIB, note) if data.cache else None
    return PackOptions(data.store, cache, data.on_bad, crops=data.augment.crop is not None)


def loader_workers(data: DataConfig) -> int | None:
    """The threads of a loader; None for its own choice."""
    return None if data.workers == "auto" else data.workers
