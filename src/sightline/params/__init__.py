"""The params-dict trainer: one dict says everything, the steps are yours, the loop is the engine's.

    from sightline.params import build_classifier, params, set_seeds, train

`train(params, model, train_step, test_step, datadir, logdir, **kwargs)` reads `datadir/train` and `datadir/test`, calls
your two functions for every batch, and writes checkpoints, TensorBoard's files and logs to `logdir`. Code that was
written for the trainer this interface comes from runs with another import line; docs/coming-from-params.md says what is
better here than there. The names are loaded on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sightline import lazy

if TYPE_CHECKING:
    from sightline.data.convert import convert_idx
    from sightline.params.data import FashionMNIST, get_dataloader
    from sightline.params.defaults import params
    from sightline.params.files import load_checkpoint
    from sightline.params.loop import set_seeds, train
    from sightline.params.network import build_classifier

_HOMES = {
    "FashionMNIST": ".data",
    "build_classifier": ".network",
    "convert_idx": "sightline.data.convert",
    "get_dataloader": ".data",
    "load_checkpoint": ".files",
    "params": ".defaults",
    "set_seeds": ".loop",
    "train": ".loop",
}
__all__ = [
    "FashionMNIST",
    "build_classifier",
    "convert_idx",
    "get_dataloader",
    "load_checkpoint",
    "params",
    "set_seeds",
    "train",
]

__getattr__, __dir__ = lazy.names(__name__, _HOMES)
