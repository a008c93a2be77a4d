"""`ModelEMA` with networks that replace, add, remove and share their tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from sightline.core.types import Batch, TrainState
from sightline.engine.checkpoint.content import load_checkpoint, load_weights, save_checkpoint
from sightline.engine.ema import ModelEMA
from sightline.engine.tasks import SupervisedTask
from sightline.engine.trainer import Trainer

DECAY = 0.5


class Base(nn.Module):
    """A layer, and a buffer that every training step changes in a way that the subclass defines."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.change(x.detach())
        return self.layer(x - self.mean)

    def change(self, x: Tensor) -> None:
        raise NotImplementedError


class InPlace(Base):
    def change(self, x: Tensor) -> None:
        self.mean.mul_(0.9).add_(x.mean(0) * 0.1)


class Reassigns(Base):
    def change(self, x: Tensor) -> None:
        self.mean = 0.9 * self.mean + x.mean(0) * 0.1


class ReassignsParameter(Base):
    def change(self, x: Tensor) -> None:
        self.mean = 0.9 * self.mean + x.mean(0) * 0.1
        self.extra = nn.Parameter(x.mean(0))


class RegistersLate(Base):
    def change(self, x: Tensor) -> None:
        if not hasattr(self, "late"):
            self.register_buffer("late", torch.zeros(4))
            self.register_buffer("hidden", torch.zeros(2), persistent=False)
            self.head = nn.Linear(3, 2)
        self.late = 0.9 * self.late + x.mean(0) * 0.1


class Grows(Base):
    def change(self, x: Tensor) -> None:
        self.queue = torch.cat((getattr(self, "queue", x[:0]), x))

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.zeros(0, 4))


class FromNothing(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("later", None)

    def change(self, x: Tensor) -> None:
        self.later = x.mean(0) if self.later is None else None


class Counts(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.tensor(0))

    def change(self, x: Tensor) -> None:
        self.steps = self.steps + 1


class Removes(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("once", torch.zeros(2))
        self.part = nn.Linear(2, 2)

    def change(self, x: Tensor) -> None:
        if "once" in self._buffers:
            del self.once, self.part


class Shares(Base):
    """One buffer under two names and as a view, changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Module()
        self.other.register_buffer("mean", self.mean)
        self.other.register_buffer("view", self.mean.view(4))

    def change(self, x: Tensor) -> None:
        self.mean.mul_(0.9).add_(x.mean(0) * 0.1)


class StopsSharing(Shares):
    def change(self, x: Tensor) -> None:
        self.mean = 0.9 * self.mean + x.mean(0) * 0.1


class ReplacesModule(Base):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Linear(2, 2)

    def change(self, x: Tensor) -> None:
        self.norm = nn.BatchNorm1d(4)


KINDS = [
    InPlace, Reassigns, ReassignsParameter, RegistersLate, Grows, FromNothing, Counts, Removes, Shares, StopsSharing,
    ReplacesModule,
]  # fmt: skip


def batches(count: int = 5) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        Batch(torch.randn(6, 4, generator=generator), torch.randint(0, 3, (6,), generator=generator))
        for _ in range(count)
    ]


def state_of(model: nn.Module) -> TrainState:
    return TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1), ema=ModelEMA.start(model))


def task() -> SupervisedTask:
    return SupervisedTask(nn.CrossEntropyLoss(), average=ModelEMA(DECAY, warmup=False))


def by_hand(average: dict[str, Tensor], now: dict[str, Tensor]) -> dict[str, Tensor]:
    """The average of state dicts by name; a tensor that is new or has another shape starts with its value."""
    result = {}
    for name, new in now.items():
        old = average.get(name)
        blends = old is not None and old.shape == new.shape and new.is_floating_point()
        result[name] = old.lerp(new, 1 - DECAY) if blends else new.clone()  # type: ignore[union-attr]
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_the_average_follows_changes_to_the_tensors_of_a_network(kind: Callable[[], Base]) -> None:
    model = kind()
    state, one = state_of(model), task()
    assert state.ema is not None
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for batch in batches():
        model.train()
        one.train_step(state, batch)
        now = {name: value.clone() for name, value in model.state_dict().items()}
        expected = by_hand(expected, now)
        averaged = state.ema.state_dict()
        assert averaged.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.allclose(averaged[name], value, atol=1e-6), name
        for name, value in now.items():  # the network is not changed
            assert torch.equal(model.state_dict()[name], value)
    assert not state.ema.training
    assert not any(parameter.requires_grad for parameter in state.ema.parameters())
    ids = {id(part) for part in (*model.parameters(), *model.buffers())}
    assert not ids & {id(part) for part in (*state.ema.parameters(), *state.ema.buffers())}


def test_shared_tensors_are_averaged_once_and_stay_shared() -> None:
    model = Shares()
    state, one = state_of(model), task()
    for batch in batches():
        one.train_step(state, batch)
    average: Any = state.ema
    assert average.mean is average.other.mean
    assert average.mean.data_ptr() == average.other.view.data_ptr()
    model = StopsSharing()
    state = state_of(model)
    for batch in batches():
        one.train_step(state, batch)
    average = state.ema
    assert average.mean.data_ptr() != average.other.mean.data_ptr()
    assert torch.equal(average.other.mean, torch.zeros(4))


def test_the_average_of_a_replaced_buffer_is_evaluated_and_saved(tmp_path: Path) -> None:
    """With the trainer: in the evaluation, in the checkpoint, and in a resumed run."""
    seen: list[Tensor] = []

    class Recording(Reassigns):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                seen.append(self.mean.clone())
            return super().forward(x)

    def trainer(model: nn.Module, epochs: int) -> Trainer:
        return Trainer(task(), state_of(model), batches(), {"val": batches(1)}, max_epochs=epochs)

    uninterrupted = trainer(Recording(), 4)
    uninterrupted.fit()
    average: Any = uninterrupted.state.ema
    assert [torch.equal(value, average.mean) for value in seen] == [False, False, False, True]
    assert not torch.equal(average.mean, uninterrupted.state.model.mean)

    first = trainer(Recording(), 2)
    first.fit()
    save_checkpoint(tmp_path / "last.ckpt", first.state)
    loaded = Recording()
    load_weights(tmp_path / "last.ckpt", loaded)
    assert torch.equal(loaded.mean, first.state.ema.mean)  # type: ignore[union-attr]
    again = trainer(Recording(), 4)
    load_checkpoint(tmp_path / "last.ckpt", again.state)
    again.fit()
    for name, value in average.state_dict().items():
        assert torch.equal(again.state.ema.state_dict()[name], value)  # type: ignore[union-attr]


def test_one_average_object_can_be_used_for_several_networks() -> None:
    """The tensor pairs cached for one network are not used for the next."""
    one = ModelEMA(DECAY, warmup=False)
    for _ in range(3):
        model = InPlace()
        average = ModelEMA.start(model)
        with torch.no_grad():
            model.layer.weight.add_(1)
        before = average.layer.weight.clone()
        one.update(average, model, 0)
        assert torch.allclose(average.layer.weight, before.lerp(model.layer.weight, 1 - DECAY))


def test_a_network_that_is_pruned_during_training_is_still_averaged() -> None:
    """Pruning replaces a weight by the result of a hook."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    state, one = state_of(model), task()
    first, *others = batches()
    one.train_step(state, first)
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    state.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in others:
        one.train_step(state, batch)
    average: Any = state.ema
    assert average.state_dict().keys() == model.state_dict().keys()
    x = others[0].x
    assert torch.isfinite(average(x)).all()
    assert (average[0].weight_orig * average[0].weight_mask == 0).float().mean() >= 0.5
