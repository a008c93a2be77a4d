"""Hashes and sums of an image's pixels, computed when it is decoded: its content key, and the digest, moments and size
that fingerprints, statistics and checks are made of."""

from __future__ import annotations

import hashlib
import io
import zlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from xxhash import xxh3_64_intdigest

from sightline.data.images.decode import (
    DecodedImage,
    ImageInput,
    Pixels,
    composite_alpha,
    decode_image,
    decode_jpeg_turbo,
    image_from_array,
    read_source,
)

DIGEST_BYTES = 16  # bytes of SHA-256 kept of each image
_EXACT_CHUNK = 256  # the squares of so many pixels add up exactly in float32: 256 * 255 ** 2 < 2 ** 24


class ImageStats(NamedTuple):
    """Of each image: `digests` uint8 [N,16], the first bytes of the SHA-256 of its pixels [C,H,W]; `moments` int64
    [N,C,2], the sums of its pixels and of their squares; `sizes` int32 [N,2], the (height, width) the image had, 0
    where it could not be read; `lost` bool [N], whether it was in colour and became gray; `keys` uint64 [N], the
    `content_key` of what it showed before it was brought to size, 0 where it could not be read."""

    digests: NDArray[np.uint8]
    moments: NDArray[np.int64]
    sizes: NDArray[np.int32]
    lost: NDArray[np.bool_]
    keys: NDArray[np.uint64]

    @classmethod
    def zeros(cls, count: int, channels: int) -> ImageStats:
        """Room for `count` images."""
        return cls(
            np.zeros((count, DIGEST_BYTES), np.uint8),
            np.zeros((count, channels, 2), np.int64),
            np.zeros((count, 2), np.int32),
            np.zeros(count, bool),
            np.zeros(count, np.uint64),
        )

    @classmethod
    def from_images(cls, pixels: Pixels) -> ImageStats:
        """The stats of images uint8 [N,C,H,W] that were never of another size or colour."""
        count, channels, height, width = pixels.shape
        stats = cls.zeros(count, channels)
        stats.digests[:] = np.frombuffer(digests(pixels), np.uint8).reshape(-1, DIGEST_BYTES)
        stats.moments[:] = moments(pixels)
        stats.sizes[:] = height, width
        return stats


def digests(pixels: Pixels) -> bytes:
    """The digests of images uint8 [N,C,H,W], one after the other."""
    return b"".join([hashlib.sha256(image).digest()[:DIGEST_BYTES] for image in pixels])


def moments(pixels: Pixels) -> NDArray[np.int64]:
    """int64 [N,C,2] of images uint8 [N,C,H,W]: the sum of the pixels and the sum of their squares, exactly."""
    count, channels, height, width = pixels.shape
    flat = pixels.reshape(count, channels, height * width)
    found = np.empty((count, channels, 2), np.int64)
    found[..., 0] = flat.sum(-1, dtype=np.int64)
    whole = flat.shape[-1] // _EXACT_CHUNK * _EXACT_CHUNK
    wide = flat[..., :whole].reshape(-1, _EXACT_CHUNK).astype(np.float32)
    found[..., 1] = (
        np.einsum("ij,ij->i", wide, wide).reshape(count, channels, whole // _EXACT_CHUNK).sum(-1, dtype=np.int64)
    )
    rest = flat[..., whole:].astype(np.int64)
    found[..., 1] += (rest * rest).sum(-1)
    return found


def content_key(image: DecodedImage) -> int:
    """A 64-bit hash (XXH3 of Collet's xxHash) of the size and all pixels of an image in its own size: equal for equal
    pixels, whatever the format and mode they are stored in. A colour image without colours has the key of the gray
    image; alpha counts as composited over white, whatever `data.preprocess.background` is."""
    is_canonical = isinstance(image, np.ndarray) and (image.ndim == 2 or image.shape[2] == 3)
    pixels = np.asarray(image) if is_canonical else composite_alpha(decode_image(image, "the image"), 255)
    height, width = pixels.shape[:2]
    colour = pixels.ndim == 3 and _has_colours(pixels)
    gray = pixels if colour or pixels.ndim == 2 else pixels[..., 0]
    return xxh3_64_intdigest(np.ascontiguousarray(gray).data, height << 33 | width << 1 | colour)


def content_checksum(image: ImageInput, name: str) -> int:
    """What splits were drawn by before there was a `content_key`, for runs of then: a CRC-32 of some bytes of an image
    as it is stored."""
    found = read_source(image, name)
    pixels: Any = decode_jpeg_turbo(found, name) if isinstance(found, bytes) and found[:2] == b"\xff\xd8" else None
    if pixels is None:
        stored = Image.open(io.BytesIO(found)) if isinstance(found, bytes) else found
        stored = ImageOps.exif_transpose(stored) if isinstance(stored, Image.Image) else image_from_array(stored, name)
        pixels = np.asarray(stored)
    step = pixels.size // (1 << 14) + 1
    return zlib.crc32(pixels.reshape(-1)[::step].tobytes(), zlib.crc32(repr(pixels.shape).encode()))


def _has_colours(pixels: Pixels) -> bool:
    """Whether the channels of RGB pixels [H,W,3] differ anywhere. Most photographs answer with their first pixels."""
    first = pixels[0, 0].tolist()
    if first[0] != first[1] or first[0] != first[2]:
        return True
    for part in (pixels[0], pixels[::16, ::16], pixels):
        red = part[..., 0]
        if (red != part[..., 1]).any() or (red != part[..., 2]).any():
            return True
    return False
