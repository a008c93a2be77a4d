"""The state of a learner, and its callbacks: methods that subclasses override and functions that users add."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sightline.learner.plan import LearnerError


class Callbacks:
    """The callbacks of a learner.

    Every `on_…` method may be overridden; its `epoch` and `batch_num` count from `first_epoch`, as file names do. For
    functions added with `add_on_…`, epoch and batch count from 1."""

    first_epoch = 0

    def __init__(self) -> None:
        self.input_hooks: list[Callable[[Any], Any]] = []
        self.added: dict[str, list[Callable[..., Any]]] = {}

    def add_input_hook(self, function: Callable[[Any], Any]) -> None:
        """Adds a function that is applied to the inputs of every training batch."""
        self.input_hooks.append(function)

    def add_on_epoch_start(self, function: Callable[[int], Any]) -> None:
        """Adds `function(epoch)`, called before each epoch."""
        self.added.setdefault("epoch_start", []).append(function)

    def add_on_epoch_end(self, function: Callable[[int, dict[str, float]], Any]) -> None:
        """Adds `function(epoch, data)`, called after each epoch.

        `data` has `train_loss`, `duration` in seconds and the metrics."""
        self.added.setdefault("epoch_end", []).append(function)

    def add_on_batch_start(self, function: Callable[[int, int], Any]) -> None:
        """Adds `function(epoch, batch)`, called before each batch."""
        self.added.setdefault("batch_start", []).append(function)

    def add_on_batch_end(self, function: Callable[[int, int, dict[str, float]], Any]) -> None:
        """Adds `function(epoch, batch, data)`, called after each batch.

        `data` has `train_loss` and the training metrics, which are read back from the device for every batch."""
        self.added.setdefault("batch_end", []).append(function)

    def add_on_training_completed(self, function: Callable[[dict[str, float]], Any]) -> None:
        """Adds `function(data)`, called once at the end of training.

        `data` has `train_duration` in seconds, and the loss and metrics of the last epoch."""
        self.added.setdefault("training_completed", []).append(function)

    def on_epoch_start(self, epoch: int) -> None:
        """Called before an epoch."""

    def on_epoch_end(
        self, epoch: int, train_metrics: Any, test_metrics: Any, train_loss: float, duration: float
    ) -> None:
        """Called after an epoch, once it is evaluated and its model is saved."""

    def on_batch_start(self, epoch: int, batch_num: int) -> None:
        """Called before a batch."""

    def on_batch_end(self, epoch: int, batch_num: int, train_metrics: Any, train_loss: float) -> None:
        """Called after a batch. If it is overridden, the loss is read back from the device for every batch."""

    def on_training_completed(self, train_metrics: Any, test_metrics: Any, train_duration: float) -> None:
        """Called at the end of training; `train_duration` is in seconds."""

    def overrides(self, name: str) -> bool:
        """Whether a subclass overrides the callback method `name`."""
        return getattr(type(self), name) is not getattr(Callbacks, name)

    def call(self, event: str, *values: Any) -> None:
        """Calls the functions that were added for an event."""
        for function in self.added.get(event, ()):
            function(*values)

    def batch_starts(self) -> list[Callable[[int, int], None]]:
        """Returns the functions to call before every batch; their epoch and batch arguments count from 0."""
        first = self.first_epoch
        starts: list[Callable[[int, int], None]] = []
        if self.overrides("on_batch_start"):
            starts.append(lambda epoch, batch: self.on_batch_start(epoch + first, batch + first))
        if self.added.get("batch_start"):
            starts.append(lambda epoch, batch: self.call("batch_start", epoch + 1, batch + 1))
        return starts


class LearnerState(Callbacks):
    """A network and the state of its training; `BaseModel` adds the methods to train and use it."""

    def __init__(self, model: nn.Module, use_cuda_if_available: bool = True):
        if not isinstance(model, nn.Module):
            raise LearnerError(f"model: expected a torch.nn.Module, found a {type(model).__name__}.")
        super().__init__()
        self.model = model
        self.cuda = bool(use_cuda_if_available and torch.cuda.is_available())
        self.fp16_mode = False
        self.iterations = 0
        self.loss_history: list[float] = []
        self.optimizer: Any = None
        self.loss_fn: Any = None
        self.clip_grads: Any = None
        self.train_metrics: Any = None
        self.test_metrics: Any = None
        self.val_metrics: Any = None
        self.train_running_loss: Any = None
        self.model_dir: str | Path = "."
        self.records: list[dict[str, float]] = []
        self._placed: torch.device | None = None

    @property
    def device(self) -> torch.device:
        """The device that the network runs on."""
        if self._placed is not None:  # cached while training, evaluating or predicting
            return self._placed
        first = next(self.model.parameters(), None)
        return torch.device("cuda") if self.cuda else first.device if first is not None else torch.device("cpu")

    @property
    def owns_train_step(self) -> bool:
        """Whether the training step is the standard one, not one that a subclass defines."""
        raise NotImplementedError

    def answer(self, inputs: Any) -> Any:
        """Returns the outputs of the learner's prediction step for a batch of inputs."""
        raise NotImplementedError

    def save_model(self, path: Any, save_architecture: bool = False) -> None:
        """Saves the weights to a file or stream."""
        raise NotImplementedError
