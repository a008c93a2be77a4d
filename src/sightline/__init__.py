"""Sightline trains, checks, ships and streams image classifiers from one config, without the silent bugs.

The names below are loaded on first use, so that `import sightline` costs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sightline import lazy

if TYPE_CHECKING:
    from sightline.compose.assemble import Assembly, assemble, fit, resume
    from sightline.compose.lr_find import lr_find
    from sightline.config.schema import TrainConfig
    from sightline.data.loader import BatchLoader
    from sightline.data.packed import PackedDataset
    from sightline.data.preprocess import Preprocess
    from sightline.engine.callbacks import Callback
    from sightline.engine.lrfind import LRCurve
    from sightline.engine.runtime import Runtime
    from sightline.engine.tasks import SupervisedTask
    from sightline.engine.trainer import Trainer
    from sightline.errors import SightlineError
    from sightline.models.probe import summary
    from sightline.models.spec import ModelSpec
    from sightline.runs.artifact import Prediction, Predictor, Value, load
    from sightline.types import Batch, FitResult, StepOutput, TrainState

__version__ = "0.1.0"

_HOMES = {
    "Assembly": ".compose.assemble",
    "Batch": ".types",
    "BatchLoader": ".data.loader",
    "Callback": ".engine.callbacks",
    "FitResult": ".types",
    "LRCurve": ".engine.lrfind",
    "ModelSpec": ".models.spec",
    "PackedDataset": ".data.packed",
    "Prediction": ".runs.artifact",
    "Predictor": ".runs.artifact",
    "Preprocess": ".data.preprocess",
    "Runtime": ".engine.runtime",
    "SightlineError": ".errors",
    "StepOutput": ".types",
    "SupervisedTask": ".engine.tasks",
    "TrainConfig": ".config.schema",
    "TrainState": ".types",
    "Trainer": ".engine.trainer",
    "Value": ".runs.artifact",
    "assemble": ".compose.assemble",
    "fit": ".compose.assemble",
    "load": ".runs.artifact",
    "lr_find": ".compose.lr_find",
    "resume": ".compose.assemble",
    "summary": ".models.probe",
}
__all__ = [
    "Assembly",
    "Batch",
    "BatchLoader",
    "Callback",
    "FitResult",
    "LRCurve",
    "ModelSpec",
    "PackedDataset",
    "Prediction",
    "Predictor",
    "Preprocess",
    "Runtime",
    "SightlineError",
    "StepOutput",
    "SupervisedTask",
    "TrainConfig",
    "TrainState",
    "Trainer",
    "Value",
    "assemble",
    "fit",
    "load",
    "lr_find",
    "resume",
    "summary",
]

__getattr__, __dir__ = lazy.names(__name__, _HOMES)
