"""Helpers for nested mappings: the value at a path of keys, and dotted keys."""

from collections.abc import Mapping
from typing import Any


def get_at_path(values: Any, *keys: str) -> Any:
    """Returns the value at a path of keys in nested mappings, or None if a key is missing."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Flattens nested mappings and lists of mappings to dotted keys such as `module.network.layers[2].kernel_size`."""
    if isinstance(values, Mapping) and values:
        children = [(f"{prefix}.{key}" if prefix else str(key), value) for key, value in values.items()]
    elif isinstance(values, list) and any(isinstance(value, Mapping) for value in values):
        children = [(f"{prefix}[{position}]", value) for position, value in enumerate(values)]
    else:
        return {prefix: values} if prefix else {}
    return {name: leaf for key, value in children for name, leaf in flatten(value, key).items()}
