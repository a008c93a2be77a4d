"""Sightline trains, checks, ships and streams image classifiers from one config, without the silent bugs.

The names below are loaded on first use, so that `import sightline` costs nothing."""

from sightline.core import lazy

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)
