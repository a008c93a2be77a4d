"""A package's public names, loaded on first use, so that importing the package costs nothing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """(`__getattr__`, `__dir__`) of a package. `homes` says which module each public name is in; one that begins with
    a dot is the package's own. A name is looked up there once; any other is an AttributeError with the nearest."""
    module = sys.modules[package]

    def load(name: str) -> Any:
        if name not in homes:
            from sightline.errors import nearest

            told = f"module '{package}' has no attribute '{name}'.{nearest(name, homes)}"
            raise AttributeError(told, name=name)  # with a name, Python adds no guess of its own
        value = getattr(importlib.import_module(homes[name], package), name)
        setattr(module, name, value)
        return value

    def listed() -> list[str]:
        return sorted({*vars(module), *homes})

    return load, listed
