"""The learners: BaseModel and StandardModel as the tutorial has them, BaseLearner and StandardLearner as the versions
after it. They say what is to be done; the engine does it."""

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
    """A network and what may be done with it. A subclass says how to train, to measure and to answer on one batch, in
    `__train_func__`, `__eval_function__` and `__predict_func__`; all else is here."""

    @FIRST.shown
    def train(self, *arguments: Any, **named: Any) -> None:
        """Trains to `num_epochs` epochs in all, writing models, plots and logs to `model_dir`. Called again there, it
        resumes where it was ended, and with the same arguments the result is that of a run without an end in between.

        Later versions added `val_loader`, `val_metrics`, `lr_scheduler`, `save_model_interval`, `visdom_log`,
        `tensorboard_log`, `save_architecture` and `clip_grads` (the lowest and the highest value of a gradient).
        `clip_params` (the same of a weight) and `lr_schedule_late` (`lr_schedule(epoch)` after the epoch in place of
        before it) do what was done once. Raises LearnerError, a ValueError, for a wrong argument and for a directory
        that holds another training."""
        self._fit(FIRST.plan(*arguments, **named))

    def evaluate(
        self, test_loader: Iterable[Any], metrics: Sequence[LearnerMetric] | LearnerMetric
    ) -> dict[str, float]:
        """Resets and measures `metrics`; returns their values by name. Weights, buffers and modes stay."""
        return self._measure("test", test_loader, metrics)

    def validate(self, val_loader: Iterable[Any], metrics: Sequence[LearnerMetric] | LearnerMetric) -> dict[str, float]:
        """As `evaluate`, by the step for validation where there is one."""
        return self._measure("val", val_loader, metrics)

    def predict(self, inputs: Any, apply_softmax: bool = False) -> Any:
        """The network's answer to a batch of inputs, as it is; for a loader a list with one answer per sample, on the
        CPU. With several outputs each answer has them in the container they came in. A batch of a loader that is a pair
        is (inputs, targets). `apply_softmax` is over the classes, dimension 1, of every output. Raises LearnerError for
        outputs that it does not fit, or that do not have one entry per sample."""
        with self.ready(), eval_mode(self.model):
            if isinstance(inputs, Tensor | np.ndarray | Mapping | list | tuple) or not isinstance(inputs, Iterable):
                return self._single(self._answered(inputs, apply_softmax))
            answers = []
            for batch in inputs:
                paired = isinstance(batch, list | tuple) and len(batch) in (1, 2)
                answers.append(on_cpu(self._answered(batch[0] if paired else batch, apply_softmax)))
        return self._gathered(answers)

    def summary(
        self,
        input_sizes: Any,
        input_types: Any = torch.float32,
        item_length: int = 26,
        tensorboard_log: str | Path | None = None,
    ) -> str:
        """A table of the layers with the sizes of what goes in and out, parameters and multiply-adds, for one input of
        `input_sizes`, such as (1, 28, 28), or a list of such. Raises ModelError naming the layer that does not fit."""
        return layer_table(self.model, inputs_of(input_sizes, input_types), item_length, tensorboard_log)

    def to_onnx(self, input_sizes: Any, path: str | Path, input_types: Any = torch.float32, **options: Any) -> None:
        """Writes the network for inputs of these sizes as ONNX; `options` are those of `torch.onnx.export`."""
        write_onnx(self.model, inputs_of(input_sizes, input_types), path, options)

    def save_model(self, path: Any, save_architecture: bool = False) -> None:
        """Writes the weights, a state dict on the CPU, to a file or stream; `save_architecture` also what they belong
        to, as data, beside it, for `load_network`."""
        save_weights(self.model, path, save_architecture)

    def load_model(self, path: Any) -> None:
        """Puts the weights of a file into the network: all of them or, with an error that names what does not fit,
        none."""
        load_weights(self.model, path)

    def half(self) -> None:
        """Mixed precision from now on: the network runs in bfloat16 where that is safe, its weights and the loss stay
        float32. bfloat16 has the range of float32, so that no loss needs scaling."""
        self.fp16_mode = True

    def get_train_history(self) -> dict[str, list[float]]:
        """Of every epoch, from 1: `epoch`, `duration` in seconds, `train_loss`, and the metrics, `train_…`, `test_…`
        and `val_…`."""
        known = {"epoch": "epoch", "train_duration": "duration", "train_loss": "train_loss"}
        names = known | {name: name for record in self.records for name in record if name not in known}
        found = {
            to: [record[name] + (name == "epoch") for record in self.records if name in record]
            for name, to in names.items()
        }
        return {name: values for name, values in found.items() if values}

    @property
    def owns_train_step(self) -> bool:
        """Whether the training step is the one of this module, and not a subclass's own."""
        step = find_method(self, *TRAIN)
        return getattr(step, "__module__", "") == __name__

    def answer(self, inputs: Any) -> Any:
        """The learner's own answer to a batch."""
        function = find_method(self, *PREDICT)
        if function is None:
            raise LearnerError(
                f"{type(self).__name__} has no {PREDICT[0]}(self, inputs), which answers a batch. Define it, or take "
                f"StandardModel."
            )
        return function(inputs)

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """The network on its device, and, after `half`, in mixed precision."""
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
        kept = self.test_metrics, self.val_metrics
        self.test_metrics = self.val_metrics = list(named.values())
        task = LearnerTask(self, {split: named})
        try:
            with self.ready():
                values = evaluate(task, self.model, task.measured(split, loader), task.eval_meter(), split)
        finally:
            if kept != (None, None):
                self.test_metrics, self.val_metrics = kept
        for metric in named.values():
            if hasattr(metric, "add_history"):
                metric.add_history()
        return values

    def _answered(self, inputs: Any, apply_softmax: bool) -> Any:
        with torch.inference_mode():
            answer = self.answer(inputs)
            answer = probabilities(answer) if apply_softmax else answer
        return clone_for_autograd(answer)

    def _single(self, answer: Any) -> Any:
        """What `predict` gives for one batch."""
        return answer

    def _gathered(self, answers: list[Any]) -> Any:
        """What `predict` gives for a loader."""
        return per_sample(answers)


