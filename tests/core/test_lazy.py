"""Lazy loading of public names: loaded once on first use, listed before that, with a suggestion for a misspelt name."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from helpers.commands import python

PACKAGES = ("sightline", "sightline.learner", "sightline.params")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A package with two lazy names: one from its own submodule and one from another package."""
    folder = tmp_path / "lazily"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from sightline.core import lazy\n\n__getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)\n"
    )
    (folder / "__init__.pyi").write_text("from math import sqrt as sqrt\n\nfrom lazily.tools import Hammer as Hammer\n")
    (folder / "tools.py").write_text("class Hammer: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("lazily")
    for name in [name for name in sys.modules if name.partition(".")[0] == "lazily"]:
        del sys.modules[name]


def test_a_name_is_listed_before_it_is_loaded_and_looked_up_once(package: ModuleType) -> None:
    assert {"Hammer", "sqrt"} <= set(dir(package))
    assert "lazily.tools" not in sys.modules
    hammer = package.Hammer
    assert hammer is sys.modules["lazily.tools"].Hammer
    assert vars(package)["Hammer"] is hammer
    assert package.sqrt(4) == 2


def test_a_misspelt_name_is_an_error_with_one_suggestion(package: ModuleType) -> None:
    with pytest.raises(AttributeError) as caught:
        package.Hamer  # noqa: B018
    assert str(caught.value) == "module 'lazily' has no attribute 'Hamer'. Did you mean 'Hammer'?"
    assert caught.value.name == "Hamer"
    assert not hasattr(package, "Saw")
    done = subprocess.run(  # without the name in the error, the interpreter adds a second suggestion
        [sys.executable, "-c", "import sightline; sightline.Trainr"], capture_output=True, text=True, check=False
    )
    assert done.stderr.endswith("has no attribute 'Trainr'. Did you mean 'Trainer'?\n")


@pytest.mark.parametrize("name", PACKAGES)
def test_the_stub_declares_exactly_the_public_names(name: str) -> None:
    package = importlib.import_module(name)
    assert package.__file__ is not None
    stub = ast.parse(Path(package.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imported = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    typed = {alias.name: node for node in imported for alias in node.names}
    assert all(alias.asname == alias.name for node in imported for alias in node.names), "else it is not public"
    assert set(typed) == set(package.__all__) <= set(dir(package))
    for public, node in typed.items():
        assert getattr(package, public) is getattr(importlib.import_module(node.module or ""), public)


def test_importing_the_packages_loads_nothing_heavy() -> None:
    output = python(f"import sys, {', '.join(PACKAGES)}\nprint(*{{name.partition('.')[0] for name in sys.modules}})")
    assert not set(output.split()) & {"torch", "numpy", "PIL", "difflib"}
