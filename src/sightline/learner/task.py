"""The learner's steps as a task of the engine, with adapters for its loaders and metrics."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sightline.core.errors import DataError, did_you_mean, join_names
from sightline.core.types import Batch, StepOutput, Task, TrainState
from sightline.data.loading.adapter import LoaderAdapter
from sightline.engine.nested import map_nested, rebuild_like
from sightline.engine.trainer import Trainer
from sightline.learner.metrics import batch_size, load_metric_state, metric_state
from sightline.learner.plan import LearnerError, LearnerMetric, TrainArguments
from sightline.learner.state import LearnerState
from sightline.metrics.meter import Meter

TRAIN = ("__train_func__", "__train_function__")
EVAL = ("__eval_function__", "__eval_func__")
VALIDATE = ("__val_function__", "__val_func__")
PREDICT = ("__predict_func__", "__predict_function__")
"""The names under which a learner may define its steps."""
TRAIN_NAMES = ("data", "optimizer", "loss_fn", "train_metrics", "running_loss", "epoch", "batch_num")
EVAL_NAMES = ("data", "metrics")
"""The names of the arguments that the steps are called with."""


def find_method(learner: object, *spellings: str) -> Callable[..., Any] | None:
    """Returns the method with one of these names from the most derived class that has one, or None."""
    for cls in type(learner).__mro__:
        for name in spellings:
            if name in vars(cls):
                method: Callable[..., Any] = getattr(learner, name)
                return method
    return None


def bind_arguments(function: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    """Wraps `function` so that it can be called with one value for each of `names`.

    It receives the values that its parameters name. If its parameters have other names, it receives all values in
    order, or with a single parameter only the first. Raises LearnerError for any other signature."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters):
        return function
    accepted = [
        parameter.name
        for parameter in parameters
        if parameter.kind in kinds and (parameter.default is parameter.empty or parameter.name in names)
    ]
    if len(accepted) == len(names) and not set(accepted) <= set(names):
        return function
    if len(accepted) == 1 and accepted[0] not in names:
        return lambda *values: function(values[0])
    for name in accepted:
        if name not in names:
            step_name = getattr(function, "__qualname__", repr(function))
            raise LearnerError(
                f"{step_name}: unknown parameter '{name}'.{did_you_mean(name, names)} Available: {join_names(names)}."
            )
    positions = [names.index(name) for name in accepted]
    if positions == list(range(len(names))):
        return function
    return lambda *values: function(*[values[position] for position in positions])


def batches_of(argument: str, loader: Iterable[Any]) -> LoaderAdapter:
    """Adapts any loader to the engine, with its batches unchanged; the learner's step unpacks them."""
    try:
        return LoaderAdapter(loader, as_given=True)
    except TypeError as error:
        raise LearnerError(
            f"{argument}: expected a DataLoader or a list of batches, found a {type(loader).__name__} ({error})."
        ) from error


class Split:
    """The batches of an evaluation split; `begin` is called before the first one.

    Every pass is the loader's epoch 0, whatever the training epoch, so that a loader with its own generator yields the
    same order each time."""

    def __init__(self, batches: LoaderAdapter, begin: Callable[[], None]):
        self._batches = batches
        self._begin = begin

    def __iter__(self) -> Iterator[Any]:
        self._begin()
        self._batches.seek(0)
        yield from self._batches


class TrainMeter(Meter):
    """Collects the mean loss, the training metrics and the duration in seconds of one epoch."""

    def __init__(self, metrics: Mapping[str, LearnerMetric]):
        super().__init__()
        self._metrics = metrics
        self._seconds_before, self._started = 0.0, time.perf_counter()
        for metric in metrics.values():
            metric.reset()

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._started

    def running(self) -> tuple[float, dict[str, float]]:
        """Returns (mean loss, metric values) so far, read back from the device."""
        mean = self.loss_sum / self.loss_n if self.loss_n else 0.0
        return mean, {name: float(metric.getValue()) for name, metric in self._metrics.items()}

    def compute(self) -> dict[str, float]:
        """Returns the mean loss, `duration` in seconds, and the metric values."""
        measured = super().compute()  # waits for the device, so the duration is measured afterwards
        return {"loss": 0.0} | measured | {"duration": self._seconds()} | self.running()[1]

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint in the middle of an epoch."""
        sums = [metric_state(metric) for metric in self._metrics.values()]
        return super().state_dict() | {"seconds": self._seconds(), "metrics": sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a saved state."""
        super().load_state_dict(state)
        self._seconds_before, self._started = state["seconds"], time.perf_counter()
        for metric, saved in zip(self._metrics.values(), state["metrics"], strict=True):
            load_metric_state(metric, saved)


