"""One item of another library's data set: its image as uint8 pixels, its label as a number or text."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sightline.errors import DataError, arg


def plain_label(label: Any, where: str, numbers: bool = False) -> int | float | str:
    """A label as a whole number or text, or with `numbers` as any number. Raises DataError for anything else, such as
    one-hot."""
    value = label.item() if getattr(label, "ndim", None) == 0 or getattr(label, "shape", None) == (1,) else label
    if isinstance(value, int | float | str if numbers else int | str) and not isinstance(value, bool):
        return value
    shape = f" of shape {list(label.shape)}" if hasattr(label, "shape") else ""
    told = "a number" if numbers else "a whole number or text"
    advice = f" To predict numbers, set {arg.target}=number." if isinstance(value, float) and not numbers else ""
    raise DataError(f"{where}: the label is a {type(label).__name__}{shape}; expected {told}.{advice}")


def to_pixels(image: Any, where: str) -> NDArray[np.uint8] | Image.Image:
    """A Pillow image as it is, an array or tensor as uint8 [H,W] or [H,W,C]. Floats must be the whole levels that
    ToTensor makes: times 255 they are the bits again."""
    if isinstance(image, Image.Image):
        return image
    first = hasattr(image, "detach")  # a tensor has its channels first, an array last, where both could be
    array = np.asarray(image.detach().cpu() if first else image)
    if array.ndim == 3:
        ends = (array.shape[0] in (1, 3), array.shape[2] in (1, 3))
        if ends[0] and (first or not ends[1]):
            array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)) or 0 in array.shape:
        raise DataError(
            f"{where}: the image is a {type(image).__name__} of shape {list(array.shape)}; expected [H,W], [C,H,W] or "
            f"[H,W,C] with C 1 or 3."
        )
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise DataError(f"{where}: pixels of {array.dtype}; expected uint8, or floats from 0 to 1 as ToTensor makes.")
    levels = array * 255.0
    whole = np.round(levels)
    if not (array.min() >= 0 and array.max() <= 1 and np.abs(levels - whole).max() <= 1e-3):
        raise DataError(
            f"{where}: {array.dtype} pixels from {array.min():.3g} to {array.max():.3g} that are not the whole levels "
            f"of 0 to 1 which ToTensor makes. Leave Normalize, and what else computes with floats, out of the data "
            f"set: {arg.preprocess} normalises."
        )
    return whole.astype(np.uint8)
