"""What every task must do: train on a batch, measure without changing anything, and set itself up as often as asked."""

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


test_step.__test__ = False  # type: ignore[attr-defined]  # no test of pytest's


class Own(Task):
    """A user's, with the three steps alone."""

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
        answer: Tensor = state.eval_model(x)
        return answer.softmax(1)


@dataclass
class Made:
    """A task with what it is trained on: `loader` gives batches as the task takes them."""

    task: Task
    state: TrainState
    loader: Callable[[Sequence[Batch]], Iterable[Any]] = list
    meter: Callable[[], Meter] = Meter
    eval_meter: Callable[[], Meter] = Meter
    tolerance: float = 1e-5

    def evaluate(self, batches: Sequence[Batch] = BATCHES) -> dict[str, float]:
        return evaluate(self.task, self.state, self.loader(batches), self.eval_meter())


def made(task: Task, model: nn.Module | None = None, tolerance: float = 1e-5) -> Made:
    model = network() if model is None else model
    return Made(task, TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1)), tolerance=tolerance)


def supervised(**how: Any) -> Callable[[], Made]:
    return lambda: made(
        SupervisedTask(nn.CrossEntropyLoss(), **how), tolerance=2e-2 if how.get("precision") == "bf16" else 1e-5
    )


def frozen() -> Made:
    """All but the head is frozen in the first epoch."""
    return made(SupervisedTask(nn.CrossEntropyLoss(), freeze=Freeze(["5"], 1)))


def learner(directory: Path) -> Made:
    """The learner's own steps, as its `train` passes them to the session."""
    made: list[Made] = []

    class Taken(Exception):
        """Training need not begin."""

    def take(session: Session, training: FitOptions, checkpoints: CheckpointPolicy) -> None:
        task = training.task
        assert isinstance(task, LearnerTask)
        pairs = lambda batches: task.measured("val", [(batch.x, batch.y) for batch in batches])  # noqa: E731
        made.append(Made(task, training.state, pairs, training.meter, training.eval_meter or Meter))
        raise Taken

    model = tf.StandardModel(network(), use_cuda_if_available=False)
    pairs = [(batch.x, batch.y) for batch in BATCHES]
    with pytest.MonkeyPatch.context() as patch, suppress(Taken):
        patch.setattr(Session, "prepare", take)
        model.train(
            pairs, nn.CrossEntropyLoss(), torch.optim.SGD(model.model.parameters(), lr=0.1), [tf.Accuracy()],
            num_epochs=3, val_loader=pairs, val_metrics=[tf.Accuracy()], model_dir=directory, batch_log=False,
            display_metrics=False, save_metrics=False,
        )  # fmt: skip
    return made[0]


TASKS: dict[str, Callable[[], Made]] = {
    "plain": supervised(),
    "average": supervised(average=ModelEMA(0.9)),
    "bf16": supervised(precision="bf16"),
    "accumulated, clipped": supervised(accumulate=2, part_size=2, clip=0.5),
    "mixed": supervised(mix=MixupCutMix(0.4, 0.4, 1.0, seed=3)),
    "frozen at first": frozen,
    "params": lambda: made(UserSteps(train_step, test_step, {})),
    "a user's": lambda: made(Own()),
}


@pytest.fixture(params=[*TASKS, "learner"])
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Made]:
    if request.param == "learner":
        return lambda: learner(tmp_path_factory.mktemp("learner"))
    return TASKS[request.param]


def contents(state: TrainState) -> dict[str, Tensor]:
    found = {f"model.{name}": value.clone() for name, value in state.model.state_dict().items()}
    if state.ema is not None:
        found |= {f"ema.{name}": value.clone() for name, value in state.ema.state_dict().items()}
    return found


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_it_is_a_task(make: Callable[[], Made]) -> None:
    check_task(make().task)


def test_it_is_set_up_once_however_often_it_is_asked(make: Callable[[], Made]) -> None:
    part = make()
    part.task.setup(part.state)
    before, ema = contents(part.state), part.state.ema
    part.task.setup(part.state)
    assert part.state.ema is ema
    assert same(contents(part.state), before)


def test_a_step_trains_and_reads_nothing_of_the_graph(make: Callable[[], Made]) -> None:
    part = make()
    part.task.setup(part.state)
    part.task.begin_epoch(part.state)
    before = contents(part.state)
    (batch, *_) = part.loader(BATCHES)
    output = part.task.train_step(part.state, batch)
    assert output.n == SIZE
    assert output.loss is not None
    assert not output.loss.requires_grad
    assert output.output is None or not output.output.requires_grad
    assert not same(contents(part.state), before)


def test_an_evaluation_changes_nothing(make: Callable[[], Made]) -> None:
    """Not the weights, not what normalisation has counted, not the generators, not the batches."""
    part = make()
    part.task.setup(part.state)
    before, batches, generator = contents(part.state), copy.deepcopy(BATCHES), torch.get_rng_state()
    first = part.evaluate()
    assert first
    assert part.evaluate() == first
    assert same(contents(part.state), before)
    if part.loader is list:  # a loader of another library draws the seed of its epoch
        assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(a.x, b.x) for a, b in zip(BATCHES, batches, strict=True))  # type: ignore[arg-type]


def test_metrics_are_means_over_the_samples_whatever_the_batches(make: Callable[[], Made]) -> None:
    part = make()
    part.task.setup(part.state)
    together = [Batch(IMAGES, LABELS, index=torch.arange(COUNT))]
    assert part.evaluate() == pytest.approx(part.evaluate(together), rel=part.tolerance)


def test_predictions_are_one_row_a_sample(make: Callable[[], Made]) -> None:
    part = make()
    part.task.setup(part.state)
    with eval_mode(part.state.eval_model), torch.inference_mode():
        found = part.task.predict_step(part.state, IMAGES)
    assert found.shape == (COUNT, CLASSES)


def test_two_trainings_are_equal_and_one_that_was_cut_too(make: Callable[[], Made]) -> None:
    def trained(*epochs: int) -> dict[str, Tensor]:
        part = make()
        for end in epochs:
            Trainer(
                part.task,
                part.state,
                part.loader(BATCHES),
                {"val": part.loader(BATCHES)},
                max_epochs=end,
                runtime=Runtime("cpu", seed=2),
                meter=part.meter,
                eval_meter=part.eval_meter,
            ).fit()
        return contents(part.state)

    assert same(trained(3), trained(3))
    assert same(trained(1, 3), trained(3))