def running(trainer: Trainer) -> tuple[float, dict[str, float]]:
    """Returns (mean loss, training metrics) of the epoch so far, read back from the device.

    Raises NonFiniteLossError if a loss is NaN or infinite."""
    trainer.check_losses()
    meter = trainer.state.meters["train"]
    assert isinstance(meter, TrainMeter)
    return meter.running()


class LearnerTask(Task):
    """The engine task that calls the learner's steps.

    The loss of a training step is what it adds to the running loss, divided by the number of samples. The running loss
    is detached from the graph after every step."""

    def __init__(
        self,
        learner: LearnerState,
        metrics: Mapping[str, Mapping[str, LearnerMetric]],
        plan: TrainArguments | None = None,
    ):
        self.learner = learner
        self.metrics = metrics
        self.plan = plan
        self.split = ""
        self._evaluate: Callable[..., Any]  # the evaluation step of the current split
        if plan is not None:
            train = find_method(learner, *TRAIN)
            if train is None:
                raise LearnerError(
                    f"{type(learner).__name__} has no {TRAIN[0]}(self, {', '.join(TRAIN_NAMES)}), the training step. "
                    f"Define it, or use StandardModel."
                )
            self._train = bind_arguments(train, TRAIN_NAMES)
            self._is_standard = learner.owns_train_step
            self._batch_starts = learner.batch_starts()
            for split in metrics:
                if split != "train":
                    self._step_of(split)

    def meter(self) -> TrainMeter:
        """Returns a meter for one epoch of training, with its metrics reset."""
        return TrainMeter(self.metrics["train"])

    def eval_meter(self) -> Meter:
        """Returns a meter for one evaluation."""
        return _EvalMeter(self)

    def measured(self, split: str, batches: Iterable[Any]) -> Split:
        """Returns the batches of a split; its metrics are reset before the first one."""
        return Split(batches_of(f"{split}_loader", batches), lambda: self._begin(split))

    def begin_epoch(self, state: TrainState) -> None:
        """Sets the epoch's learning rate and initialises the running loss."""
        learner, plan = self.learner, self.plan
        assert plan is not None
        if plan.lr_schedule is not None and not plan.lr_schedule_late:
            self.set_rate(state, state.epoch)
        meter = state.meters["train"]
        meter.flush()
        # float64, so that adding one small loss to a large sum does not lose precision
        learner.train_running_loss = torch.full((1,), meter.loss_sum, dtype=torch.float64)

    def set_rate(self, state: TrainState, epoch: int) -> None:
        """Sets the learning rate that `lr_schedule` returns for `epoch` in every parameter group."""
        assert self.plan is not None
        rate = self.plan.lr_schedule(epoch)
        if isinstance(rate, Tensor) and rate.numel() == 1:
            rate = rate.item()
        if isinstance(rate, bool) or not isinstance(rate, int | float):
            raise LearnerError(f"lr_schedule({epoch}) returned {rate!r}; expected a number, the learning rate.")
        for group in state.optimizer.param_groups if state.optimizer is not None else ():
            group["lr"] = float(rate)

    def train_step(self, state: TrainState, batch: Any) -> StepOutput:
        """Calls the learner's training step once."""
        learner, plan = self.learner, self.plan
        assert plan is not None
        for start in self._batch_starts:
            start(state.epoch, state.batch)
        if learner.input_hooks:
            batch = apply_input_hooks(batch, learner.input_hooks)
        n = batch_size(batch)
        learner.iterations = state.step + 1
        if self._is_standard:  # its loss is returned directly, without the running loss
            loss = train_on(learner, batch, plan.optimizer, plan.loss_fn, learner.train_metrics)
            return StepOutput(loss, n)
        running = learner.train_running_loss
        before = running.clone()
        self._train(batch, plan.optimizer, plan.loss_fn, learner.train_metrics, running, state.epoch, state.batch)
        updated = learner.train_running_loss
        if isinstance(updated, Tensor):
            # otherwise the running loss keeps the graphs of all steps of the epoch in memory
            updated = updated.detach_() if updated is running else updated.detach()
        else:
            updated = torch.tensor([float(updated)], dtype=before.dtype)
        learner.train_running_loss = updated
        return StepOutput(((updated.to(before.device) - before) / n).reshape(()), n)

    def eval_step(self, state: TrainState, batch: Any) -> StepOutput:
        """Calls the learner's evaluation step once."""
        self._evaluate(batch, getattr(self.learner, f"{self.split}_metrics"))
        return StepOutput(None, batch_size(batch))

    def predict_step(self, state: TrainState, x: Any) -> Tensor:
        """Returns the outputs of the learner's prediction step, unchanged."""
        answer: Tensor = self.learner.answer(x)
        return answer

    def values(self) -> dict[str, float]:
        """Returns the metric values of the current split."""
        return {name: float(metric.getValue()) for name, metric in self.metrics[self.split].items()}

    def _begin(self, split: str) -> None:
        self.split = split
        self._evaluate = self._step_of(split)
        for metric in self.metrics[split].values():
            metric.reset()

    def _step_of(self, split: str) -> Callable[..., Any]:
        """The evaluation step of a split. A step that takes only the batch reads the metrics from the learner."""
        learner = self.learner
        function = (find_method(learner, *VALIDATE) if split == "val" else None) or find_method(learner, *EVAL)
        if function is None:
            raise LearnerError(
                f"{type(learner).__name__} has no {EVAL[0]}(self, {', '.join(EVAL_NAMES)}), the evaluation step. "
                f"Define it, or use StandardModel."
            )
        step = bind_arguments(function, EVAL_NAMES)
        if split == "test" or find_method(learner, *VALIDATE) is not None:
            return step

        def with_metrics(batch: Any, metrics: Any) -> None:
            """Calls the step of the test split with this split's metrics as `learner.test_metrics`."""
            test_metrics, learner.test_metrics = learner.test_metrics, metrics
            try:
                step(batch, metrics)
            finally:
                learner.test_metrics = test_metrics

        return with_metrics


