"""Mixed precision and clipping for steps that are the user's own: hooks on the network and the optimiser, which work
whoever calls those. `SupervisedTask`, whose steps are the engine's, does both by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sightline.engine.nested import to_float32


@contextmanager
def autocast_bfloat16(model: nn.Module, device: torch.device) -> Iterator[None]:
    """For the length of the block the network, which is on `device`, runs under torch's autocast; it answers in
    float32, in which losses and metrics are worked out; what it answers in a dict stays as it is. Blocks of one
    network may be nested."""
    entered: list[Any] = []

    def enter(*_: Any) -> None:
        entered.append(torch.autocast(device.type, torch.bfloat16))
        entered[-1].__enter__()

    def leave(_model: nn.Module, _args: Any, output: Any) -> Any:
        if entered:  # not where another hook failed before ours was called
            entered.pop().__exit__(None, None, None)
        return to_float32(output)

    handles = (
        model.register_forward_pre_hook(enter),
        model.register_forward_hook(leave, always_call=True, prepend=True),  # what was entered last is left first
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        while entered:  # torch calls no hook where Ctrl-C ends a forward
            entered.pop().__exit__(None, None, None)


@contextmanager
def clip_in_step(
    optimizer: Optimizer, gradients: Sequence[float] | None = None, weights: Sequence[float] | None = None
) -> Iterator[None]:
    """For the length of the block keeps every gradient within `gradients`, a lowest and a highest value, before each
    step of the optimiser, and every weight within `weights` after it."""
    handles = []

    def parameters() -> Iterator[Tensor]:
        return (parameter for group in optimizer.param_groups for parameter in group["params"])

    if gradients is not None:
        low, high = gradients

        def clip_gradients(*_: Any) -> None:
            for parameter in parameters():
                if parameter.grad is not None:
                    parameter.grad.clamp_(low, high)

        handles.append(optimizer.register_step_pre_hook(clip_gradients))
    if weights is not None:
        least, most = weights

        def clip_weights(*_: Any) -> None:
            with torch.no_grad():
                for parameter in parameters():
                    parameter.clamp_(least, most)

        handles.append(optimizer.register_step_post_hook(clip_weights))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
