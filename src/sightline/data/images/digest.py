"""Hashes and pixel sums of images, computed when they are decoded.

The content key of an image determines its split. Digests, moments and sizes are used for the fingerprint of a dataset,
its mean and standard deviation, and integrity checks."""

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

DIGEST_BYTES = 16  # bytes stored of each image's SHA-256
_EXACT_CHUNK = 256  # float32 sums the squares of this many pixels exactly: 256 * 255 ** 2 < 2 ** 24


class ImageStats(NamedTuple):
    """Hashes and statistics of N images.

    `digests` is uint8 [N, 16], the first bytes of the SHA-256 of the preprocessed pixels [C, H, W]. `moments` is int64
    [N, C, 2], the sum of the pixels and of their squares. `sizes` is int32 [N, 2], the original (height, width). `lost`
    is bool [N], whether a colour image was converted to gray. `keys` is uint64 [N], the `content_key` of the original.
    Sizes and keys are 0 for images that could not be read."""

    digests: NDArray[np.uint8]
    moments: NDArray[np.int64]
    sizes: NDArray[np.int32]
    lost: NDArray[np.bool_]
    keys: NDArray[np.uint64]

    @classmethod
    def zeros(cls, count: int, channels: int) -> ImageStats:
        """Returns statistics of `count` images that are all zero, to be filled in."""
        return cls(
            np.zeros((count, DIGEST_BYTES), np.uint8),
            np.zeros((count, channels, 2), np.int64),
            np.zeros((count, 2), np.int32),
            np.zeros(count, bool),
            np.zeros(count, np.uint64),
        )

    @classmethod
    def from_images(cls, pixels: Pixels) -> ImageStats:
        """Computes the statistics of preprocessed images, uint8 [N, C, H, W]. Assumes that they were not resized and
        lost no colours; `keys` are 0."""
        count, channels, height, width = pixels.shape
        stats = cls.zeros(count, channels)
        stats.digests[:] = np.frombuffer(digests(pixels), np.uint8).reshape(-1, DIGEST_BYTES)
        stats.moments[:] = moments(pixels)
        stats.sizes[:] = height, width
        return stats


def digests(pixels: Pixels) -> bytes:
    """Returns the concatenated digests of images uint8 [N, C, H, W], 16 bytes each."""
    return b"".join([hashlib.sha256(image).digest()[:DIGEST_BYTES] for image in pixels])


def moments(pixels: Pixels) -> NDArray[np.int64]:
    """Returns the exact sums of the pixels and of their squares, int64 [N, C, 2], for images uint8 [N, C, H, W]."""
    count, channels, height, width = pixels.shape
    flat = pixels.reshape(count, channels, height * width)
    sums = np.empty((count, channels, 2), np.int64)
    sums[..., 0] = flat.sum(-1, dtype=np.int64)
    end = flat.shape[-1] // _EXACT_CHUNK * _EXACT_CHUNK
    chunks = flat[..., :end].reshape(-1, _EXACT_CHUNK).astype(np.float32)
    sums[..., 1] = (
        np.einsum("ij,ij->i", chunks, chunks).reshape(count, channels, end // _EXACT_CHUNK).sum(-1, dtype=np.int64)
    )
    rest = flat[..., end:].astype(np.int64)
    sums[..., 1] += (rest * rest).sum(-1)
    return sums


def content_key(image: DecodedImage) -> int:
    """Returns a 64-bit hash (XXH3 of Collet's xxHash) of the size and all pixels of an image that is not resized.

    Equal for equal pixels, independent of the file format and mode. A colour image whose channels are all equal has the
    key of the gray image. Alpha is composited over white, independent of `data.preprocess.background`."""
    is_canonical = isinstance(image, np.ndarray) and (image.ndim == 2 or image.shape[2] == 3)
    pixels = np.asarray(image) if is_canonical else composite_alpha(decode_image(image, "the image"), 255)
    height, width = pixels.shape[:2]
    colour = pixels.ndim == 3 and _has_colours(pixels)
    gray = pixels if colour or pixels.ndim == 2 else pixels[..., 0]
    return xxh3_64_intdigest(np.ascontiguousarray(gray).data, height << 33 | width << 1 | colour)


def content_checksum(image: ImageInput, name: str) -> int:
    """Returns a CRC-32 of some bytes of the image's stored pixels. Only for runs made before `content_key` existed:
    their splits were drawn by this checksum."""
    source = read_source(image, name)
    pixels: Any = decode_jpeg_turbo(source, name) if isinstance(source, bytes) and source[:2] == b"\xff\xd8" else None
    if pixels is None:
        stored = Image.open(io.BytesIO(source)) if isinstance(source, bytes) else source
        stored = ImageOps.exif_transpose(stored) if isinstance(stored, Image.Image) else image_from_array(stored, name)
        pixels = np.asarray(stored)
    step = pixels.size // (1 << 14) + 1
    return zlib.crc32(pixels.reshape(-1)[::step].tobytes(), zlib.crc32(repr(pixels.shape).encode()))


def _has_colours(pixels: Pixels) -> bool:
    """Whether the channels of RGB pixels [H, W, 3] differ anywhere. For most photographs the first pixels decide."""
    first = pixels[0, 0].tolist()
    if first[0] != first[1] or first[0] != first[2]:
        return True
    for part in (pixels[0], pixels[::16, ::16], pixels):
        red = part[..., 0]
        if (red != part[..., 1]).any() or (red != part[..., 2]).any():
            return True
    return False
