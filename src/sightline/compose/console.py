"""What a person sees before and after training: a bar while images are decoded, the table at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sightline.data.cache.dataset import PackedDataset
from sightline.engine.progress import plain_console
from sightline.inference.evaluate import SplitResult
from sightline.runs.directory import Run

if TYPE_CHECKING:
    from rich.console import Console

_SHOWN = 20


@contextmanager
def decoding_bar(total: int, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of images just decoded; it moves a bar, if there is a terminal to draw on."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("decoding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    disable = not (shown and console.is_terminal and not console.is_dumb_terminal)
    bar = Progress(*columns, console=console, transient=True, disable=disable)
    task = bar.add_task("decoding", total=total)

    def advance(count: int) -> None:
        bar.start()  # at the first image: where the cache has them all, there is no bar
        bar.advance(task, count)

    try:
        yield advance
    finally:
        bar.stop()


def unreadable_images(data: Mapping[str, PackedDataset]) -> list[tuple[str, str]]:
    """(split, reason) of every image that could not be read."""
    return [(split, reason) for split, packed in data.items() for _, reason in packed.left_out]


def show_results(
    run: Run,
    results: Mapping[str, SplitResult],
    missing: Sequence[tuple[str, str]] = (),
    console: Console | None = None,
) -> None:
    """The metrics of each split, the last split class by class, what was left out, and where everything is."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = console or plain_console()
    for position, (split, result) in enumerate(results.items()):
        last = position == len(results) - 1
        whole = {name: value for name, value in result.metrics.items() if "/" not in name}  # not of single classes
        values = "  ".join(f"{name} {value:.4f}" for name, value in whole.items())
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
            console.print(f"  … and {len(missing) - _SHOWN:,} more, all of them in {run.data}", soft_wrap=True)
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
