"""The training loop: `Trainer`, `evaluate` and the base class of callbacks.

This file contains the engine's only loops: `fit`, `_train_epoch` and `evaluate`. The task defines the step on a batch
(`tasks.py`), the loader yields the batches, callbacks observe (`callbacks.py`), and `checkpoint/` saves the state."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from sightline.core.errors import (
    ConfigError,
    DataError,
    DivergedError,
    NonFiniteLossError,
    arg,
    did_you_mean,
    join_names,
)
from sightline.core.eval_mode import eval_mode
from sightline.core.types import Batch, FitResult, Recorder, StepOutput, Task, TrainState
from sightline.engine.iterable_loader import as_loader
from sightline.engine.runtime import Runtime
from sightline.metrics.meter import Meter


class Callback:
    """Base class of all callbacks, with one method for each of the eight events.

    The docstring of `Trainer` shows when each event occurs. `Trainer` raises TypeError for an `on_...` method with any
    other name.

    Callbacks observe: anything that changes the computation is an argument of the task or the loader. A callback may
    end the run by `trainer.should_stop = True` (after this epoch) or `trainer.interrupt()` (after this step)."""

    def on_fit_start(self, trainer: Trainer) -> None: ...
    def on_epoch_start(self, trainer: Trainer) -> None: ...
    def on_step_end(self, trainer: Trainer, output: StepOutput) -> None: ...
    def on_checkpoint(self, trainer: Trainer) -> None: ...
    def on_eval_end(self, trainer: Trainer, record: dict[str, float]) -> None: ...
    def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None: ...
    def on_exception(self, trainer: Trainer, error: BaseException) -> None: ...
    def on_fit_end(self, trainer: Trainer) -> None: ...


EVENTS = tuple(name for name in vars(Callback) if name.startswith("on_"))


class Trainer:
    """Trains a task on batches. The loop, with its eight events:

        task.setup(state)
        on_fit_start
        while epoch < max_epochs and (in mid-epoch or not should_stop):
            on_epoch_start
            task.begin_epoch(state)
            for batch in train:
                task.train_step(state, batch); step += 1; batch += 1
                per-step schedules step; every log_every steps: losses are read back, checked and recorded
                on_step_end
                on_checkpoint, if one was requested     (also between two batches of an evaluation)
            every eval_every epochs, and after the last:
                for each split in evals: evaluate
                on_eval_end
            per-epoch schedules step; epoch += 1; batch = 0
            on_epoch_end
        on_exception, if anything was raised            (not if `interrupt` ended the loop)
        on_fit_end

    `train` and the values of `evals` are `Loader`s or other iterables of `Batch`. `meter` creates the object that
    accumulates the step outputs of an epoch, `eval_meter` the one of an evaluation (default: `meter`). `eval_every` is
    a number of epochs, or a function that returns whether to evaluate an epoch, counted from 0; the last epoch is
    always evaluated. Losses are read back every `log_every` steps, so a NaN loss is noticed at most that many steps
    late; DivergedError is raised if their mean is above `divergence_threshold`. `state` is all that is needed to
    resume: load a checkpoint into it, then call `fit`."""

    def __init__(
        self,
        task: Task,
        state: TrainState,
        train: Iterable[Batch],
        evals: Mapping[str, Iterable[Batch]] | None = None,
        *,
        max_epochs: int,
        eval_every: int | Callable[[int], bool] = 1,
        callbacks: Sequence[Callback] = (),
        recorder: Recorder | None = None,
        log_every: int = 50,
        divergence_threshold: float | None = None,
        runtime: Runtime | None = None,
        meter: Callable[[], Meter] = Meter,
        eval_meter: Callable[[], Meter] | None = None,
    ):
        if not callable(eval_every) and eval_every < 1:
            raise ValueError(f"eval_every: expected an integer >= 1 or a function of the epoch, found {eval_every!r}.")
        self.task = task
        self.state = state
        self.train = as_loader(train)
        self.evals = {split: as_loader(batches) for split, batches in (evals or {}).items()}
        self.max_epochs = max_epochs
        self.eval_every = eval_every
        self.callbacks = tuple(callbacks)
        self.recorder = recorder
        self.log_every = log_every
        self.divergence_threshold = math.inf if divergence_threshold is None else divergence_threshold
        self.runtime = runtime or Runtime("cpu")
        self.interrupted = False
        self.interrupted_by: int | None = None
        self.phase = ""
        self.last_log: dict[str, float] = {}
        self.samples = 0
        self._meter = meter
        self._eval_meter = eval_meter or meter
        self._fitting = self._checkpoint_requested = False
        self._restored: Mapping[str, Any] = {}
        if "train" not in self.state.meters:  # a restored meter holds the values of the epoch so far
            self.state.meters["train"] = meter()
        check_task(task)
        check_callbacks(callbacks)
        self._handlers = {event: callbacks_for(self.callbacks, event) for event in EVENTS}
        self._step_schedules = [schedule.scheduler for schedule in state.schedules if schedule.interval == "step"]

    @property
    def should_stop(self) -> bool:
        """Set to True to end the run after the current epoch. Saved in checkpoints."""
        return self.state.stopped

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        """Stores the request in the state."""
        self.state.stopped = value

    def interrupt(self, signal_number: int | None = None) -> None:
        """Ends the run after the current step, with a complete state; `fit` then returns its result.

        `signal_number` becomes `FitResult.signal`. Safe in a signal handler."""
        self.interrupted_by = signal_number
        self.interrupted = True

    def request_checkpoint(self) -> None:
        """Requests a checkpoint after the current step; training continues. Safe in a signal handler."""
        self._checkpoint_requested = True

    def fit(self) -> FitResult:
        """Trains from the current state up to `max_epochs` and returns the history and the final counters.

        Raises NonFiniteLossError, naming the step, if a loss is NaN or infinite, DivergedError if the loss is above
        `divergence_threshold`, DataError if an epoch has no batches, and ConfigError if a plateau schedule monitors a
        metric that is not measured."""
        try:
            self.interrupted, self.interrupted_by, self._fitting = False, None, True
            self._restored = self.state.loader
            self.task.setup(self.state)
            self._emit("on_fit_start")
            if not self.state.model.training:  # else submodules keep their modes, such as frozen layers
                self.state.model.train()
            with suppress(_Interrupted):  # only raised between two steps
                # an epoch that was interrupted is completed, even if `should_stop` is set
                while self.state.epoch < self.max_epochs and (self.state.batch or not self.should_stop):
                    self._emit("on_epoch_start")
                    record = {"epoch": self.state.epoch, **_prefixed("train", self._train_epoch())}
                    evaluated = self._eval_due()
                    if evaluated:
                        for split in self.evals:
                            record |= _prefixed(split, self.evaluate(split))
                        self._emit("on_eval_end", record)
                    self._step_schedules_of_epoch(record, evaluated)
                    self.state.epoch += 1
                    self.state.batch = 0  # so that a checkpoint written now resumes at the next epoch
                    self.state.history.append(record)
                    self._record(record)
                    self._emit("on_epoch_end", record)
            self._end()
        except BaseException as error:
            self._fail(error)
            raise
        state = self.state
        signal_number = self.interrupted_by if self.interrupted else None
        return FitResult(state.history, state.epoch, state.step, state.best, self.interrupted, signal_number)

    def _end(self) -> None:
        self._fitting, self.phase = False, ""
        self._handle_requests()
        self._emit("on_fit_end")

    def _fail(self, error: BaseException) -> None:
        self._fitting, self.phase = False, ""
        for handler in self._handlers["on_exception"]:
            try:
                handler(self, error)
            except Exception as another:  # the remaining handlers must still run
                error.add_note(f"While handling this error: {type(another).__name__}: {another}")

    def evaluate(self, split: str) -> dict[str, float]:
        """Returns the metrics of one split of `evals`; see the function `evaluate`."""
        before, self.phase = self.phase, split
        between = self._between_batches if self._fitting else None
        batches, meter = self.evals[split], self._eval_meter()
        try:
            return evaluate(self.task, self.state, batches, meter, split, flush_every=self.log_every, between=between)
        finally:
            self.phase = before

    def _between_batches(self) -> None:
        self._handle_requests()
        if self.interrupted:
            raise _Interrupted

    def predict(self, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
        """Returns (predictions float32 [N,...], index int64 [N]) on the CPU, for every batch in order.

        Predictions are the results of `task.predict_step`, such as probabilities [N,C]. `index` comes from the batches
        or, where they have none, counts the samples from 0. Raises DataError if there are no batches."""
        outputs, index, count = [], [], 0
        with eval_mode(self.state.eval_model), torch.inference_mode():
            for batch in batches:
                outputs.append(self.task.predict_step(self.state, batch.x).float().cpu())
                first, count = count, count + len(outputs[-1])
                index.append(torch.arange(first, count) if batch.index is None else batch.index.cpu())
        if not outputs:
            raise DataError(f"There are no batches to predict. {_NO_BATCH}")
        return torch.cat(outputs), torch.cat(index)

    def check_losses(self) -> None:
        """Reads back the losses that are still on the device.

        Raises NonFiniteLossError, naming the first step whose loss is not finite."""
        state = self.state
        losses: list[float] = state.meters["train"].flush()
        for offset, loss in enumerate(losses, start=1):
            if not math.isfinite(loss):
                step = state.step - len(losses) + offset
                where = f"step {step} (epoch {state.epoch}, batch {state.batch - len(losses) + offset - 1})"
                raise NonFiniteLossError(f"The training loss became {loss} at {where}. {_ADVICE}")

    def _train_epoch(self) -> dict[str, float]:
        state, step, reseed, log_every = self.state, self.task.train_step, self.runtime.reseed, self.log_every
        if state.batch == 0:
            state.meters["train"] = self._meter()
        meter = state.meters["train"]
        schedules, observers = self._step_schedules, self._handlers["on_step_end"]
        self._mark, self.phase = (time.perf_counter(), self.samples), "training"
        self.task.begin_epoch(state)
        self._seek()
        reseed(state.epoch, "loader")  # for loaders that shuffle with torch's global generator
        for batch in self.train:
            log = (state.step + 1) % log_every == 0
            reseed(state.step)
            output = step(state, batch)
            state.step += 1
            state.batch += 1
            self.samples += output.n
            meter.update(output)
            rate = self._learning_rate() if log else None
            for schedule in schedules:
                schedule.step()
            if log:
                self._log(rate)
            for observe in observers:
                observe(self, output)
            if self._checkpoint_requested:
                self._handle_requests()
            if self.interrupted:
                self.check_losses()
                raise _Interrupted
        self.check_losses()
        if not state.batch:
            raise DataError(f"The training data yielded no batches in epoch {state.epoch}. {_NO_BATCH}")
        return dict(meter.compute())

    def loader_position(self) -> Mapping[str, Any] | None:
        """Returns the position of the training loader, for a checkpoint.

        Until the loader has been moved there, this is the position stored in the checkpoint that was restored."""
        return self._restored or self.train.position()

    def _seek(self) -> None:
        """Moves the loader to the current batch. Called before reseeding, because `seek` may use torch's generator."""
        restored, self._restored = self._restored, {}
        if restored:
            self.train.seek(self.state.epoch, self.state.batch, restored)
        else:
            self.train.seek(self.state.epoch, self.state.batch)

    def _learning_rate(self) -> float | None:
        """The learning rate of the optimiser's first group; None without an optimiser."""
        optimizer = self.state.optimizer
        return None if optimizer is None else float(optimizer.param_groups[0]["lr"])

    def _log(self, learning_rate: float | None) -> None:
        self.check_losses()
        (then, samples), self._mark = self._mark, (time.perf_counter(), self.samples)
        rate = (self.samples - samples) / max(self._mark[0] - then, 1e-9)
        values = {"loss": self.state.meters["train"].since_mark(), "images_per_second": rate}
        if learning_rate is not None:
            values["lr"] = learning_rate
        self._record({"epoch": self.state.epoch, **values})
        if values["loss"] > self.divergence_threshold:
            raise DivergedError(
                f"The training loss rose to {values['loss']:.4g} at step {self.state.step}, above "
                f"{arg.divergence_threshold}={self.divergence_threshold:g}. {_ADVICE}"
            )

    def _record(self, values: dict[str, float]) -> None:
        self.last_log |= values
        if self.recorder is not None:
            self.recorder.log(self.state.step, values)

    def _handle_requests(self) -> None:
        if self._checkpoint_requested:
            self._checkpoint_requested = False
            self._emit("on_checkpoint")

    def _eval_due(self) -> bool:
        epoch, every = self.state.epoch, self.eval_every
        if epoch + 1 == self.max_epochs or self.should_stop:
            return True
        return bool(every(epoch)) if callable(every) else (epoch + 1) % every == 0

    def _step_schedules_of_epoch(self, record: Mapping[str, float], evaluated: bool) -> None:
        for schedule in self.state.schedules:
            if schedule.monitor is not None:
                if schedule.monitor in record:
                    schedule.scheduler.step(record[schedule.monitor])
                elif evaluated:
                    name = type(schedule.scheduler).__name__
                    effect = "it would never lower the learning rate"
                    raise not_measured(f"{name}: monitor", schedule.monitor, record, effect)
            elif schedule.interval == "epoch":
                schedule.scheduler.step()

    def _emit(self, event: str, *args: Any) -> None:
        for handler in self._handlers[event]:
            handler(self, *args)


