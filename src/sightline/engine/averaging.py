"""An exponential moving average of the weights, evaluated and exported in their place."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Average:
    """After every step, average = decay * average + (1 - decay) * weight (Polyak and Juditsky, 1992, with exponential
    weights), for parameters and the floating-point buffers; whole numbers, such as a batch count, are copied.

    `warmup` bounds the decay by (1 + step) / (10 + step), with `step` the updates before this one, as TensorFlow's
    `ExponentialMovingAverage` does with `num_updates`: an average of few steps does not remember the first weights."""

    def __init__(self, decay: float, warmup: bool = True):
        if not 0 < decay < 1:
            raise ValueError(f"decay must be between 0 and 1, not {decay}")
        self.decay = decay
        self.warmup = warmup
        self._of: tuple[nn.Module, nn.Module] | None = None
        self._averaged: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._copied: tuple[list[Tensor], list[Tensor]] = ([], [])

    @staticmethod
    def start(model: nn.Module) -> nn.Module:
        """The average of no steps: a copy of the model, in evaluation mode and without gradients."""
        return copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, average: nn.Module, model: nn.Module, step: int) -> None:
        """Moves `average` towards `model`; nothing is read back from the device."""
        if self._of is None or self._of[0] is not average or self._of[1] is not model:
            self._pair(average, model)
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        if self._averaged[0]:
            torch._foreach_lerp_(*self._averaged, 1 - decay)
        for old, new in zip(*self._copied, strict=True):
            old.copy_(new)

    def _pair(self, average: nn.Module, model: nn.Module) -> None:
        """Looked up once: a state dict of some hundred tensors costs more than averaging them."""
        self._of = (average, model)
        pairs = list(zip(_tensors(average), _tensors(model), strict=True))
        real = [pair for pair in pairs if pair[0].is_floating_point() or pair[0].is_complex()]
        whole = [pair for pair in pairs if not (pair[0].is_floating_point() or pair[0].is_complex())]
        self._averaged = ([old for old, _ in real], [new for _, new in real])
        self._copied = ([old for old, _ in whole], [new for _, new in whole])


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
