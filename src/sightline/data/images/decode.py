"""Decodes files, bytes, arrays and Pillow images to upright 8-bit images of the original size.

All images are read by this module. 8-bit JPEG is decoded by libjpeg-turbo directly, which is several times as fast on
small images and gives the same bits as Pillow. All other files are decoded by Pillow. An image that cannot be decoded
correctly raises ImageError with the name of the file."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError, features
from simplejpeg import decode_jpeg as _decode_jpeg
from simplejpeg import decode_jpeg_header as _jpeg_header

from sightline.core.errors import DataError, ImageError
from sightline.data.records import Reference, Sample

Pixels: TypeAlias = NDArray[np.uint8]
DecodedImage: TypeAlias = "Image.Image | Pixels"
"""A decoded image: uint8 pixels, gray [H, W] or RGB [H, W, 3], or a Pillow image of mode L, LA, RGB or RGBA."""
ImageInput: TypeAlias = "Path | bytes | Pixels | Image.Image | Reference"

MAX_PIXELS = 178_956_970
"""Images with more pixels are refused before decoding. This is Pillow's limit against decompression bombs, applied to
every format."""
GRAY_MODES = frozenset(("L", "LA"))
RAW_SUFFIXES = frozenset(
    (".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw")
)
"""Suffixes of camera raw files. Many of them are TIFF files that start with a small preview."""
READ_ERROR = "Cannot read"
"""The start of the reason if a file or reference could not be read, which may be temporary."""
_ORIENTATION_TAG = 0x0112
_CMYK_COLORSPACES = ("CMYK", "YCCK")
_DCT_MARKERS = frozenset((0xC0, 0xC1, 0xC2, 0xC9, 0xCA))  # start-of-frame markers of JPEG that is not lossless
_SKIPPED_MARKERS = frozenset((0xC4, 0xCC, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)))  # tables and comments
_TURNED_ORIENTATIONS = range(2, 9)
_16_BITS = frozenset(("I", "I;16", "I;16B", "I;16L", "I;16N"))
_PNG_SCALES = {"L;2": 85, "L;4": 17}
_OUTPUT_MODES = {"L": "L", "LA": "LA", "La": "LA", "RGBA": "RGBA", "RGBa": "RGBA"}
_BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _PLANAR = 258, 259, 262, 266, 284  # TIFF tags
_COLOUR_MAP, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _SUBSAMPLING = 320, 338, 339, 530
_SIGNED, _SEPARATE = 2, 2
_FILE_LOCK = threading.Lock()
_FIRST_READ = 1 << 16
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0)
_open, _read, _close = os.open, os.read, os.close  # looked up once for a million files


def decode_image(image: ImageInput, name: str) -> DecodedImage:
    """Decodes an image to 8 bits per channel and applies its EXIF orientation.

    Raises ImageError, with `name`, for an image that is empty, damaged, too large, cannot be read, is not an image, or
    has pixel values without a known range; DataError for an array of another dtype or shape than uint8 [H, W] or
    [H, W, C], or when memory runs out."""
    image = read_source(image, name)
    if isinstance(image, np.ndarray):
        return image_from_array(image, name)
    if image == b"":
        raise ImageError(f"{name} is not an image: the file is empty.")
    try:
        return _decode_bytes(image, name) if isinstance(image, bytes) else _decode_pil(_reopen(image), name)
    except DataError:
        raise
    except MemoryError as error:  # not an ImageError: the image is not damaged
        raise DataError(f"Not enough memory to decode {name}.") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is too large to decode safely: {error}.") from error
    except Exception as error:  # Pillow's readers raise many exception types on damaged bytes
        start = f" (it starts with {image[:12]!r})" if isinstance(image, bytes) else ""
        reason: object = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            if isinstance(image, bytes) and (other := _other_format(image)):
                raise ImageError(
                    f"{name} is {other}, which is not supported. Convert it to JPEG, PNG or WebP."
                ) from error
            reason = _why_unidentified(image) if isinstance(image, bytes) else ""
            if not reason:
                raise ImageError(f"{name} is not an image in a format that Pillow supports{start}.") from error
        raise ImageError(f"{name} is damaged, or of a kind that Pillow does not support: {reason}{start}.") from error


def read_file(path: str | Path, name: str) -> bytes:
    """Returns the bytes of a file, in a third of the time of `Path.read_bytes`, which matters for small files. Raises
    ImageError, with `name`, if the file cannot be read."""
    try:
        descriptor = _open(path, _OPEN_FLAGS)
        try:
            data = _read(descriptor, _FIRST_READ)
            return data if len(data) < _FIRST_READ else data + _read_remaining(descriptor)
        finally:
            _close(descriptor)
    except OSError as error:
        raise ImageError(f"{READ_ERROR} {name}: {error.strerror}.") from error


def read_source(image: ImageInput, name: str) -> bytes | Pixels | Image.Image:
    """Returns what `decode_image` would decode: the encoded bytes of a file or reference, or the array or Pillow image
    if there are no bytes. Raises ImageError if it cannot be read or is a camera raw file."""
    if isinstance(image, bytes | np.ndarray | Image.Image):
        return image
    file = str(image if isinstance(image, Path) else getattr(image, "name", ""))
    if file[file.rfind(".") :].lower() in RAW_SUFFIXES:  # Pillow would decode only its preview
        raise ImageError(f"{name} is a camera raw file, which is not supported. Convert it to JPEG, PNG or TIFF.")
    if isinstance(image, Path):
        return read_file(image, name)
    try:
        return image.read()
    except DataError as error:  # one bad image, not a bad dataset: a damaged archive member, a row without an image
        raise ImageError(str(error)) from error
    except Exception as error:  # raised by the code of an archive, a table or another library
        raise ImageError(f"{READ_ERROR} {name}: {type(error).__name__}: {error}.") from error


def to_encoded_bytes(image: bytes | Pixels | Image.Image, name: str) -> bytes:
    """Returns the content of a lossless image file (PNG) of the image. Bytes are returned unchanged."""
    if isinstance(image, bytes):
        return image
    decoded = decode_image(image, name)
    pil_image = Image.fromarray(np.ascontiguousarray(decoded)) if isinstance(decoded, np.ndarray) else decoded
    stream = io.BytesIO()
    pil_image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def composite_alpha(image: DecodedImage, background: int) -> Pixels:
    """Returns the uint8 pixels of a result of `decode_image`, gray [H, W] or RGB [H, W, 3]. Alpha is composited over
    `background` (0..255) in every channel."""
    if isinstance(image, np.ndarray):
        return image
    if image.mode in ("LA", "RGBA"):
        opaque = Image.new("RGBA", image.size, (background, background, background, 255))
        composited = Image.alpha_composite(opaque, image.convert("RGBA"))
        image = composited.getchannel("R") if image.mode == "LA" else composited.convert("RGB")
    return np.asarray(image)


def try_decode_jpeg(image: ImageInput | str) -> Pixels | None:
    """Decodes a JPEG, from a file (its Path or name) or bytes, with half of the calls of `decode_image`. Returns None
    for any other or damaged image; otherwise the result equals that of `decode_image`."""
    try:
        if isinstance(image, str | Path):
            image = read_file(image, "")
        return decode_jpeg_turbo(image, "") if isinstance(image, bytes) and image.startswith(b"\xff\xd8") else None
    except Exception:  # `decode_image` reports the reason
        return None


def sample_name(sample: Sample) -> str:
    """Returns the name of a sample for messages: its file or id in quotes, and where it is listed (`Sample.where`)."""
    name = f"'{sample.image if isinstance(sample.image, Path) else sample.id}'"
    return f"{name} ({sample.where})" if sample.where else name


def is_gray(image: DecodedImage) -> bool:
    """Whether an image from `decode_image` is gray. Images that are stored with a palette count as colour."""
    return image.ndim == 2 if isinstance(image, np.ndarray) else image.mode in GRAY_MODES


def height_width(image: DecodedImage) -> tuple[int, int]:
    """Returns (height, width) in pixels."""
    return (image.shape[0], image.shape[1]) if isinstance(image, np.ndarray) else image.size[::-1]


def _read_remaining(descriptor: int) -> bytes:
    parts = []
    while part := _read(descriptor, 1 << 24):
        parts.append(part)
    return b"".join(parts)


def image_from_array(image: Pixels, name: str) -> DecodedImage:
    """Returns an array as a decoded image. Raises DataError if it is not uint8 [H, W] or [H, W, C] with C 1, 3 or 4."""
    colours = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))
    if image.dtype != np.uint8 or not colours or 0 in image.shape:
        actual = f"{image.dtype} {list(image.shape)}"
        raise DataError(f"{name}: expected uint8 pixels [H,W] or [H,W,C] with C 1, 3 or 4, found {actual}.")
    if image.ndim == 3 and image.shape[2] == 4:
        return Image.fromarray(image)
    return image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image


def _decode_bytes(data: bytes, name: str) -> DecodedImage:
    image = decode_jpeg_turbo(data, name) if data[:2] == b"\xff\xd8" else None
    return _decode_pil(Image.open(io.BytesIO(data)), name) if image is None else image


def _decode_pil(image: Image.Image, name: str) -> Image.Image:
    _check_size(image.size, name)
    if isinstance(image, ImageFile.StubImageFile):  # decoded by another library: loading creates the real image
        image.load()
    samples = _read_pixel_format(image)
    reason = _unknown_range_reason(image, samples) or _decode_bug_reason(image, samples)
    if reason:
        raise ImageError(f"{name} {reason}.")
    if samples.depth == 8 and image.mode == "1" and getattr(image, "tile", None):
        image = _black_and_white_bmp(image)
    image.load()
    levels = _gray_lookup_table(image, samples)
    if samples.alpha is not None and image.mode == "RGB":
        image = image.copy()
        image.info.pop("transparency", None)
        image.putalpha(samples.alpha)
    if samples.opaque and image.mode in ("P", "LA", "RGBA"):  # the channel that Pillow reads as alpha is unused
        gray = image.mode == "LA"
        image = image.convert("RGBA").convert("RGB").convert("L" if gray else "RGB")
    colours = getattr(image, "tag_v2", {}).get(_COLOUR_MAP)
    if image.mode in ("P", "PA") and colours and max(colours) < 256:
        # the palette was written with 8 bits; Pillow uses the upper 8 of 16
        image = image.copy()
        image.putpalette(np.reshape(colours, (3, -1)).T.astype(np.uint8).tobytes())
    if image.getexif().get(_ORIENTATION_TAG, 1) in _TURNED_ORIENTATIONS:
        image = ImageOps.exif_transpose(image)
    return _convert_mode(image, samples) if levels is None else _gray16_to_gray8(image, levels)


class _PixelFormat(NamedTuple):
    """What a file says about its pixel values that Pillow drops when it loads the image. Fields that a format does not
    need keep their defaults.

    `raw` is Pillow's raw mode of a PNG; `alpha` the alpha channel of a PNG with 16-bit colours, one of which means
    transparent; `bits` the bits of each channel of a JPEG 2000, and `signed` whether the first is signed; `depth` the
    bits per pixel of a BMP whose palette has gray levels only, so that Pillow ignores it; `opaque` is True for a TGA
    without alpha."""

    raw: str = ""
    alpha: Image.Image | None = None
    bits: tuple[int, ...] = ()
    signed: bool = False
    depth: int = 0
    opaque: bool = False


def _read_pixel_format(image: Any) -> _PixelFormat:
    """Reads the pixel format of an image that is not loaded yet."""
    if not getattr(image, "tile", None):  # already loaded, or created in memory
        return _PixelFormat()
    if image.format == "PNG":
        raw = str(image.tile[0][3])
        deep = raw == "RGB;16B" and "transparency" in image.info
        return _PixelFormat(raw, _alpha_from_transparency(image) if deep else None)
    if image.format == "JPEG2000":
        return _samples_of_jpeg2000(_file_bytes(image))
    if image.format in ("BMP", "DIB") and image.mode in ("1", "L"):
        header = _file_bytes(image)[14 if image.format == "BMP" else 0 :][:16]
        at = 10 if header[0] == 12 else 14  # the old header has shorter sizes
        return _PixelFormat(depth=int.from_bytes(header[at : at + 2], "little"))
    return _PixelFormat(opaque=image.format == "TGA" and _file_bytes(image)[17] & 15 == 0)


def _reopen(image: Any) -> Any:
    """Opens a caller's image again if it is not loaded yet. Loading the original would drop its pixel format, and the
    caller may decode it again or in another thread."""
    if not getattr(image, "tile", None) or getattr(image, "fp", None) is None:
        return image
    frame = image.tell()
    opened = Image.open(io.BytesIO(_file_bytes(image)))
    if frame:
        opened.seek(frame)
    return opened


def _file_bytes(image: Any) -> bytes:
    """Returns the bytes of the file of an image that is not loaded yet."""
    with _FILE_LOCK:
        position = image.fp.tell()
        image.fp.seek(0)
        data: bytes = image.fp.read()
        image.fp.seek(position)
    return data


def _black_and_white_bmp(image: Any) -> Image.Image:
    """Decodes an 8-bit BMP with a palette of black and white that is not loaded yet. Pillow would read it with 1 bit
    per pixel."""
    opened: Any = Image.open(io.BytesIO(_file_bytes(image)))
    opened._mode = "L"
    opened.tile = [(*tile[:3], ("L", *tile[3][1:])) for tile in opened.tile]
    return Image.fromarray(np.where(np.asarray(opened) > 0, 255, 0).astype(np.uint8))


def _alpha_from_transparency(image: Any) -> Image.Image:
    """Returns the alpha channel of a 16-bit RGB PNG by comparing all 16 bits with the transparent colour. Pillow keeps
    the high byte of each sample; when it is made to read the file in the other byte order, it keeps the low byte."""
    data, clear = _file_bytes(image), np.array(image.info["transparency"])
    same = np.ones(image.size[::-1], bool)
    for raw, wanted in (("RGB;16B", clear >> 8), ("RGB;16L", clear & 255)):
        opened: Any = Image.open(io.BytesIO(data))
        opened.tile = [(*opened.tile[0][:3], raw)]
        same &= (np.asarray(opened) == wanted).all(axis=-1)
    return Image.fromarray(np.where(same, 0, 255).astype(np.uint8))


def _samples_of_jpeg2000(data: bytes) -> _PixelFormat:
    """Reads the bits per channel from the SIZ segment at the start of the codestream."""
    start = b"\xff\x4f\xff\x51"
    box = data.find(b"jp2c" + start)
    at = box + 4 if box >= 0 else data.find(start)  # a box may have an extended length between its name and content
    count = int.from_bytes(data[at + 40 : at + 42], "big")
    sizes = data[at + 42 : at + 42 + 3 * count : 3]
    return _PixelFormat(bits=tuple((size & 127) + 1 for size in sizes), signed=count > 0 and sizes[0] > 127)


def _unknown_range_reason(image: Image.Image, samples: _PixelFormat) -> str:
    """Returns why the pixel values of black and white are not known, or an empty string."""
    tags = getattr(image, "tag_v2", {})
    kind = ""
    if image.mode == "F":
        kind = "floating-point"
    elif max(tags.get(_SAMPLE_FORMAT, (1,))) == _SIGNED:
        kind = f"signed {max(tags.get(_BITS, (1,)))}-bit"
    elif image.mode == "I" and image.format not in ("PNG", "PPM"):  # Pillow scales these to 16 bits
        kind = "unsigned 32-bit" if tags else "signed 32-bit"
    elif image.mode in _16_BITS and image.format == "FITS":
        kind = "signed 16-bit"
    elif samples.signed:
        kind = f"signed {samples.bits[0]}-bit"
    if not kind:
        return ""
    return f"has {kind} pixels, whose values for black and white are not known. Save it with unsigned 8 or 16 bits"


def _decode_bug_reason(image: Image.Image, samples: _PixelFormat) -> str:
    """Returns what Pillow would decode incorrectly without an error, or an empty string."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(_PLANAR, 1) == _SEPARATE and _has_plane_bug(image.mode, tags):
        return (
            f"stores its {max(tags.get(_BITS, (1,)))}-bit channels separately (PlanarConfiguration 2), which Pillow "
            f"decodes incorrectly. Save it with PlanarConfiguration 1"
        )
    if image.mode == "YCbCr" and tags.get(_SUBSAMPLING, (1, 1)) != (1, 1):
        return "has subsampled YCbCr pixels without compression, which Pillow decodes incorrectly. Save it as RGB"
    if (samples.depth, image.mode) not in ((0, image.mode), (1, "1"), (8, "1"), (8, "L")):
        return (
            f"has {samples.depth} bits per pixel and a palette of gray levels only, which Pillow decodes incorrectly. "
            f"Save it as PNG"
        )
    if max(samples.bits, default=0) > 8 and image.mode not in _16_BITS:
        return (
            f"is a JPEG 2000 image with {max(samples.bits)} bits per channel in {len(samples.bits)} channels; Pillow "
            f"decodes their largest values as 0. Save it with 8 bits"
        )
    clear = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(clear, tuple) and max(clear) > 255 and not samples.raw:
        return (
            "had 16-bit colours, one of which means transparent. Pillow has loaded only 8 bits of them, so the "
            "transparent pixels are not known. Pass the file or its bytes, or save it with an alpha channel"
        )
    return ""


