"""What an exported model does on a split, sample by sample."""

from __future__ import annotations

import copy
import csv
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from sightline.data.loader import BatchLoader
from sightline.data.packed import PackedDataset
from sightline.files import write_text
from sightline.metrics import Meter, per_class
from sightline.runs.artifact import Predictor
from sightline.types import StepOutput


@dataclass(frozen=True)
class SplitResult:
    """Every sample of a split with its answer. `probabilities` float32 [N,C], `losses` float32 [N], `labels` int64 [N],
    all on the CPU in the data's order; `metrics` over the split, `classes` per class; `columns` what else a table
    said."""

    ids: Sequence[str]
    labels: Tensor
    probabilities: Tensor
    losses: Tensor
    class_names: tuple[str, ...]
    metrics: dict[str, float]
    classes: list[dict[str, float]]
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)


def evaluate_split(
    predictor: Predictor,
    data: PackedDataset,
    loss: Callable[[Tensor, Tensor], Tensor],
    batch_size: int,
    workers: int | None = None,
) -> SplitResult:
    """Runs every sample through the predictor once, in order. `workers` is as in `BatchLoader`."""
    loader = BatchLoader(data, predictor.preprocess, batch_size, device=predictor.device, workers=workers)
    if isinstance(loss, nn.Module):
        loss = copy.deepcopy(loss).to(predictor.device).eval()
    meter = Meter()
    probabilities, losses = [], []
    with torch.inference_mode():
        for batch in loader:
            output = predictor.outputs(batch.x)  # type: ignore[arg-type]
            target: Tensor = batch.y  # type: ignore[assignment]
            meter.update(StepOutput(loss(output, target), len(target), output, target))
            probabilities.append(predictor.to_probabilities(output).cpu())
            losses.append(per_sample_loss(loss, output, target).float().cpu())
    metrics = meter.compute()
    classes = per_class(meter.counts) if meter.counts is not None else []
    return SplitResult(
        data.ids,
        data.labels,
        torch.cat(probabilities),
        torch.cat(losses),
        data.classes,
        metrics,
        classes,
        data.columns,
    )


def per_sample_loss(loss: Callable[[Tensor, Tensor], Tensor], output: Tensor, target: Tensor) -> Tensor:
    """The loss of each sample, [B]: by the loss's own `reduction` where it has one, else one call a sample."""
    if hasattr(loss, "reduction"):
        single = copy.copy(loss)
        single.reduction = "none"
        values = single(output, target)
        if values.shape == target.shape:
            return values
    return torch.stack([loss(output[i : i + 1], target[i : i + 1]) for i in range(len(target))])


def write_predictions(path: Path, result: SplitResult) -> None:
    """The per-sample table: `id,label,prediction,confidence,loss`, one probability `p_…` for each class, named by it,
    and the data's own further columns as `data_…`. Numbers have nine digits, enough to give back the same float32."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = result.class_names
    writer.writerow(
        [
            "id",
            "label",
            "prediction",
            "confidence",
            "loss",
            *(f"p_{name}" for name in names),
            *(f"data_{name}" for name in result.columns),
        ]
    )
    best = result.probabilities.argmax(1).tolist()
    rows = zip(
        result.ids, result.labels.tolist(), best, result.probabilities.tolist(), result.losses.tolist(), strict=True
    )
    further = zip(*result.columns.values(), strict=True) if result.columns else itertools.repeat(())
    for (sample, label, answer, row, loss), told in zip(rows, further, strict=False):
        numbers = (row[answer], loss, *row)
        writer.writerow([sample, names[label], names[answer], *(f"{number:.9g}" for number in numbers), *told])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())
