"""The learner's own steps as a task of the engine, and its batches and metrics as the engine takes them."""

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
"""The spellings under which a learner may define its steps."""
TRAIN_NAMES = ("data", "optimizer", "loss_fn", "train_metrics", "running_loss", "epoch", "batch_num")
EVAL_NAMES = ("data", "metrics")
"""What the steps are called with, by name."""


def find_method(learner: object, *spellings: str) -> Callable[..., Any] | None:
    """The method by any of its spellings, of the most derived class that has one."""
    for cls in type(learner).__mro__:
        for name in spellings:
            if name in vars(cls):
                found: Callable[..., Any] = getattr(learner, name)
                return found
    return None


def bind_arguments(function: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    """`function` as one that is called with a value for each of `names`, and gets those it takes: by name, or, where it
    calls them otherwise, all of them or the first alone in their order. Raises LearnerError for any other signature."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters):
        return function
    taken = [
        parameter.name
        for parameter in parameters
        if parameter.kind in kinds and (parameter.default is parameter.empty or parameter.name in names)
    ]
    if len(taken) == len(names) and not set(taken) <= set(names):
        return function
    if len(taken) == 1 and taken[0] not in names:
        return lambda *values: function(values[0])
    for name in taken:
        if name not in names:
            where = getattr(function, "__qualname__", repr(function))
            raise LearnerError(
                f"{where} takes '{name}', which is not what it is called with.{did_you_mean(name, names)} There are: "
                f"{join_names(names)}."
            )
    places = [names.index(name) for name in taken]
    if places == list(range(len(names))):
        return function
    return lambda *values: function(*[values[place] for place in places])


def batches_of(argument: str, loader: Iterable[Any]) -> LoaderAdapter:
    """The batches of any loader as it gives them; the learner's own step takes them apart."""
    try:
        return LoaderAdapter(loader, as_given=True)
    except TypeError as error:
        raise LearnerError(
            f"{argument}: expected a DataLoader or a list of batches, found a {type(loader).__name__}: {error}."
        ) from error


class Split:
    """The batches that are measured on; calls `begin` before the first. Each pass is the loader's first epoch, whatever
    the epoch of the training, so that an order from a generator of its own is the same each time."""

    def __init__(self, batches: LoaderAdapter, begin: Callable[[], None]):
        self._batches = batches
        self._begin = begin

    def __iter__(self) -> Iterator[Any]:
        self._begin()
        self._batches.seek(0)
        yield from self._batches


class TrainMeter(Meter):
    """The mean loss, the values of the training metrics, and the seconds that training took."""

    def __init__(self, metrics: Mapping[str, LearnerMetric]):
        super().__init__()
        self._measuring = metrics
        self._before, self._began = 0.0, time.perf_counter()
        for metric in metrics.values():
            metric.reset()

    def _seconds(self) -> float:
        return self._before + time.perf_counter() - self._began

    def running(self) -> tuple[float, dict[str, float]]:
        """The mean loss so far, and the values so far. Reads them back from the device."""
        mean = self.loss_sum / self.loss_n if self.loss_n else 0.0
        return mean, {name: float(metric.getValue()) for name, metric in self._measuring.items()}

    def compute(self) -> dict[str, float]:
        """All of them, `duration` for the seconds."""
        measured = super().compute()  # it waits for the device
        return {"loss": 0.0} | measured | {"duration": self._seconds()} | self.running()[1]

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint in mid-epoch."""
        sums = [metric_state(metric) for metric in self._measuring.values()]
        return super().state_dict() | {"seconds": self._seconds(), "metrics": sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state."""
        super().load_state_dict(state)
        self._before, self._began = state["seconds"], time.perf_counter()
        for metric, saved in zip(self._measuring.values(), state["metrics"], strict=True):
            load_metric_state(metric, saved)


def running(trainer: Trainer) -> tuple[float, dict[str, float]]:
    """The mean loss and the training metrics of the epoch so far, read back from the device. Raises NonFiniteLossError
    for a loss that is no number."""
    trainer.check_losses()
    meter = trainer.state.meters["train"]
    assert isinstance(meter, TrainMeter)
    return meter.running()


class LearnerTask(Task):
    """Calls the learner's own steps. Their loss is what they add to the running loss: it is taken off the graph after
    every step, whether they do so or not."""

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
        self._evaluate: Callable[..., Any]  # the step of the split at hand
        if plan is not None:
            train = find_method(learner, *TRAIN)
            if train is None:
                raise LearnerError(
                    f"{type(learner).__name__} has no {TRAIN[0]}(self, {', '.join(TRAIN_NAMES)}), which trains on a "
                    f"batch. Define it, or take StandardModel."
                )
            self._train = bind_arguments(train, TRAIN_NAMES)
            self._is_standard = learner.owns_train_step
            self._batch_starts = learner.batch_starts()
            for split in metrics:
                if split != "train":
                    self._step_of(split)

    def meter(self) -> TrainMeter:
        """What collects an epoch of training; the metrics are reset."""
        return TrainMeter(self.metrics["train"])

    def eval_meter(self) -> Meter:
        """What collects an evaluation."""
        return _EvalMeter(self)

    def measured(self, split: str, batches: Iterable[Any]) -> Split:
        """The batches of a split, whose metrics are reset when its first is asked for."""
        return Split(batches_of(f"{split}_loader", batches), lambda: self._begin(split))

    def begin_epoch(self, state: TrainState) -> None:
        """The learning rate of the epoch, and the running loss."""
        learner, plan = self.learner, self.plan
        assert plan is not None
        if plan.lr_schedule is not None and not plan.lr_schedule_late:
            self.set_rate(state, state.epoch)
        meter = state.meters["train"]
        meter.flush()
        # float64, so that the loss of a step is not lost in the sum
        learner.train_running_loss = torch.full((1,), meter.loss_sum, dtype=torch.float64)

    def set_rate(self, state: TrainState, epoch: int) -> None:
        """What `lr_schedule` says for an epoch, in every group of parameters."""
        assert self.plan is not None
        rate = self.plan.lr_schedule(epoch)
        if isinstance(rate, Tensor) and rate.numel() == 1:
            rate = rate.item()
        if isinstance(rate, bool) or not isinstance(rate, int | float):
            raise LearnerError(f"lr_schedule({epoch}) gave {rate!r}; expected the learning rate, a number.")
        for group in state.optimizer.param_groups if state.optimizer is not None else ():
            group["lr"] = float(rate)

    def train_step(self, state: TrainState, batch: Any) -> StepOutput:
        """One call of the learner's own training step."""
        learner, plan = self.learner, self.plan
        assert plan is not None
        for start in self._batch_starts:
            start(state.epoch, state.batch)
        if learner.input_hooks:
            batch = apply_input_hooks(batch, learner.input_hooks)
        n = batch_size(batch)
        learner.iterations = state.step + 1
        if self._is_standard:  # it needs no detour by way of the running loss
            loss = train_on(learner, batch, plan.optimizer, plan.loss_fn, learner.train_metrics)
            return StepOutput(loss, n)
        running = learner.train_running_loss
        before = running.clone()
        self._train(batch, plan.optimizer, plan.loss_fn, learner.train_metrics, running, state.epoch, state.batch)
        now = learner.train_running_loss
        if isinstance(now, Tensor):
            # what a step added keeps its graph, and with it the memory of the whole epoch, unless it is cut here
            now = now.detach_() if now is running else now.detach()
        else:
            now = torch.tensor([float(now)], dtype=before.dtype)
        learner.train_running_loss = now
        return StepOutput(((now.to(before.device) - before) / n).reshape(()), n)

    def eval_step(self, state: TrainState, batch: Any) -> StepOutput:
        """One call of the learner's own evaluation step."""
        self._evaluate(batch, getattr(self.learner, f"{self.split}_metrics"))
        return StepOutput(None, batch_size(batch))

    def predict_step(self, state: TrainState, x: Any) -> Tensor:
        """The network's answer as it is."""
        answer: Tensor = self.learner.answer(x)
        return answer

    def values(self) -> dict[str, float]:
        """Of the metrics of the split at hand."""
        return {name: float(metric.getValue()) for name, metric in self.metrics[self.split].items()}

    def _begin(self, split: str) -> None:
        self.split = split
        self._evaluate = self._step_of(split)
        for metric in self.metrics[split].values():
            metric.reset()

    def _step_of(self, split: str) -> Callable[..., Any]:
        """The evaluation step of a split; one that takes the batch alone finds the metrics in the learner."""
        learner = self.learner
        function = (find_method(learner, *VALIDATE) if split == "val" else None) or find_method(learner, *EVAL)
        if function is None:
            raise LearnerError(
                f"{type(learner).__name__} has no {EVAL[0]}(self, {', '.join(EVAL_NAMES)}), which measures on a batch. "
                f"Define it, or take StandardModel."
            )
        step = bind_arguments(function, EVAL_NAMES)
        if split == "test" or find_method(learner, *VALIDATE) is not None:
            return step

        def with_metrics(batch: Any, metrics: Any) -> None:
            """The step for the test split, with the other split's metrics in place of that one's."""
            kept, learner.test_metrics = learner.test_metrics, metrics
            try:
                step(batch, metrics)
            finally:
                learner.test_metrics = kept

        return with_metrics


class _EvalMeter(Meter):
    def __init__(self, task: LearnerTask):
        super().__init__()
        self._task = task

    def compute(self) -> dict[str, float]:
        """The values of the split at hand."""
        return self._task.values()


def train_on(learner: LearnerState, data: Any, optimizer: Any, loss_fn: Any, metrics: Any) -> Tensor:
    """One update on a pair of inputs and targets; gives the loss, which stays on the device."""
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
    """Measures on a pair of inputs and targets."""
    x, y = _pair(data)
    outputs = learner.model(move_to_device(x, learner.device))
    y = move_to_device(y, learner.device)
    for metric in metrics:
        metric.update(outputs, y)


def _pair(data: Any) -> tuple[Any, Any]:
    if isinstance(data, list | tuple) and len(data) >= 2 and all(part is None for part in data[2:]):
        return data[0], data[1]
    found = f"{len(data)} values" if isinstance(data, list | tuple) else f"a {type(data).__name__}"
    raise DataError(
        f"a batch of the loader is {found}; StandardModel takes pairs (inputs, targets), several inputs as ((a, b), "
        f"targets). For any other batch define __train_func__ and __eval_function__."
    )


def apply_input_hooks(batch: Any, hooks: Iterable[Callable[[Any], Any]]) -> Any:
    """A batch whose inputs have gone through functions."""
    several = isinstance(batch, list | tuple) and not isinstance(batch, Batch)
    inputs = batch[0] if several else batch
    for hook in hooks:
        inputs = hook(inputs)
    return rebuild_like(batch, [inputs, *batch[1:]]) if several else inputs


def move_to_device(value: Any, device: torch.device) -> Any:
    """The tensors in a value, at any depth, on a device; arrays become tensors."""

    def placed(part: Any) -> Any:
        return part.to(device, non_blocking=True) if isinstance(part, Tensor) else torch.as_tensor(part, device=device)

    return map_nested(value, placed, mappings=True)


def detach(value: Any) -> Any:
    """The tensors in a value, at any depth, off the graph."""
    return map_nested(value, lambda part: part.detach() if isinstance(part, Tensor) else part)
