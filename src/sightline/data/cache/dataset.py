"""A split that is ready to train on: decoded or encoded images, labels, ids and image statistics."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sightline.core.errors import DataError
from sightline.data.images.decode import ImageInput, Pixels
from sightline.data.images.digest import ImageStats
from sightline.data.images.preprocess import CropRegion, Preprocess

_BLOCK = 1024


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """Images that are kept encoded and decoded on each access.

    `sizes` is int32 [N, 2], the original (height, width). `read(row)` returns the encoded image, or its pixels if the
    source has no encoded form; `name(row)` is the name for messages. Safe to use from several threads."""

    preprocess: Preprocess
    sizes: NDArray[np.int32]
    read: Callable[[int], ImageInput]
    name: Callable[[int], str]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        return (len(self.sizes), *self.preprocess.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def decode(self, row: int, crop: CropRegion | None = None) -> Pixels:
        """Decodes image `row` to uint8 [C, H, W]; `crop` is as in `Preprocess.decode`."""
        return self.preprocess.decode(self.read(row), self.name(row), crop=crop)


@dataclass(frozen=True)
class PackedDataset:
    """One split of a dataset: the images, labels and ids of its N samples, in the order of the source.

    `images` is a uint8 tensor [M, C, H, W] or `EncodedImages`. Sample i is image `rows[i]`, or image i if `rows` is
    None. `labels` is int64 [N], the class indices; for regression `classes` is empty and `labels` is float32 [N, 1].
    `stats` are the statistics of the images; they are computed when needed if None. `columns` are the other columns of
    a table, by name. `left_out` are the (id, reason) of images that could not be read. Raises DataError for images of
    another dtype or shape, and for another number of labels or ids than images."""

    images: Tensor | EncodedImages
    labels: Tensor
    ids: Sequence[str]
    classes: tuple[str, ...]
    rows: NDArray[np.int64] | None = None
    stats: ImageStats | None = None
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        images, count = self.images, len(self.images if self.rows is None else self.rows)
        if isinstance(images, Tensor) and (images.dtype != torch.uint8 or images.ndim != 4):
            found = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
            raise DataError(f"images: expected uint8 [M, C, H, W], found {found}.")
        for name, values in (("labels", self.labels), ("ids", self.ids)):
            if len(values) != count:
                raise DataError(f"{name}: expected one for each of the {count} images, found {len(values)}.")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        return (len(self), *self.images.shape[1:])

    @property
    def counts(self) -> dict[str, int]:
        """The number of samples of each class, in class order; empty for regression."""
        if not self.classes:
            return {}
        counts = torch.bincount(self.labels, minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, counts, strict=True))

    @property
    def spread(self) -> dict[str, float]:
        """Minimum, maximum and mean of regression labels; empty if there are no samples."""
        labels = self.labels.double()
        if not len(labels):
            return {}
        return {"min": labels.min().item(), "max": labels.max().item(), "mean": labels.mean().item()}

    def places(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the rows of `images` for these samples."""
        return samples if self.rows is None else self.rows[samples]

    def pixels(self, samples: NDArray[np.int64] | Sequence[int]) -> Tensor:
        """Returns the preprocessed images of these samples, uint8 [B, C, H, W], before normalisation."""
        rows = self.places(np.asarray(samples, dtype=np.int64))
        if isinstance(self.images, Tensor):
            return self.images.index_select(0, torch.from_numpy(rows))
        pixels = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for position, row in enumerate(rows.tolist()):
            pixels[position] = self.images.decode(row)
        return torch.from_numpy(pixels)

    def fingerprint(self) -> str:
        """Returns a SHA-256 over the shape, the class names, and the digest and label of every image.

        Equal exactly when a model would be trained on the same data, independent of its source, order and storage."""
        digests, order = self._digests(), self.canonical()
        digest = hashlib.sha256(repr((self.shape, self.classes)).encode())
        digest.update(digests[order].tobytes())
        digest.update(self.labels.numpy()[order].tobytes())
        return digest.hexdigest()

    def canonical(self) -> NDArray[np.int64]:
        """Returns the sample indices sorted by image digest, which does not depend on the order of the source."""
        halves = self._digests().view("<u8")
        return np.lexsort((self.labels.flatten().numpy(), halves[:, 1], halves[:, 0]))  # equal images: by label

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Returns (mean, standard deviation) per channel over all pixels, scaled to 0..1, from exact integer sums.

        The standard deviation of a constant channel is returned as 1, so that dividing by it is safe."""
        stats, rows = self._stats_and_rows()
        sums = (stats.moments if rows is None else stats.moments[rows]).sum(0)
        count = math.prod(self.shape) // self.shape[1]
        means, stds = [], []
        for total, squares in sums.tolist():
            variance = count * squares - total * total  # times count ** 2; Python integers do not overflow
            means.append(total / count / 255)
            stds.append(math.sqrt(variance) / count / 255 if variance else 1.0)
        return tuple(means), tuple(stds)

    def _digests(self) -> NDArray[np.uint8]:
        """Returns the digests of this split's images, uint8 [N, 16]."""
        stats, rows = self._stats_and_rows()
        return np.ascontiguousarray(stats.digests if rows is None else stats.digests[rows])

    def _stats_and_rows(self) -> tuple[ImageStats, NDArray[np.int64] | None]:
        """Returns the statistics and the rows of them that belong to this split (None: all). Computes the statistics if
        there are none."""
        if self.stats is not None:
            return self.stats, self.rows
        blocks = [range(start, min(start + _BLOCK, len(self))) for start in range(0, len(self), _BLOCK)]
        parts = [ImageStats.from_images(self.pixels(block).contiguous().numpy()) for block in blocks]
        empty = ImageStats.zeros(0, self.shape[1])
        return ImageStats(*(np.concatenate(part) for part in zip(empty, *parts, strict=True))), None
