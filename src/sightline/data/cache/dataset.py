"""A split that is ready to train on: images decoded, or encoded and decoded ahead of the step, with labels, ids and the
statistics of every image that its fingerprint is made of."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sightline.data.images.decode import ImageInput, Pixels
from sightline.data.images.digest import ImageStats
from sightline.data.images.preprocess import CropRegion, Preprocess

_BLOCK = 1024


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """Images that are decoded each time they are looked at. `sizes` is int32 [N,2], their own (height, width).
    `read(row)` gives an encoded image, or its pixels where its source has no other form; `name(row)` is for messages.
    Safe for several threads."""

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
        """uint8 [C,H,W]; see `Preprocess.decode` for `crop`."""
        return self.preprocess.decode(self.read(row), self.name(row), crop=crop)


@dataclass(frozen=True)
class PackedDataset:
    """One split. `images` is uint8 [M,C,H,W] or `EncodedImages`; sample i is image `rows[i]`, or image i where there
    are no rows. `labels` is int64 [N], or float32 [N,1] where there are no `classes` and labels are numbers to predict;
    `ids` are N texts, all in the source's order. `columns` are further columns of
    a table, by name; `left_out` the (id, reason) of images that could not be read."""

    images: Tensor | EncodedImages
    labels: Tensor
    ids: Sequence[str]
    classes: tuple[str, ...]
    rows: NDArray[np.int64] | None = None
    stats: ImageStats | None = None
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        return (len(self), *self.images.shape[1:])

    @property
    def counts(self) -> dict[str, int]:
        """How many images each class has, in class order; nothing where labels are numbers."""
        if not self.classes:
            return {}
        numbers = torch.bincount(self.labels, minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, numbers, strict=True))

    @property
    def spread(self) -> dict[str, float]:
        """Least, greatest and mean of labels that are numbers."""
        numbers = self.labels.double()
        if not len(numbers):
            return {}
        return {"min": numbers.min().item(), "max": numbers.max().item(), "mean": numbers.mean().item()}

    def places(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of `images` that hold these samples."""
        return samples if self.rows is None else self.rows[samples]

    def pixels(self, samples: NDArray[np.int64] | Sequence[int]) -> Tensor:
        """uint8 [B,C,H,W] of some samples, as the network sees them before normalisation."""
        places = self.places(np.asarray(samples, dtype=np.int64))
        if isinstance(self.images, Tensor):
            return self.images.index_select(0, torch.from_numpy(places))
        found = np.empty((len(places), *self.shape[1:]), np.uint8)
        for position, place in enumerate(places.tolist()):
            found[position] = self.images.decode(place)
        return torch.from_numpy(found)

    def fingerprint(self) -> str:
        """SHA-256 over shape, class names, and every image's own with its label: equal exactly when a model would be
        trained on the same data, wherever it came from, in whatever order, and however it is kept."""
        digests, order = self._digests(), self.canonical()
        digest = hashlib.sha256(repr((self.shape, self.classes)).encode())
        digest.update(digests[order].tobytes())
        digest.update(self.labels.numpy()[order].tobytes())
        return digest.hexdigest()

    def canonical(self) -> NDArray[np.int64]:
        """The samples in an order that is theirs, whatever order they were listed in."""
        words = self._digests().view("<u8")
        return np.lexsort((self.labels.flatten().numpy(), words[:, 1], words[:, 0]))  # of equal images, by label

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(mean, standard deviation) per channel over all pixels, in units of 0..1. Exact: whole numbers are summed.
        A channel that never changes has a deviation of 1, so that dividing by it is harmless."""
        stats, rows = self._noted()
        sums = (stats.moments if rows is None else stats.moments[rows]).sum(0)
        count = math.prod(self.shape) // self.shape[1]
        means, stds = [], []
        for total, squares in sums.tolist():
            spread = count * squares - total * total  # Python's integers are as long as they need to be
            means.append(total / count / 255)
            stds.append(math.sqrt(spread) / count / 255 if spread else 1.0)
        return tuple(means), tuple(stds)

    def _digests(self) -> NDArray[np.uint8]:
        """uint8 [N,16], those of this split's images."""
        stats, rows = self._noted()
        return np.ascontiguousarray(stats.digests if rows is None else stats.digests[rows])

    def _noted(self) -> tuple[ImageStats, NDArray[np.int64] | None]:
        """The stats, and which rows of them are this split's; worked out now where no packing has noted them."""
        if self.stats is not None:
            return self.stats, self.rows
        blocks = [range(start, min(start + _BLOCK, len(self))) for start in range(0, len(self), _BLOCK)]
        parts = [ImageStats.from_images(self.pixels(block).contiguous().numpy()) for block in blocks]
        empty = ImageStats.zeros(0, self.shape[1])
        return ImageStats(*(np.concatenate(part) for part in zip(empty, *parts, strict=True))), None
