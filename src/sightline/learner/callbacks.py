"""What a learner calls as it trains: methods that a subclass overrides, and functions that are added."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


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
