"""Trains, evaluates and exports image classifiers with PyTorch, from one config.

The public names are imported on first use, so `import sightline` does not import torch."""

from sightline.core import lazy

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)