def _has_plane_bug(mode: str, tags: Any) -> bool:
    """Whether Pillow decodes a TIFF image with PlanarConfiguration 2 to wrong values."""
    if tags.get(_COMPRESSION, 1) != 1:
        return mode in ("LA", "La", "LAB") or (mode == "RGBA" and _EXTRA_SAMPLES not in tags)
    as_stored = max(tags.get(_BITS, (1,))) == (1 if mode == "1" else 8) and tags.get(_FILL_ORDER, 1) == 1
    return not as_stored or tags.get(_PHOTOMETRIC, 0) == 0 or mode in ("LA", "La", "LAB")


def _gray_lookup_table(image: Image.Image, samples: _PixelFormat) -> Pixels | None:
    """Returns the 8-bit level of each value (uint8 [65536]) of a gray image with up to 16 bits; None for other
    images."""
    if image.mode not in _16_BITS:
        return None
    tags = getattr(image, "tag_v2", {})
    bits = max(tags.get(_BITS, (16,)))
    white = (1 << bits) - 1
    if samples.bits:  # Pillow shifts JPEG 2000 up to 16 bits
        white <<= 16 - samples.bits[0]
    return _lookup_table(white & 65535, inverted=tags.get(_PHOTOMETRIC, 1) == 0)


@lru_cache(maxsize=32)
def _lookup_table(white: int, inverted: bool) -> Pixels:
    levels = np.minimum(np.round(np.arange(65536) * (255 / white)), 255).astype(np.uint8)
    return 255 - levels if inverted else levels


