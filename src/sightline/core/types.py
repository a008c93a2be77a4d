"""The values that walk through the house, and the protocols its rooms are built against. Imports nothing heavy at run
time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn


Tensors: TypeAlias = "Tensor | tuple[Tensor, ...]"
"""A tuple where a model has several inputs or outputs."""


class Batch(NamedTuple):  # `index` hides tuple.index, which nobody asks of a batch
    """A batch on the run's device. `x` is float32 [B,C,H,W] as the model takes it, `y` int64 [B] of class indices, or
    float32 [B,1] where labels are numbers; both are tuples where a model has several inputs or outputs. `index` int64
    [B] is the row of the data set."""

    x: Tensors
    y: Tensors
    weight: Tensor | None = None
    index: Tensor | None = None  # type: ignore[assignment]


class StepOutput(NamedTuple):
    """What a step hands to the meter. All tensors are on the device and detached: nothing is read back in a step."""

    loss: Tensor | None
    n: int
    output: Tensor | None = None
    target: Tensors | None = None
    metrics: Mapping[str, float] | None = None


@dataclass
class Schedule:
    """A torch learning-rate scheduler, when it steps (`step` or `epoch`), and, for a plateau, the metric it watches."""

    scheduler: Any
    interval: str = "epoch"
    monitor: str | None = None


@dataclass
class TrainState:
    """All that a checkpoint holds. `epoch` and `batch` are where training continues, `step` counts updates of the
    run. `stopped` says that a callback ended it early; `config` is what it was made from, for comparison; `loader` is
    the `position` of the training loader."""

    model: nn.Module
    optimizer: torch.optim.Optimizer | None = None
    schedules: list[Schedule] = field(default_factory=list)
    ema: nn.Module | None = None
    scaler: Any | None = None
    epoch: int = 0
    step: int = 0
    batch: int = 0
    best: float | None = None
    stopped: bool = False
    meters: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    loader: dict[str, Any] = field(default_factory=dict)

    @property
    def eval_model(self) -> nn.Module:
        """What is evaluated and exported: the average of the weights where one is kept, else the model."""
        return self.model if self.ema is None else self.ema


class Augmentation(Protocol):
    """Maps uint8 [B,C,H,W] to the same shape and type, without changing what it is given. `index` is int64 [B], the
    rows of the data set: row i of the result depends on image i, the seed, the epoch and `index[i]` alone, not on its
    neighbours in the batch."""

    def __call__(self, images: Tensor, index: NDArray[np.int64], seed: int, epoch: int) -> Tensor: ...


class Task(Protocol):
    """What one batch means. The loop is ours, the step is the task's: forward, loss, backward, update. A class derived
    from it needs the three steps alone."""

    def setup(self, state: TrainState) -> None:
        """Adds to the state what the steps keep in it and is not there yet, such as an average of the weights. Called
        with the model on its device: before a checkpoint is loaded into the state, and when training begins."""
        return

    def begin_epoch(self, state: TrainState) -> None:
        """Called before the first batch of an epoch, and when one is resumed."""
        return

    @abstractmethod
    def train_step(self, state: TrainState, batch: Batch) -> StepOutput: ...
    @abstractmethod
    def eval_step(self, state: TrainState, batch: Batch) -> StepOutput: ...
    @abstractmethod
    def predict_step(self, state: TrainState, x: Tensors) -> Tensor: ...


@runtime_checkable
class Loader(Protocol):
    """What the trainer iterates: one iteration is one epoch of batches on the run's device. A class derived from it
    needs `seek`, `__iter__` and `__len__`."""

    @abstractmethod
    def seek(self, epoch: int, batch: int = 0, position: Mapping[str, Any] | None = None) -> None:
        """Makes the next iteration epoch `epoch`, from batch `batch` on; without a call, the epoch after the last one
        follows. `position` is what `position()` returned at that place, perhaps in another process."""

    def position(self) -> Mapping[str, Any] | None:
        """What `seek` needs, beside the numbers of epoch and batch, to come back to where the iteration is; a
        checkpoint keeps it, so it holds numbers, strings and tensors only. Empty where the two numbers are enough. None
        where only the beginning of an epoch can be sought."""
        return {}

    @abstractmethod
    def __iter__(self) -> Iterator[Batch]: ...

    @abstractmethod
    def __len__(self) -> int:
        """Batches of an epoch. Raises TypeError where that is not known."""


@runtime_checkable
class StatefulLoader(Protocol):
    """A loader of another library that can be brought back to where it was, such as torchdata's
    StatefulDataLoader."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...
    def __iter__(self) -> Iterator[Any]: ...


@runtime_checkable
class Recorder(Protocol):
    """Receives every log point. A class derived from it needs `log` alone."""

    def start(self, directory: Path, config: Mapping[str, Any], position: tuple[int, int] | None) -> None:
        """Called once, before the first log point, with the run's directory and what the training is made from.
        `position` is the (step, epoch) of the checkpoint that the run is resumed from; None for one that begins. Points
        of later steps come again, so what an interrupted run recorded of them is to be dropped. Nothing is written
        yet: a training that is put together need not begin."""
        return

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The number of updates so far, and the values at that point. NaN and infinite values may come."""

    def artifact(self, path: Path) -> None:
        """A file or directory that the run has made, such as the exported model, when it is complete."""
        return

    def flush(self) -> None:
        """Brings what was logged to the disk. Called, perhaps by another thread, before a checkpoint is written, so
        that the log is no older than it."""
        return

    def close(self) -> None:
        """Called once, at the end, however the run ends."""
        return


@dataclass
class FitResult:
    """What `fit` hands back. `history` has one record per epoch; `metrics` holds, per evaluated split, what the
    exported model measured; `run` is the run's directory. `interrupted` is true when a signal stopped it before the
    end, `signal` its number."""

    history: list[dict[str, float]]
    epochs: int
    steps: int
    best: float | None
    interrupted: bool = False
    signal: int | None = None
    run: Path | None = None
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
