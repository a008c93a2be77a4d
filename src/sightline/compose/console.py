"""The table of results that training prints at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sightline.core.console import plain_console
from sightline.data.cache.dataset import PackedDataset
from sightline.inference.evaluate import SplitResult
from sightline.runs.directory import Run

if TYPE_CHECKING:
    from rich.console import Console

_SHOWN = 20  # unreadable images that are listed


def unreadable_images(data: Mapping[str, PackedDataset]) -> list[tuple[str, str]]:
    """Returns (split, reason) for every image that was left out because it could not be read."""
    return [(split, reason) for split, packed in data.items() for _, reason in packed.left_out]


def show_results(
    run: Run,
    results: Mapping[str, SplitResult],
    missing: Sequence[tuple[str, str]] = (),
    console: Console | None = None,
) -> None:
    """Prints the metrics of each split, the last split's metrics by class, unreadable images, and the run's paths.

    `results` are the evaluated splits by name, `missing` the unreadable images as `unreadable_images` returns them.
    `console` defaults to standard output."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = console or plain_console()
    for position, (split, result) in enumerate(results.items()):
        last = position == len(results) - 1
        overall = {name: value for name, value in result.metrics.items() if "/" not in name}  # no per-class metrics
        values = "  ".join(f"{name} {value:.4f}" for name, value in overall.items())
        title = Text.assemble("\n", (split, "bold"), f"  {len(result.ids):,} images  {values}")
        console.print(title, soft_wrap=True)
        if last and result.classes:
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            table.add_column("class")
            for name in ("images", "precision", "recall", "f1"):
                table.add_column(name, justify="right")
            for name, row in zip(result.class_names, result.classes, strict=True):
                scores = (f"{row[key]:.4f}" for key in ("precision", "recall", "f1"))
                table.add_row(Text(name), f"{int(row['samples']):,}", *scores)
            console.print(table)
    if missing:
        console.print(f"\nleft out, because they could not be read: {len(missing):,}", soft_wrap=True)
        for split, reason in missing[:_SHOWN]:
            console.print(f"  {split:<6} {reason}", soft_wrap=True)
        if len(missing) > _SHOWN:
            console.print(f"  … and {len(missing) - _SHOWN:,} more; the complete list is in {run.data}", soft_wrap=True)
        console.print()
    splits = list(results)
    files = {
        "model": run.exported,
        "predictions": run.predictions(splits[-1]) if splits else run.predictions("test"),
        "checkpoints": run.checkpoints,
        "TensorBoard": f"tensorboard --logdir {run.tensorboard}",
        "predict": f"sightline predict {run.path} IMAGE…",
    }
    for name, value in files.items():
        console.print(f"{name:<12} {value}", soft_wrap=True)