def _gray16_to_gray8(image: Image.Image, levels: Pixels) -> Image.Image:
    values = np.clip(np.asarray(image), 0, 65535)
    gray, clear = Image.fromarray(levels[values]), image.info.get("transparency")
    if not isinstance(clear, int):
        return gray
    return Image.merge("LA", (gray, Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))))


def _convert_mode(image: Image.Image, samples: _PixelFormat) -> Image.Image:
    """Converts a loaded image to mode L, LA, RGB or RGBA."""
    file_format = image.format
    clear = image.info.get("transparency")
    if samples.raw in _PNG_SCALES and isinstance(clear, int):  # Pillow scales the pixels but not this value
        image = image.copy()
        image.info["transparency"] = clear * _PNG_SCALES[samples.raw]
    elif samples.raw == "LA;16B":  # gray with alpha, which Pillow opens as RGBA
        return image.convert("LA")
    elif image.mode == "1":  # Pillow's conversion to LA turns white into black
        image = image.convert("L")
        if file_format == "PSD":  # 1 is black there, but Pillow reads it as white
            image = ImageOps.invert(image)
    elif samples.bits and min(samples.bits) < 8:
        image = image.point(_bit_depth_table(samples.bits, image.mode))
    if image.mode in ("L", "RGB") and clear is not None:
        return image.convert("LA" if image.mode == "L" else "RGBA")
    if image.mode in ("P", "PA"):
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    mode = _OUTPUT_MODES.get(image.mode, "RGB")
    return image if image.mode == mode else image.convert(mode)


