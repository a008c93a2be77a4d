"""Cross entropy of probabilities instead of logits: detected in any loss, with a warning before the first step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.compose.checks import check_loss
from sightline.engine.runtime import Runtime
from sightline.models.losses import ClassWeightedLoss, ProbabilityNLL
from sightline.models.softmax import DoubleSoftmax
from sightline.models.spec import ModelSpec, build_model

TARGET = torch.tensor([0, 2, 1, 2])


def scores() -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)


def custom_loss(output: Tensor, target: Tensor) -> Tensor:
    """A custom loss that calls cross entropy."""
    return 0.5 * F.cross_entropy(input=output, target=target, label_smoothing=0.1)


@pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss(), custom_loss])
def test_probabilities_in_cross_entropy_are_detected_without_a_change_of_the_gradient(loss: Any) -> None:
    plain, watched = scores(), scores()
    loss(plain.softmax(1), TARGET).backward()
    with DoubleSoftmax() as detector:
        loss(watched.softmax(1), TARGET).backward()
    assert detector.classes == 3
    assert plain.grad is not None
    assert watched.grad is not None
    assert torch.equal(plain.grad, watched.grad)
    least = float(F.cross_entropy(torch.eye(3), torch.arange(3)))  # of predictions that are certain and correct
    assert math.isclose(least, math.log(math.e + 2) - 1, rel_tol=1e-6)
    with pytest.warns(
        UserWarning, match=rf"^here is cross entropy, which .* below {least:.4f} for 3 classes, .* Do so\.$"
    ):
        detector.warn("here is cross entropy", "Do so.")


@pytest.mark.parametrize(
    ("output", "loss"),
    [(scores(), F.cross_entropy), (scores().sigmoid(), F.cross_entropy), (scores().softmax(1), ProbabilityNLL())],
)
def test_logits_and_other_losses_give_no_warning(output: Tensor, loss: Any) -> None:
    with DoubleSoftmax() as detector:
        loss(output, TARGET)
    assert detector.classes == 0
    detector.warn("here", "Do so.")  # a warning would be an error


def network(*more: nn.Module) -> tuple[nn.Module, ModelSpec]:
    layers = [{"class": nn.Flatten}, {"class": nn.Linear, "kwargs": {"in_features": 16, "out_features": 3}}]
    layers += [{"class": type(layer), "kwargs": {"dim": 1}} for layer in more]
    return build_model({"layers": layers}, (1, 4, 4), 3)


@pytest.mark.rows("AB7")
@pytest.mark.parametrize("loss", [custom_loss, ClassWeightedLoss(nn.CrossEntropyLoss(), [1.0, 2.0, 3.0])])
def test_a_custom_loss_after_a_softmax_gives_a_warning_before_the_first_step(loss: Any) -> None:
    model, spec = network(nn.Softmax(1))
    with pytest.warns(
        UserWarning, match=r"The network ends in a softmax.* below 0\.5514 for 3 classes.*ProbabilityNLL"
    ):
        check_loss(loss, model, spec, Runtime("cpu"))
    check_loss(ProbabilityNLL(), model, spec, Runtime("cpu"))
    check_loss(loss, *network(), Runtime("cpu"))
