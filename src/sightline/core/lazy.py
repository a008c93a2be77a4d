"""A package's public names, loaded on first use, so that importing the package costs nothing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def attach(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """(`__getattr__`, `__dir__`, `__all__`) of a package whose `__init__.pyi`, beside its `file`, imports the public
    names from the modules that define them; type checkers and documentation read the same file (scientific-python's
    SPEC 1). A name is looked up there once; any other is an AttributeError with the nearest."""
    module = sys.modules[package]
    modules = public_names(Path(file).with_suffix(".pyi"))

    def load(name: str) -> Any:
        if name not in modules:
            from sightline.core.errors import did_you_mean

            message = f"module '{package}' has no attribute '{name}'.{did_you_mean(name, modules)}"
            raise AttributeError(message, name=name)  # with a name, Python adds no guess of its own
        value = getattr(importlib.import_module(modules[name]), name)
        setattr(module, name, value)
        return value

    def listed() -> list[str]:
        return sorted({*vars(module), *modules})

    return load, listed, sorted(modules)


def public_names(stub: Path) -> dict[str, str]:
    """The names that a stub file of `from module import name as name` imports, each with its module."""
    found = {}
    for statement in f"\n{stub.read_text(encoding='utf-8')}".split("\nfrom ")[1:]:
        module, _, names = statement.partition(" import ")
        for name in names.partition("\n\n")[0].strip("()\n ").split(","):
            if name.strip():
                found[name.split()[0]] = module
    return found