def _bit_depth_table(bits: Sequence[int], mode: str) -> list[int]:
    """Returns a lookup table that corrects JPEG 2000 channels of fewer than 8 bits, which Pillow shifts up to 8. With 4
    bits, Pillow turns 15 into 240; the table turns it into 255, or back into 15 for a palette index."""
    table = []
    for band, count in enumerate(bits):
        values = [value >> (8 - count) for value in range(256)]
        index = band == 0 and mode in ("P", "PA")
        table += values if index else [round(value * 255 / ((1 << count) - 1)) for value in values]
    return table


def _check_size(size: tuple[int, int], name: str) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(
            f"{name} has {size[1]:,} x {size[0]:,} pixels, too many to decode safely (at most {MAX_PIXELS:,})."
        )


def decode_jpeg_turbo(data: bytes, name: str) -> Pixels | None:
    """Decodes an 8-bit JPEG with libjpeg-turbo and applies its EXIF orientation. Returns None if Pillow has to decode
    it. Raises ImageError if it is too large."""
    try:
        height, width, colour, _ = _jpeg_header(data)
        if height * width > MAX_PIXELS:
            _check_size((width, height), name)
        if colour != "YCbCr" and (
            colour in _CMYK_COLORSPACES or not _is_dct(data)
        ):  # lossless YCbCr is a ValueError below
            return None
        # colour files are not converted to gray here, but in the same place as all other formats
        form = "GRAY" if colour == "Gray" else "RGB"
        pixels: Pixels = _decode_jpeg(data, form, fastdct=False, fastupsample=False)
    except (ValueError, KeyError, IndexError):  # damaged, or with a subsampling that simplejpeg does not know
        return None
    if form == "GRAY":
        pixels = pixels[..., 0]
    if b"Exif\0\0" not in data and b"tiff:Orientation" not in data:
        return pixels
    with Image.open(io.BytesIO(data)) as header:
        orientation = header.getexif().get(_ORIENTATION_TAG, 1)
    return _apply_orientation(pixels, orientation)


