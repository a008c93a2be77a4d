"""What is measured over the batches of an epoch: mean loss, accuracy, macro precision, recall and F1."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sightline.types import StepOutput

CLASSIFICATION = ("loss", "accuracy", "precision", "recall", "f1")
"""What a meter reports for a classifier, in this order."""


class Meter:
    """Collects step outputs without reading anything back from the device; `flush` reads back what has come since the
    last one, all at once. Counts and sums are exact, so that the same batches give the same numbers however they are
    flushed.

    Macro averages run over the classes that occur among targets or predictions, as scikit-learn's `average="macro"`."""

    def __init__(self) -> None:
        self.loss_sum = 0.0
        self.loss_n = 0
        self.n = 0
        self.mark = (0.0, 0)
        self.counts: NDArray[np.int64] | None = None  # [3,C]: right, predicted, actual
        self.sums: dict[str, tuple[float, int]] = {}  # of a step's own metrics: value times samples, samples
        self._pending: list[tuple[Tensor | None, int, Tensor | None, Tensor | None]] = []

    def update(self, out: StepOutput) -> None:
        """Takes one step's output; nothing is computed beyond the arg-max of the scores."""
        predicted, target = None, None
        if out.output is not None and isinstance(out.target, Tensor) and out.output.ndim == 2 and out.target.ndim == 1:
            predicted, target = out.output.argmax(1), out.target
            if self.counts is None:
                self.counts = np.zeros((3, out.output.shape[1]), dtype=np.int64)
        self._pending.append((out.loss, out.n, predicted, target))
        if out.metrics:
            for name, value in out.metrics.items():
                total, n = self.sums.get(name, (0.0, 0))
                self.sums[name] = (total + value * out.n, n + out.n)

    def flush(self) -> list[float]:
        """Reads back and adds up everything pending; returns the losses of those steps, in order."""
        pending, self._pending = self._pending, []
        with_loss = [(loss, n) for loss, n, _, _ in pending if loss is not None]
        losses: list[float] = torch.stack([loss.detach() for loss, _ in with_loss]).tolist() if with_loss else []
        for value, (_, n) in zip(losses, with_loss, strict=True):
            self.loss_sum += value * n
            self.loss_n += n
        self.n += sum(n for _, n, _, _ in pending)
        scored = [
            (predicted, target) for _, _, predicted, target in pending if predicted is not None and target is not None
        ]
        if scored and self.counts is not None:
            predicted = torch.cat([predicted for predicted, _ in scored]).cpu().numpy()
            target = torch.cat([target for _, target in scored]).cpu().numpy()
            for row, labels in enumerate((target[predicted == target], predicted, target)):
                self.counts[row] += np.bincount(labels, minlength=self.counts.shape[1])
        return losses

    def compute(self) -> dict[str, float]:
        """The mean loss and, for a classifier, accuracy and the macro averages, all over every sample so far."""
        self.flush()
        if not self.n:
            return {}
        result = {"loss": self.loss_sum / self.loss_n} if self.loss_n else {}
        if self.counts is not None:
            result |= classification(self.counts)
        return result | {name: total / n for name, (total, n) in self.sums.items()}

    def since_mark(self) -> float:
        """The mean loss since the last call, or since the beginning; NaN when there was none."""
        self.flush()
        (total, n), self.mark = self.mark, (self.loss_sum, self.loss_n)
        return (self.loss_sum - total) / (self.loss_n - n) if self.loss_n > n else math.nan

    def state_dict(self) -> dict[str, Any]:
        """All that was measured so far, for a checkpoint in mid-epoch."""
        self.flush()
        return {
            "loss_sum": self.loss_sum,
            "loss_n": self.loss_n,
            "mark": list(self.mark),
            "n": self.n,
            "counts": None if self.counts is None else self.counts.tolist(),
            "sums": {name: list(pair) for name, pair in self.sums.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state."""
        self.loss_sum, self.loss_n, self.n = state["loss_sum"], state["loss_n"], state["n"]
        self.mark = (state["mark"][0], state["mark"][1])
        self.counts = None if state["counts"] is None else np.asarray(state["counts"], dtype=np.int64)
        self.sums = {name: (total, n) for name, (total, n) in state["sums"].items()}


def classification(counts: NDArray[np.int64]) -> dict[str, float]:
    """Accuracy and macro precision, recall and F1 from int64 [3,C]: right, predicted and actual samples of each
    class."""
    rows = [row for row in per_class(counts) if row["samples"] or row["predicted"]]
    total = int(counts[2].sum())
    averages = (
        {name: sum(row[name] for row in rows) / len(rows) for name in ("precision", "recall", "f1")} if rows else {}
    )
    return {"accuracy": int(counts[0].sum()) / total if total else 0.0, **averages}


def per_class(counts: NDArray[np.int64]) -> list[dict[str, float]]:
    """Precision, recall, F1, samples and predictions of each class, from int64 [3,C]; a quotient 0/0 is 0."""
    rows = []
    for right, predicted, actual in counts.T.tolist():
        rows.append(
            {
                "precision": right / predicted if predicted else 0.0,
                "recall": right / actual if actual else 0.0,
                "f1": 2 * right / (predicted + actual) if predicted + actual else 0.0,
                "samples": actual,
                "predicted": predicted,
            }
        )
    return rows


def metric_names(evals: Iterable[str]) -> list[str]:
    """The metrics a classifier's records will hold, `<split>_<metric>`: what a monitor can be."""
    return [f"{split}_{metric}" for split in ("train", *evals) for metric in CLASSIFICATION]


def better_when(monitor: str) -> str:
    """ "min" for a metric that is better when lower (a loss, an error), "max" for the rest."""
    name = monitor.rpartition("_")[2]
    return "min" if name in ("loss", "error", "mse", "mae", "nll", "brier", "ece") else "max"
