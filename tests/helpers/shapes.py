"""Checks the shape and dtype of tensors against the notation of the docstrings, such as `float32 [B,C,H,W]`."""

from __future__ import annotations

import re

import torch
from torch import Tensor


def check_shape(tensor: object, notation: str, sizes: dict[str, int] | None = None) -> dict[str, int]:
    """Asserts that a tensor is what the notation says, and returns the size of each named dimension.

    A dimension is a number or a name; names that are in `sizes` must have that size."""
    assert isinstance(tensor, Tensor), f"expected {notation}, found {type(tensor).__name__}"
    match = re.fullmatch(r"(\w+) \[([\w,]*)\]", notation)
    assert match is not None, notation
    names = [name for name in match[2].split(",") if name]
    found = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
    assert tensor.dtype == getattr(torch, match[1]), f"expected {notation}, found {found}"
    assert len(names) == tensor.ndim, f"expected {notation}, found {found}"
    known = dict(sizes or {})
    for name, size in zip(names, tensor.shape, strict=True):
        expected = int(name) if name.isdecimal() else known.setdefault(name, size)
        assert size == expected, f"expected {notation} with {name} = {expected}, found {found}"
    return known
