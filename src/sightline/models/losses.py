"""Losses that torch.nn does not have."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FocalLoss(nn.Module):
    """The focal loss of Lin et al. ("Focal Loss for Dense Object Detection", 2017) for single-label classification.

    It is -(1 - p)^gamma log p, where p is the probability of the true class; `gamma=0` is cross entropy. `weight`,
    float32 [C], scales the loss of each class. The mean divides by the batch size, as in the paper's alpha-balanced
    form. Takes logits float32 [B,C] and targets int64 [B]; returns a scalar, or [B] with `reduction="none"`."""

    weight: Tensor | None

    def __init__(self, gamma: float = 2.0, weight: Tensor | list[float] | None = None, reduction: str = "mean"):
        super().__init__()
        if gamma < 0:
            raise ValueError(f"gamma: expected a number >= 0, found {gamma}.")
        self.gamma = gamma
        self.reduction = _check_reduction(reduction)
        self.register_buffer("weight", None if weight is None else torch.as_tensor(weight, dtype=torch.float32))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        log_p = F.log_softmax(logits, dim=1).gather(1, target[:, None]).squeeze(1)
        # expm1 gives 1 - p without cancellation; at 0 the gradient of the power is infinite for gamma < 1
        miss = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
        loss = -(miss**self.gamma) * log_p
        if self.weight is not None:
            loss = loss * self.weight[target]
        return reduce_loss(loss, self.reduction)


class ProbabilityNLL(nn.Module):
    """The negative log-likelihood for a network that outputs probabilities: what cross entropy is for logits.

    Probabilities below 1e-12 are clamped to 1e-12. Takes probabilities float32 [B,C] and targets int64 [B]; returns a
    scalar, or [B] with `reduction="none"`."""

    def __init__(self, reduction: str = "mean"):
        super().__init__()
        self.reduction = _check_reduction(reduction)

    def forward(self, probabilities: Tensor, target: Tensor) -> Tensor:
        chosen = probabilities.gather(1, target[:, None]).squeeze(1)
        return reduce_loss(-chosen.clamp_min(1e-12).log(), self.reduction)


class ClassWeightedLoss(nn.Module):
    """A copy of `loss` that weights each sample by its class: `weight` is float32 [C].

    `loss` needs a `reduction` attribute, which is applied after weighting. The mean divides by the batch size, not by
    the sum of the weights in the batch as in torch.nn, so it does not depend on which samples share a batch. Takes
    outputs float32 [B,C] and targets int64 [B]; returns a scalar, or [B] with reduction "none". Raises ValueError if
    `loss` does not return one value per sample."""

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
                f"with reduction='none' it returned a tensor {list(losses.shape)}; class weights need one loss for "
                f"each of the {len(target)} samples"
            )
        return reduce_loss(losses * self.weight[target], self.reduction)


def _check_reduction(reduction: str) -> str:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', found {reduction!r}.")
    return reduction


def reduce_loss(loss: Tensor, reduction: str) -> Tensor:
    """Applies `reduction` ("mean", "sum" or "none") to per-sample losses [B]."""
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()