class StandardModel(BaseModel):
    """Trains almost any network on pairs of inputs and targets, for classification or regression: `loss_fn(outputs,
    targets)` is a number. Several inputs or outputs are lists or tuples, passed to the network and the loss as one."""

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
    """BaseModel as later versions had it: files and lines count epochs from 1, plots are drawn when asked for, and the
    steps take the batch alone and find the rest in the learner."""

    first_epoch = 1

    def __train_loop__(self, train_loader: Any, train_metrics: Any, *rest: Any, **named: Any) -> None:
        """What a subclass calls that has a `train` of its own, after it has set `optimizer` and `loss_fn`. Takes the
        arguments of `train` without these two; plots are drawn unless the call says otherwise."""
        self._fit(LOOP.plan(train_loader, self.loss_fn, self.optimizer, train_metrics, *rest, **named))

    @LATER.shown
    def train(self, *arguments: Any, **named: Any) -> None:
        """As `BaseModel.train`, in the order of the later versions."""
        self._fit(LATER.plan(*arguments, **named))

    def predict(self, inputs: Any, apply_softmax: bool = False) -> Any:
        """The network's answer to a batch of inputs, without its first dimension for a batch of one: [classes], and
        [batch, classes] for a larger one. For a loader the answers to all batches as one, [samples, classes], on the
        CPU. Several outputs are in the container they came in. `apply_softmax` is over the classes of every output.
        Raises LearnerError as `BaseModel.predict`, DataError for a loader without a batch."""
        return super().predict(inputs, apply_softmax)

    def _single(self, answer: Any) -> Any:
        return squeeze_single(answer)

    def _gathered(self, answers: list[Any]) -> Any:
        if not answers:
            raise DataError("the loader gave no batch to predict.")
        return concatenate(answers)


class StandardLearner(BaseLearner):
    """StandardModel as later versions had it."""

    def __train_func__(self, data: Any) -> None:
        loss = train_on(self, data, self.optimizer, self.loss_fn, self.train_metrics)
        self.train_running_loss = self.train_running_loss + (loss * batch_size(data)).to(self.train_running_loss.device)

    def __eval_function__(self, data: Any) -> None:
        measure_on(self, data, self.test_metrics)

    def __val_function__(self, data: Any) -> None:
        measure_on(self, data, self.val_metrics)

    def __predict_func__(self, inputs: Any) -> Any:
        return self.model(move_to_device(inputs, self.device))
