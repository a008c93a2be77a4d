"""How an image becomes the numbers a network sees: one decoder, one resize policy, one normalisation.

`Preprocess` is stored with the model; training, evaluation and prediction all go through it, so what answers is what
was measured. Decoding is on the CPU and ends in uint8; normalisation is on the device and by batch."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from sightline.errors import DataError

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_GRAY_MODES = frozenset(("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F"))


@dataclass(frozen=True)
class Preprocess:
    """Decode to `channels` (1 gray, 3 RGB), bring to `height` x `width`, scale to 0..1, subtract `mean`, divide by
    `std`.

    `resize`: "stretch" ignores the aspect ratio; "crop" scales the shorter side and cuts the centre; "pad" scales the
    longer side and fills with `background`. Alpha is laid over `background` (0..255),
    EXIF orientation is applied, 16-bit gray is scaled to 8. Gray from colour is ITU-R 601 luma, as in Pillow."""

    height: int
    width: int
    channels: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    resize: str = "stretch"
    interpolation: str = "bilinear"
    background: int = 255

    def __post_init__(self) -> None:
        if self.resize not in ("stretch", "crop", "pad") or self.interpolation not in _FILTERS:
            raise DataError(f"data.preprocess: there is no resize '{self.resize}' with '{self.interpolation}'.")
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            if len(values) == 1:
                values *= self.channels
            if len(values) != self.channels:
                raise DataError(
                    f"data.preprocess.{name}: {len(values)} values for {self.channels} channel(s); "
                    f"give one, or one for each channel."
                )
            object.__setattr__(self, name, values)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a decoded image."""
        return self.channels, self.height, self.width

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_dict` gives back an equal object."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        """The inverse of `to_dict`."""
        made: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**made)

    def decode(
        self,
        image: Path | bytes | NDArray[np.uint8] | Image.Image,
        name: str = "",
        exact: Collection[str] = (),
    ) -> NDArray[np.uint8]:
        """uint8 pixels [C,H,W] of a file, an encoded image, a Pillow image or an array [H,W] or [H,W,C] of uint8.

        `exact` may name "size" and "channels": an image that would have to be resized, or lose its colours, is then
        refused. Raises DataError naming the file for that, and for one that is no image or is damaged."""
        name = name or (f"'{image}'" if isinstance(image, Path) else "the image")
        picture = open_image(image, name)
        if "channels" in exact and self.channels == 1 and picture.mode not in _GRAY_MODES:
            raise DataError(f"{name} is a colour image, the first one is gray. Set data.preprocess.channels to 1 or 3.")
        picture = self._converted(picture, name)
        if "size" in exact and picture.size != (self.width, self.height):
            raise DataError(
                f"{name} is {picture.height} x {picture.width} pixels, the first image {self.height} x {self.width}. "
                f"Set data.preprocess.size to bring all to one size, or use data=folder."
            )
        picture = self._resized(picture)
        pixels = np.asarray(picture, dtype=np.uint8)
        return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))

    def normalizer(self, device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
        """A function from uint8 [B,C,H,W] to float32 [B,C,H,W], (pixels / 255 - mean) / std, on `device`."""
        shape = (1, self.channels, 1, 1)
        mean = torch.tensor(self.mean, dtype=torch.float64).mul(255).float().view(shape).to(device)
        scale = torch.tensor(self.std, dtype=torch.float64).mul(255).reciprocal().float().view(shape).to(device)

        def normalize(pixels: Tensor) -> Tensor:
            return pixels.to(torch.float32).sub_(mean).mul_(scale)

        return normalize

    def _converted(self, picture: Image.Image, name: str) -> Image.Image:
        picture = ImageOps.exif_transpose(picture)
        wanted = "L" if self.channels == 1 else "RGB"
        if picture.mode == wanted and "transparency" not in picture.info:
            return picture
        if picture.mode == "F" or (picture.mode == "I" and picture.format != "PNG"):
            raise DataError(f"{name} has 32-bit pixels, whose range is not known; save it with 8 or 16 bits.")
        if picture.mode in ("I;16", "I;16B", "I;16L", "I"):
            picture = Image.fromarray((np.clip(np.asarray(picture), 0, 65535) / 257).round().astype(np.uint8))
        if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            under = Image.new("RGBA", picture.size, (self.background,) * 3 + (255,))
            picture = Image.alpha_composite(under, picture)
        if picture.mode in ("LAB", "HSV", "YCbCr"):  # these turn gray by way of RGB alone
            picture = picture.convert("RGB")
        return picture.convert(wanted)

    def _resized(self, picture: Image.Image) -> Image.Image:
        size = (self.width, self.height)
        if picture.size == size:
            return picture
        method = _FILTERS[self.interpolation]
        if self.resize == "crop":
            return ImageOps.fit(picture, size, method)
        if self.resize == "pad":
            return ImageOps.pad(picture, size, method, color=(self.background,) * self.channels)
        return picture.resize(size, method)


def open_image(image: Path | bytes | NDArray[np.uint8] | Image.Image, name: str) -> Image.Image:
    """The decoded image, still in its own size and, but for JPEG, its own mode. JPEG without EXIF goes through
    libjpeg-turbo directly, six times as fast on small images; every caller takes the same way, so bits agree."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray):
        colours = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))
        if image.dtype != np.uint8 or not colours or 0 in image.shape:
            told = f"{image.dtype} {list(image.shape)}"
            raise DataError(f"{name}: expected uint8 pixels [H,W] or [H,W,C], found {told}; C is 1, 3 or 4.")
        return Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    try:
        data = image.read_bytes() if isinstance(image, Path) else image
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror}.") from error
    if not data:
        raise DataError(f"{name} is no image: the file is empty.")
    if data[:2] == b"\xff\xd8" and b"Exif\0\0" not in data:
        fast = _fast_jpeg(data)
        if fast is not None:
            return fast
    try:
        picture = Image.open(io.BytesIO(data))
        picture.load()
    except Image.DecompressionBombError as error:
        raise DataError(f"{name} is too large to decode safely: {error}.") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name} is no image of a format Pillow knows (it begins with {data[:12]!r}).") from error
    except Exception as error:  # Pillow's readers raise nearly anything on damaged bytes
        start = data[:12]
        raise DataError(f"{name} is no image, or a damaged one: {error} (it begins with {start!r}).") from error
    return picture


def is_gray(image: Path | bytes | NDArray[np.uint8], name: str) -> bool:
    """Whether an image holds one channel (palettes count as colour)."""
    if isinstance(image, np.ndarray):
        return image.ndim == 2 or image.shape[2] == 1
    try:
        with Image.open(image if isinstance(image, Path) else io.BytesIO(image)) as picture:
            return picture.mode in _GRAY_MODES
    except Exception as error:  # as in `open_image`
        raise DataError(f"{name} is no image, or a damaged one: {error}.") from error


def _fast_jpeg(data: bytes) -> Image.Image | None:
    import simplejpeg

    try:
        colour = simplejpeg.decode_jpeg_header(data)[2]
        if colour in ("CMYK", "YCCK"):
            return None
        # a gray file stays gray; a colour file turns gray in the same place as every other format: in `_converted`
        pixels = simplejpeg.decode_jpeg(data, "GRAY" if colour == "Gray" else "RGB", fastdct=False, fastupsample=False)
    except ValueError:  # damaged: Pillow finds the words for it
        return None
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
