"""Losses that torch.nn does not have, compared with those of torch.nn and with values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sightline.inference.evaluate import per_sample_loss
from sightline.models.losses import ClassWeightedLoss, FocalLoss, ProbabilityNLL

REDUCTIONS = st.sampled_from(["mean", "sum", "none"])


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    count, classes = draw(st.integers(1, 9)), draw(st.integers(2, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    logits = torch.randn((count, classes), generator=generator) * draw(st.sampled_from([0.1, 1, 5]))
    return logits, torch.randint(classes, (count,), generator=generator)


@pytest.mark.rows("D06")
@settings(max_examples=40)
@given(batch=batches(), reduction=REDUCTIONS)
def test_with_gamma_0_the_focal_loss_is_cross_entropy(batch: tuple[Tensor, Tensor], reduction: str) -> None:
    torch.testing.assert_close(
        FocalLoss(gamma=0, reduction=reduction)(*batch), F.cross_entropy(*batch, reduction=reduction)
    )


@pytest.mark.rows("D06")
def test_the_focal_loss_by_hand() -> None:
    # probabilities 0.9, 0.5 and 0.1 of the true class, two classes each
    logits = torch.tensor([[math.log(0.9), math.log(0.1)], [0.0, 0.0], [math.log(0.9), math.log(0.1)]])
    target = torch.tensor([0, 1, 1])
    expected = [
        0.1**2 * -math.log(0.9),  # 0.00105: 1 % of its cross entropy
        0.5**2 * -math.log(0.5),  # 0.17329
        0.9**2 * -math.log(0.1),  # 1.86509
    ]
    each = FocalLoss(gamma=2, reduction="none")(logits, target)
    assert each.tolist() == pytest.approx(expected, rel=1e-5)
    assert FocalLoss(gamma=2)(logits, target).item() == pytest.approx(sum(expected) / 3, rel=1e-5)
    assert FocalLoss(gamma=2, reduction="sum")(logits, target).item() == pytest.approx(sum(expected), rel=1e-5)
    assert FocalLoss()(logits, target).item() == FocalLoss(gamma=2)(logits, target).item()
    weighted = FocalLoss(gamma=2, weight=[1.0, 3.0], reduction="none")(logits, target)
    assert weighted.tolist() == pytest.approx([expected[0], 3 * expected[1], 3 * expected[2]], rel=1e-5)
    mean = FocalLoss(gamma=2, weight=torch.tensor([1.0, 3.0]))(logits, target).item()
    assert mean == pytest.approx((expected[0] + 3 * expected[1] + 3 * expected[2]) / 3, rel=1e-5)


@settings(max_examples=30)
@given(batch=batches(), gamma=st.floats(0, 5))
def test_the_focal_loss_is_never_negative_and_never_above_cross_entropy(
    batch: tuple[Tensor, Tensor], gamma: float
) -> None:
    focal = FocalLoss(gamma=gamma, reduction="none")(*batch)
    assert (focal >= 0).all()
    assert (focal <= F.cross_entropy(*batch, reduction="none") + 1e-6).all()


@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2, 3.5])
@pytest.mark.parametrize("confidence", [0.0, 5.0, 50.0, 1000.0])
def test_the_gradient_is_finite_at_any_confidence(gamma: float, confidence: float) -> None:
    logits = torch.tensor([[confidence, 0.0, 0.0], [0.0, confidence, 0.0]], requires_grad=True)
    FocalLoss(gamma=gamma)(logits, torch.tensor([0, 0])).backward()
    assert torch.isfinite(logits.grad).all()


def test_the_gradient_is_correct() -> None:
    logits = torch.randn((4, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    target = torch.tensor([0, 1, 2, 1])
    assert torch.autograd.gradcheck(lambda x: FocalLoss(gamma=2)(x, target), (logits,))


def test_the_weights_follow_the_dtype_of_the_loss() -> None:
    loss = FocalLoss(weight=[1, 2])
    assert loss.to(torch.float64).weight.dtype == torch.float64
    assert "weight" in loss.state_dict()
    assert FocalLoss().weight is None


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="gamma: expected a number >= 0, found -1"):
        FocalLoss(gamma=-1)
    for loss in (FocalLoss, ProbabilityNLL):
        with pytest.raises(ValueError, match="reduction: expected 'mean', 'sum' or 'none', found 'avg'"):
            loss(reduction="avg")


@settings(max_examples=40)
@given(batch=batches(), reduction=REDUCTIONS)
def test_the_likelihood_of_probabilities_is_cross_entropy_of_the_logits(
    batch: tuple[Tensor, Tensor], reduction: str
) -> None:
    logits, target = batch
    expected = F.cross_entropy(logits, target, reduction=reduction)
    loss = ProbabilityNLL(reduction)(logits.softmax(1), target)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_a_probability_of_0_gives_a_large_finite_loss() -> None:
    probabilities = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = ProbabilityNLL()(probabilities, torch.tensor([1]))
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-12), rel=1e-5)
    assert torch.isfinite(probabilities.grad).all()


@settings(max_examples=30)
@given(batch=batches(), cut=st.integers(1, 8), seed=st.integers(0, 1000))
def test_class_weights_do_not_depend_on_the_batch(batch: tuple[Tensor, Tensor], cut: int, seed: int) -> None:
    logits, target = batch
    weight = torch.rand(logits.shape[1], generator=torch.Generator().manual_seed(seed))
    for inner in (nn.CrossEntropyLoss(label_smoothing=0.1), FocalLoss(), nn.MultiMarginLoss()):
        loss = ClassWeightedLoss(inner, weight)
        total = loss(logits, target) * len(target)
        parts = [loss(*pair) * len(pair[1]) for pair in zip(logits.split(cut), target.split(cut), strict=True)]
        torch.testing.assert_close(total, torch.stack(parts).sum())
        assert inner.reduction == "mean"  # the inner loss is not changed


def test_class_weights_by_hand() -> None:
    loss = ClassWeightedLoss(ProbabilityNLL(), [1.0, 3.0])
    probabilities, target = torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([0, 1])
    each = [-math.log(0.5), -3 * math.log(0.1)]
    assert loss(probabilities, target).item() == pytest.approx(sum(each) / 2)
    assert per_sample_loss(loss, probabilities, target).tolist() == pytest.approx(each)
    assert loss.weight.tolist() == [1.0, 3.0]
    # the same losses as torch.nn's, before the mean is taken
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    ours = per_sample_loss(ClassWeightedLoss(nn.CrossEntropyLoss(), [1.0, 3.0]), logits, torch.tensor([0, 1, 1, 0]))
    theirs = F.cross_entropy(logits, torch.tensor([0, 1, 1, 0]), torch.tensor([1.0, 3.0]), reduction="none")
    torch.testing.assert_close(ours, theirs)


def test_a_loss_that_ignores_its_reduction_takes_no_class_weights() -> None:
    class IgnoresReduction(nn.Module):
        reduction = "mean"

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(output, target)

    with pytest.raises(ValueError, match=r"a tensor \[\]; class weights need one loss for each of the 3 samples"):
        ClassWeightedLoss(IgnoresReduction(), [1.0, 1.0])(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))
