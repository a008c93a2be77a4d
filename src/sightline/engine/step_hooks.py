"""Mixed precision and clipping for custom training steps, by hooks on the network and the optimiser.

The hooks work no matter which code calls the network and the optimiser. `SupervisedTask` does not need them: its own
steps implement both."""

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
    """Runs the network under torch's autocast in bfloat16 within the block.

    `device` is the device of the network. Floating-point outputs are converted to float32, in which losses and metrics
    are computed; outputs in a dict are not converted. Blocks for the same network may be nested."""
    entered: list[Any] = []

    def enter(*_: Any) -> None:
        entered.append(torch.autocast(device.type, torch.bfloat16))
        entered[-1].__enter__()

    def close(_model: nn.Module, _args: Any, output: Any) -> Any:
        if entered:  # empty if another hook failed before `enter` was called
            entered.pop().__exit__(None, None, None)
        return to_float32(output)

    handles = (
        model.register_forward_pre_hook(enter),
        model.register_forward_hook(close, always_call=True, prepend=True),  # nested contexts exit in reverse order
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        while entered:  # torch calls no hook if Ctrl-C interrupts a forward
            entered.pop().__exit__(None, None, None)


@contextmanager
def clip_in_step(
    optimizer: Optimizer, gradients: Sequence[float] | None = None, weights: Sequence[float] | None = None
) -> Iterator[None]:
    """Within the block, clamps gradients before each step of the optimiser, and weights after it.

    `gradients` and `weights` are each a lowest and a highest value; None does not clamp."""
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
