"""Optimisers and schedules from a class and its arguments."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from sightline.errors import ConfigError
from sightline.optim import build_optimizer, build_schedule
from sightline.types import Schedule

# LBFGS takes a closure that it calls several times a step, which a step of ours never is
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
    found = []
    for _ in range(steps):
        found.append(schedule.scheduler.optimizer.param_groups[0]["lr"])
        schedule.scheduler.optimizer.step()
        schedule.scheduler.step()
    return found


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
    with pytest.raises(ConfigError, match=r"^module\.optimizer: the network has no parameter to train"):
        build_optimizer(torch.optim.SGD, {"lr": 0.1}, model.requires_grad_(requires_grad=False), "module.optimizer")


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("SGD", {"momentun": 0.9}, r"module\.optimizer\.momentun: .*SGD has no argument .*Did you mean 'momentum'\?"),
        ("AdamW", {"weightdecay": 0.9}, r"Did you mean 'weight_decay'\?"),
        ("Adam", {"lr": -1}, r"module\.optimizer: .*Adam does not take these arguments: Invalid learning rate"),
        ("SGD", {"nesterov": True}, r"module\.optimizer: .*[Nn]esterov"),
    ],
)
def test_a_wrong_argument_is_told_with_the_nearest(name: str, arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        optimizer_of(name, **arguments)


def test_what_is_no_optimiser_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^k\._target_: made a list, not a torch\.optim\.Optimizer"):
        build_optimizer(list, {}, nn.Linear(1, 1), "k")


# --- schedules


def test_one_cycle_knows_the_length_of_the_run() -> None:
    schedule = schedule_of(lr_scheduler.OneCycleLR, max_lr=0.5, total_steps="auto")
    assert schedule.interval == "step"
    assert schedule.monitor is None
    assert schedule.scheduler.total_steps == 35
    found = rates(schedule, 34)
    assert max(found) == pytest.approx(0.5, rel=1e-2)
    assert schedule.scheduler.optimizer.param_groups[0]["lr"] < found[0] < 0.05
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
    with pytest.raises(ConfigError, match=r"^k\.step_size: auto is known for total_steps, T_max"):
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
def test_each_schedule_steps_when_torch_says_and_otherwise_when_told(
    target: Any, arguments: dict[str, Any], interval: str
) -> None:
    assert schedule_of(target, **arguments).interval == interval
    for other in ("step", "epoch"):
        schedule = schedule_of(target, **arguments, interval=other)
        assert schedule.interval == other
        assert isinstance(schedule.scheduler, target)
    with pytest.raises(ConfigError, match=r"^k\.interval: expected 'step' or 'epoch', found 'batch'"):
        schedule_of(target, **arguments, interval="batch")


def test_the_rates_are_the_schedules_own() -> None:
    assert rates(schedule_of(lr_scheduler.StepLR, step_size=2, gamma=0.1), 5) == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001]
    )


@pytest.mark.parametrize("better", ["min", "max"])
@pytest.mark.parametrize("given", [{}, {"mode": "same"}, {"mode": "auto"}])
def test_a_plateau_watches_the_metric_in_its_own_direction(better: str, given: dict[str, str]) -> None:
    arguments = {"mode": better} if given.get("mode") == "same" else given
    schedule = schedule_of(lr_scheduler.ReduceLROnPlateau, better, factor=0.5, patience=0, **arguments)
    assert schedule.interval == "epoch"
    assert schedule.monitor == ("val_loss" if better == "min" else "val_accuracy")
    sign = 1 if better == "max" else -1
    for value in (1.0, 2.0, 3.0):  # ever better
        schedule.scheduler.step(sign * value)
    assert schedule.scheduler.optimizer.param_groups[0]["lr"] == 0.1
    schedule.scheduler.step(sign * 1.0)
    assert schedule.scheduler.optimizer.param_groups[0]["lr"] == 0.05


@pytest.mark.parametrize(("better", "wrong", "word"), [("min", "max", "lower"), ("max", "min", "higher")])
def test_a_plateau_that_would_punish_progress_is_refused(better: str, wrong: str, word: str) -> None:
    with pytest.raises(ConfigError, match=rf"^k\.mode: '{wrong}' contradicts .*better when {word}\. Set mode={better}"):
        schedule_of(lr_scheduler.ReduceLROnPlateau, better, mode=wrong)


def test_a_plateau_cannot_step_with_every_batch() -> None:
    with pytest.raises(ConfigError, match=r"^k\.interval: expected 'epoch': a plateau watches an evaluation"):
        schedule_of(lr_scheduler.ReduceLROnPlateau, interval="step")


def test_a_wrong_argument_of_a_schedule_is_told_with_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"^k\.stepsize: .*StepLR has no argument 'stepsize'\. Did you mean 'step_size"
    ):
        schedule_of(lr_scheduler.StepLR, stepsize=2)
    with pytest.raises(ConfigError, match=r"^k: .*missing a required argument: 'step_size'"):
        schedule_of(lr_scheduler.StepLR)


def test_what_is_no_schedule_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^k\._target_: made a list, not a torch learning-rate scheduler"):
        schedule_of(lambda optimizer: [optimizer])


def test_the_arguments_given_are_not_changed() -> None:
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
