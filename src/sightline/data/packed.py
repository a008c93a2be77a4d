"""Decode once: a split as uint8 pixels, labels and ids in memory, with a fingerprint of all of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ImageOps
from torch import Tensor

from sightline.data.preprocess import Preprocess, is_gray, open_image
from sightline.errors import DataError
from sightline.types import DataSource, Sample

_CHUNK = 256


@dataclass(frozen=True)
class PackedDataset:
    """One split, decoded. `images` is uint8 [N,C,H,W], `labels` int64 [N], `ids` N texts, all in the source's order."""

    images: Tensor
    labels: Tensor
    ids: tuple[str, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def counts(self) -> dict[str, int]:
        """How many images each class has, in class order."""
        numbers = torch.bincount(self.labels, minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, numbers, strict=True))

    def fingerprint(self) -> str:
        """SHA-256 over shape, pixels, labels and class names: equal exactly when a model would see the same data."""
        digest = hashlib.sha256(repr((tuple(self.images.shape), self.classes)).encode())
        digest.update(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(mean, standard deviation) per channel over all pixels, in units of 0..1. Exact: counted, not accumulated.
        A channel that never changes has a deviation of 1, so that dividing by it is harmless."""
        levels = np.arange(256, dtype=np.float64) / 255
        means, stds = [], []
        for channel in range(self.images.shape[1]):
            counts = np.bincount(self.images[:, channel].reshape(-1).numpy(), minlength=256)
            mean = float(counts @ levels / counts.sum())
            std = float(np.sqrt(counts @ (levels - mean) ** 2 / counts.sum()))
            means.append(mean)
            stds.append(std if np.count_nonzero(counts) > 1 else 1.0)
        return tuple(means), tuple(stds)


def pack(
    samples: Sequence[Sample],
    preprocess: Preprocess,
    classes: tuple[str, ...],
    progress: Callable[[int], None] = lambda _: None,
    exact: Collection[str] = (),
) -> PackedDataset:
    """Decodes every sample with one thread per core. `progress` is called with the number of images just finished,
    `exact` is as in `Preprocess.decode`.

    Raises DataError naming the first image, in the samples' order, that cannot be decoded."""
    shape = (len(samples), *preprocess.shape)
    try:
        images = np.empty(shape, dtype=np.uint8)
    except (MemoryError, ValueError) as error:
        needed = math.prod(shape) / 2**30
        raise DataError(
            f"{len(samples):,} images of {preprocess.height} x {preprocess.width} need {needed:,.1f} GiB of memory, "
            f"more than there is. Set a smaller data.preprocess.size."
        ) from error

    def fill(start: int) -> int:
        stop = min(start + _CHUNK, len(samples))
        for row in range(start, stop):
            images[row] = preprocess.decode(samples[row].image, _name(samples[row]), exact)
        return stop - start

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        jobs = [pool.submit(fill, start) for start in range(0, len(samples), _CHUNK)]
        try:
            for job in jobs:
                progress(job.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    labels = torch.tensor([sample.label for sample in samples], dtype=torch.int64)
    return PackedDataset(torch.from_numpy(images), labels, tuple(sample.id for sample in samples), classes)


def pack_splits(
    source: DataSource,
    preprocess: Preprocess | Mapping[str, object],
    progress: Callable[[int], None] = lambda _: None,
    only: Collection[str] | None = None,
) -> tuple[dict[str, PackedDataset], Preprocess]:
    """Every split of a source (or those in `only`), and the finished preprocessing: a mapping may leave size, channels,
    mean and std "auto", to be taken from the first training image and from the training split's own statistics."""
    if isinstance(preprocess, Preprocess):
        auto: set[str] = set()
        decoder = preprocess
    else:
        auto = {name for name in ("size", "channels", "mean", "std") if preprocess.get(name, "auto") == "auto"}
        decoder = decoder_for(source.splits["train"][0], preprocess)
    packed = {
        split: pack(samples, decoder, source.info.classes, progress, auto)
        for split, samples in source.splits.items()
        if only is None or split in only
    }
    if "mean" in auto or "std" in auto:
        mean, std = packed["train"].statistics()
        decoder = replace(
            decoder, mean=mean if "mean" in auto else decoder.mean, std=std if "std" in auto else decoder.std
        )
    return packed, decoder


def decoder_for(first: Sample, given: Mapping[str, object]) -> Preprocess:
    """The decoding that `given` describes, with what it leaves "auto" taken from the `first` image."""
    values: dict[str, Any] = {name: value for name, value in given.items() if value != "auto"}
    size = values.pop("size", None)
    channels = values.pop("channels", None) or (1 if is_gray(first.image, _name(first)) else 3)
    if size is None:
        width, height = ImageOps.exif_transpose(open_image(first.image, _name(first))).size
    else:
        height, width = (size, size) if isinstance(size, int) else (list(size) * 2)[:2]
    return Preprocess(height=height, width=width, channels=channels, **values)


def _name(sample: Sample) -> str:
    return f"'{sample.image if isinstance(sample.image, Path) else sample.id}'"
