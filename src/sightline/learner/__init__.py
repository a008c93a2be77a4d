"""A Keras-like learner: wraps a network and provides `train`, `evaluate` and `predict`.

    import sightline.learner as tf

Names, arguments and output files are those of TorchFusion; docs/migrating/learner.md lists the differences.
`StandardModel` trains almost any network; a subclass of `BaseModel` defines its own training step. `StandardLearner`
and `BaseLearner` have the interface of later TorchFusion versions. The names are imported on first use."""

from sightline.core import lazy

__getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)
