"""What an exported model does on a split, sample by sample."""

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
    """Every sample of a split with its answer. `probabilities` float32 [N,C], `losses` float32 [N], `labels` int64 [N],
    all on the CPU in the data's order; `metrics` over the split, `classes` per class; `columns` what else a table
    said. Where labels are numbers, they and the predicted `values` are float32 [N], and there are no classes."""

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
    """Runs every sample through the predictor once, in order, so many at a time ("auto" is the predictor's own number).
    `workers` is as in `BatchLoader`; `meter` makes what collects the metrics."""
    size = batch_size if isinstance(batch_size, int) else predictor.batch_size
    loader = BatchLoader(data, predictor.preprocess, size, device=predictor.device, workers=workers)
    if isinstance(loss, nn.Module):
        loss = copy.deepcopy(loss).to(predictor.device).eval()
    measure = meter()
    answers, losses = [], []
    with torch.inference_mode():
        for batch in loader:
            output = predictor.outputs(batch.x)  # type: ignore[arg-type]
            target: Tensor = batch.y  # type: ignore[assignment]
            measure.update(StepOutput(loss(output, target), len(target), output, target))
            answers.append(predictor.output(output).cpu())
            losses.append(per_sample_loss(loss, output, target).float().cpu())
    metrics = measure.compute()
    classes = scores_by_class(measure.counts) if measure.counts is not None else []
    answered = torch.cat(answers)
    return SplitResult(
        data.ids,
        data.labels.flatten(),
        answered if data.classes else answered[:, :0],
        torch.cat(losses),
        data.classes,
        metrics,
        classes,
        data.columns,
        None if data.classes else answered.flatten(),
    )


def per_sample_loss(loss: Callable[[Tensor, Tensor], Tensor], output: Tensor, target: Tensor) -> Tensor:
    """The loss of each sample, [B]: by the loss's own `reduction` where it has one, else one call a sample."""
    if hasattr(loss, "reduction"):
        single = copy.copy(loss)
        single.reduction = "none"
        values = single(output, target)
        if values.shape == target.shape:
            return values.flatten()
    return torch.stack([loss(output[i : i + 1], target[i : i + 1]) for i in range(len(target))])


def write_predictions(path: Path, result: SplitResult) -> None:
    """The per-sample table: `id,label,prediction,confidence,loss`, one probability `p_…` for each class, named by it,
    and the data's own further columns as `data_…`. Where labels are numbers, `id,label,prediction,error,loss`, the
    error being prediction minus label. Numbers have nine digits, enough to give back the same float32."""
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
    for sample, label, answer, row, loss in zip(*columns, strict=True):
        yield [sample, names[label], names[answer], *(f"{number:.9g}" for number in (row[answer], loss, *row))]


def _regression_rows(result: SplitResult, values: Tensor) -> Iterator[list[str]]:
    columns = (result.ids, result.labels.tolist(), values.tolist(), result.losses.tolist())
    for sample, label, answer, loss in zip(*columns, strict=True):
        yield [sample, *(f"{number:.9g}" for number in (label, answer, answer - label, loss))]