def evaluate(
    task: Task,
    model: nn.Module | TrainState,
    batches: Iterable[Batch],
    meter: Meter,
    split: str = "evaluation",
    *,
    flush_every: int = 50,
    between: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Runs `task.eval_step` once on every batch and returns the metrics that `meter` computes.

    `model` is a network, for which `task.setup` is not called, or a training state, whose EMA is evaluated if it has
    one. Weights, buffers and the train/eval mode of every submodule are unchanged afterwards. Losses are read back
    every `flush_every` batches; `between` is called after each batch. `split` is the name of the data in messages.

    Raises DataError if there are no batches, and NonFiniteLossError if the loss is not finite."""
    state = model if isinstance(model, TrainState) else TrainState(model)
    after = f" after step {state.step}" if isinstance(model, TrainState) else ""
    number, loader = 0, as_loader(batches)
    loader.seek(0)
    with eval_mode(state.eval_model), torch.inference_mode():
        for number, batch in enumerate(loader, start=1):
            meter.update(task.eval_step(state, batch))
            if number % flush_every == 0:
                meter.flush()
            if between is not None:
                between()
    if not number:
        raise DataError(f"The {split} data yielded no batches{after}. {_NO_BATCH}")
    metrics = meter.compute()
    if not math.isfinite(metrics.get("loss", 0.0)):
        raise NonFiniteLossError(f"The {split} loss is {metrics['loss']}{after}. {_ADVICE}")
    return metrics


_TASK_METHODS = ("setup", "begin_epoch", "train_step", "eval_step", "predict_step")
_NO_BATCH = (
    "An iterator or a generator is empty after one pass: pass a DataLoader or a list, which can be iterated again."
)
_ADVICE = "Try a lower learning rate, check the data for extreme values, or clip the gradients."


class _Interrupted(Exception):  # noqa: N818 used for control flow, not an error
    """Raised between two steps to return to `fit`."""


def _prefixed(split: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{split}_{name}": value for name, value in metrics.items()}


def check_task(task: object) -> None:
    """Raises TypeError if the task lacks a method of `Task`."""
    missing = [name for name in _TASK_METHODS if not callable(getattr(task, name, None))]
    if missing:
        raise TypeError(
            f"The task {type(task).__name__} lacks {join_names(missing)}. Derive it from sightline.Task, whose "
            f"`setup` and `begin_epoch` do nothing, or from SupervisedTask."
        )


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Raises TypeError for an `on_...` method that is not an event, because it would never be called."""
    for callback in callbacks:
        for name in dir(callback):
            if name.startswith("on_") and name not in EVENTS and callable(getattr(callback, name)):
                message = f"{type(callback).__name__}.{name}: there is no such event.{did_you_mean(name, EVENTS)}"
                raise TypeError(f"{message} Expected one of: {', '.join(EVENTS)}.")


def callbacks_for(callbacks: Sequence[Callback], event: str) -> list[Callable[..., None]]:
    """Returns the methods of the callbacks that override `event`, so that other callbacks cost nothing."""
    base = getattr(Callback, event)
    overrides = [getattr(callback, event, None) for callback in callbacks]
    return [handler for handler in overrides if handler is not None and getattr(handler, "__func__", None) is not base]


def not_measured(key: str, monitor: str, record: Mapping[str, float], effect: str) -> ConfigError:
    """Returns the error for a record without the metric that the argument `key` names; `effect` is the consequence."""
    names = [name for name in record if name != "epoch"]
    return ConfigError(
        f"the evaluation did not measure '{monitor}', so {effect}.{did_you_mean(monitor, names)} Measured: "
        f"{join_names(names, 40)}.",
        key=key,
    )
