"""A trainer that is configured by one dict: the user writes the steps, the engine runs the loop.

    from sightline.params import build_classifier, params, set_seeds, train

`train(params, model, train_step, test_step, datadir, logdir, **kwargs)` reads `datadir/train` and `datadir/test`, calls
the two step functions for every batch, and writes checkpoints, TensorBoard files and logs to `logdir`. Code written for
the original trainer with this interface runs after changing its imports; docs/migrating/params.md lists the
differences. The names are imported on first use."""

from sightline.core import lazy

__getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)
