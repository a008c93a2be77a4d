"""What is noted of every image when it is decoded: the stuff of fingerprints, statistics and checks."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sightline.data.decode import Pixels

DIGEST = 16  # bytes of SHA-256 kept of each image
_EXACT = 256  # the squares of so many pixels add up exactly in float32: 256 * 255 ** 2 < 2 ** 24


class Facts(NamedTuple):
    """Of each image: `digests` uint8 [N,16], the first bytes of the SHA-256 of its pixels [C,H,W]; `moments` int64
    [N,C,2], the sums of its pixels and of their squares; `sizes` int32 [N,2], the (height, width) the picture had, 0
    where it could not be read; `lost` bool [N], whether it was in colour and became gray; `keys` uint64 [N], the
    `content_key` of what it showed before it was brought to size, 0 where it could not be read."""

    digests: NDArray[np.uint8]
    moments: NDArray[np.int64]
    sizes: NDArray[np.int32]
    lost: NDArray[np.bool_]
    keys: NDArray[np.uint64]

    @classmethod
    def empty(cls, count: int, channels: int) -> Facts:
        """Room for `count` images."""
        return cls(
            np.zeros((count, DIGEST), np.uint8),
            np.zeros((count, channels, 2), np.int64),
            np.zeros((count, 2), np.int32),
            np.zeros(count, bool),
            np.zeros(count, np.uint64),
        )

    @classmethod
    def of(cls, pixels: Pixels) -> Facts:
        """The facts of images uint8 [N,C,H,W] that were never of another size or colour."""
        count, channels, height, width = pixels.shape
        facts = cls.empty(count, channels)
        facts.digests[:] = np.frombuffer(digests(pixels), np.uint8).reshape(-1, DIGEST)
        facts.moments[:] = moments(pixels)
        facts.sizes[:] = height, width
        return facts


def digests(pixels: Pixels) -> bytes:
    """The digests of images uint8 [N,C,H,W], one after the other."""
    return b"".join([hashlib.sha256(image).digest()[:DIGEST] for image in pixels])


def moments(pixels: Pixels) -> NDArray[np.int64]:
    """int64 [N,C,2] of images uint8 [N,C,H,W]: the sum of the pixels and the sum of their squares, exactly."""
    count, channels, height, width = pixels.shape
    flat = pixels.reshape(count, channels, height * width)
    found = np.empty((count, channels, 2), np.int64)
    found[..., 0] = flat.sum(-1, dtype=np.int64)
    whole = flat.shape[-1] // _EXACT * _EXACT
    wide = flat[..., :whole].reshape(-1, _EXACT).astype(np.float32)
    found[..., 1] = np.einsum("ij,ij->i", wide, wide).reshape(count, channels, whole // _EXACT).sum(-1, dtype=np.int64)
    rest = flat[..., whole:].astype(np.int64)
    found[..., 1] += (rest * rest).sum(-1)
    return found
