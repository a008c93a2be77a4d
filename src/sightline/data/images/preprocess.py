"""Preprocessing of images for a network: decoding, resizing and normalisation.

A `Preprocess` is stored with the model. Training, evaluation and prediction all use it, so a model predicts on images
prepared as they were in training. Decoding runs on the CPU and produces uint8; normalisation runs per batch, on the
device."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from sightline.core.errors import DataError, ImageError, arg
from sightline.data.images.decode import DecodedImage, ImageInput, Pixels, composite_alpha, decode_image, height_width
from sightline.data.images.digest import content_key

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_MAX_ASPECT_RATIO = 8
CropRegion: TypeAlias = Sequence[int]
"""(top, left, height, width) of a region of the upright image, in pixels."""


class PreprocessedImage(NamedTuple):
    """A preprocessed image, uint8 [C, H, W], with properties of the original.

    `size` is the original (height, width), `lost_colours` whether a colour image was converted to gray, and `key` the
    `content_key` of the original."""

    pixels: Pixels
    size: tuple[int, int]
    lost_colours: bool
    key: int


@dataclass(frozen=True)
class Preprocess:
    """How images are decoded, resized and normalised before they enter a network.

    Images are decoded to `channels` (1 for gray, 3 for RGB), resized to `height` x `width` pixels and scaled to 0..1;
    then `mean` is subtracted and the result divided by `std`. Both have one value for all channels or one for each.

    `resize`: "stretch" ignores the aspect ratio; "crop" scales the shorter side and crops the centre; "pad" scales the
    longer side and fills with `background`. With `crop_pct` (0.1 to 2), "stretch" and "crop" resize to the size divided
    by `crop_pct`, rounded down, and then crop the centre, as timm and torchvision evaluate their networks; above 1 the
    border is black. Without it, the region to keep is cropped first and resized once.

    Alpha is composited over `background` (0..255), the EXIF orientation is applied, and gray of up to 16 bits is scaled
    to 8. Colour is converted to gray with ITU-R 601 luma, as in Pillow. Raises DataError for values out of range."""

    height: int
    width: int
    channels: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    resize: str = "stretch"
    interpolation: str = "bilinear"
    background: int = 255
    crop_pct: float | None = None

    def __post_init__(self) -> None:
        if self.crop_pct is not None and not (0.1 <= self.crop_pct <= 2 and self.resize != "pad"):
            raise DataError(
                f"{arg.crop_pct}: expected a number in [0.1, 2] with resize 'crop' or 'stretch', "
                f"found {self.crop_pct} with '{self.resize}'."
            )
        if self.resize not in ("stretch", "crop", "pad") or self.interpolation not in _INTERPOLATIONS:
            raise DataError(
                f"{arg.preprocess}: resize '{self.resize}' with interpolation '{self.interpolation}' is not supported. "
                f"Expected resize as one of: stretch, crop, pad; interpolation as one of: {', '.join(_INTERPOLATIONS)}."
            )
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            if len(values) == 1:
                values *= self.channels
            if len(values) != self.channels:
                raise DataError(
                    f"{arg.preprocess}.{name}: {len(values)} values for {self.channels} channel(s). "
                    f"Expected one value, or one for each channel."
                )
            object.__setattr__(self, name, values)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a preprocessed image."""
        return self.channels, self.height, self.width

    @property
    def scaled(self) -> tuple[int, int]:
        """(height, width) that an image is resized to before its centre is cropped."""
        crop_pct = self.crop_pct or 1.0
        # rounding errors must not count: 224 / (224 / 232) may be just below 232
        return math.floor(self.height / crop_pct + 1e-6), math.floor(self.width / crop_pct + 1e-6)

    def to_dict(self) -> dict[str, Any]:
        """Returns a JSON-compatible dict, from which `from_dict` makes an equal object."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        if self.crop_pct is None:  # equal to the dicts written before `crop_pct` existed
            del values["crop_pct"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        """Makes a `Preprocess` from the result of `to_dict`."""
        arguments: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**arguments)

    def decode(
        self, image: ImageInput, name: str = "", exact: Collection[str] = (), crop: CropRegion | None = None
    ) -> Pixels:
        """Decodes and resizes an image; returns uint8 [C, H, W], not normalised.

        `image` is a file, an encoded image, a Pillow image, a uint8 array [H, W] or [H, W, C], or a `Reference`; `name`
        is what messages call it. `crop` is the region to resize; by default `resize` determines it. `exact` may contain
        "size" and "channels": an image that would have to be resized, or would lose its colours, then raises DataError.
        Raises ImageError, naming the file, if it cannot be read, is damaged or is not an image."""
        name = name or (f"'{image}'" if isinstance(image, Path) else "the image")
        upright = decode_image(image, name)
        if crop is not None:
            upright = _crop(upright, crop, name)
        pixels = composite_alpha(upright, self.background)
        self.check_exact(pixels, name, exact)
        return self._resize_to_chw(pixels, stretch=crop is not None)

    def decode_with_stats(self, image: ImageInput, name: str) -> PreprocessedImage:
        """Decodes as `decode` does, and returns the size, loss of colours and content key of the original as well."""
        upright = decode_image(image, name)
        pixels = composite_alpha(upright, self.background)
        return PreprocessedImage(
            self._resize_to_chw(pixels), height_width(pixels), self._loses_colours(pixels), content_key(upright)
        )

    def _loses_colours(self, pixels: Pixels) -> bool:
        return self.channels == 1 and pixels.ndim == 3

    def _resize_to_chw(self, pixels: Pixels, stretch: bool = False) -> Pixels:
        """Resizes and converts pixels of the original size, [H, W] or [H, W, 3], to [C, H, W]; `stretch` overrides
        `resize` and `crop_pct`."""
        fits = pixels.ndim == (2 if self.channels == 1 else 3)
        if not fits or height_width(pixels) != (self.height, self.width) or not (stretch or self.keeps_size):
            original = Image.fromarray(np.ascontiguousarray(pixels))
            converted = original if fits else original.convert("L" if self.channels == 1 else "RGB")
            pixels = np.asarray(self._resized(converted, stretch))
        return _channels_first(pixels)

    def check_exact(self, own: Pixels, name: str, exact: Collection[str]) -> None:
        """Raises DataError if `own`, pixels [H, W] or [H, W, 3] of the original size, would lose what `exact` names."""
        if "channels" in exact and self._loses_colours(own):
            raise DataError(f"{name} is a colour image, but the first image is gray. Set {arg.channels} to 1 or 3.")
        if "size" in exact and height_width(own) != (self.height, self.width):
            height, width = height_width(own)
            raise DataError(
                f"{name} is {height} x {width} pixels, but the first image is {self.height} x {self.width}. "
                f"Set {arg.size} to resize all images to one size, or use data=folder."
            )

    def normalizer(self, device: torch.device | str = "cpu") -> Callable[..., Tensor]:
        """Returns a function that normalises uint8 [B, C, H, W] on `device` to float32: (pixels / 255 - mean) / std.

        The function takes an optional second argument, a float32 tensor to write the result to."""
        import torch  # not at the top: decoding processes start faster without it

        shape = (1, self.channels, 1, 1)
        mean = torch.tensor(self.mean, dtype=torch.float64).mul(255).float().view(shape).to(device)
        scale = torch.tensor(self.std, dtype=torch.float64).mul(255).reciprocal().float().view(shape).to(device)

        def normalize(pixels: Tensor, out: Tensor | None = None) -> Tensor:
            values = pixels.to(torch.float32) if out is None else out.copy_(pixels)
            return values.sub_(mean).mul_(scale)

        return normalize

    @property
    def keeps_size(self) -> bool:
        """Whether an image that already has the target size is not resized."""
        return self.scaled == (self.height, self.width)

    def _resized(self, image: Image.Image, stretch: bool) -> Image.Image:
        size = (self.width, self.height)
        method = _INTERPOLATIONS[self.interpolation]
        if image.size == size and (stretch or self.keeps_size):
            return image
        if stretch:
            return image.resize(size, method)
        if self.crop_pct is not None:
            if self.resize == "crop":
                image = _limit_aspect_ratio(
                    image, _MAX_ASPECT_RATIO * max(self.width / self.height, self.height / self.width)
                )
            return self._center_crop(image.resize(self._resize_size_for(image), method))
        if self.resize == "stretch":
            return image.resize(size, method)
        if self.resize == "crop":
            return ImageOps.fit(image, size, method)
        return ImageOps.pad(image, size, method, color=(self.background,) * self.channels)

    def _resize_size_for(self, image: Image.Image) -> tuple[int, int]:
        """Returns the (width, height) to resize to before the centre crop. Rounds as torchvision's `Resize` for a
        square target, and as timm's `ResizeKeepRatio` for any other."""
        height, width = self.scaled
        if self.resize == "stretch":
            return width, height
        short, long = sorted(image.size)
        if height == width:
            other = int(height * long / short)
            return (height, other) if image.width <= image.height else (other, height)
        ratio = min(image.height / height, image.width / width)
        return round(image.width / ratio), round(image.height / ratio)

    def _center_crop(self, image: Image.Image) -> Image.Image:
        top, left = _crop_offset(image.height, self.height), _crop_offset(image.width, self.width)
        return image.crop((left, top, left + self.width, top + self.height))


def _limit_aspect_ratio(image: Image.Image, limit: float) -> Image.Image:
    """Crops the centre of an image whose aspect ratio exceeds `limit`. Resizing all of it before the centre crop could
    take gigabytes for an image of a few rows of pixels."""
    width, height = image.size
    if max(width, height) <= limit * min(width, height):
        return image
    width, height = min(width, math.ceil(limit * height)), min(height, math.ceil(limit * width))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _crop_offset(size: int, crop_size: int) -> int:
    """Returns the start of a centred crop; negative for a crop larger than the image, which Pillow fills with black."""
    return round((size - crop_size) / 2) if size >= crop_size else -((crop_size - size) // 2)


def _crop(image: DecodedImage, crop: CropRegion, name: str) -> DecodedImage:
    top, left, height, width = crop
    size = height_width(image)
    if top + height > size[0] or left + width > size[1]:
        raise ImageError(
            f"{name} is now {size[0]} x {size[1]} pixels, smaller than when it was packed. "
            f"Restore the original file, or start a new run."
        )
    if isinstance(image, np.ndarray):
        return image[top : top + height, left : left + width]
    return image.crop((left, top, left + width, top + height))


def _channels_first(pixels: Pixels) -> Pixels:
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
