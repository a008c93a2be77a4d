"""Images and labels as arrays of the usual shapes. Samples hold views, nothing is copied."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.core.errors import DataError, arg
from sightline.data.records import Row


def array_rows(
    images: Any, labels: Any, split: str, where: Callable[[int], str], name: str, label_name: str, numbers: bool = False
) -> list[Row]:
    """One row per image. `where` says where image i is, the names are what messages call the arrays; with `numbers`,
    labels may have any type of number."""
    pixels = image_array(images, name)
    texts = label_texts(labels, label_name, numbers)
    if len(pixels) != len(texts):
        raise DataError(f"{name} has {len(pixels)} images, but {label_name} has {len(texts)} labels.")
    if not texts:
        raise DataError(f"{name} has no images.")
    width = max(5, len(str(len(texts) - 1)))
    return [
        Row(f"{split}/{i:0{width}d}", image, text, where(i))
        for i, (image, text) in enumerate(zip(pixels, texts, strict=True))
    ]


def image_array(images: Any, name: str) -> NDArray[np.uint8]:
    """uint8 [N,H,W] or [N,H,W,C] of an array or tensor in any of the usual shapes. Raises DataError for others."""
    array = to_numpy(images, name)
    if array.dtype != np.uint8:
        raise DataError(f"{name}: expected uint8 pixels, found {array.dtype}{_dtype_hint(array)}.")
    if 0 not in array.shape[1:]:
        if array.ndim == 3 or (array.ndim == 4 and array.shape[3] in (1, 3)):
            return array
        if array.ndim == 4 and array.shape[1] == 1:
            return array[:, 0]
        if array.ndim == 4 and array.shape[1] == 3:
            return array.transpose(0, 2, 3, 1)
    raise DataError(
        f"{name}: found the shape {list(array.shape)}; expected [N,H,W], [N,H,W,C] or [N,C,H,W] with C 1 or 3."
    )


def label_texts(labels: Any, name: str, numbers: bool = False) -> list[str]:
    """One text for each label of an array [N] or [N,1] of whole numbers or text, or with `numbers` of any numbers."""
    array = to_numpy(labels, name)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        hint = (
            " One number for each image is predicted, not several."
            if numbers
            else " Several columns are one-hot or several labels at once; for one-hot, hand over argmax(1)."
        )
        raise DataError(
            f"{name}: found the shape {list(array.shape)}; expected [N] or [N,1].{hint if array.ndim == 2 else ''}"
        )
    if array.dtype.kind not in ("iufU" if numbers else "iuU"):
        detail = "numbers" if numbers else "whole numbers or text"
        advice = f", or set {arg.target}=number to predict numbers" if array.dtype.kind == "f" else ""
        convert = "float32" if numbers else "int64"
        raise DataError(f"{name}: expected {detail}, found {array.dtype}; convert with astype('{convert}'){advice}.")
    return [str(label) for label in array.tolist()]


def to_numpy(values: Any, name: str) -> NDArray[Any]:
    """An array of an array, a tensor or a list."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name}: no array can be made of it: {error}.") from error
    if array.dtype == object:
        raise DataError(f"{name}: a list of unlike things, not one array; expected uint8 images of one shape.")
    return array


def _dtype_hint(array: NDArray[Any]) -> str:
    if array.dtype.kind != "f" or not array.size:
        return "; convert with astype('uint8') where all values are 0 to 255"
    low, high = float(array.min()), float(array.max())
    detail = f" from {low:.4g} to {high:.4g}"
    if low >= 0 and high <= 1:
        return f"{detail}; give (x * 255).round().astype('uint8')"
    if low >= 0 and high <= 255:
        return f"{detail}; give x.round().astype('uint8')"
    return f"{detail}: normalised already? Give the pixels before that, as uint8; {arg.preprocess} normalises"
