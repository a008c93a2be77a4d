"""The learner: a network, its data and its metrics go in, `train`, `evaluate` and `predict` come out.

    import sightline.learner as tf

`StandardModel` trains almost any network; a subclass of `BaseModel` says what its own step is. `StandardLearner` and
`BaseLearner` are the same in the form of later versions. Code that was written for the trainer this interface comes
from runs with another import line; docs/coming-from-learner.md says what is better here than there. The names are
loaded on first use."""

from sightline.core import lazy

__getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)
