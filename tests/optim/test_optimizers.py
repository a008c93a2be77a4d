"""Optimisers and schedules from a class and its arguments."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from sightline.core.errors import ConfigError
from sightline.core.types import Schedule
from sightline.models.networks import SmallCNN
from sightline.models.param_groups import parameter_groups
from sightline.models.structure import parameter_depths
from sightline.optim import WarmupCosineLR
from sightline.optim.optimizers import build_optimizer
from sightline.optim.schedules import build_schedule

# LBFGS needs a closure that it calls several times per step; our steps pass none
EXCLUDED = {"LBFGS", "Optimizer"}
NAMES = sorted(
    name
    for name, item in vars(torch.optim).items()
    if isinstance(item, type) and issubclass(item, torch.optim.Optimizer) and name not in EXCLUDED
)


def optimizer_of(name: str = "SGD", **arguments: Any) -> torch.optim.Optimizer:
    model = nn.Linear(3, 2, bias=False)  # Muon takes matrices only
    return build_optimizer(getattr(torch.optim, name), {"lr": 0.1, **arguments}, model, "module.optimizer")


def schedule_of(target: Any, better: str = "min", **arguments: Any) -> Schedule:
    monitor = "val_loss" if better == "min" else "val_accuracy"
    return build_schedule(
        target, arguments, optimizer_of(), steps_per_epoch=7, epochs=5, monitor=monitor, better=better, key="k"
    )


def rates(schedule: Schedule, steps: int) -> list[float]:
    values = []
    for _ in range(steps):
        values.append(schedule.scheduler.optimizer.param_groups[0]["lr"])
        schedule.scheduler.optimizer.step()
        schedule.scheduler.step()
    return values


# --- optimisers


@pytest.mark.parametrize("name", NAMES)
def test_every_optimiser_of_torch_is_built_and_moves_the_weights(name: str) -> None:
    model = nn.Linear(3, 2, bias=False)
    optimizer = build_optimizer(getattr(torch.optim, name), {"lr": 0.1}, model, "k")
    assert type(optimizer).__name__ == name
    assert optimizer.param_groups[0]["lr"] == 0.1
    before = model.weight.detach().clone()
    grad = torch.ones_like(model.weight)
    model.weight.grad = grad.to_sparse() if name == "SparseAdam" else grad
    optimizer.step()
    assert not torch.equal(model.weight, before)


def test_torch_still_has_the_optimisers_we_know_of() -> None:
    assert {"SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam"} <= set(NAMES)


def test_arguments_reach_the_optimiser() -> None:
    optimizer = optimizer_of("SGD", momentum=0.5, dampening=0, weight_decay=1e-2, nesterov=False)
    assert optimizer.defaults["momentum"] == 0.5
    assert optimizer.defaults["weight_decay"] == 1e-2


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    model[0].requires_grad_(requires_grad=False)
    optimizer = build_optimizer(torch.optim.SGD, {"lr": 0.1}, model, "k")
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model[1].parameters()]
    with pytest.raises(ConfigError, match=r"^module\.optimizer: the network has no trainable parameter"):
        build_optimizer(torch.optim.SGD, {"lr": 0.1}, model.requires_grad_(requires_grad=False), "module.optimizer")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("SGD", {"momentun": 0.9}, r"module\.optimizer\.momentun: .*SGD has no argument .*Did you mean 'momentum'\?"),
        ("AdamW", {"weightdecay": 0.9}, r"Did you mean 'weight_decay'\?"),
        ("Adam", {"lr": -1}, r"module\.optimizer: .*Adam does not accept these arguments: Invalid learning rate"),
        ("SGD", {"nesterov": True}, r"module\.optimizer: .*[Nn]esterov"),
    ],
)
def test_a_wrong_argument_is_an_error_with_the_nearest(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        optimizer_of(name, **arguments)


def test_an_object_that_is_not_an_optimiser_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^k\._target_: expected a torch\.optim\.Optimizer, found a list"):
        build_optimizer(list, {}, nn.Linear(1, 1), "k")


# --- groups


def groups_of(model: nn.Module, target: Any = torch.optim.AdamW, **options: Any) -> list[dict[str, Any]]:
    """The parameter groups of an optimiser that was built with them."""
    groups = parameter_groups(model, target, {"lr": 0.1}, **options)
    return build_optimizer(target, {"lr": 0.1}, model, "k", groups).param_groups


def names_in(model: nn.Module, group: dict[str, Any]) -> list[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for parameter in group["params"]]


def test_without_groups_there_is_one_with_every_parameter_in_order() -> None:
    model = SmallCNN()
    (group,) = build_optimizer(torch.optim.AdamW, {"lr": 0.1}, model, "k").param_groups
    assert names_in(model, group) == [name for name, _ in model.named_parameters()]
    assert "name" not in group


def test_each_block_learns_more_slowly_than_the_one_above_it() -> None:
    model = SmallCNN()
    groups = groups_of(model, depths=parameter_depths(model, (1, 8, 8)), layer_decay=0.5)
    assert [group["name"] for group in groups] == [
        "head",
        "block 3 of 4",
        "block 2 of 4",
        "block 1 of 4",
        "block 0 of 4",
    ]
    assert [group["lr"] for group in groups] == [0.1, 0.05, 0.025, 0.0125, 0.00625]
    assert names_in(model, groups[0]) == ["head.weight", "head.bias"]
    assert names_in(model, groups[4]) == ["features.0.weight", "features.1.weight", "features.1.bias"]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_biases_and_scales_need_no_decay() -> None:
    model = SmallCNN()
    decayed, bare = groups_of(model, decay_1d=False)
    assert (decayed["weight_decay"], bare["weight_decay"]) == (0.01, 0.0)
    assert (decayed["name"], bare["name"]) == ("rest", "no decay")
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert all(parameter.ndim == 1 for parameter in bare["params"])


def test_the_first_entry_that_matches_a_parameter_is_used_unchanged() -> None:
    model = SmallCNN()
    overrides = [{"match": "head.*", "lr": 0.5, "weight_decay": 0.3}, {"match": "*.bias", "lr": 0.7}]
    options: dict[str, Any] = {"overrides": overrides, "decay_1d": False}
    groups = {group["name"]: group for group in groups_of(model, **options)}
    assert set(groups) == {"head.*", "head.*, no decay", "*.bias, no decay", "rest", "no decay"}
    assert names_in(model, groups["head.*, no decay"]) == ["head.bias"]
    assert groups["head.*, no decay"]["weight_decay"] == 0.3
    assert groups["*.bias, no decay"]["lr"] == 0.7
    assert groups["rest"]["lr"] == 0.1
    slow = groups_of(
        model,
        depths=parameter_depths(model, (1, 8, 8)),
        layer_decay=0.5,
        overrides=[{"match": "features.0", "lr": 1.0}],
    )
    assert next(group["lr"] for group in slow if group["name"].startswith("features.0")) == 1.0


def test_the_default_rate_of_the_optimiser_decays_if_none_is_set() -> None:
    model = SmallCNN()
    groups = parameter_groups(model, torch.optim.AdamW, {}, depths=parameter_depths(model, (1, 8, 8)), layer_decay=0.5)
    assert groups[1]["lr"] == 0.0005


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"match": "haed", "lr": 1.0}, r"module\.param_groups\[0\]\.match: 'haed' matches no .*mean 'head'\?"),
        ({"match": "head", "momentun": 1.0}, r"module\.param_groups\[0\]: .*SGD has no argument .*mean 'momentum'\?"),
    ],
)
def test_a_group_without_an_effect_is_refused(override: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        groups_of(SmallCNN(), torch.optim.SGD, overrides=[override])


def test_decay_1d_needs_an_optimiser_with_weight_decay() -> None:
    with pytest.raises(ConfigError, match=r"module\.decay_1d: the optimiser Rprop has no argument 'weight_decay'"):
        groups_of(SmallCNN(), torch.optim.Rprop, decay_1d=False)


def test_one_cycle_takes_the_rate_of_each_group() -> None:
    model = SmallCNN()
    groups = parameter_groups(model, torch.optim.SGD, {"lr": 0.1}, overrides=[{"match": "head", "lr": 1.0}])
    optimizer = build_optimizer(torch.optim.SGD, {"lr": 0.1}, model, "k", groups)
    schedule = build_schedule(
        lr_scheduler.OneCycleLR, {"max_lr": "auto", "total_steps": "auto"}, optimizer,
        steps_per_epoch=7, epochs=5, monitor="val_loss", better="min", key="k",
    )  # fmt: skip
    low, high = (group["max_lr"] for group in schedule.scheduler.optimizer.param_groups)
    assert (low, high) == (0.1, 1.0)


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        (
            lr_scheduler.OneCycleLR, {"max_lr": 0.5, "total_steps": "auto"},
            r"k\.max_lr: .* would replace\. Set it to auto",
        ),
        (lr_scheduler.CyclicLR, {"base_lr": 0.1, "max_lr": [0.2, 2.0]}, r"k\.base_lr: .* Give a list of 2 numbers"),
    ],
)  # fmt: skip
def test_one_rate_for_groups_with_several_rates_is_refused(
    target: Any, arguments: dict[str, Any], message: str
) -> None:
    model = SmallCNN()
    groups = parameter_groups(model, torch.optim.SGD, {"lr": 0.1}, overrides=[{"match": "head", "lr": 1.0}])
    optimizer = build_optimizer(torch.optim.SGD, {"lr": 0.1}, model, "k", groups)
    options: dict[str, Any] = {"steps_per_epoch": 7, "epochs": 5, "monitor": "val_loss", "better": "min", "key": "k"}
    with pytest.raises(ConfigError, match=message):
        build_schedule(target, arguments, optimizer, **options)


# --- schedules


def test_one_cycle_knows_the_length_of_the_run() -> None:
    schedule = schedule_of(lr_scheduler.OneCycleLR, max_lr=0.5, total_steps="auto")
    assert schedule.interval == "step"
    assert schedule.monitor is None
    assert schedule.scheduler.total_steps == 35
    values = rates(schedule, 34)
    assert max(values) == pytest.approx(0.5, rel=1e-2)
    assert schedule.scheduler.optimizer.param_groups[0]["lr"] < values[0] < 0.05
    by_epoch = schedule_of(lr_scheduler.OneCycleLR, max_lr=0.5, total_steps="auto", interval="epoch")
    assert by_epoch.interval == "epoch"
    assert by_epoch.scheduler.total_steps == 5
    in_two = schedule_of(lr_scheduler.OneCycleLR, max_lr=0.5, epochs="auto", steps_per_epoch="auto")
    assert in_two.scheduler.total_steps == 35


def test_auto_is_in_the_unit_of_the_interval() -> None:
    cosine = schedule_of(lr_scheduler.CosineAnnealingLR, T_max="auto")
    assert (cosine.interval, cosine.scheduler.T_max) == ("epoch", 5)
    assert rates(cosine, 6)[5] == pytest.approx(0, abs=1e-12)
    assert schedule_of(lr_scheduler.CosineAnnealingLR, T_max="auto", interval="step").scheduler.T_max == 35
    assert schedule_of(lr_scheduler.LinearLR, total_iters="auto").scheduler.total_iters == 5
    with pytest.raises(ConfigError, match=r"^k\.step_size: auto is supported only for total_steps, T_max"):
        schedule_of(lr_scheduler.StepLR, step_size="auto")


@pytest.mark.parametrize(
    ("target", "arguments", "interval"),
    [
        (lr_scheduler.StepLR, {"step_size": 2}, "epoch"),
        (lr_scheduler.ExponentialLR, {"gamma": 0.99}, "epoch"),
        (lr_scheduler.CosineAnnealingWarmRestarts, {"T_0": 2}, "epoch"),
        (lr_scheduler.MultiStepLR, {"milestones": [1, 2]}, "epoch"),
        (lr_scheduler.LambdaLR, {"lr_lambda": lambda epoch: 0.5**epoch}, "epoch"),
        (lr_scheduler.OneCycleLR, {"max_lr": 1.0, "total_steps": 9}, "step"),
        (lr_scheduler.CyclicLR, {"base_lr": 0.1, "max_lr": 1.0}, "step"),
    ],
)
def test_each_schedule_has_the_interval_of_torch_unless_it_is_set(
    target: Any, arguments: dict[str, Any], interval: str
) -> None:
    assert schedule_of(target, **arguments).interval == interval
    for other in ("step", "epoch"):
        schedule = schedule_of(target, **arguments, interval=other)
        assert schedule.interval == other
        assert isinstance(schedule.scheduler, target)
    with pytest.raises(ConfigError, match=r"^k\.interval: expected 'step' or 'epoch', found 'batch'"):
        schedule_of(target, **arguments, interval="batch")


def test_the_rates_are_those_of_the_schedule() -> None:
    assert rates(schedule_of(lr_scheduler.StepLR, step_size=2, gamma=0.1), 5) == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001]
    )


@pytest.mark.parametrize("better", ["min", "max"])
@pytest.mark.parametrize("options", [{}, {"mode": "same"}, {"mode": "auto"}])
def test_a_plateau_watches_the_metric_in_its_direction(better: str, options: dict[str, str]) -> None:
    arguments = {"mode": better} if options.get("mode") == "same" else options
    schedule = schedule_of(lr_scheduler.ReduceLROnPlateau, better, factor=0.5, patience=0, **arguments)
    assert schedule.interval == "epoch"
    assert schedule.monitor == ("val_loss" if better == "min" else "val_accuracy")
    sign = 1 if better == "max" else -1
    for value in (1.0, 2.0, 3.0):  # each better than the one before
        schedule.scheduler.step(sign * value)
    assert schedule.scheduler.optimizer.param_groups[0]["lr"] == 0.1
    schedule.scheduler.step(sign * 1.0)
    assert schedule.scheduler.optimizer.param_groups[0]["lr"] == 0.05


@pytest.mark.parametrize(("better", "wrong", "word"), [("min", "max", "lower"), ("max", "min", "higher")])
def test_a_plateau_with_the_opposite_direction_is_refused(better: str, wrong: str, word: str) -> None:
    with pytest.raises(ConfigError, match=rf"^k\.mode: '{wrong}' contradicts .*better when {word}\. Set mode={better}"):
        schedule_of(lr_scheduler.ReduceLROnPlateau, better, mode=wrong)


def test_a_plateau_cannot_step_with_every_batch() -> None:
    with pytest.raises(ConfigError, match=r"^k\.interval: expected 'epoch': a plateau watches an evaluation"):
        schedule_of(lr_scheduler.ReduceLROnPlateau, interval="step")


def test_a_wrong_argument_of_a_schedule_is_an_error_with_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"^k\.stepsize: .*StepLR has no argument 'stepsize'\. Did you mean 'step_size"
    ):
        schedule_of(lr_scheduler.StepLR, stepsize=2)
    with pytest.raises(ConfigError, match=r"^k: .*missing a required argument: 'step_size'"):
        schedule_of(lr_scheduler.StepLR)


def test_an_object_that_is_not_a_schedule_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^k\._target_: expected a torch learning-rate scheduler, found a list"):
        schedule_of(lambda optimizer: [optimizer])


def test_the_arguments_are_not_changed() -> None:
    arguments = {"max_lr": 0.5, "total_steps": "auto", "interval": "step"}
    before = dict(arguments)
    build_schedule(
        lr_scheduler.OneCycleLR,
        arguments,
        optimizer_of(),
        steps_per_epoch=1,
        epochs=4,
        monitor="",
        better="min",
        key="k",
    )
    assert arguments == before


def test_a_run_of_a_single_step_has_a_schedule() -> None:
    schedule = build_schedule(
        lr_scheduler.OneCycleLR, {"max_lr": 0.5, "total_steps": "auto"}, optimizer_of(),
        steps_per_epoch=1, epochs=1, monitor="val_loss", better="min", key="k",
    )  # fmt: skip
    assert math.isfinite(schedule.scheduler.optimizer.param_groups[0]["lr"])


def test_every_argument_auto_is_known_for_exists_in_torch() -> None:
    parameters = {
        name
        for item in vars(lr_scheduler).values()
        if isinstance(item, type) and issubclass(item, lr_scheduler.LRScheduler)
        for name in inspect.signature(item).parameters
    }
    assert {"total_steps", "T_max", "total_iters", "epochs", "steps_per_epoch"} <= parameters


# --- warmup and cosine


def cosine(step: int, total: int, warmup: int, least: float) -> float:
    """The formula, independent of the implementation."""
    if step < warmup:
        return (step + 1) / warmup
    top = warmup - 1 if warmup else 0
    progress = (step - top) / (total - 1 - top)
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * progress))


@pytest.mark.parametrize(
    ("warmup", "steps", "least"), [(0.2, 7, 0.0), (0.0, 0, 0.1), (3, 3, 0.0), (1, 1, 0.5), (0.05, 2, 0.0)]
)
def test_warm_up_and_cosine_are_the_formula(warmup: float, steps: int, least: float) -> None:
    schedule = schedule_of(WarmupCosineLR, total_steps="auto", warmup=warmup, min_factor=least)
    assert schedule.interval == "step"
    values = rates(schedule, 36)
    assert values[:35] == pytest.approx([0.1 * cosine(t, 35, steps, least) for t in range(35)], rel=1e-12, abs=1e-15)
    assert values[max(steps - 1, 0)] == 0.1
    assert values[34] == pytest.approx(0.1 * least, abs=1e-15)
    assert values[35] == pytest.approx(0.1 * least, abs=1e-15)  # constant after the end


def test_golden_rates_of_ten_steps() -> None:
    schedule = schedule_of(WarmupCosineLR, total_steps=10, warmup=2)
    expected = [
        0.05,
        0.1,
        0.0961939766,
        0.0853553391,
        0.0691341716,
        0.05,
        0.0308658284,
        0.0146446609,
        0.0038060234,
        0.0,
    ]
    assert rates(schedule, 10) == pytest.approx(expected, abs=1e-10)


def test_a_resumed_cosine_continues_exactly() -> None:
    uninterrupted, first, second = (schedule_of(WarmupCosineLR, total_steps=20, warmup=4) for _ in range(3))
    expected = rates(uninterrupted, 20)
    before = rates(first, 7)
    second.scheduler.load_state_dict(first.scheduler.state_dict())
    second.scheduler.optimizer.load_state_dict(first.scheduler.optimizer.state_dict())
    assert before + rates(second, 13) == expected


def test_a_run_of_one_step_has_the_full_rate() -> None:
    assert rates(schedule_of(WarmupCosineLR, total_steps=1), 1) == [0.1]


@pytest.mark.parametrize(
    "wrong", [{"warmup": 50}, {"warmup": 2.5}, {"warmup": -1}, {"min_factor": 2}, {"total_steps": 0}]
)
def test_a_cosine_out_of_its_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(
        ConfigError, match=rf"^k: .*WarmupCosineLR does not accept these arguments: .*{next(iter(wrong))}"
    ):
        schedule_of(WarmupCosineLR, **{"total_steps": 35, **wrong})
