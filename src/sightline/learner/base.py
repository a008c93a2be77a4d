"""The learner classes: BaseModel and StandardModel, and BaseLearner and StandardLearner of later versions.

They provide the interface; training and evaluation run in the engine."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.core.errors import DataError
from sightline.core.eval_mode import eval_mode
from sightline.engine.step_hooks import autocast_bfloat16
from sightline.engine.trainer import evaluate
from sightline.learner.fitting import fit
from sightline.learner.metrics import batch_size
from sightline.learner.plan import FIRST, LATER, LOOP, LearnerError, LearnerMetric, TrainArguments, named_metrics
from sightline.learner.predictions import (
    clone_for_autograd,
    concatenate,
    on_cpu,
    per_sample,
    probabilities,
    squeeze_single,
)
from sightline.learner.state import LearnerState
from sightline.learner.summary import inputs_of, layer_table
from sightline.learner.task import PREDICT, TRAIN, LearnerTask, find_method, measure_on, move_to_device, train_on
from sightline.learner.weights import load_weights, save_weights
from sightline.models.onnx import write_onnx


class BaseModel(LearnerState):
    """A network with methods to train, evaluate, predict, save and load it.

    A subclass defines what happens on one batch: `__train_func__`, `__eval_function__` and `__predict_func__`."""

    @FIRST.shown
    def train(self, *arguments: Any, **named: Any) -> None:
        """Trains until `num_epochs` epochs are done in total, writing models, plots and logs to `model_dir`.

        Called again with the same `model_dir`, it resumes; with the same arguments, the result equals an uninterrupted
        run.

        Later versions added `val_loader`, `val_metrics`, `lr_scheduler`, `save_model_interval`, `visdom_log`,
        `tensorboard_log`, `save_architecture` and `clip_grads` (the lowest and highest value of a gradient). Two
        arguments restore earlier behaviour: `clip_params` clips weights in the same way, and `lr_schedule_late` calls
        `lr_schedule(epoch)` after the epoch instead of before it. Raises LearnerError, a ValueError, for a wrong
        argument and for a directory that holds a different training."""
        self._fit(FIRST.plan(*arguments, **named))

    def evaluate(
        self, test_loader: Iterable[Any], metrics: Sequence[LearnerMetric] | LearnerMetric
    ) -> dict[str, float]:
        """Resets `metrics`, measures them on `test_loader` and returns their values by name.

        Weights, buffers and train/eval modes do not change."""
        return self._measure("test", test_loader, metrics)

    def validate(self, val_loader: Iterable[Any], metrics: Sequence[LearnerMetric] | LearnerMetric) -> dict[str, float]:
        """As `evaluate`, with the validation step `__val_function__` where the learner defines one."""
        return self._measure("val", val_loader, metrics)

    def predict(self, inputs: Any, apply_softmax: bool = False) -> Any:
        """Returns the network's outputs for a batch; for a loader, a list with one entry per sample, on the CPU.

        A batch is a tensor, array, list, tuple or mapping; any other iterable is a loader, which may yield (inputs,
        targets). Several outputs stay in their tuple, list or dict. `apply_softmax` applies softmax over dimension 1,
        the classes, of every output. Raises LearnerError for an output without classes, and for a loader whose outputs
        do not have one entry per sample."""
        with self.ready(), eval_mode(self.model):
            if isinstance(inputs, Tensor | np.ndarray | Mapping | list | tuple) or not isinstance(inputs, Iterable):
                return self._batch_result(self._batch_outputs(inputs, apply_softmax))
            answers = []
            for batch in inputs:
                paired = isinstance(batch, list | tuple) and len(batch) in (1, 2)
                answers.append(on_cpu(self._batch_outputs(batch[0] if paired else batch, apply_softmax)))
        return self._loader_result(answers)

    def summary(
        self,
        input_sizes: Any,
        input_types: Any = torch.float32,
        item_length: int = 26,
        tensorboard_log: str | Path | None = None,
    ) -> str:
        """Returns a table of the layers with their input and output sizes, parameters and multiply-adds.

        `input_sizes` is the size of one input without the batch dimension, such as (1, 28, 28), or a list of sizes.
        Columns have at least `item_length` characters. With `tensorboard_log`, the graph is written to that directory.
        Raises ModelError naming the layer that does not fit."""
        return layer_table(self.model, inputs_of(input_sizes, input_types), item_length, tensorboard_log)

    def to_onnx(self, input_sizes: Any, path: str | Path, input_types: Any = torch.float32, **options: Any) -> None:
        """Exports the network to ONNX for inputs of these sizes; `options` are passed to `torch.onnx.export`."""
        write_onnx(self.model, inputs_of(input_sizes, input_types), path, options)

    def save_model(self, path: Any, save_architecture: bool = False) -> None:
        """Saves the weights, a state dict on the CPU, to a file or stream.

        With `save_architecture`, files for `load_network` are written beside the file: the architecture as data, and
        its weights."""
        save_weights(self.model, path, save_architecture)

    def load_model(self, path: Any) -> None:
        """Loads all weights of a file into the network.

        Raises LearnerError naming what does not fit; then no weight is changed."""
        load_weights(self.model, path)

    def half(self) -> None:
        """Switches to mixed precision: the network runs in bfloat16 where that is safe.

        Weights and loss stay float32. bfloat16 has the range of float32, so the loss is not scaled."""
        self.fp16_mode = True

    def get_train_history(self) -> dict[str, list[float]]:
        """Returns the values of all epochs, by name.

        These are `epoch` (from 1), `duration` in seconds, `train_loss`, and the metrics `train_…`, `test_…` and
        `val_…`."""
        renamed = {"epoch": "epoch", "train_duration": "duration", "train_loss": "train_loss"}
        names = renamed | {name: name for record in self.records for name in record if name not in renamed}
        history = {
            to: [record[name] + (name == "epoch") for record in self.records if name in record]
            for name, to in names.items()
        }
        return {name: values for name, values in history.items() if values}

    @property
    def owns_train_step(self) -> bool:
        """Whether the training step is the one in this module, not one that a subclass defines."""
        step = find_method(self, *TRAIN)
        return getattr(step, "__module__", "") == __name__

    def answer(self, inputs: Any) -> Any:
        """Returns the outputs of the learner's prediction step for a batch of inputs."""
        function = find_method(self, *PREDICT)
        if function is None:
            raise LearnerError(
                f"{type(self).__name__} has no {PREDICT[0]}(self, inputs), the prediction step. Define it, or use "
                f"StandardModel."
            )
        return function(inputs)

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """A context in which the network is on its device and, after `half`, in mixed precision."""
        outer, device = self._placed, self.device
        self.model.to(device)
        self._placed = device
        try:
            with autocast_bfloat16(self.model, device) if self.fp16_mode else contextlib.nullcontext():
                yield
        finally:
            self._placed = outer

    def _fit(self, plan: TrainArguments) -> None:
        with self.ready():
            fit(self, plan)

    def _measure(self, split: str, loader: Iterable[Any], metrics: Any) -> dict[str, float]:
        named = named_metrics("metrics", metrics)
        previous = self.test_metrics, self.val_metrics
        self.test_metrics = self.val_metrics = list(named.values())
        task = LearnerTask(self, {split: named})
        try:
            with self.ready():
                values = evaluate(task, self.model, task.measured(split, loader), task.eval_meter(), split)
        finally:
            if previous != (None, None):
                self.test_metrics, self.val_metrics = previous
        for metric in named.values():
            if hasattr(metric, "add_history"):
                metric.add_history()
        return values

    def _batch_outputs(self, inputs: Any, apply_softmax: bool) -> Any:
        with torch.inference_mode():
            outputs = self.answer(inputs)
            outputs = probabilities(outputs) if apply_softmax else outputs
        return clone_for_autograd(outputs)

    def _batch_result(self, answer: Any) -> Any:
        """The result of `predict` for one batch."""
        return answer

    def _loader_result(self, answers: list[Any]) -> Any:
        """The result of `predict` for a loader."""
        return per_sample(answers)


