"""Metrics over the batches of an epoch: the mean loss, classification scores and regression errors."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sightline.core.types import StepOutput
from sightline.metrics.scores import BY_CLASS, ValueSums, class_metric_names, classification_scores, scores_by_class

CLASSIFICATION_METRICS = ("loss", "accuracy", "precision", "recall", "f1")
"""The metrics that a meter reports for a classifier, in this order."""
REGRESSION_METRICS = ("loss", "mse", "mae", "r2")
"""The metrics that a meter reports for a regression, in this order."""


class ExtraMetrics(Protocol):
    """Further metrics that are updated batch by batch, such as `TorchmetricsAdapter`."""

    def update(self, output: Tensor, target: Tensor) -> None: ...
    def compute(self) -> dict[str, float]: ...


class Meter:
    """Collects step outputs on the device and computes the metrics of an epoch from them.

    `update` reads nothing back from the device; `flush` reads back all pending steps at once. Counts are exact and sums
    are added in the order of the steps, so the results do not depend on when the meter is flushed.

    Scores [B,C] with class indices [B] are treated as classification, values [B,k] with floating-point targets [B,k] as
    regression; with `classes`, the names of the classes, only as classification. `top_k` adds how often the correct
    class is among the k highest scores, such as `top5`. `by_class` adds `recall/<class>` and so on for every class.
    `extra_metrics` is updated in every step with its output and target.

    Macro averages cover the classes that occur among targets or predictions, as in scikit-learn."""

    def __init__(
        self,
        classes: Sequence[str] = (),
        *,
        top_k: Sequence[int] = (),
        by_class: bool = False,
        extra_metrics: ExtraMetrics | None = None,
    ) -> None:
        self.loss_sum = 0.0
        self.loss_n = 0
        self.n = 0
        self.mark = (0.0, 0)
        self.counts: NDArray[np.int64] | None = None  # [3,C]: correct, predicted, actual
        self.hits: list[int] = []  # [max(top_k)]: how often the correct class had rank 1, 2, ...
        self.ranked = 0  # the number of samples in `hits`
        self.values: ValueSums | None = None
        self.sums: dict[str, tuple[float, int]] = {}  # metrics that the steps return: weighted sum, samples
        self._classes = tuple(classes)
        self._top_k = tuple(sorted(set(top_k)))
        self._max_k = self._top_k[-1] if self._top_k else 0
        self._by_class = by_class
        self._extra_metrics = extra_metrics
        self._has_optional = bool(self._max_k) or extra_metrics is not None
        self._num_classes = 0
        self._pending: list[tuple[Tensor | None, int, Tensor | None, Tensor | None]] = []
        self._pending_hits: list[tuple[Tensor, int]] = []
        self._pending_values: list[tuple[Tensor, Tensor]] = []

    def update(self, out: StepOutput) -> None:
        """Adds the output of one step; computes only the arg-max of the scores and the optional metrics."""
        loss, n, output, target, metrics = out  # the fields are read once, as this runs in every step
        predicted = labels = None
        if output is not None and isinstance(target, Tensor) and output.ndim == 2:
            if target.ndim == 1:
                predicted, labels = output.argmax(1), target
                if not self._num_classes:
                    self._num_classes = output.shape[1]
            elif not self._classes and target.shape == output.shape and target.is_floating_point():
                self._pending_values.append((output.detach().clone(), target))  # a network may reuse its output
        self._pending.append((loss, n, predicted, labels))
        if metrics:
            for name, value in metrics.items():
                total, count = self.sums.get(name, (0.0, 0))
                self.sums[name] = (total + value * n, count + n)
        if self._has_optional and output is not None and isinstance(target, Tensor):
            self._update_optional(output, target)

    def _update_optional(self, output: Tensor, target: Tensor) -> None:
        if self._max_k and output.ndim == 2 and target.ndim == 1 and not target.is_floating_point():
            label = target.long().unsqueeze(1)
            score = output.gather(1, label)
            index = torch.arange(output.shape[1], device=output.device)
            # among equal scores the lower index has the better rank, as in arg-max, so that top1 equals the accuracy
            rank = ((output > score) | (~(output < score) & (index < label))).sum(1, keepdim=True)
            self._pending_hits.append(((rank == index[: self._max_k]).sum(0), len(target)))
        if self._extra_metrics is not None:
            self._extra_metrics.update(output, target)

    def flush(self) -> list[float]:
        """Reads back all pending steps and adds them to the totals; returns their losses, in order."""
        pending, self._pending = self._pending, []
        with_loss = [(loss, n) for loss, n, _, _ in pending if loss is not None]
        losses: list[float] = torch.stack([loss.detach() for loss, _ in with_loss]).tolist() if with_loss else []
        for value, (_, n) in zip(losses, with_loss, strict=True):
            self.loss_sum += value * n
            self.loss_n += n
        self.n += sum(n for _, n, _, _ in pending)
        scored = [
            (predicted, target)
            for _, _, predicted, target in pending
            if predicted is not None and target is not None and not target.is_floating_point()
        ]
        if scored:
            if self.counts is None:
                self.counts = np.zeros((3, self._num_classes), dtype=np.int64)
            predicted = torch.cat([predicted for predicted, _ in scored]).cpu().numpy()
            target = torch.cat([target for _, target in scored]).cpu().numpy()
            for row, labels in enumerate((target[predicted == target], predicted, target)):
                self.counts[row] += np.bincount(labels, minlength=self.counts.shape[1])
        self._flush_optional()
        return losses

    def _flush_optional(self) -> None:
        hits, self._pending_hits = self._pending_hits, []
        if hits:
            added = torch.stack([row for row, _ in hits]).sum(0).tolist()
            self.hits = [a + b for a, b in zip(self.hits or [0] * len(added), added, strict=True)]
            self.ranked += sum(n for _, n in hits)
        values, self._pending_values = self._pending_values, []
        if values:
            self.values = self.values or ValueSums(values[0][0].shape[1])
            outputs = torch.cat([output for output, _ in values]).cpu().double().numpy()
            targets = torch.cat([target for _, target in values]).cpu().double().numpy()
            start = 0
            for output, _ in values:  # step by step, so that the sums do not depend on when the meter is flushed
                part = slice(start, start := start + len(output))
                self.values.add(outputs[part], targets[part])

    def compute(self) -> dict[str, float]:
        """Returns all metrics over the samples so far, by name; an empty dict if there are none.

        These are the mean loss, the metrics of a classifier or a regression, those that the steps return, those of
        single classes, and the extra metrics."""
        self.flush()
        if not self.n:
            return {}
        result = {"loss": self.loss_sum / self.loss_n} if self.loss_n else {}
        if self.counts is not None:
            result |= classification_scores(self.counts)
        if self.ranked:
            result |= {f"top{k}": sum(self.hits[:k]) / self.ranked for k in self._top_k}
        if self.values is not None:
            result |= self.values.compute()
        result |= {name: total / n for name, (total, n) in self.sums.items()}
        if self._by_class and self.counts is not None:
            rows = scores_by_class(self.counts)
            names = self._classes or tuple(map(str, range(len(rows))))
            result |= dict(zip(class_metric_names(names), (row[key] for key in BY_CLASS for row in rows), strict=True))
        return result | (self._extra_metrics.compute() if self._extra_metrics is not None else {})

    def since_mark(self) -> float:
        """Returns the mean loss since the last call, or since the start; NaN if there was no loss."""
        self.flush()
        (total, n), self.mark = self.mark, (self.loss_sum, self.loss_n)
        return (self.loss_sum - total) / (self.loss_n - n) if self.loss_n > n else math.nan

    def state_dict(self) -> dict[str, Any]:
        """Returns the totals so far, for a checkpoint within an epoch.

        The extra metrics are not included, as they are not measured in training."""
        self.flush()
        return {
            "loss_sum": self.loss_sum,
            "loss_n": self.loss_n,
            "mark": list(self.mark),
            "n": self.n,
            "counts": None if self.counts is None else self.counts.tolist(),
            "sums": {name: list(pair) for name, pair in self.sums.items()},
            "hits": list(self.hits),
            "ranked": self.ranked,
            "values": None if self.values is None else self.values.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the totals of a `state_dict`; those that an earlier version did not save are empty."""
        self.loss_sum, self.loss_n, self.n = state["loss_sum"], state["loss_n"], state["n"]
        self.mark = (state["mark"][0], state["mark"][1])
        self.counts = None if state["counts"] is None else np.asarray(state["counts"], dtype=np.int64)
        self.sums = {name: (total, n) for name, (total, n) in state["sums"].items()}
        self.hits, self.ranked = list(state.get("hits", ())), state.get("ranked", 0)
        values = state.get("values")
        self.values = None if values is None else ValueSums.restored(values)


def metric_names(
    evals: Iterable[str], measured: Sequence[str] = CLASSIFICATION_METRICS, at_evaluation: Sequence[str] = ()
) -> list[str]:
    """Returns the names `<split>_<metric>` in the records of a run, from which a monitor can be chosen.

    `evals` are the evaluated splits. `measured` are the metrics of train and of these, `at_evaluation` those measured
    only on these."""
    train = [f"train_{metric}" for metric in measured]
    return train + [f"{split}_{metric}" for split in evals for metric in (*measured, *at_evaluation)]
