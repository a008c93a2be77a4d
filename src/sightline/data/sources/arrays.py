"""Turns arrays or tensors of images and labels into rows. Rows hold views of the array, not copies."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.core.errors import DataError, arg
from sightline.data.records import Row


def array_rows(
    images: Any, labels: Any, split: str, where: Callable[[int], str], name: str, label_name: str, numbers: bool = False
) -> list[Row]:
    """Returns one row per image. See `image_array` and `label_texts` for the accepted shapes and dtypes.

    `where` returns the location of image i; `name` and `label_name` are the names of the arrays in messages. Raises
    DataError for arrays that are empty, differ in length or have another shape or dtype."""
    pixels = image_array(images, name)
    texts = label_texts(labels, label_name, numbers)
    if len(pixels) != len(texts):
        raise DataError(f"{name}: found {len(pixels)} images, but {len(texts)} labels in {label_name}.")
    if not texts:
        raise DataError(f"{name}: the array has no images.")
    width = max(5, len(str(len(texts) - 1)))
    return [
        Row(f"{split}/{i:0{width}d}", image, text, where(i))
        for i, (image, text) in enumerate(zip(pixels, texts, strict=True))
    ]


def image_array(images: Any, name: str) -> NDArray[np.uint8]:
    """Returns images as uint8 [N, H, W] or [N, H, W, C]; channels-first input is transposed.

    Accepts an array, tensor or list of uint8 [N, H, W], [N, H, W, C] or [N, C, H, W] with C 1 or 3. Raises DataError
    for other shapes and dtypes."""
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
    """Returns each label of an array [N] or [N, 1] as text.

    Labels are integers or text, or with `numbers` (regression) also floats. Raises DataError for other shapes and
    dtypes."""
    array = to_numpy(labels, name)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        hint = (
            " Regression predicts one number per image."
            if numbers
            else " Several columns are one-hot or multi-label; for one-hot labels, pass labels.argmax(1)."
        )
        raise DataError(
            f"{name}: found the shape {list(array.shape)}; expected [N] or [N,1].{hint if array.ndim == 2 else ''}"
        )
    if array.dtype.kind not in ("iufU" if numbers else "iuU"):
        expected = "numbers" if numbers else "integers or text"
        advice = f", or set {arg.target}=number to predict numbers" if array.dtype.kind == "f" else ""
        convert = "float32" if numbers else "int64"
        raise DataError(f"{name}: expected {expected}, found {array.dtype}; convert with astype('{convert}'){advice}.")
    return [str(label) for label in array.tolist()]


def to_numpy(values: Any, name: str) -> NDArray[Any]:
    """Converts an array, tensor or list to a NumPy array. Raises DataError if that is not possible."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name}: cannot be converted to an array: {error}.") from error
    if array.dtype == object:
        raise DataError(f"{name}: the items differ in type or shape. Expected one array, such as uint8 images [N,H,W].")
    return array


def _dtype_hint(array: NDArray[Any]) -> str:
    if array.dtype.kind != "f" or not array.size:
        return "; convert with astype('uint8') if all values are 0 to 255"
    low, high = float(array.min()), float(array.max())
    detail = f" from {low:.4g} to {high:.4g}"
    if low >= 0 and high <= 1:
        return f"{detail}; pass (x * 255).round().astype('uint8')"
    if low >= 0 and high <= 255:
        return f"{detail}; pass x.round().astype('uint8')"
    return f"{detail}, probably normalised. Pass the original uint8 pixels; {arg.preprocess} normalises them"
