"""Evaluation of an exported model on a split, with a prediction and a loss for every sample."""

import copy
import csv
import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from sightline.core.files import write_text
from sightline.core.types import StepOutput
from sightline.data.cache.dataset import PackedDataset
from sightline.data.loading.loader import BatchLoader
from sightline.inference.predictor import Predictor
from sightline.metrics.meter import Meter
from sightline.metrics.scores import scores_by_class


@dataclass(frozen=True)
class SplitResult:
    """The evaluation of a split. All tensors are on the CPU, in the order of the data.

    `labels` is int64 [N], `probabilities` float32 [N, C] and `losses` float32 [N]. `metrics` are computed over the
    split; `classes` has the scores of each class; `columns` has the other columns of the data's table, by name. In a
    regression, `labels` and the predicted `values` are float32 [N], `probabilities` is [N, 0], and `class_names` and
    `classes` are empty; in a classification, `values` is None."""

    ids: Sequence[str]
    labels: Tensor
    probabilities: Tensor
    losses: Tensor
    class_names: tuple[str, ...]
    metrics: dict[str, float]
    classes: list[dict[str, float]]
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    values: Tensor | None = None


def evaluate_split(
    predictor: Predictor,
    data: PackedDataset,
    loss: Callable[[Tensor, Tensor], Tensor],
    batch_size: int | str,
    workers: int | None = None,
    meter: Callable[[], Meter] = Meter,
) -> SplitResult:
    """Predicts every sample of `data` once, in order, and computes the loss of each sample and the split's metrics.

    `loss` takes the network's outputs and the targets. `batch_size` is a number or "auto", which uses that of the
    predictor. `workers` is passed to `BatchLoader`; `meter` creates the object that accumulates the metrics."""
    size = batch_size if isinstance(batch_size, int) else predictor.batch_size
    loader = BatchLoader(data, predictor.preprocess, size, device=predictor.device, workers=workers)
    if isinstance(loss, nn.Module):
        loss = copy.deepcopy(loss).to(predictor.device).eval()
    accumulated = meter()
    predictions, losses = [], []
    with torch.inference_mode():
        for batch in loader:
            output = predictor.outputs(batch.x)  # type: ignore[arg-type]
            target: Tensor = batch.y  # type: ignore[assignment]
            accumulated.update(StepOutput(loss(output, target), len(target), output, target))
            predictions.append(predictor.output(output).cpu())
            losses.append(per_sample_loss(loss, output, target).float().cpu())
    metrics = accumulated.compute()
    classes = scores_by_class(accumulated.counts) if accumulated.counts is not None else []
    predicted = torch.cat(predictions)
    return SplitResult(
        data.ids,
        data.labels.flatten(),
        predicted if data.classes else predicted[:, :0],
        torch.cat(losses),
        data.classes,
        metrics,
        classes,
        data.columns,
        None if data.classes else predicted.flatten(),
    )


def per_sample_loss(loss: Callable[[Tensor, Tensor], Tensor], output: Tensor, target: Tensor) -> Tensor:
    """Returns the loss of each sample, [B].

    It comes from a copy of the loss with `reduction="none"` if that gives one value per target, otherwise from one call
    per sample."""
    if hasattr(loss, "reduction"):
        single = copy.copy(loss)
        single.reduction = "none"
        values = single(output, target)
        if values.shape == target.shape:
            return values.flatten()
    return torch.stack([loss(output[i : i + 1], target[i : i + 1]) for i in range(len(target))])


def write_predictions(path: Path, result: SplitResult) -> None:
    """Writes the per-sample table of a split to `path` as CSV.

    The columns are `id,label,prediction,confidence,loss`, a probability `p_CLASS` for each class, and the data's other
    columns as `data_NAME`. In a regression they are `id,label,prediction,error,loss` and `data_NAME`, where the error
    is prediction minus label. Numbers have nine significant digits, which restores the same float32."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    score = "error" if result.values is not None else "confidence"
    head = ["id", "label", "prediction", score, "loss", *(f"p_{name}" for name in result.class_names)]
    writer.writerow([*head, *(f"data_{name}" for name in result.columns)])
    extra_rows = zip(*result.columns.values(), strict=True) if result.columns else itertools.repeat(())
    cells = _classification_rows(result) if result.values is None else _regression_rows(result, result.values)
    for row, extra in zip(cells, extra_rows, strict=False):
        writer.writerow([*row, *extra])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())


def _classification_rows(result: SplitResult) -> Iterator[list[str]]:
    names = result.class_names
    best = result.probabilities.argmax(1).tolist()
    columns = (result.ids, result.labels.tolist(), best, result.probabilities.tolist(), result.losses.tolist())
    for sample, label, predicted, row, loss in zip(*columns, strict=True):
        yield [sample, names[label], names[predicted], *(f"{number:.9g}" for number in (row[predicted], loss, *row))]


def _regression_rows(result: SplitResult, values: Tensor) -> Iterator[list[str]]:
    columns = (result.ids, result.labels.tolist(), values.tolist(), result.losses.tolist())
    for sample, label, value, loss in zip(*columns, strict=True):
        yield [sample, *(f"{number:.9g}" for number in (label, value, value - label, loss))]
