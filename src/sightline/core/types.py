"""Core data structures (Batch, StepOutput, TrainState) and the protocols the engine is written against.

Does not import torch or NumPy at run time."""

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
"""A tensor, or a tuple of tensors for a model with several inputs or outputs."""


class Batch(NamedTuple):  # `index` hides tuple.index, which a batch does not need
    """A batch on the run's device.

    `x` is float32 `[B, C, H, W]`, the input of the model. `y` is int64 `[B]` of class indices, or float32 `[B, 1]` for
    regression. Both are tuples for a model with several inputs or outputs. `weight` is the weight of each sample, and
    `index`, int64 `[B]`, its row in the dataset."""

    x: Tensors
    y: Tensors
    weight: Tensor | None = None
    index: Tensor | None = None  # type: ignore[assignment]


class StepOutput(NamedTuple):
    """The result of one step, for the metrics. `n` is the number of samples.

    `loss` is the mean loss, a float tensor without dimensions. `output` is the model's output, `[B, C]` for classes,
    and `target` what it is compared with, such as int64 `[B]`. `metrics` are values that the step computed itself. The
    tensors are detached and stay on the device, so that a step never waits for the device."""

    loss: Tensor | None
    n: int
    output: Tensor | None = None
    target: Tensors | None = None
    metrics: Mapping[str, float] | None = None


@dataclass
class Schedule:
    """A torch learning-rate scheduler, the `interval` of its steps (`step` or `epoch`), and the metric it monitors."""

    scheduler: Any
    interval: str = "epoch"
    monitor: str | None = None


@dataclass
class TrainState:
    """The complete state of a training, as saved in a checkpoint.

    Training continues at `epoch` and `batch`; `step` counts the updates of the run. `stopped` means that a callback
    ended training early. `config` holds the settings of the training, for comparison when it is resumed. `loader` is
    the `position()` of the training loader."""

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
        """The model that is evaluated and exported: the EMA if there is one, else `model`."""
        return self.model if self.ema is None else self.ema


class Augmentation(Protocol):
    """Augments a batch of images, uint8 `[B, C, H, W]`, and returns the same shape and dtype. The input is not changed.

    `index`, int64 `[B]`, has the rows of the images in the dataset. Row i of the result depends only on image i, the
    seed, the epoch and `index[i]`, not on other images of the batch."""

    def __call__(self, images: Tensor, index: NDArray[np.int64], seed: int, epoch: int) -> Tensor: ...


class Task(Protocol):
    """Defines the steps on one batch: forward, loss, backward and update. The trainer owns the loop around them.

    A subclass only needs the three step methods."""

    def setup(self, state: TrainState) -> None:
        """Adds what the steps need to the state if it is missing, such as an EMA of the weights. Called with the model
        on its device, before a checkpoint is loaded into the state and when training starts."""
        return

    def begin_epoch(self, state: TrainState) -> None:
        """Called before the first batch of an epoch, and when an epoch is resumed."""
        return

    @abstractmethod
    def train_step(self, state: TrainState, batch: Batch) -> StepOutput: ...
    @abstractmethod
    def eval_step(self, state: TrainState, batch: Batch) -> StepOutput: ...
    @abstractmethod
    def predict_step(self, state: TrainState, x: Tensors) -> Tensor: ...


@runtime_checkable
class Loader(Protocol):
    """An iterable of batches on the run's device; one iteration is one epoch. A subclass needs `seek`, `__iter__` and
    `__len__`."""

    @abstractmethod
    def seek(self, epoch: int, batch: int = 0, position: Mapping[str, Any] | None = None) -> None:
        """Makes the next iteration start at batch `batch` of epoch `epoch`. Without a call, the next epoch follows.
        `position` is what `position()` returned at that point, possibly in another process."""

    def position(self) -> Mapping[str, Any] | None:
        """Returns what `seek` needs, besides epoch and batch, to continue at the current position. It is saved in
        checkpoints, so it may contain only numbers, strings and tensors. It is empty if epoch and batch are enough, and
        None if the loader can only seek to the start of an epoch."""
        return {}

    @abstractmethod
    def __iter__(self) -> Iterator[Batch]: ...

    @abstractmethod
    def __len__(self) -> int:
        """Returns the number of batches per epoch. Raises TypeError if it is unknown."""


@runtime_checkable
class StatefulLoader(Protocol):
    """A loader of another library that can save and restore its position, such as torchdata's StatefulDataLoader."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...
    def __iter__(self) -> Iterator[Any]: ...


@runtime_checkable
class Recorder(Protocol):
    """Receives every log point of a run, for example to write it to a file. A subclass only needs `log`."""

    def start(self, directory: Path, config: Mapping[str, Any], position: tuple[int, int] | None) -> None:
        """Called once, before the first log point, with the run's directory and the settings of the training.

        `position` is the (step, epoch) of the checkpoint that the run resumes from, or None for a new run. Later steps
        are logged again, so delete what an interrupted run has logged of them. Do not write anything yet: a training
        that is set up may never start."""
        return

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Records `values` after `step` updates of the run. They may be NaN or infinite."""

    def artifact(self, path: Path) -> None:
        """Called with a file or directory that the run has completed, such as the exported model."""
        return

    def flush(self) -> None:
        """Writes all logged values to disk. Called before a checkpoint is written, possibly from another thread, so
        that the log is never older than the checkpoint."""
        return

    def close(self) -> None:
        """Called once at the end of the run, also after an error."""
        return


@dataclass
class FitResult:
    """The result of `fit`.

    `history` has one record per epoch, and `best` is the best value of the monitored metric. `metrics` has the metrics
    of the exported model for each evaluated split. `run` is the run directory. `interrupted` is true if a signal
    stopped the run early, and `signal` is its number."""

    history: list[dict[str, float]]
    epochs: int
    steps: int
    best: float | None
    interrupted: bool = False
    signal: int | None = None
    run: Path | None = None
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
