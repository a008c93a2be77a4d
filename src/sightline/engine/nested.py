"""Values of several parts: what networks of several inputs and outputs take and give, as lists and tuples."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def map_nested(value: Any, function: Callable[[Any], Any], mappings: bool = False) -> Any:
    """`function` of each part of a value, at any depth of lists, tuples and named tuples, which stay what they are;
    with `mappings` also of dicts and other mappings, which become dicts."""
    if isinstance(value, list | tuple):
        return rebuild_like(value, [map_nested(item, function, mappings) for item in value])
    if mappings and isinstance(value, Mapping):
        return {name: map_nested(item, function, mappings) for name, item in value.items()}
    return function(value)


def rebuild_like(value: Any, items: list[Any]) -> Any:
    """A list, tuple or named tuple as `value` is, of these items."""
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def to_float32(value: Any) -> Any:
    """The floating-point tensors of a value as float32, in which losses and metrics are computed."""
    return map_nested(
        value, lambda part: part.float() if isinstance(part, Tensor) and part.is_floating_point() else part
    )
