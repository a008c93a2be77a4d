"""Imports the public names of a package on first use, so that importing the package is cheap."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def attach(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Returns (`__getattr__`, `__dir__`, `__all__`) for a package that imports its public names on first use.

    The `.pyi` file beside `file` imports these names from the modules that define them; type checkers and the
    documentation read it too (scientific-python's SPEC 1). Any other name raises AttributeError with the closest
    public name."""
    module = sys.modules[package]
    modules = public_names(Path(file).with_suffix(".pyi"))

    def load(name: str) -> Any:
        if name not in modules:
            from sightline.core.errors import did_you_mean

            message = f"module '{package}' has no attribute '{name}'.{did_you_mean(name, modules)}"
            raise AttributeError(message, name=name)  # `name` stops Python from adding its own suggestion
        value = getattr(importlib.import_module(modules[name]), name)
        setattr(module, name, value)
        return value

    def listed() -> list[str]:
        return sorted({*vars(module), *modules})

    return load, listed, sorted(modules)


def public_names(stub: Path) -> dict[str, str]:
    """Returns the names that a stub file of `from module import name as name` lines imports, each with its module."""
    modules = {}
    for statement in f"\n{stub.read_text(encoding='utf-8')}".split("\nfrom ")[1:]:
        module, _, names = statement.partition(" import ")
        for name in names.partition("\n\n")[0].strip("()\n ").split(","):
            if name.strip():
                modules[name.split()[0]] = module
    return modules
