"""The params-dict trainer: one dict says everything, the steps are yours, the loop is the engine's.

    from sightline.params import build_classifier, params, set_seeds, train

`train(params, model, train_step, test_step, datadir, logdir, **kwargs)` reads `datadir/train` and `datadir/test`, calls
your two functions for every batch, and writes checkpoints, TensorBoard's files and logs to `logdir`. Code that was
written for the trainer this interface comes from runs with another import line; docs/coming-from-params.md says what is
better here than there. The names are loaded on first use."""

from sightline.core import lazy

__getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)