def _is_dct(data: bytes) -> bool:
    """Whether a JPEG is not lossless and has no bytes between its segments. libjpeg-turbo does not scale the 2 to 16
    bits of lossless JPEG to 8."""
    at = 2
    while data[at] == 0xFF and data[at + 1] in _SKIPPED_MARKERS:
        at += 2 + (data[at + 2] << 8) + data[at + 3]
    return data[at] == 0xFF and data[at + 1] in _DCT_MARKERS


def _other_format(data: bytes) -> str:
    """Returns the kind of image, with its article, if the bytes are in a well-known format that Pillow does not read;
    otherwise an empty string."""
    if data[4:8] == b"ftyp":
        brands = data[8 : 8 + 24]
        if b"avif" in brands or b"avis" in brands:
            return "" if features.check("avif") else "an AVIF image (this Pillow was built without AVIF)"
        if any(brand in brands for brand in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")):
            return "a HEIC image"
    if data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "a JPEG XL image"
    if data.startswith((b"<svg", b"<?xml")) and b"<svg" in data[:4096]:
        return "an SVG drawing"
    known = {b"v/1\x01": "an OpenEXR image", b"#?RADIANCE": "a Radiance HDR image", b"gimp xcf": "a GIMP image"}
    return next((kind for start, kind in known.items() if data.startswith(start)), "")


def _why_unidentified(data: bytes) -> str:
    """Returns the format that the bytes start as and the error of Pillow's reader; an empty string if Pillow supports
    no format with this start."""
    for kind, (factory, accept) in list(Image.OPEN.items()):
        if accept is None or accept(data[:16].ljust(16, b"\0")) is not True:
            continue
        try:
            factory(io.BytesIO(data), "")
        except Exception as error:
            advice = _describe_tiff(data) if kind == "TIFF" else ""
            if kind == "JPEG" and "cannot handle" in str(error):
                advice = "; save it with 8 bits in 1 or 3 channels"
            return f"{kind}, {error}{advice}"
    return ""


def _describe_tiff(data: bytes) -> str:
    """Describes the pixel format of a TIFF file for a message; an empty string if its tags cannot be read."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    file = io.BytesIO(data)
    try:
        tags = ImageFileDirectory_v2(file.read(16 if 43 in data[2:4] else 8))
        file.seek(tags.next)
        tags.load(file)
        bits = tags.get(_BITS, (1,))
        form = {1: "unsigned", 2: "signed", 3: "floating-point"}.get(max(tags.get(_SAMPLE_FORMAT, (1,))), "other")
        return (
            f" ({len(bits)} channel(s) of {form} {max(bits)}-bit samples, {tags.prefix.decode()} byte order, "
            f"PhotometricInterpretation {tags.get(_PHOTOMETRIC)}); save it with unsigned 8 or 16 bits"
        )
    except Exception:  # damaged
        return ""


def _apply_orientation(pixels: Pixels, orientation: object) -> Pixels:
    """Applies one of the eight EXIF 2.3 orientations, as `PIL.ImageOps.exif_transpose` does."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
