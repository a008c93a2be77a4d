"""`sightline evaluate RUN`: measure the exported model again, on the run's own data or on another."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sightline.commands.hydra_config import add_cwd_to_path, parse_overrides
from sightline.commands.options import add_model_options
from sightline.config.typed import merge
from sightline.core.errors import DataError, did_you_mean, join_names

if TYPE_CHECKING:
    from sightline.runs.directory import Run

WHERE = ("source", "root", "csv", "images", "image_column", "label_column", "split_column", "dataset", "download")
SAME = frozenset(("eval_batch_size", "workers", "cache", "cache_dir"))
"""Keys that say nothing about which images are measured."""
HOW = ("classes", "val", "test", "group_column", "on_bad", "eval_batch_size", "workers", "cache", "cache_dir")


def main(argv: Sequence[str]) -> int:
    """Writes predictions/<split>.csv and prints the tables. Data that is not the run's own gets a file of its own
    name."""
    found = _parser().parse_intermixed_args(argv)
    changed = parse_overrides(found.overrides, [f"data.{key}" for key in (*WHERE, *HOW)], "evaluate")
    if found.allow:
        add_cwd_to_path()
    _measure(found, changed)
    return 0


def _parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser("sightline evaluate", description="Measure a trained run, sample by sample.")
    options.add_argument("run", metavar="RUN", help="the run's directory")
    options.add_argument(
        "overrides", nargs="*", metavar="data.key=value", help="such as data.root=OTHER, for other data"
    )
    options.add_argument(
        "--split", default=None, metavar="NAME", help="train, val or test; default: every one but train"
    )
    add_model_options(options)
    return options


def _measure(found: argparse.Namespace, changed: dict[str, Any]) -> None:
    from sightline.compose.assemble import as_config
    from sightline.compose.console import show_results, unreadable_images
    from sightline.compose.data import config_source, data_record, loader_workers, open_data, with_saved_splits
    from sightline.compose.meters import build_meters
    from sightline.compose.module import build_loss
    from sightline.core.locate import LOSSES, METRICS
    from sightline.core.yamlfile import read_yaml
    from sightline.inference.artifact import load
    from sightline.inference.evaluate import evaluate_split, write_predictions
    from sightline.runs.directory import Run

    run = Run.open(found.run)
    predictor = load(run.path, device=found.device, allow=found.allow)
    kept = read_yaml(run.config)
    elsewhere = set(changed.get("data", {})) & set(WHERE)
    if elsewhere:  # other data is measured whole, unless it has splits of its own or is asked to be split
        changed = merge({"data": {"val": 0, "test": 0}}, changed)
    elif "source" in run.read_given():
        raise DataError(
            f"'{run.path}' was made from a data source handed over in Python, which no config describes; "
            f"say which data to measure: data.root=PATH"
        )
    config = as_config(merge(kept, changed))
    source = with_saved_splits(config_source(config, run.read_data()["classes"]), run.read_data())
    if source.info.classes != predictor.classes:
        raise DataError(
            f"the data's classes are {join_names(source.info.classes)}; the model's are "
            f"{join_names(predictor.classes)}. "
            f"Their order decides what an answer means; set data.classes={list(predictor.classes)}."
        )
    there = list(source.splits)
    splits = _splits(found.split, there)
    data, _ = open_data(config, source, predictor.preprocess, splits)
    before, now = run.read_data()["fingerprint"], data_record(data, source)["fingerprint"]
    own = [name for name in run.read_given() if name in ("loss", "task")]
    if own:
        print(f"note: the run was made with its own {join_names(own)}; the loss shown is the config's")
    # a run's directory may come from elsewhere: its loss may name nothing but losses, its metrics torchmetrics
    loss = build_loss(config.module, predictor.device, allow=(*LOSSES, *found.allow))
    meters = build_meters(config, predictor.spec, predictor.classes, predictor.device, allow=(*METRICS, *found.allow))
    results = {}
    for split in splits:
        name = split
        if split in before and SAME.issuperset(changed.get("data", {})):
            _check_same(run, split, before[split] == now[split])
        if before.get(split) != now[split]:
            name = f"{'all' if there == ['train'] else split}-{now[split][:8]}"
        results[name] = evaluate_split(
            predictor, data[split], loss, config.data.eval_batch_size, loader_workers(config.data), meters.evaluation
        )
        write_predictions(run.predictions(name), results[name])
    show_results(run, results, unreadable_images(data))


def _check_same(run: Run, split: str, same: bool) -> None:
    if not same:
        raise DataError(
            f"the {split} split is not what '{run.path}' was made with: its files, or the libraries that decode them, "
            f"have changed. To measure it as other data, name it: data.root=PATH"
        )


def _splits(wanted: str | None, there: Sequence[str]) -> list[str]:
    splits = [wanted] if wanted else [split for split in there if split != "train"] or ["train"]
    if splits[0] not in there:
        message = f"--split: there is no split '{splits[0]}'.{did_you_mean(splits[0], there)}"
        raise DataError(f"{message} There are: {join_names(there)}.")
    return splits
