"""Helpers for nested inputs and outputs of networks (lists and tuples of tensors)."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def map_nested(value: Any, function: Callable[[Any], Any], mappings: bool = False) -> Any:
    """Applies `function` to each element of nested lists, tuples and named tuples, whose types are kept.

    With `mappings`, dicts and other mappings are followed as well, and become dicts."""
    if isinstance(value, list | tuple):
        return rebuild_like(value, [map_nested(item, function, mappings) for item in value])
    if mappings and isinstance(value, Mapping):
        return {name: map_nested(item, function, mappings) for name, item in value.items()}
    return function(value)


def rebuild_like(value: Any, items: list[Any]) -> Any:
    """Returns a list, tuple or named tuple of the same type as `value`, with these items."""
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def to_float32(value: Any) -> Any:
    """Converts the floating-point tensors of a nested value to float32, in which losses and metrics are computed."""
    return map_nested(
        value, lambda part: part.float() if isinstance(part, Tensor) and part.is_floating_point() else part
    )
