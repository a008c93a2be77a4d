"""The contract of every task: it trains on a batch, evaluates without side effects, and can be set up repeatedly."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sightline.learner as tf
from sightline.core.eval_mode import eval_mode
from sightline.core.types import Batch, StepOutput, Task, Tensors, TrainState
from sightline.engine.ema import ModelEMA
from sightline.engine.freezing import Freeze
from sightline.engine.mixup import MixupCutMix
from sightline.engine.runtime import Runtime
from sightline.engine.tasks import SupervisedTask
from sightline.engine.trainer import Trainer, check_task, evaluate
from sightline.learner.task import LearnerTask
from sightline.metrics.meter import Meter
from sightline.params.steps import UserSteps
from sightline.session import CheckpointPolicy, FitOptions, Session

COUNT, SIZE, CLASSES = 12, 4, 3
IMAGES = torch.randn(COUNT, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(COUNT) % CLASSES
BATCHES = [Batch(IMAGES[rows], LABELS[rows], index=rows) for rows in torch.arange(COUNT).split(SIZE)]


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(16, CLASSES)
    )


def train_step(x: Tensor, y: Tensor, model: nn.Module, optim: torch.optim.Optimizer, **_: Any) -> Any:
    optim.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optim.step()
    return loss.item(), {"hits": 1.0}


def test_step(x: Tensor, y: Tensor, model: nn.Module, **_: Any) -> Any:
    return nn.functional.cross_entropy(model(x), y).item(), None


test_step.__test__ = False  # type: ignore[attr-defined]  # not a pytest test


class CustomTask(Task):
    """A user-defined task with only the three steps."""

    def train_step(self, state: TrainState, batch: Batch) -> StepOutput:
        assert state.optimizer is not None
        state.optimizer.zero_grad()
        output = state.model(batch.x)
        loss = nn.functional.cross_entropy(output, batch.y)  # type: ignore[arg-type]
        loss.backward()
        state.optimizer.step()
        return StepOutput(loss.detach(), len(batch.y), output.detach(), batch.y)

    def eval_step(self, state: TrainState, batch: Batch) -> StepOutput:
        output = state.eval_model(batch.x)
        return StepOutput(nn.functional.cross_entropy(output, batch.y), len(batch.y), output, batch.y)  # type: ignore[arg-type]

    def predict_step(self, state: TrainState, x: Tensors) -> Tensor:
        logits: Tensor = state.eval_model(x)
        return logits.softmax(1)


@dataclass
class TaskCase:
    """A task with its state, meters and data; `loader` converts batches to the form that the task expects."""

    task: Task
    state: TrainState
    loader: Callable[[Sequence[Batch]], Iterable[Any]] = list
    meter: Callable[[], Meter] = Meter
    eval_meter: Callable[[], Meter] = Meter
    tolerance: float = 1e-5

    def evaluate(self, batches: Sequence[Batch] = BATCHES) -> dict[str, float]:
        return evaluate(self.task, self.state, self.loader(batches), self.eval_meter())


def task_case(task: Task, model: nn.Module | None = None, tolerance: float = 1e-5) -> TaskCase:
    model = network() if model is None else model
    return TaskCase(task, TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1)), tolerance=tolerance)


def supervised(**options: Any) -> Callable[[], TaskCase]:
    return lambda: task_case(
        SupervisedTask(nn.CrossEntropyLoss(), **options), tolerance=2e-2 if options.get("precision") == "bf16" else 1e-5
    )


def frozen() -> TaskCase:
    """All but the head is frozen in the first epoch."""
    return task_case(SupervisedTask(nn.CrossEntropyLoss(), freeze=Freeze(["5"], 1)))


def learner(directory: Path) -> TaskCase:
    """The task of the learner, as its `train` passes it to the session."""
    cases: list[TaskCase] = []

    class Captured(Exception):
        """Raised instead of training."""

    def capture(session: Session, training: FitOptions, checkpoints: CheckpointPolicy) -> None:
        task = training.task
        assert isinstance(task, LearnerTask)
        pairs = lambda batches: task.measured("val", [(batch.x, batch.y) for batch in batches])  # noqa: E731
        cases.append(TaskCase(task, training.state, pairs, training.meter, training.eval_meter or Meter))
        raise Captured

    model = tf.StandardModel(network(), use_cuda_if_available=False)
    pairs = [(batch.x, batch.y) for batch in BATCHES]
    with pytest.MonkeyPatch.context() as patch, suppress(Captured):
        patch.setattr(Session, "prepare", capture)
        model.train(
            pairs, nn.CrossEntropyLoss(), torch.optim.SGD(model.model.parameters(), lr=0.1), [tf.Accuracy()],
            num_epochs=3, val_loader=pairs, val_metrics=[tf.Accuracy()], model_dir=directory, batch_log=False,
            display_metrics=False, save_metrics=False,
        )  # fmt: skip
    return cases[0]


TASKS: dict[str, Callable[[], TaskCase]] = {
    "plain": supervised(),
    "average": supervised(average=ModelEMA(0.9)),
    "bf16": supervised(precision="bf16"),
    "accumulated, clipped": supervised(accumulate=2, part_size=2, clip=0.5),
    "mixed": supervised(mix=MixupCutMix(0.4, 0.4, 1.0, seed=3)),
    "frozen at first": frozen,
    "params": lambda: task_case(UserSteps(train_step, test_step, {})),
    "custom": lambda: task_case(CustomTask()),
}


@pytest.fixture(params=[*TASKS, "learner"])
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], TaskCase]:
    if request.param == "learner":
        return lambda: learner(tmp_path_factory.mktemp("learner"))
    return TASKS[request.param]


def contents(state: TrainState) -> dict[str, Tensor]:
    tensors = {f"model.{name}": value.clone() for name, value in state.model.state_dict().items()}
    if state.ema is not None:
        tensors |= {f"ema.{name}": value.clone() for name, value in state.ema.state_dict().items()}
    return tensors


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_it_is_a_task(make: Callable[[], TaskCase]) -> None:
    check_task(make().task)


def test_repeated_setup_has_no_effect(make: Callable[[], TaskCase]) -> None:
    case = make()
    case.task.setup(case.state)
    before, ema = contents(case.state), case.state.ema
    case.task.setup(case.state)
    assert case.state.ema is ema
    assert same(contents(case.state), before)


def test_a_step_trains_and_returns_detached_tensors(make: Callable[[], TaskCase]) -> None:
    case = make()
    case.task.setup(case.state)
    case.task.begin_epoch(case.state)
    before = contents(case.state)
    (batch, *_) = case.loader(BATCHES)
    output = case.task.train_step(case.state, batch)
    assert output.n == SIZE
    assert output.loss is not None
    assert not output.loss.requires_grad
    assert output.loss.shape == ()
    assert output.output is None or not output.output.requires_grad
    assert output.output is None or output.output.shape == (SIZE, CLASSES)
    assert not same(contents(case.state), before)


def test_an_evaluation_changes_nothing(make: Callable[[], TaskCase]) -> None:
    """Neither the weights, nor the running statistics of normalisation, nor the generators, nor the batches."""
    case = make()
    case.task.setup(case.state)
    before, batches, generator = contents(case.state), copy.deepcopy(BATCHES), torch.get_rng_state()
    first = case.evaluate()
    assert first
    assert case.evaluate() == first
    assert same(contents(case.state), before)
    if case.loader is list:  # a loader of another library draws the seed of its epoch
        assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(a.x, b.x) for a, b in zip(BATCHES, batches, strict=True))  # type: ignore[arg-type]


def test_metrics_do_not_depend_on_the_size_of_the_batches(make: Callable[[], TaskCase]) -> None:
    case = make()
    case.task.setup(case.state)
    together = [Batch(IMAGES, LABELS, index=torch.arange(COUNT))]
    assert case.evaluate() == pytest.approx(case.evaluate(together), rel=case.tolerance)


def test_predictions_have_one_row_per_sample(make: Callable[[], TaskCase]) -> None:
    case = make()
    case.task.setup(case.state)
    with eval_mode(case.state.eval_model), torch.inference_mode():
        predictions = case.task.predict_step(case.state, IMAGES)
    assert predictions.shape == (COUNT, CLASSES)


def test_repeated_and_interrupted_training_give_the_same_weights(make: Callable[[], TaskCase]) -> None:
    def trained(*epochs: int) -> dict[str, Tensor]:
        case = make()
        for end in epochs:
            Trainer(
                case.task,
                case.state,
                case.loader(BATCHES),
                {"val": case.loader(BATCHES)},
                max_epochs=end,
                runtime=Runtime("cpu", seed=2),
                meter=case.meter,
                eval_meter=case.eval_meter,
            ).fit()
        return contents(case.state)

    assert same(trained(3), trained(3))
    assert same(trained(1, 3), trained(3))
