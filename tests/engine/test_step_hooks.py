"""Mixed precision and clipping by hooks: their effect on a network and an optimiser, which ends with the block."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sightline.engine.step_hooks import autocast_bfloat16, clip_in_step

CPU = torch.device("cpu")


class Watched(nn.Module):
    """Records the dtype that its layer computes in, and raises `error` if it is set."""

    def __init__(self, error: BaseException | None = None):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.error = error
        self.seen: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(x)
        self.seen.append(output.dtype)
        if self.error is not None:
            raise self.error
        return output


def autocast_is_off(model: nn.Module) -> bool:
    """Whether autocast is off, for this network and any other."""
    dtypes = {layer(torch.randn(1, 4)).dtype for layer in (nn.Linear(4, 2), model)}
    return dtypes == {torch.float32} and not torch.is_autocast_enabled("cpu")


def test_the_network_computes_in_bfloat16_and_returns_float32_within_the_block() -> None:
    model = Watched()
    with autocast_bfloat16(model, CPU):
        assert model(torch.randn(1, 4)).dtype == torch.float32
        assert nn.Linear(4, 2)(torch.randn(1, 4)).dtype == torch.float32
    assert model.seen == [torch.bfloat16]
    assert autocast_is_off(model)


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_autocast_is_off_after_a_forward_that_raises(error: BaseException) -> None:
    model = Watched(error)
    with pytest.raises(type(error)), autocast_bfloat16(model, CPU):
        model(torch.randn(1, 4))
    model.error = None
    assert autocast_is_off(model)


def test_an_error_of_a_foreign_hook_is_raised_unchanged() -> None:
    model = Watched()

    def fail(_layer: nn.Module, _args: tuple[Tensor]) -> None:
        raise ValueError("theirs")

    handle = model.register_forward_pre_hook(fail)  # runs before ours, which is then not called
    with autocast_bfloat16(model, CPU), pytest.raises(ValueError, match="theirs"):
        model(torch.randn(1, 4))
    handle.remove()
    assert autocast_is_off(model)


def test_blocks_of_one_network_may_be_nested() -> None:
    model = Watched()
    with autocast_bfloat16(model, CPU):
        with autocast_bfloat16(model, CPU):
            model(torch.randn(1, 4))
        model(torch.randn(1, 4))
    assert model.seen == [torch.bfloat16] * 2
    assert autocast_is_off(model)


def test_clipping_limits_gradients_before_and_weights_after_each_step_of_the_block() -> None:
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = [parameter.detach().clone() for parameter in model.parameters()]

    def step() -> None:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 3.0)
        optimizer.step()

    with clip_in_step(optimizer, gradients=(-0.5, 0.5)):
        step()
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, old - 0.5)
    with clip_in_step(optimizer, weights=(-0.1, 0.1)):
        step()
    assert all(parameter.abs().max() <= 0.1 for parameter in model.parameters())
    step()
    assert all(parameter.max() < -2.8 for parameter in model.parameters())
