"""Values of several parts: what networks of several inputs and outputs take and give, as lists and tuples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """`function` of each part of a value, at any depth of lists, tuples and named tuples, which stay what they are."""
    if isinstance(value, list | tuple):
        return like(value, [mapped(item, function) for item in value])
    return function(value)


def like(value: Any, items: list[Any]) -> Any:
    """A list, tuple or named tuple as `value` is, of these items."""
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def full_precision(value: Any) -> Any:
    """The floating-point tensors of a value as float32, in which losses and metrics are computed."""
    return mapped(value, lambda part: part.float() if isinstance(part, Tensor) and part.is_floating_point() else part)
