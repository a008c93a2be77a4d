"""Mixup and CutMix: mixes each image of a batch, and its loss, with another image of the same batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.core.rng import derive_key
from sightline.core.types import Tensors


class MixedBatch(NamedTuple):
    """A mixed batch: network input `x`, second targets and mixing weight.

    `target_b` holds the targets of the images that were mixed in; None if nothing was mixed. Each image's original
    target has weight `lam`, its `target_b` has weight `1 - lam`."""

    x: Tensors
    target_b: Tensors | None
    lam: float


@dataclass(frozen=True)
class MixupCutMix:
    """Applies mixup or CutMix to a batch.

    Mixup blends complete images, lam * x + (1 - lam) * x' (Zhang et al., "mixup: Beyond Empirical Risk Minimization",
    2018). CutMix pastes a rectangle of x' into x, and `lam` is the remaining area of x (Yun et al., "CutMix", 2019).
    `lam` is drawn from Beta(alpha, alpha) with `mixup` or `cutmix` as alpha; 0 disables that method. If both are
    enabled, each batch uses one of them with equal probability. A batch is mixed with `probability`.

    The loss is lam * loss(output, y) + (1 - lam) * loss(output, y'), as in both papers' code. For cross entropy this
    equals the loss of mixed labels, and it works for any other loss. All draws depend on (seed, step) only."""

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if not 0 <= alpha < math.inf:
                raise ValueError(f"{name}: expected a finite number >= 0, found {alpha}.")

    def __call__(self, x: Tensors, y: Tensors, step: int) -> MixedBatch:
        """Mixes the batch of a step: `x` float32 [B,C,H,W] and targets `y` [B,...]. The inputs are not changed."""
        if not (isinstance(x, Tensor) and isinstance(y, Tensor) and x.ndim == 4):
            raise ValueError("Mixup and CutMix need batches of one image tensor [B,C,H,W] and one target tensor.")
        draw = np.random.Generator(np.random.Philox(key=derive_key(self.seed, step, "mix")))
        cut = draw.random() < (0.5 if self.mixup and self.cutmix else float(self.cutmix > 0))
        alpha = self.cutmix if cut else self.mixup
        if draw.random() >= self.probability or not alpha:
            return MixedBatch(x, None, 1.0)
        lam = float(draw.beta(alpha, alpha))
        order = torch.from_numpy(draw.permutation(len(x))).to(x.device)
        if not cut:
            return MixedBatch(x.lerp(x[order], 1 - lam), y[order], lam)
        top, bottom, left, right = rectangle(x.shape[2], x.shape[3], lam, draw.random(), draw.random())
        mixed = x.clone()
        mixed[:, :, top:bottom, left:right] = x[order, :, top:bottom, left:right]
        area = (bottom - top) * (right - left)
        return MixedBatch(mixed, y[order], 1 - area / (x.shape[2] * x.shape[3]))


def rectangle(height: int, width: int, lam: float, row: float, column: float) -> tuple[int, int, int, int]:
    """Returns (top, bottom, left, right) of the CutMix rectangle, in pixels.

    Its sides are sqrt(1 - lam) of the image's sides, its centre is at the fractions `row` and `column` of the image's
    height and width, and it is clipped at the borders."""
    side = math.sqrt(1 - lam)
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    y, x = int(row * height), int(column * width)
    top, bottom = max(y - half_height, 0), min(y + half_height, height)
    return top, bottom, max(x - half_width, 0), min(x + half_width, width)
