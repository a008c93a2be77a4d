"""How an image becomes the numbers a network sees: one decoder, one resize policy, one normalisation.

`Preprocess` is stored with the model; training, evaluation and prediction all go through it, so what answers is what
was measured. Decoding is on the CPU and ends in uint8; normalisation is on the device and by batch."""

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
"""(top, left, height, width) of a part of the upright image, in pixels."""


class PreprocessedImage(NamedTuple):
    """uint8 `pixels` [C,H,W]; the `size` (height, width) of the image they come from, whether its colours were lost to
    gray, and its `content_key`."""

    pixels: Pixels
    size: tuple[int, int]
    lost_colours: bool
    key: int


@dataclass(frozen=True)
class Preprocess:
    """Decode to `channels` (1 gray, 3 RGB), bring to `height` x `width`, scale to 0..1, subtract `mean`, divide by
    `std`.

    `resize`: "stretch" ignores the aspect ratio; "crop" scales the shorter side and cuts the centre; "pad" scales the
    longer side and fills with `background`. With `crop_pct`, 0.1 to 2, "stretch" and "crop" scale to
    1/crop_pct of that size, rounded down, and cut the centre out of it, as timm and torchvision measure their
    networks (above 1 there is black around it); without it the part that is kept is cut first and scaled once. Alpha
    is composited over `background` (0..255), the EXIF orientation is applied, and gray of up to 16 bits is scaled to 8.
    Gray from colour is ITU-R 601 luma, as in Pillow."""

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
                f"{arg.crop_pct}: expected a share of 0.1 to 2, with resize 'crop' or 'stretch', "
                f"found {self.crop_pct} with '{self.resize}'."
            )
        if self.resize not in ("stretch", "crop", "pad") or self.interpolation not in _INTERPOLATIONS:
            raise DataError(f"{arg.preprocess}: there is no resize '{self.resize}' with '{self.interpolation}'.")
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            if len(values) == 1:
                values *= self.channels
            if len(values) != self.channels:
                raise DataError(
                    f"{arg.preprocess}.{name}: {len(values)} values for {self.channels} channel(s); "
                    f"give one, or one for each channel."
                )
            object.__setattr__(self, name, values)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a decoded image."""
        return self.channels, self.height, self.width

    @property
    def scaled(self) -> tuple[int, int]:
        """(height, width) that an image is scaled to before its centre is cut out."""
        share = self.crop_pct or 1.0
        # the smallest numbers are no difference: 224 / (224 / 232) may come out just below 232
        return math.floor(self.height / share + 1e-6), math.floor(self.width / share + 1e-6)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_dict` gives back an equal object."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        if self.crop_pct is None:  # as before there was one
            del values["crop_pct"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        """The inverse of `to_dict`."""
        made: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**made)

    def decode(
        self, image: ImageInput, name: str = "", exact: Collection[str] = (), crop: CropRegion | None = None
    ) -> Pixels:
        """uint8 pixels [C,H,W] of a file, an encoded image, a Pillow image or an array [H,W] or [H,W,C] of uint8.

        `exact` may name "size" and "channels": an image that would have to be resized, or lose its colours, is then
        refused. `crop` is the part that is brought to size, by default all of it (or what `resize` says). Raises
        ImageError naming the file for one that is no image or is damaged, DataError for one that is refused."""
        name = name or (f"'{image}'" if isinstance(image, Path) else "the image")
        upright = decode_image(image, name)
        if crop is not None:
            upright = _crop(upright, crop, name)
        own = composite_alpha(upright, self.background)
        self.check_exact(own, name, exact)
        return self._resize_to_chw(own, stretch=crop is not None)

    def decode_with_stats(self, image: ImageInput, name: str) -> PreprocessedImage:
        """As `decode`, with what the size, channels and content of the image were."""
        upright = decode_image(image, name)
        own = composite_alpha(upright, self.background)
        return PreprocessedImage(
            self._resize_to_chw(own), height_width(own), self._loses_colours(own), content_key(upright)
        )

    def _loses_colours(self, own: Pixels) -> bool:
        return self.channels == 1 and own.ndim == 3

    def _resize_to_chw(self, own: Pixels, stretch: bool = False) -> Pixels:
        """Pixels in their own size, gray [H,W] or RGB [H,W,3], as [C,H,W] of this preprocessing."""
        fits = own.ndim == (2 if self.channels == 1 else 3)
        if not fits or height_width(own) != (self.height, self.width) or not (stretch or self.keeps_size):
            whole = Image.fromarray(np.ascontiguousarray(own))
            converted = whole if fits else whole.convert("L" if self.channels == 1 else "RGB")
            own = np.asarray(self._resized(converted, stretch))
        return _channels_first(own)

    def check_exact(self, own: Pixels, name: str, exact: Collection[str]) -> None:
        """Raises DataError for pixels in their own size, [H,W] or [H,W,3], that would lose what `exact` names."""
        if "channels" in exact and self._loses_colours(own):
            raise DataError(f"{name} is a colour image, the first one is gray. Set {arg.channels} to 1 or 3.")
        if "size" in exact and height_width(own) != (self.height, self.width):
            height, width = height_width(own)
            raise DataError(
                f"{name} is {height} x {width} pixels, the first image {self.height} x {self.width}. "
                f"Set {arg.size} to bring all to one size, or use data=folder."
            )

    def normalizer(self, device: torch.device | str = "cpu") -> Callable[..., Tensor]:
        """A function from uint8 [B,C,H,W] to float32 [B,C,H,W], (pixels / 255 - mean) / std, on `device`; a second
        argument is a tensor to put it in."""
        import torch  # here, so that a process that only decodes need not wait for it

        shape = (1, self.channels, 1, 1)
        mean = torch.tensor(self.mean, dtype=torch.float64).mul(255).float().view(shape).to(device)
        scale = torch.tensor(self.std, dtype=torch.float64).mul(255).reciprocal().float().view(shape).to(device)

        def normalize(pixels: Tensor, out: Tensor | None = None) -> Tensor:
            wide = pixels.to(torch.float32) if out is None else out.copy_(pixels)
            return wide.sub_(mean).mul_(scale)

        return normalize

    @property
    def keeps_size(self) -> bool:
        """Whether an image that has the size already stays as it is."""
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
        """(width, height) to scale to before the centre is cut out; the roundings are those of torchvision's `Resize`
        and, where the image is to be no square, of timm's `ResizeKeepRatio`."""
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


def _limit_aspect_ratio(image: Image.Image, most: float) -> Image.Image:
    """The image, or of one that is more than `most` times as long as wide the part about its centre. All of it would be
    scaled, and then nearly all cut away: a few lines of pixels may be gigabytes then."""
    width, height = image.size
    if max(width, height) <= most * min(width, height):
        return image
    width, height = min(width, math.ceil(most * height)), min(height, math.ceil(most * width))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _crop_offset(there: int, wanted: int) -> int:
    """Where the centre begins; below 0 where it is larger than what is there, which Pillow fills with black."""
    return round((there - wanted) / 2) if there >= wanted else -((wanted - there) // 2)


def _crop(image: DecodedImage, crop: CropRegion, name: str) -> DecodedImage:
    top, left, height, width = crop
    there = height_width(image)
    if top + height > there[0] or left + width > there[1]:
        raise ImageError(f"{name} is {there[0]} x {there[1]} pixels now, fewer than when it was packed.")
    if isinstance(image, np.ndarray):
        return image[top : top + height, left : left + width]
    return image.crop((left, top, left + width, top + height))


def _channels_first(pixels: Pixels) -> Pixels:
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
