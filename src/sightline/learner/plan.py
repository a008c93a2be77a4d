"""The arguments of `train`, validated before anything is created."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from sightline.core.errors import ConfigError, did_you_mean, join_names
from sightline.core.files import expand_user
from sightline.core.types import Schedule
from sightline.metrics.direction import metric_mode

SAVE_MODELS = ("all", "best")
_RESERVED = ("loss", "duration")
_Method = TypeVar("_Method", bound=Callable[..., Any])


class LearnerError(ConfigError, ValueError):
    """A wrong argument of the learner; the message names it and says what to pass instead."""


class LearnerMetric(Protocol):
    """The interface that the learner requires of a metric.

    An optional attribute `better`, "min" or "max", says which values are better. An optional list `history` receives
    the values of all epochs."""

    name: str

    def reset(self) -> None: ...
    def update(self, outputs: Any, targets: Any) -> None: ...
    def getValue(self) -> float: ...  # noqa: N802 the published name


@dataclass
class TrainArguments:
    """The validated arguments of `train`, with the names, order and defaults of the first version.

    Arguments that later versions added are keyword-only. `metrics` has the metrics of each measured split by name; a
    number is appended to a name that occurs twice. Raises LearnerError, a ValueError, for a wrong argument."""

    train_loader: Iterable[Any]
    loss_fn: Callable[..., Any] | None
    optimizer: Optimizer | None
    train_metrics: Sequence[LearnerMetric] | LearnerMetric | None
    test_loader: Iterable[Any] | None = None
    test_metrics: Sequence[LearnerMetric] | LearnerMetric | None = None
    num_epochs: int = 10
    lr_schedule: Any = None
    save_models: str = "all"
    model_dir: str | Path | None = None
    notebook_mode: bool = False
    batch_log: bool = True
    save_logs: str | Path | None = None
    display_metrics: bool = True
    save_metrics: bool = True
    _: KW_ONLY
    val_loader: Iterable[Any] | None = None
    val_metrics: Sequence[LearnerMetric] | LearnerMetric | None = None
    lr_scheduler: Any = None
    save_model_interval: int = 1
    visdom_log: Any = None
    tensorboard_log: str | Path | None = None
    save_architecture: bool = False
    clip_grads: Sequence[float] | None = None
    clip_params: Sequence[float] | None = None
    lr_schedule_late: bool = False
    metrics: dict[str, dict[str, LearnerMetric]] = field(init=False)

    def __post_init__(self) -> None:
        if self.save_models not in SAVE_MODELS:
            raise LearnerError(f"save_models: expected 'all' or 'best', found {self.save_models!r}.")
        if self.save_models == "best" and self.test_loader is None and self.val_loader is None:
            raise LearnerError("save_models: 'best' needs a metric to compare. Pass test_loader and test_metrics.")
        if self.optimizer is not None and not isinstance(self.optimizer, Optimizer):
            raise LearnerError(f"optimizer: expected a torch optimiser, found a {type(self.optimizer).__name__}.")
        if self.loss_fn is not None and not callable(self.loss_fn):
            raise LearnerError(f"loss_fn: expected a function such as CrossEntropyLoss(), found {self.loss_fn!r}.")
        for name in ("num_epochs", "save_model_interval"):
            value = getattr(self, name)
            if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
                raise LearnerError(f"{name}: expected an integer >= 1, found {value!r}.")
            setattr(self, name, int(value))
        for name in ("clip_grads", "clip_params"):
            _check_range(name, getattr(self, name))
        self.metrics = {"train": named_metrics("train_metrics", self.train_metrics)}
        for split, loader, metrics in (
            ("test", self.test_loader, self.test_metrics),
            ("val", self.val_loader, self.val_metrics),
        ):
            if loader is not None:
                self.metrics[split] = named_metrics(f"{split}_metrics", metrics)
                if not self.metrics[split]:
                    raise LearnerError(
                        f"{split}_metrics: expected at least one metric, because {split}_loader is set. Pass a list "
                        f"such as [Accuracy()]."
                    )
        self._sort_schedules()
        if self.deciding is not None:
            split, name = self.deciding
            self._warn_of_direction(f"{split}_metrics", self.metrics[split][name], "the best model is the one with")

    def _warn_of_direction(self, argument: str, metric: LearnerMetric, effect: str) -> None:
        """Warns of a metric that is maximised only because nothing says which values are better."""
        if known_direction(metric) is None:
            warnings.warn(
                f"{argument}: neither {type(metric).__name__} nor its name '{metric.name}' says whether lower or "
                f"higher values are better, so {effect} the highest value. Set its attribute better to 'min' or 'max'.",
                UserWarning,
                stacklevel=6,
            )

    @property
    def directory(self) -> Path:
        """The path of `model_dir`; the current directory by default."""
        return Path.cwd() if self.model_dir is None else expand_user(self.model_dir)

    @property
    def deciding(self) -> tuple[str, str] | None:
        """(split, metric) that selects the best model: the first test metric, else the first validation metric."""
        return next(
            ((split, next(iter(self.metrics[split]))) for split in ("test", "val") if split in self.metrics), None
        )

    @property
    def evals(self) -> Iterator[tuple[str, Iterable[Any]]]:
        """Yields (split, loader) of the splits that are evaluated after each epoch."""
        for split, loader in (("test", self.test_loader), ("val", self.val_loader)):
            if loader is not None:
                yield split, loader

    def schedules(self) -> list[Schedule]:
        """Returns the torch scheduler, if there is one, to be stepped after each epoch.

        ReduceLROnPlateau watches the first validation metric, else the first training metric."""
        if self.lr_scheduler is None:
            return []
        if not isinstance(self.lr_scheduler, ReduceLROnPlateau):
            return [Schedule(self.lr_scheduler)]
        split = "val" if "val" in self.metrics else "train"
        watched = next(iter(self.metrics[split]), None)
        if watched is None:
            raise LearnerError(
                "lr_scheduler: ReduceLROnPlateau watches the first training metric. Pass at least one in train_metrics."
            )
        better = known_direction(self.metrics[split][watched]) or self.lr_scheduler.mode
        if self.lr_scheduler.mode != better:
            warnings.warn(
                f"lr_scheduler: ReduceLROnPlateau has mode='{self.lr_scheduler.mode}', but {watched} is better when "
                f"it is {'lower' if better == 'min' else 'higher'}, so the learning rate would fall as it improves. "
                f"Use ReduceLROnPlateau(..., mode='{better}').",
                UserWarning,
                stacklevel=5,
            )
        return [Schedule(self.lr_scheduler, monitor=f"{split}_{watched}")]

    def _sort_schedules(self) -> None:
        """Moves a function to `lr_schedule` and a torch scheduler to `lr_scheduler`; each accepts both."""
        if self.lr_schedule is not None and self.lr_scheduler is not None:
            raise LearnerError("lr_schedule, lr_scheduler: both set the learning rate. Pass only one of them.")
        schedule = self.lr_schedule if self.lr_schedule is not None else self.lr_scheduler
        if schedule is None:
            return
        if self.optimizer is None:
            raise LearnerError("optimizer: expected a torch optimiser, because a learning-rate schedule is set.")
        is_scheduler = isinstance(schedule, LRScheduler | ReduceLROnPlateau)
        if not is_scheduler and not callable(schedule):
            raise LearnerError(
                f"lr_schedule: expected a function of the epoch or a torch scheduler, found {schedule!r}."
            )
        if is_scheduler and getattr(schedule, "optimizer", self.optimizer) is not self.optimizer:
            raise LearnerError("lr_scheduler: it belongs to another optimizer. Create it with the one passed to train.")
        self.lr_schedule, self.lr_scheduler = (None, schedule) if is_scheduler else (schedule, None)


class ArgumentTable:
    """The signature of `train` in one version.

    `order` names the positional arguments, by default those of `TrainArguments`; all others are keyword-only.
    `defaults` override those of `TrainArguments`."""

    def __init__(self, order: Sequence[str] = (), **defaults: Any):
        known = inspect.signature(TrainArguments).parameters
        order = order or [name for name, part in known.items() if part.kind is part.POSITIONAL_OR_KEYWORD]
        parts = [known[name].replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in order]
        parts += [known[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in known if name not in order]
        parts = [part.replace(default=defaults.get(part.name, part.default)) for part in parts]
        self.signature = inspect.Signature(parts, return_annotation=None)

    def plan(self, *values: Any, **named: Any) -> TrainArguments:
        """Returns the validated arguments of one call. Raises TypeError for a missing, unknown or extra argument."""
        known = self.signature.parameters
        for name in named:
            if name not in known:
                raise TypeError(f"train() has no argument '{name}'.{did_you_mean(name, known)}")
        bound = self.signature.bind(*values, **named)
        bound.apply_defaults()
        return TrainArguments(**bound.arguments)

    def shown(self, method: _Method) -> _Method:
        """Decorator that makes `help` and `inspect` show this signature for a method that takes any arguments."""
        receiver = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        parts = self.signature.parameters.values()
        method.__signature__ = self.signature.replace(parameters=[receiver, *parts])  # type: ignore[attr-defined]
        method.__annotations__ = {part.name: part.annotation for part in parts} | {"return": None}
        return method


_LATER_ORDER = (
    *("train_loader", "loss_fn", "optimizer", "train_metrics", "test_loader", "test_metrics", "val_loader"),
    *("val_metrics", "num_epochs", "lr_scheduler", "save_models", "model_dir", "save_model_interval"),
    *("display_metrics", "save_metrics", "notebook_mode", "batch_log", "save_logs", "visdom_log", "tensorboard_log"),
    *("save_architecture", "clip_grads"),
)
FIRST = ArgumentTable()
LATER = ArgumentTable(_LATER_ORDER, display_metrics=False, save_metrics=False)
LOOP = ArgumentTable(_LATER_ORDER)
"""The signatures of `train` in the first version and in later ones, and of `__train_loop__` in later ones."""


def named_metrics(argument: str, metrics: Sequence[LearnerMetric] | LearnerMetric | None) -> dict[str, LearnerMetric]:
    """Returns one metric or a list of them by name. Raises LearnerError for an object that is not a metric."""
    candidates: list[Any] = [] if metrics is None else list(metrics) if isinstance(metrics, list | tuple) else [metrics]
    named: dict[str, LearnerMetric] = {}
    for metric in candidates:
        missing = [name for name in ("name", "reset", "update", "getValue") if not hasattr(metric, name)]
        if missing:
            raise LearnerError(
                f"{argument}: a {type(metric).__name__} is not a metric; it has no {join_names(missing)}. Use "
                f"Accuracy(), MSE() or an instance of your own subclass of Metric."
            )
        key, number = str(metric.name), 1
        while key in named or key in _RESERVED:
            number += 1
            key = f"{metric.name} {number}"
        named[key] = metric
    return named


def direction(metric: LearnerMetric) -> str:
    """Returns "min" or "max": whether lower or higher values of a metric are better.

    The metric's `better` decides, or else the words of its name, or else "max", as in the original interface."""
    return known_direction(metric) or "max"


def known_direction(metric: LearnerMetric) -> str | None:
    """As `direction`, but returns None if neither `better` nor the name decides."""
    better = getattr(metric, "better", None)
    return str(better) if better in ("min", "max") else metric_mode("_".join(str(metric.name).split()))


def _check_range(name: str, value: Any) -> None:
    if value is None:
        return
    try:
        low, high = (float(part) for part in value)
    except (TypeError, ValueError):
        raise LearnerError(
            f"{name}: expected a lowest and a highest value, such as (-1, 1), found {value!r}."
        ) from None
    if not low < high:
        raise LearnerError(f"{name}: the lowest value {low:g} is not below the highest, {high:g}.")
