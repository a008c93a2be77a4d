"""Losses beyond torch.nn's."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FocalLoss(nn.Module):
    """The focal loss of Lin et al. ("Focal Loss for Dense Object Detection", 2017) for classes that exclude each other:
    -(1 - p)^gamma log p with p the probability of the true class; gamma 0 is cross entropy.

    `weight` float32 [C] scales each class; the mean divides by the batch size, as in the paper's alpha-balanced form.
    logits float32 [B,C], target int64 [B] -> scalar, or [B] with reduction "none"."""

    weight: Tensor | None

    def __init__(self, gamma: float = 2.0, weight: Tensor | list[float] | None = None, reduction: str = "mean"):
        super().__init__()
        if gamma < 0:
            raise ValueError(f"gamma must be at least 0, not {gamma}")
        self.gamma = gamma
        self.reduction = _check_reduction(reduction)
        self.register_buffer("weight", None if weight is None else torch.as_tensor(weight, dtype=torch.float32))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        log_p = F.log_softmax(logits, dim=1).gather(1, target[:, None]).squeeze(1)
        # 1 - p without cancellation, kept off 0, where the power's slope is infinite for a gamma below 1
        miss = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
        loss = -(miss**self.gamma) * log_p
        if self.weight is not None:
            loss = loss * self.weight[target]
        return reduce_loss(loss, self.reduction)


class ProbabilityNLL(nn.Module):
    """The negative log-likelihood of a network that answers with probabilities (it ends in a softmax): what
    cross entropy is for logits. Probabilities below 1e-12 count as 1e-12.

    probabilities float32 [B,C], target int64 [B] -> scalar, or [B] with reduction "none"."""

    def __init__(self, reduction: str = "mean"):
        super().__init__()
        self.reduction = _check_reduction(reduction)

    def forward(self, probabilities: Tensor, target: Tensor) -> Tensor:
        chosen = probabilities.gather(1, target[:, None]).squeeze(1)
        return reduce_loss(-chosen.clamp_min(1e-12).log(), self.reduction)


class ClassWeightedLoss(nn.Module):
    """`loss`, any with a `reduction`, where a sample counts as much as its class: `weight` float32 [C]. The mean is
    over the batch size and not, as torch.nn's own, over the weights that happen to be in the batch: so it is the same
    however samples are put into batches. The loss's own reduction is taken over.

    output float32 [B,C], target int64 [B] -> scalar, or [B] with reduction "none"."""

    weight: Tensor

    def __init__(self, loss: Any, weight: Tensor | list[float]):
        super().__init__()
        self.reduction = _check_reduction(loss.reduction)
        self.loss = copy.copy(loss)
        self.loss.reduction = "none"
        self.register_buffer("weight", torch.as_tensor(weight, dtype=torch.float32))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        losses = self.loss(output, target)
        if losses.shape != target.shape:
            raise ValueError(
                f"with reduction 'none' it gave {list(losses.shape)} and not one loss for each of the {len(target)} "
                f"samples, which class weights need"
            )
        return reduce_loss(losses * self.weight[target], self.reduction)


def _check_reduction(reduction: str) -> str:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', not {reduction!r}")
    return reduction


def reduce_loss(loss: Tensor, reduction: str) -> Tensor:
    """[B] -> its mean, its sum, or itself."""
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()
