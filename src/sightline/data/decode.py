"""Files, bytes and arrays -> pictures, upright and in their own size and mode. Every way of reading an image ends here.

JPEG goes through libjpeg-turbo directly, several times as fast on small images and the same bits as Pillow's; all else
through Pillow. What cannot be read becomes an ImageError with the file's name, never a picture that is half of one."""

from __future__ import annotations

import io
import os
import zlib
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from simplejpeg import decode_jpeg as _decode_jpeg
from simplejpeg import decode_jpeg_header as _jpeg_header

from sightline.errors import DataError, ImageError
from sightline.types import Reference, Sample

Pixels: TypeAlias = NDArray[np.uint8]
Picture: TypeAlias = "Image.Image | Pixels"
"""A Pillow image, or uint8 pixels: gray [H,W] or RGB [H,W,3]."""
Readable: TypeAlias = "Path | bytes | Pixels | Image.Image | Reference"

MAX_PIXELS = 178_956_970
"""More than these are refused before they are decoded: Pillow's limit for a decompression bomb, for every format."""
GRAY_MODES = frozenset(("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F"))
UNREADABLE = "cannot read"
"""How the reason begins where it is the file system's, and may pass."""
_ORIENTATION = 0x0112
_FOUR_INKS = ("CMYK", "YCCK")
_SMALL = 1 << 16
_LOOKED_AT = 1 << 14
_READ_ONLY = os.O_RDONLY | getattr(os, "O_BINARY", 0)
_open, _read, _close = os.open, os.read, os.close  # looked up once for a million files


def open_image(image: Readable, name: str) -> Picture:
    """The decoded image, its EXIF orientation applied. Raises ImageError, naming it, when it is empty, damaged, too
    large, cannot be read or is no image; DataError for an array that holds no pixels."""
    image = read_encoded(image, name)
    if isinstance(image, np.ndarray):
        return _from_array(image, name)
    if image == b"":
        raise ImageError(f"{name} is no image: the file is empty.")
    try:
        return _from_bytes(image, name) if isinstance(image, bytes) else _loaded(image, name)
    except DataError:
        raise
    except MemoryError as error:  # nothing is wrong with the image
        raise DataError(f"there is too little memory to decode {name}.") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is too large to decode safely: {error}.") from error
    except Exception as error:  # Pillow's readers raise nearly anything on damaged bytes
        start = f" (it begins with {image[:12]!r})" if isinstance(image, bytes) else ""
        if isinstance(error, UnidentifiedImageError):
            raise ImageError(f"{name} is no image of a format Pillow knows{start}.") from error
        raise ImageError(f"{name} is no image, or a damaged one: {error}{start}.") from error


def read_file(path: str | Path, name: str) -> bytes:
    """The file's bytes; a third of the time of `Path.read_bytes`, which counts where files are small."""
    try:
        descriptor = _open(path, _READ_ONLY)
        try:
            data = _read(descriptor, _SMALL)
            return data if len(data) < _SMALL else data + _rest(descriptor)
        finally:
            _close(descriptor)
    except OSError as error:
        raise ImageError(f"{UNREADABLE} {name}: {error.strerror}.") from error


def read_encoded(image: Readable, name: str) -> bytes | Pixels | Image.Image:
    """What `open_image` would decode: the encoded bytes of a file or reference, or the pixels where there are no
    bytes."""
    if isinstance(image, Path):
        return read_file(image, name)
    if isinstance(image, bytes | np.ndarray | Image.Image):
        return image
    try:
        return image.read()
    except DataError as error:  # a damaged member of an archive, a row without an image: one image, not the data set
        raise ImageError(str(error)) from error
    except Exception as error:  # an archive's, a table's or another library's own code
        raise ImageError(f"{UNREADABLE} {name}: {type(error).__name__}: {error}") from error


def as_bytes(image: bytes | Pixels | Image.Image, name: str) -> bytes:
    """An image as a file of it would be, without loss; bytes are taken for such a file."""
    if isinstance(image, bytes):
        return image
    picture = open_image(image, name)
    made = Image.fromarray(np.ascontiguousarray(picture)) if isinstance(picture, np.ndarray) else picture
    stream = io.BytesIO()
    try:
        made.save(stream, "PNG", compress_level=1)
    except OSError:  # a mode that PNG has not
        stream = io.BytesIO()
        made.save(stream, "TIFF")
    return stream.getvalue()


