"""The learner: a network, its data and its metrics go in, `train`, `evaluate` and `predict` come out.

    import sightline.learner as tf

`StandardModel` trains almost any network; a subclass of `BaseModel` says what its own step is. `StandardLearner` and
`BaseLearner` are the same in the form of later versions. Code that was written for the trainer this interface comes
from runs with another import line; docs/coming-from-learner.md says what is better here than there. The names are
loaded on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sightline import lazy

if TYPE_CHECKING:
    from torch.nn import Flatten

    from sightline.learner.base import BaseLearner, BaseModel, StandardLearner, StandardModel
    from sightline.learner.images import decode_imagenet, load_image, one_hot
    from sightline.learner.metrics import MAE, MSE, Accuracy, MeanConfidenceScore, Metric
    from sightline.learner.plan import LearnerError
    from sightline.learner.plots import PlotInput, visualize
    from sightline.learner.visdom import VisdomLogger
    from sightline.learner.weights import load_network

_HOMES = {
    "MAE": ".metrics",
    "MSE": ".metrics",
    "Accuracy": ".metrics",
    "BaseLearner": ".base",
    "BaseModel": ".base",
    "Flatten": "torch.nn",
    "LearnerError": ".plan",
    "MeanConfidenceScore": ".metrics",
    "Metric": ".metrics",
    "PlotInput": ".plots",
    "StandardLearner": ".base",
    "StandardModel": ".base",
    "VisdomLogger": ".visdom",
    "decode_imagenet": ".images",
    "load_image": ".images",
    "load_network": ".weights",
    "one_hot": ".images",
    "visualize": ".plots",
}
__all__ = [
    "MAE",
    "MSE",
    "Accuracy",
    "BaseLearner",
    "BaseModel",
    "Flatten",
    "LearnerError",
    "MeanConfidenceScore",
    "Metric",
    "PlotInput",
    "StandardLearner",
    "StandardModel",
    "VisdomLogger",
    "decode_imagenet",
    "load_image",
    "load_network",
    "one_hot",
    "visualize",
]

__getattr__, __dir__ = lazy.names(__name__, _HOMES)