class StandardModel(BaseModel):
    """Trains almost any network on batches (inputs, targets), for classification or regression.

    `loss_fn(outputs, targets)` returns a scalar. Several inputs or outputs form a list or tuple, which is passed to the
    network and the loss as one argument."""

    def __train_func__(
        self,
        data: Any,
        optimizer: Any,
        loss_fn: Any,
        train_metrics: Any,
        running_loss: Tensor,
        epoch: int,
        batch_num: int,
    ) -> None:
        loss = train_on(self, data, optimizer, loss_fn, train_metrics)
        running_loss.add_((loss * batch_size(data)).to(running_loss.device))

    def __eval_function__(self, data: Any, metrics: Any) -> None:
        measure_on(self, data, metrics)

    def __predict_func__(self, inputs: Any) -> Any:
        return self.model(move_to_device(inputs, self.device))


class BaseLearner(BaseModel):
    """BaseModel with the interface of later versions.

    File names and printed lines count epochs from 1, and plots are off by default. The steps take only the batch and
    read everything else from attributes of the learner."""

    first_epoch = 1

    def __train_loop__(self, train_loader: Any, train_metrics: Any, *rest: Any, **named: Any) -> None:
        """Trains with `self.optimizer` and `self.loss_fn`; for subclasses that define their own `train`.

        Takes the other arguments of `train`. Plots are on by default."""
        self._fit(LOOP.plan(train_loader, self.loss_fn, self.optimizer, train_metrics, *rest, **named))

    @LATER.shown
    def train(self, *arguments: Any, **named: Any) -> None:
        """As `BaseModel.train`, with the argument order of later versions."""
        self._fit(LATER.plan(*arguments, **named))

    def predict(self, inputs: Any, apply_softmax: bool = False) -> Any:
        """Returns the network's outputs for a batch; for a loader, those of all batches concatenated, on the CPU.

        The first dimension is removed for a batch of one sample: [classes], not [1, classes]. For a loader, the result
        is always [samples, classes]. Several outputs stay in their tuple, list or dict. `apply_softmax` applies softmax
        over the classes of every output. Raises LearnerError as `BaseModel.predict`, and for a loader whose batches
        give outputs of different shapes; DataError for an empty loader."""
        return super().predict(inputs, apply_softmax)

    def _batch_result(self, answer: Any) -> Any:
        return squeeze_single(answer)

    def _loader_result(self, answers: list[Any]) -> Any:
        if not answers:
            raise DataError("predict: the loader is empty; expected at least one batch.")
        return concatenate(answers)


class StandardLearner(BaseLearner):
    """StandardModel with the interface of later versions."""

    def __train_func__(self, data: Any) -> None:
        loss = train_on(self, data, self.optimizer, self.loss_fn, self.train_metrics)
        self.train_running_loss = self.train_running_loss + (loss * batch_size(data)).to(self.train_running_loss.device)

    def __eval_function__(self, data: Any) -> None:
        measure_on(self, data, self.test_metrics)

    def __val_function__(self, data: Any) -> None:
        measure_on(self, data, self.val_metrics)

    def __predict_func__(self, inputs: Any) -> Any:
        return self.model(move_to_device(inputs, self.device))
