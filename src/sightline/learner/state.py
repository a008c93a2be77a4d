"""What the steps and the output files of a learner work on: its attributes, and the callbacks of its users, which are
methods that a subclass overrides and functions that are added."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sightline.learner.plan import LearnerError


class Callbacks:
    """Every `on_…` method may be overridden; `epoch` and `batch_num` count from `first_epoch`, as the names of files
    do. Functions that are added with `add_on_…` count from 1."""

    first_epoch = 0

    def __init__(self) -> None:
        self.input_hooks: list[Callable[[Any], Any]] = []
        self.added: dict[str, list[Callable[..., Any]]] = {}

    def add_input_hook(self, function: Callable[[Any], Any]) -> None:
        """Puts the inputs of every training batch through a function."""
        self.input_hooks.append(function)

    def add_on_epoch_start(self, function: Callable[[int], Any]) -> None:
        """`function(epoch)`."""
        self.added.setdefault("epoch_start", []).append(function)

    def add_on_epoch_end(self, function: Callable[[int, dict[str, float]], Any]) -> None:
        """`function(epoch, data)`, with `train_loss`, `duration` and the metrics."""
        self.added.setdefault("epoch_end", []).append(function)

    def add_on_batch_start(self, function: Callable[[int, int], Any]) -> None:
        """`function(epoch, batch)`."""
        self.added.setdefault("batch_start", []).append(function)

    def add_on_batch_end(self, function: Callable[[int, int, dict[str, float]], Any]) -> None:
        """`function(epoch, batch, data)`, with `train_loss` and the training metrics, read back for every batch."""
        self.added.setdefault("batch_end", []).append(function)

    def add_on_training_completed(self, function: Callable[[dict[str, float]], Any]) -> None:
        """`function(data)`, with `train_duration` and the metrics of the last epoch."""
        self.added.setdefault("training_completed", []).append(function)

    def on_epoch_start(self, epoch: int) -> None:
        """Before an epoch."""

    def on_epoch_end(
        self, epoch: int, train_metrics: Any, test_metrics: Any, train_loss: float, duration: float
    ) -> None:
        """After an epoch, when it is measured and its model saved."""

    def on_batch_start(self, epoch: int, batch_num: int) -> None:
        """Before a batch."""

    def on_batch_end(self, epoch: int, batch_num: int, train_metrics: Any, train_loss: float) -> None:
        """After a batch; where it is overridden, the loss is read back for every batch."""

    def on_training_completed(self, train_metrics: Any, test_metrics: Any, train_duration: float) -> None:
        """At the end."""

    def overrides(self, name: str) -> bool:
        """Whether a subclass has a method of its own in place of the one here."""
        return getattr(type(self), name) is not getattr(Callbacks, name)

    def call(self, event: str, *values: Any) -> None:
        """Calls the functions that were added for an event."""
        for function in self.added.get(event, ()):
            function(*values)

    def batch_starts(self) -> list[Callable[[int, int], None]]:
        """What is called before every batch, with epoch and batch from 0."""
        first = self.first_epoch
        starts: list[Callable[[int, int], None]] = []
        if self.overrides("on_batch_start"):
            starts.append(lambda epoch, batch: self.on_batch_start(epoch + first, batch + first))
        if self.added.get("batch_start"):
            starts.append(lambda epoch, batch: self.call("batch_start", epoch + 1, batch + 1))
        return starts


class LearnerState(Callbacks):
    """A network and what a training keeps beside it; `BaseModel` adds what may be done with it."""

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
        """Where the network computes."""
        if self._placed is not None:  # looked up once, not in every step
            return self._placed
        first = next(self.model.parameters(), None)
        return torch.device("cuda") if self.cuda else first.device if first is not None else torch.device("cpu")

    @property
    def owns_train_step(self) -> bool:
        """Whether the training step is the learner's standard one, and not a subclass's own."""
        raise NotImplementedError

    def answer(self, inputs: Any) -> Any:
        """The learner's own answer to a batch."""
        raise NotImplementedError

    def save_model(self, path: Any, save_architecture: bool = False) -> None:
        """Writes the weights to a file or stream."""
        raise NotImplementedError