def plain_jpeg(image: Readable | str) -> Pixels | None:
    """The pixels of a file (by its Path or its name) or of bytes, where they are a JPEG that needs nothing but
    decoding; else None. The same as `open_image` makes of it, with half of its calls."""
    try:
        if isinstance(image, str | Path):
            image = read_file(image, "")
        return _fast_jpeg(image, "") if isinstance(image, bytes) and image.startswith(b"\xff\xd8") else None
    except Exception:  # `open_image` will say what is wrong
        return None


def sample_name(sample: Sample) -> str:
    """What a message calls a sample: its file in quotes, or its id, and where it is listed."""
    found = f"'{sample.image if isinstance(sample.image, Path) else sample.id}'"
    return f"{found} ({sample.where})" if sample.where else found


def is_gray(picture: Picture) -> bool:
    """Whether a picture holds one channel (palettes count as colour)."""
    return picture.ndim == 2 if isinstance(picture, np.ndarray) else picture.mode in GRAY_MODES


def content_key(picture: Picture) -> int:
    """32 bits of what a picture shows, before it is brought to any size: equal for equal pictures, whatever file they
    come from. Of a large one some pixels are looked at."""
    pixels = picture if isinstance(picture, np.ndarray) else np.asarray(picture)
    start = zlib.crc32(repr(pixels.shape).encode())
    step = pixels.size // _LOOKED_AT + 1
    return zlib.crc32(pixels.reshape(-1)[::step].tobytes(), start)


def size_of(picture: Picture) -> tuple[int, int]:
    """(height, width)."""
    return (picture.shape[0], picture.shape[1]) if isinstance(picture, np.ndarray) else picture.size[::-1]


def _rest(descriptor: int) -> bytes:
    parts = []
    while part := _read(descriptor, 1 << 24):
        parts.append(part)
    return b"".join(parts)


def _from_array(image: Pixels, name: str) -> Picture:
    colours = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))
    if image.dtype != np.uint8 or not colours or 0 in image.shape:
        told = f"{image.dtype} {list(image.shape)}"
        raise DataError(f"{name}: expected uint8 pixels [H,W] or [H,W,C], found {told}; C is 1, 3 or 4.")
    if image.ndim == 3 and image.shape[2] == 4:
        return Image.fromarray(image)
    return image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image


def _from_bytes(data: bytes, name: str) -> Picture:
    picture = _fast_jpeg(data, name) if data[:2] == b"\xff\xd8" else None
    return _loaded(Image.open(io.BytesIO(data)), name) if picture is None else picture


def _loaded(picture: Image.Image, name: str) -> Image.Image:
    _check_size(picture.size, name)
    picture.load()
    upright = ImageOps.exif_transpose(picture)
    upright.format = picture.format  # a copy forgets it
    return upright


def _check_size(size: tuple[int, int], name: str) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(
            f"{name} has {size[1]:,} x {size[0]:,} pixels, too many to decode safely (at most {MAX_PIXELS:,})."
        )


def _fast_jpeg(data: bytes, name: str) -> Pixels | None:
    try:
        height, width, colour, _ = _jpeg_header(data)
        if height * width > MAX_PIXELS:
            _check_size((width, height), name)
        if colour in _FOUR_INKS:
            return None
        # a gray file stays gray; a colour file turns gray in the same place as every other format
        form = "GRAY" if colour == "Gray" else "RGB"
        pixels: Pixels = _decode_jpeg(data, form, fastdct=False, fastupsample=False)
    except ValueError:  # damaged: Pillow finds the words for it
        return None
    if form == "GRAY":
        pixels = pixels[..., 0]
    if b"Exif\0\0" not in data and b"tiff:Orientation" not in data:
        return pixels
    with Image.open(io.BytesIO(data)) as header:
        orientation = header.getexif().get(_ORIENTATION, 1)
    return _upright(pixels, orientation)


def _upright(pixels: Pixels, orientation: object) -> Pixels:
    """The eight orientations of EXIF 2.3, as in `PIL.ImageOps.exif_transpose`."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
