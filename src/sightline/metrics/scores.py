"""Classification and regression scores from accumulated counts and sums, in integers and float64."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

BY_CLASS = ("precision", "recall", "f1")
"""The metrics of a single class; their macro averages have the same names."""


def classification_scores(counts: NDArray[np.int64]) -> dict[str, float]:
    """Returns accuracy and macro-averaged precision, recall and F1.

    `counts`, int64 [3,C], has the correct, predicted and actual samples of each class. Classes without any are left out
    of the averages. Without samples, the accuracy is 0; the averages are missing if no class has any."""
    rows = [row for row in scores_by_class(counts) if row["samples"] or row["predicted"]]
    total = int(counts[2].sum())
    averages = {name: sum(row[name] for row in rows) / len(rows) for name in BY_CLASS} if rows else {}
    return {"accuracy": int(counts[0].sum()) / total if total else 0.0, **averages}


def scores_by_class(counts: NDArray[np.int64]) -> list[dict[str, float]]:
    """Returns precision, recall, F1, samples and predictions of each class, from int64 [3,C]; 0/0 counts as 0."""
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


def class_metric_names(classes: Iterable[str]) -> list[str]:
    """Returns the names of the metrics of single classes, such as `recall/<class>`."""
    names = list(classes)
    return [f"{key}/{name}" for key in BY_CLASS for name in names]


class ValueSums:
    """Accumulates regression errors over batches with `width` values per sample, in float64.

    The variance of the targets uses the one-pass update of Chan, Golub and LeVeque, which is stable for a large
    mean."""

    def __init__(self, width: int) -> None:
        self.n = 0
        self.rows = np.zeros((4, width))  # squared errors, absolute errors, mean and squared deviations of the targets

    def add(self, output: NDArray[np.float64], target: NDArray[np.float64]) -> None:
        """Adds the outputs and targets of one step, both [B,width]."""
        squared, absolute, mean, spread = self.rows
        n, total = len(target), self.n + len(target)
        if not n:
            return
        error, batch_mean = output - target, target.mean(0)
        squared += (error**2).sum(0)
        absolute += np.abs(error).sum(0)
        spread += ((target - batch_mean) ** 2).sum(0) + (batch_mean - mean) ** 2 * (self.n * n / total)
        mean += (batch_mean - mean) * (n / total)
        self.n = total

    def compute(self) -> dict[str, float]:
        """Returns `mse`, `mae` and `r2` (R²), each averaged over the `width` values.

        As in scikit-learn, R² of constant targets is 1 if all outputs are exact, else 0. Needs at least one sample."""
        squared, absolute, _, spread = self.rows
        varied = spread > 0
        r2 = np.where(varied, 1 - squared / np.where(varied, spread, 1), squared == 0)
        return {"mse": float(squared.mean() / self.n), "mae": float(absolute.mean() / self.n), "r2": float(r2.mean())}

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums as plain numbers for a checkpoint."""
        return {"n": self.n, "rows": self.rows.tolist()}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> ValueSums:
        """Restores the sums of a `state_dict`."""
        sums = cls(len(state["rows"][0]))
        sums.n, sums.rows = state["n"], np.asarray(state["rows"], dtype=np.float64)
        return sums
