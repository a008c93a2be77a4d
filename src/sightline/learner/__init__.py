"""The learner: a network, its data and its metrics go in, `train`, `evaluate` and `predict` come out.

    import sightline.learner as tf

`StandardModel` trains almost any network; a subclass of `BaseModel` says what its own step is. `StandardLearner` and
`BaseLearner` are the same in the form of later versions. Code that was written for the trainer this interface comes
from runs with another import line; docs/coming-from-learner.md says what is better here than there. The names are
loaded on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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
    "MAE": "sightline.learner.metrics",
    "MSE": "sightline.learner.metrics",
    "Accuracy": "sightline.learner.metrics",
    "BaseLearner": "sightline.learner.base",
    "BaseModel": "sightline.learner.base",
    "Flatten": "torch.nn",
    "LearnerError": "sightline.learner.plan",
    "MeanConfidenceScore": "sightline.learner.metrics",
    "Metric": "sightline.learner.metrics",
    "PlotInput": "sightline.learner.plots",
    "StandardLearner": "sightline.learner.base",
    "StandardModel": "sightline.learner.base",
    "VisdomLogger": "sightline.learner.visdom",
    "decode_imagenet": "sightline.learner.images",
    "load_image": "sightline.learner.images",
    "load_network": "sightline.learner.weights",
    "one_hot": "sightline.learner.images",
    "visualize": "sightline.learner.plots",
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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        from sightline.errors import nearest

        raise AttributeError(f"module 'sightline.learner' has no attribute '{name}'.{nearest(name, _HOMES)}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
