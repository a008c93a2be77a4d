"""Helpers for nested mappings: the value at a path of keys, and dotted keys."""

from collections.abc import Mapping
from typing import Any


def get_at_path(values: Any, *keys: str) -> Any:
    """The value at a path of keys in nested mappings; None where there is none."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings, and lists of them, as dotted keys with their values: `module.network.layers[2].kernel_size`."""
    if isinstance(values, Mapping) and values:
        below = [(f"{prefix}.{key}" if prefix else str(key), value) for key, value in values.items()]
    elif isinstance(values, list) and any(isinstance(value, Mapping) for value in values):
        below = [(f"{prefix}[{position}]", value) for position, value in enumerate(values)]
    else:
        return {prefix: values} if prefix else {}
    return {name: leaf for key, value in below for name, leaf in flatten(value, key).items()}
