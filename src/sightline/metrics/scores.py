"""From counts and sums to the numbers people read: plain arithmetic, in exact integers and float64."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

BY_CLASS = ("precision", "recall", "f1")
"""What is known of a single class, and averaged over them all."""


def classification_scores(counts: NDArray[np.int64]) -> dict[str, float]:
    """Accuracy and macro precision, recall and F1 from int64 [3,C]: right, predicted and actual samples of each
    class."""
    rows = [row for row in scores_by_class(counts) if row["samples"] or row["predicted"]]
    total = int(counts[2].sum())
    averages = {name: sum(row[name] for row in rows) / len(rows) for name in BY_CLASS} if rows else {}
    return {"accuracy": int(counts[0].sum()) / total if total else 0.0, **averages}


def scores_by_class(counts: NDArray[np.int64]) -> list[dict[str, float]]:
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


def class_metric_names(classes: Iterable[str]) -> list[str]:
    """The names of a classifier's metrics of single classes, `recall/<class>`."""
    named = list(classes)
    return [f"{key}/{name}" for key in BY_CLASS for name in named]


class ValueSums:
    """What the errors of `width` values a sample are worked out from, in float64 and in one pass: the variance of the
    targets by Chan, Golub and LeVeque's update, which does not cancel where their mean is large."""

    def __init__(self, width: int) -> None:
        self.n = 0
        self.rows = np.zeros((4, width))  # squared errors, absolute errors, mean and squared deviations of the targets

    def add(self, output: NDArray[np.float64], target: NDArray[np.float64]) -> None:
        """Takes one step's values, [B,width] both."""
        squared, absolute, mean, spread = self.rows
        n, total = len(target), self.n + len(target)
        if not n:
            return
        error, middle = output - target, target.mean(0)
        squared += (error**2).sum(0)
        absolute += np.abs(error).sum(0)
        spread += ((target - middle) ** 2).sum(0) + (middle - mean) ** 2 * (self.n * n / total)
        mean += (middle - mean) * (n / total)
        self.n = total

    def compute(self) -> dict[str, float]:
        """The mean squared and absolute error, and R², each the mean over the values. As in scikit-learn, R² of targets
        that are all the same is 1 where every answer is right, else 0."""
        squared, absolute, _, spread = self.rows
        varied = spread > 0
        r2 = np.where(varied, 1 - squared / np.where(varied, spread, 1), squared == 0)
        return {"mse": float(squared.mean() / self.n), "mae": float(absolute.mean() / self.n), "r2": float(r2.mean())}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers; `restored` gives back the same."""
        return {"n": self.n, "rows": self.rows.tolist()}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> ValueSums:
        """The inverse of `state_dict`."""
        sums = cls(len(state["rows"][0]))
        sums.n, sums.rows = state["n"], np.asarray(state["rows"], dtype=np.float64)
        return sums
