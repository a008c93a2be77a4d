"""Frozen layers do not change in any bit and are trainable again afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sightline.compose.module import make_freeze
from sightline.config.schema import TrainConfig
from sightline.core.errors import ConfigError
from sightline.core.types import Batch, TrainState
from sightline.engine.freezing import Freeze
from sightline.engine.tasks import SupervisedTask
from sightline.engine.trainer import Trainer
from sightline.models.networks import SmallCNN


class Net(nn.Module):
    """Two layers with running statistics and dropout below a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.body(self.stem(x)))
        return output


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """The layers of which any weight or buffer has changed."""
    now = model.state_dict()
    return {name.rpartition(".")[0] for name in before if not torch.equal(before[name], now[name])}


def train(model: nn.Module, freeze: Freeze, epochs: int, start: int = 0) -> None:
    state = TrainState(model, torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1), epoch=start)
    batches = [Batch(torch.randn(6, 1, 8, 8), torch.arange(6) % 3) for _ in range(2)]
    Trainer(SupervisedTask(nn.CrossEntropyLoss(), freeze=freeze), state, batches, max_epochs=epochs).fit()


def test_the_head_alone_is_trained_first_and_then_everything() -> None:
    model = Net()
    freeze = Freeze(["head"], epochs=2)
    before = tensors(model)
    train(model, freeze, epochs=2)
    assert changed(model, before) == {"head"}
    before = tensors(model)
    train(model, freeze, epochs=3, start=2)
    assert changed(model, before) == {"stem.0", "stem.1", "body.0", "body.1", "head"}
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["stem"], {"body.0", "body.1", "head"}),
        (["stem.*"], {"body.0", "body.1", "head"}),
        (["*.1"], {"stem.0", "body.0", "head"}),
        (["stem.[01]", "body.0"], {"body.1", "head"}),
        (["stem.1.weight", "stem.1.bias"], {"stem.0", "body.0", "body.1", "head"}),
    ],
)
def test_named_layers_and_their_statistics_are_never_trained(patterns: list[str], expected: set[str]) -> None:
    model = Net()
    before = tensors(model)
    train(model, Freeze((), patterns=patterns), epochs=2)
    assert changed(model, before) == expected


def test_a_parameter_can_be_frozen_without_its_layer() -> None:
    model = Net()
    before = tensors(model)
    train(model, Freeze((), patterns=["stem.1.bias"]), epochs=1)
    assert torch.equal(before["stem.1.bias"], model.stem[1].bias)
    assert not torch.equal(before["stem.1.weight"], model.stem[1].weight)
    assert not torch.equal(before["stem.1.running_mean"], model.stem[1].running_mean)


def test_frozen_layers_are_in_eval_mode_and_parents_of_the_head_are_not() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout()), nn.Sequential(nn.Dropout(), nn.Linear(2, 3)))
    Freeze(["1.1"], epochs=1).apply(model, 0)
    modes = {name: module.training for name, module in model.named_modules()}
    assert modes == {"": True, "0": False, "0.0": False, "0.1": False, "1": True, "1.0": False, "1.1": True}


def test_freezing_depends_only_on_the_epoch() -> None:
    once, again = Net(), Net()
    first, second = Freeze(["head"], 2, ["stem.0"]), Freeze(["head"], 2, ["stem.0"])
    for epoch in (0, 0, 1, 2, 2):
        first.apply(once, epoch)
    second.apply(again, 2)  # resumed
    for name, parameter in once.named_parameters():
        assert parameter.requires_grad == dict(again.named_parameters())[name].requires_grad
    assert [m.training for m in once.modules()] == [m.training for m in again.modules()]
    first.apply(once, 0)
    assert not once.body[1].training
    assert not once.body[1].weight.requires_grad


def test_layers_frozen_by_the_user_stay_frozen() -> None:
    model = Net()
    model.stem[0].requires_grad_(requires_grad=False)
    model.body[1].eval()
    freeze = Freeze(["head"], 1)
    before = tensors(model)
    train(model, freeze, epochs=3)
    assert not model.stem[0].weight.requires_grad
    assert not model.body[1].training
    assert model.stem[1].training
    assert torch.equal(before["stem.0.weight"], model.stem[0].weight)
    assert torch.equal(before["body.1.running_mean"], model.body[1].running_mean)


def test_frozen_layers_keep_no_gradient() -> None:
    model = Net()
    model(torch.randn(2, 1, 8, 8)).sum().backward()
    Freeze(["head"], 1).apply(model, 0)
    assert model.stem[0].weight.grad is None
    assert model.head.weight.grad is not None


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (Freeze((), patterns=["fetures.0"]), r"module\.freeze\[0\]: 'fetures\.0' matches no .*mean 'features\.0'\?"),
        (Freeze(["head"], 1, ["head"]), r"module\.freeze: no parameter would be trained in epoch 0"),
        (Freeze((), patterns=["*"]), r"module\.freeze: no parameter would be trained in epoch 0\. Frozen: \*"),
        (Freeze((), 1), r"module\.freeze_epochs: the head layer of this network is not known"),
        (Freeze(["features"], 1, ["head", "features.*"]), "no parameter would be trained"),
    ],
)  # fmt: skip
def test_a_mistake_is_an_error_before_training(freeze: Freeze, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        freeze.check(SmallCNN())


def test_a_name_does_not_match_longer_names() -> None:
    frozen, _ = Freeze((), patterns=["features.1"]).frozen(SmallCNN(), 0)
    assert frozen == {"features.1.weight", "features.1.bias"}


def test_a_compiled_network_is_frozen_by_the_names_of_the_original() -> None:
    config = TrainConfig.from_dict({"module": {"freeze_epochs": 1, "freeze": ["features.0"]}})
    model = SmallCNN()
    freeze = make_freeze(config, torch.compile(model), (1, 8, 8))  # type: ignore[arg-type]
    assert freeze is not None
    assert freeze.heads == ("head",)
    assert "features.0.weight" in freeze.frozen(model, 1)[0]


# --- running statistics


class Normal(nn.Module):
    """Batch normalisation below the head and in it, one without statistics, and a group normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.GroupNorm(2, 4), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(64, 3), nn.BatchNorm1d(3))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.body(x))
        return output


@pytest.mark.parametrize("epochs", [0, 1])
def test_running_statistics_are_unchanged_while_scales_and_shifts_are_trained(epochs: int) -> None:
    model = Normal()
    before = tensors(model)
    train(model, Freeze(["head"], epochs=epochs, statistics=True), epochs=2)
    now = model.state_dict()
    unchanged = {name for name in before if torch.equal(before[name], now[name])}
    assert unchanged == {"body.1.running_mean", "body.1.running_var", "body.1.num_batches_tracked"}


def test_frozen_statistics_normalise_in_training_as_in_evaluation() -> None:
    model = Normal()
    Freeze(["head"], statistics=True).apply(model, 0)
    x = torch.randn(6, 1, 8, 8)
    assert torch.equal(model.body[:3](x), copy.deepcopy(model).eval().body[:3](x))
    assert model.head[1].training
    assert model.body[4].training
    free = Normal()
    assert not torch.equal(free.body[:3](x), copy.deepcopy(free).eval().body[:3](x))


def test_the_statistics_of_the_head_are_not_frozen_by_the_config() -> None:
    config = TrainConfig.from_dict({"module": {"freeze_statistics": True}})
    model = Normal()
    freeze = make_freeze(config, model, (1, 8, 8))
    assert freeze is not None
    train(model, freeze, epochs=1)
    assert bool(model.head[1].running_mean.any())
    assert not bool(model.body[1].running_mean.any())