class _EvalMeter(Meter):
    def __init__(self, task: LearnerTask):
        super().__init__()
        self._task = task

    def compute(self) -> dict[str, float]:
        """Returns the metric values of the current split."""
        return self._task.values()


def train_on(learner: LearnerState, data: Any, optimizer: Any, loss_fn: Any, metrics: Any) -> Tensor:
    """Performs one optimiser step on a batch (inputs, targets); returns the detached loss, on the device."""
    x, y = _pair(data)
    x, y = move_to_device(x, learner.device), move_to_device(y, learner.device)
    optimizer.zero_grad()
    outputs = learner.model(x)
    loss: Tensor = loss_fn(outputs, y)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    outputs = detach(outputs)
    for metric in metrics:
        metric.update(outputs, y)
    return loss.detach()


def measure_on(learner: LearnerState, data: Any, metrics: Any) -> None:
    """Updates `metrics` with the network's outputs for a batch (inputs, targets)."""
    x, y = _pair(data)
    outputs = learner.model(move_to_device(x, learner.device))
    y = move_to_device(y, learner.device)
    for metric in metrics:
        metric.update(outputs, y)


def _pair(data: Any) -> tuple[Any, Any]:
    if isinstance(data, list | tuple) and len(data) >= 2 and all(part is None for part in data[2:]):
        return data[0], data[1]
    description = f"{len(data)} values" if isinstance(data, list | tuple) else f"a {type(data).__name__}"
    raise DataError(
        f"a batch of the loader is {description}; StandardModel expects pairs (inputs, targets), with several inputs "
        f"as ((a, b), targets). For other batches, define __train_func__ and __eval_function__."
    )


def apply_input_hooks(batch: Any, hooks: Iterable[Callable[[Any], Any]]) -> Any:
    """Returns the batch with `hooks` applied to its inputs, in order."""
    several = isinstance(batch, list | tuple) and not isinstance(batch, Batch)
    inputs = batch[0] if several else batch
    for hook in hooks:
        inputs = hook(inputs)
    return rebuild_like(batch, [inputs, *batch[1:]]) if several else inputs


def move_to_device(value: Any, device: torch.device) -> Any:
    """Moves the tensors of a nested value to a device; arrays become tensors."""

    def placed(part: Any) -> Any:
        return part.to(device, non_blocking=True) if isinstance(part, Tensor) else torch.as_tensor(part, device=device)

    return map_nested(value, placed, mappings=True)


def detach(value: Any) -> Any:
    """Detaches the tensors of a nested value from the graph."""
    return map_nested(value, lambda part: part.detach() if isinstance(part, Tensor) else part)
