"""Training steps compared with hand-written ones: precision, accumulation, clipping, averaging and mixing in every
combination."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sightline.core.errors import DataError
from sightline.core.types import Batch, TrainState
from sightline.engine.ema import ModelEMA
from sightline.engine.mixup import MixupCutMix, rectangle
from sightline.engine.tasks import SupervisedTask

SIZE = 16


def network(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(3)
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1), *([nn.BatchNorm2d(8)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5))


def batch(n: int = SIZE, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, 8, 8, generator=generator)
    return Batch(x, torch.randint(0, 5, (n,), generator=generator), index=torch.arange(n))


def state_of(model: nn.Module, **more: Any) -> TrainState:
    return TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), **more)


def reference_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: nn.Module | None,
    x: Tensor,
    y: Tensor,
    other: Tensor | None,
    lam: float,
    *,
    precision: str,
    parts: int,
    clip: float | None,
    decay: float,
) -> float:
    """A training step written by hand; returns its loss."""
    optimizer.zero_grad()
    total = 0.0
    for i in range(parts):
        low, high = i * len(x) // parts, (i + 1) * len(x) // parts
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            output = model(x[low:high])
        output = output.float()
        loss = F.cross_entropy(output, y[low:high])
        if other is not None:
            loss = lam * loss + (1 - lam) * F.cross_entropy(output, other[low:high])
        loss = loss * (high - low) / len(x)
        loss.backward()
        total += loss.item()
    if clip is not None:
        norm = torch.sqrt(sum((p.grad**2).sum() for p in model.parameters()))  # type: ignore[operator]
        for p in model.parameters():
            p.grad.mul_(min(1.0, clip / (norm.item() + 1e-6)))
    optimizer.step()
    if ema is not None:
        with torch.no_grad():
            for old, new in zip(ema.parameters(), model.parameters(), strict=True):
                old.copy_(decay * old + (1 - decay) * new)
    return total


COMBINATIONS = list(itertools.product(("fp32", "bf16"), (False, True), ("", "mixup", "cutmix"), (1, 4), (None, 0.5)))


@pytest.mark.parametrize(("precision", "ema", "mix", "parts", "clip"), COMBINATIONS)
def test_every_combination_agrees_with_a_hand_written_step(
    precision: str, ema: bool, mix: str, parts: int, clip: float | None
) -> None:
    mixing = MixupCutMix(**{mix: 0.8}, seed=5) if mix else None
    model = network()
    state = state_of(model, ema=ModelEMA.start(model) if ema else None)
    task = SupervisedTask(
        nn.CrossEntropyLoss(),
        precision=precision,
        accumulate=parts,
        clip=clip,
        average=ModelEMA(0.9, warmup=False) if ema else None,
        mix=mixing,
    )
    trained, theirs = model, copy.deepcopy(model)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    average = copy.deepcopy(theirs) if ema else None
    for step in range(4):
        samples = batch(SIZE - step, seed=step)  # 13 to 16 images: so that some parts have unequal sizes
        assert isinstance(samples.x, Tensor)
        assert isinstance(samples.y, Tensor)
        x, other, lam = mixing(samples.x, samples.y, step) if mixing else (samples.x, None, 1.0)
        expected = reference_step(
            theirs, optimizer, average, x, samples.y, other, lam, precision=precision, parts=parts, clip=clip, decay=0.9
        )  # fmt: skip
        out = task.train_step(state, samples)
        state.step += 1
        assert out.loss is not None
        assert out.loss.item() == pytest.approx(expected, rel=1e-5)
        assert out.n == len(samples.y)
        assert out.output is not None
        assert out.output.shape == (len(samples.y), 5)
        assert out.output.dtype == torch.float32
        assert not out.output.requires_grad
    tolerance = {"rtol": 1e-4, "atol": 1e-6}
    for ours, reference in zip(trained.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours, reference, **tolerance)
    if average is not None:
        assert state.ema is not None
        for ours, reference in zip(state.ema.parameters(), average.parameters(), strict=True):
            torch.testing.assert_close(ours, reference, **tolerance)


def test_four_batches_of_16_equal_one_of_64() -> None:
    single, split = network(), network()
    samples = batch(64)
    first, second = state_of(single), state_of(split)
    one = SupervisedTask(nn.CrossEntropyLoss()).train_step(first, samples)
    four = SupervisedTask(nn.CrossEntropyLoss(), accumulate=4).train_step(second, samples)
    torch.testing.assert_close(one.loss, four.loss)
    torch.testing.assert_close(one.output, four.output)
    for a, b in zip(single.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_a_batch_smaller_than_the_number_of_parts_is_processed_completely() -> None:
    state = state_of(network())
    out = SupervisedTask(nn.CrossEntropyLoss(), accumulate=8).train_step(state, batch(3))
    assert out.n == 3
    assert out.output is not None
    assert out.output.shape == (3, 5)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_limits_the_norm_or_the_values(algorithm: str) -> None:
    seen: list[Tensor] = []

    class Watching(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.extend(p.grad.clone() for group in self.param_groups for p in group["params"])
            return super().step(closure)

    model = network()
    state = TrainState(model, Watching(model.parameters(), lr=0.1))
    loss = nn.CrossEntropyLoss()
    SupervisedTask(lambda output, target: 100 * loss(output, target), clip=0.01, clip_algorithm=algorithm).train_step(
        state, batch()
    )
    if algorithm == "norm":
        assert torch.cat([grad.flatten() for grad in seen]).norm().item() == pytest.approx(0.01, rel=1e-4)
    else:
        assert max(grad.abs().max().item() for grad in seen) == pytest.approx(0.01)


def test_fp16_scales_the_loss_and_skips_steps_that_overflow() -> None:
    model = network()
    state = state_of(model, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))
    task = SupervisedTask(nn.CrossEntropyLoss(), precision="fp16", clip=1.0)
    before = copy.deepcopy(model.state_dict())
    out = task.train_step(state, batch())
    assert out.loss is not None
    assert out.loss.item() < 3  # the loss before scaling
    assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = copy.deepcopy(model.state_dict())
    task.train_step(state, batch())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert state.scaler.get_scale() < 2.0**40


def test_channels_last_reaches_the_network_and_does_not_change_the_loss() -> None:
    formats: list[bool] = []
    model, plain = network(), network()
    model.to(memory_format=torch.channels_last)
    model[0].register_forward_pre_hook(
        lambda _, x: formats.append(x[0].is_contiguous(memory_format=torch.channels_last))
    )
    state, other = state_of(model), state_of(plain)
    task = SupervisedTask(nn.CrossEntropyLoss(), channels_last=True)
    for step in range(3):
        ours = task.train_step(state, batch(seed=step))
        theirs = SupervisedTask(nn.CrossEntropyLoss()).train_step(other, batch(seed=step))
        torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-4, atol=1e-5)
    assert formats == [True] * 3


def test_the_average_by_hand() -> None:
    """Weights 1, 2, 4 after a first average of 0; decay 0.5: 0.5, 1.25, 2.625."""
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0)
    average = ModelEMA.start(model)
    rule = ModelEMA(0.5, warmup=False)
    for step, (weight, expected) in enumerate([(1.0, 0.5), (2.0, 1.25), (4.0, 2.625)]):
        with torch.no_grad():
            model.weight.fill_(weight)
        rule.update(average, model, step)
        assert next(average.parameters()).item() == expected


def test_the_warmup_of_the_average_is_that_of_tensorflow() -> None:
    """min(decay, (1 + t) / (10 + t)): 0.1 at the first update, 2/11 at the second, the decay itself from 89 / 98 on."""
    model = nn.Linear(1, 1, bias=False)
    rule = ModelEMA(0.9)
    for step, decay in [(0, 0.1), (1, 2 / 11), (89, 0.9), (10_000, 0.9)]:
        with torch.no_grad():
            model.weight.fill_(0)
        average = ModelEMA.start(model)
        with torch.no_grad():
            model.weight.fill_(1)
        rule.update(average, model, step)
        assert next(average.parameters()).item() == pytest.approx(1 - decay, rel=1e-6)


def test_the_average_holds_running_statistics_and_counts() -> None:
    model = network(norm=True)
    state = state_of(model, ema=ModelEMA.start(model))
    task = SupervisedTask(nn.CrossEntropyLoss(), average=ModelEMA(0.5, warmup=False))
    before = model[1].running_mean.clone()
    task.train_step(state, batch())
    assert isinstance(state.ema, nn.Sequential)
    torch.testing.assert_close(state.ema[1].running_mean, (before + model[1].running_mean) / 2)
    assert state.ema[1].num_batches_tracked.item() == 1
    assert not state.ema.training
    assert not any(parameter.requires_grad for parameter in state.ema.parameters())


def test_the_average_is_evaluated() -> None:
    model = network()
    state = state_of(model, ema=ModelEMA.start(model))
    task = SupervisedTask(nn.CrossEntropyLoss(), average=ModelEMA(0.99, warmup=False))
    before = task.eval_step(state, batch()).output
    assert before is not None
    for step in range(3):
        task.train_step(state, batch(seed=step))
    after = task.eval_step(state, batch()).output
    assert state.ema is not None
    torch.testing.assert_close(after, state.ema(batch().x))
    assert not torch.equal(after, model(batch().x))


def test_mixup_is_the_formula_of_the_paper() -> None:
    """x~ = lam * x_i + (1 - lam) * x_j, and the same for the labels (Zhang et al., 2018, section 2)."""
    samples = batch()
    assert isinstance(samples.x, Tensor)
    assert isinstance(samples.y, Tensor)
    x, target_b, lam = MixupCutMix(mixup=0.4, seed=1)(samples.x, samples.y, 7)
    assert isinstance(x, Tensor)
    assert isinstance(target_b, Tensor)
    partners = []
    for i in range(SIZE):
        matches = [
            j for j in range(SIZE) if torch.allclose(x[i], lam * samples.x[i] + (1 - lam) * samples.x[j], atol=1e-6)
        ]
        assert len(matches) == 1
        assert target_b[i] == samples.y[matches[0]]
        partners.append(matches[0])
    assert sorted(partners) == list(range(SIZE))  # a permutation: every image is a partner once


def test_mixed_cross_entropy_is_cross_entropy_of_mixed_labels() -> None:
    samples = batch()
    assert isinstance(samples.x, Tensor)
    assert isinstance(samples.y, Tensor)
    mix = MixupCutMix(mixup=1.0, seed=2)
    x, target_b, lam = mix(samples.x, samples.y, 0)
    assert isinstance(target_b, Tensor)
    model = network()
    out = SupervisedTask(nn.CrossEntropyLoss(label_smoothing=0.1), mix=mix).train_step(state_of(network()), samples)
    soft = lam * F.one_hot(samples.y, 5) + (1 - lam) * F.one_hot(target_b, 5)
    expected = F.cross_entropy(model(x), soft, label_smoothing=0.1)
    torch.testing.assert_close(out.loss, expected.detach())


def test_label_smoothing_is_the_formula_of_the_paper() -> None:
    """The loss of Szegedy et al., "Rethinking the Inception Architecture" (2016), section 7: the target is
    (1 - eps) * one-hot + eps / K. By hand for logits (2, 0), target 0, eps 0.2: -(0.9 log p0 + 0.1 log p1)."""
    p0 = math.exp(2) / (math.exp(2) + 1)
    loss = nn.CrossEntropyLoss(label_smoothing=0.2)(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
    assert loss.item() == pytest.approx(-(0.9 * math.log(p0) + 0.1 * math.log(1 - p0)), rel=1e-6)


def test_cutmix_by_hand() -> None:
    """An image of 8 x 8, lam 0.75: the cut side is 8 * sqrt(0.25) = 4; centre (4, 4) gives rows and columns 2 to 5.
    At the corner, the part outside the image is cut off (Yun et al., 2019, appendix A)."""
    assert rectangle(8, 8, 0.75, 0.5, 0.5) == (2, 6, 2, 6)
    assert rectangle(8, 8, 0.75, 0.0, 0.0) == (0, 2, 0, 2)
    assert rectangle(8, 8, 0.75, 0.99, 0.99) == (5, 8, 5, 8)
    assert rectangle(8, 8, 1.0, 0.5, 0.5) == (4, 4, 4, 4)


@given(step=st.integers(0, 10_000), alpha=st.floats(0.1, 5))
def test_cutmix_takes_a_rectangle_and_counts_its_area(step: int, alpha: float) -> None:
    samples = batch()
    assert isinstance(samples.x, Tensor)
    assert isinstance(samples.y, Tensor)
    original = samples.x.clone()
    x, target_b, lam = MixupCutMix(cutmix=alpha, seed=4)(samples.x, samples.y, step)
    assert torch.equal(samples.x, original)  # the input is not changed
    assert isinstance(x, Tensor)
    assert target_b is not None
    changed = (x != samples.x).any(1).any(0)  # [8,8]: where any image differs
    rows, columns = changed.any(1), changed.any(0)
    assert torch.equal(changed, rows[:, None] & columns[None])
    assert lam == pytest.approx(1 - changed.sum().item() / 64)


def test_mixing_is_a_function_of_seed_and_step() -> None:
    samples = batch()

    def mixed(step: int, seed: int = 0, **alphas: float) -> Any:
        return MixupCutMix(**(alphas or {"mixup": 1.0}), seed=seed)(samples.x, samples.y, step)

    assert torch.equal(mixed(3).x, mixed(3).x)
    assert mixed(3).lam != mixed(4).lam
    assert mixed(3).lam != mixed(3, seed=1).lam
    lams = np.array([mixed(step).lam for step in range(2000)])
    assert abs(lams.mean() - 0.5) < 0.03  # Beta(1, 1) is uniform
    assert abs(np.quantile(lams, 0.9) - 0.9) < 0.03


def test_the_fraction_of_mixed_batches_and_of_each_kind() -> None:
    samples = batch()
    assert isinstance(samples.x, Tensor)
    half = MixupCutMix(mixup=1.0, probability=0.5)
    untouched = sum(half(samples.x, samples.y, step).target_b is None for step in range(1000))
    assert 430 < untouched < 570
    both = MixupCutMix(mixup=1.0, cutmix=1.0)
    blended = 0
    for step in range(1000):
        x = both(samples.x, samples.y, step).x
        assert isinstance(x, Tensor)
        changed = (x != samples.x).any(1).flatten(1).float().mean(1)  # of each image; an image may be its own partner
        blended += bool(changed.max() == 1)
    assert 380 < blended < 620


def test_inputs_that_cannot_be_mixed_are_refused() -> None:
    with pytest.raises(ValueError, match="one image tensor"):
        MixupCutMix(mixup=1.0)((torch.zeros(2, 3, 4, 4), torch.zeros(2)), torch.zeros(2), 0)
    with pytest.raises(ValueError, match="mixup: expected a finite number >= 0"):
        MixupCutMix(mixup=math.inf)


@pytest.mark.parametrize(("name", "value"), [("precision", "fp8"), ("clip_algorithm", "both")])
def test_wrong_arguments_are_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected"):
        SupervisedTask(nn.CrossEntropyLoss(), **{name: value})


def test_sample_weights_are_refused() -> None:
    task, state = SupervisedTask(nn.CrossEntropyLoss()), state_of(network())
    weighted = batch()._replace(weight=torch.ones(SIZE))
    for step in (task.train_step, task.eval_step):
        with pytest.raises(DataError, match="The batches contain sample weights, which this task does not use"):
            step(state, weighted)


@pytest.mark.parametrize(("n", "sizes"), [(16, [4, 4, 4, 4]), (14, [3, 4, 3, 4]), (9, [3, 3, 3]), (4, [4]), (2, [2])])
def test_a_small_last_batch_is_split_into_as_many_parts_as_it_fills(n: int, sizes: list[int]) -> None:
    seen: list[int] = []
    model = network()
    model.register_forward_pre_hook(lambda _, x: seen.append(len(x[0])))
    SupervisedTask(nn.CrossEntropyLoss(), accumulate=4, part_size=4).train_step(state_of(model), batch(n))
    assert seen == sizes
