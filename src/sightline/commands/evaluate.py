"""`sightline evaluate RUN`: evaluates a run's exported model, on the run's data or on other data."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sightline.commands.hydra_config import add_cwd_to_path, parse_overrides
from sightline.commands.options import add_model_options
from sightline.commands.table import print_json
from sightline.config.typed import merge
from sightline.core.console import plain_console
from sightline.core.errors import DataError, did_you_mean, join_names
from sightline.core.log import logger

if TYPE_CHECKING:
    from sightline.inference.evaluate import SplitResult
    from sightline.runs.directory import Run

WHERE = ("source", "root", "csv", "images", "image_column", "label_column", "split_column", "dataset", "download")
"""Keys of `data` that select other data than the run's."""
SAME = frozenset(("eval_batch_size", "workers", "cache", "cache_dir"))
"""Keys of `data` that do not affect which images are evaluated, nor how they are split."""
HOW = ("classes", "val", "test", "group_column", "on_bad", "eval_batch_size", "workers", "cache", "cache_dir")
"""Keys of `data` that set how the data is read, split and loaded."""


def main(argv: Sequence[str]) -> int:
    """Evaluates the exported model, prints its metrics and writes `predictions/<split>.csv`. Returns 0.

    For images other than the run's, the file name contains their fingerprint, as in `all-1a2b3c4d.csv`."""
    args = _parser().parse_intermixed_args(argv)
    overrides = parse_overrides(args.overrides, [f"data.{key}" for key in (*WHERE, *HOW)], "evaluate")
    if args.allow:
        add_cwd_to_path()
    _evaluate(args, overrides)
    return 0


def _parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        "sightline evaluate",
        description="Evaluate the exported model of a run on the run's data or on other data. Prints the metrics of "
        "each split and writes the prediction for every sample to RUN/predictions/SPLIT.csv.",
        epilog="Example: sightline evaluate runs/digits data.root=OTHER",
    )
    options.add_argument("run", metavar="RUN", help="the run's directory")
    options.add_argument(
        "overrides",
        nargs="*",
        default=[],  # else the message for a missing RUN lists it too
        metavar="data.key=value",
        help="a data key to change, such as data.root=OTHER",
    )
    options.add_argument(
        "--split", default=None, metavar="NAME", help="train, val or test; default: every split except train"
    )
    options.add_argument("--json", action="store_true", help="print the metrics as JSON")
    add_model_options(options)
    return options


def _evaluate(args: argparse.Namespace, overrides: dict[str, Any]) -> None:
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

    run = Run.open(args.run)
    predictor = load(run.path, device=args.device, allow=args.allow)
    saved = read_yaml(run.config)
    if set(overrides.get("data", {})) & set(WHERE):
        # other data is one split, unless it has its own splits or the caller sets data.val or data.test
        overrides = merge({"data": {"val": 0, "test": 0}}, overrides)
    elif "source" in run.read_given():
        raise DataError(
            f"'{run.path}' was trained on a data source passed in from Python, which its config does not describe. "
            f"Name the data to evaluate: data.root=PATH"
        )
    config = as_config(merge(saved, overrides))
    source = with_saved_splits(config_source(config, run.read_data()["classes"]), run.read_data())
    if source.info.classes != predictor.classes:
        raise DataError(
            f"The data's classes are {join_names(source.info.classes)}; the model's are "
            f"{join_names(predictor.classes)}. Expected the same classes in the same order. "
            f"Set data.classes={list(predictor.classes)}."
        )
    available = list(source.splits)
    splits = _select_splits(args.split, available)
    data, _ = open_data(config, source, predictor.preprocess, splits)
    before, now = run.read_data()["fingerprint"], data_record(data, source)["fingerprint"]
    custom = [name for name in run.read_given() if name in ("loss", "task")]
    if custom:
        logger.info(f"The run was trained with a custom {join_names(custom)}; the loss shown here is the config's.")
    # the run may come from an untrusted place: its config may name known losses and torchmetrics only
    loss = build_loss(config.module, predictor.device, allow=(*LOSSES, *args.allow))
    meters = build_meters(config, predictor.spec, predictor.classes, predictor.device, allow=(*METRICS, *args.allow))
    results = {}
    for split in splits:
        name = split
        if split in before and SAME.issuperset(overrides.get("data", {})):
            _check_same(run, split, before[split] == now[split])
        if before.get(split) != now[split]:
            name = f"{'all' if available == ['train'] else split}-{now[split][:8]}"
        results[name] = evaluate_split(
            predictor, data[split], loss, config.data.eval_batch_size, loader_workers(config.data), meters.evaluation
        )
        write_predictions(run.predictions(name), results[name])
    if args.json:
        _print_json(run, results, unreadable_images(data))
    else:
        show_results(run, results, unreadable_images(data), plain_console(quiet=False))


def _print_json(run: Run, results: Mapping[str, SplitResult], unreadable: Sequence[tuple[str, str]]) -> None:
    """Prints the metrics of each evaluated split, in total and by class."""
    splits = {
        split: {
            "images": len(result.ids),
            "metrics": result.metrics,
            "classes": dict(zip(result.class_names, result.classes, strict=True)) if result.classes else {},
            "predictions": str(run.predictions(split)),
        }
        for split, result in results.items()
    }
    left_out = [{"split": split, "reason": reason} for split, reason in unreadable]
    print_json({"splits": splits, "left_out": left_out})


def _check_same(run: Run, split: str, same: bool) -> None:
    if not same:
        raise DataError(
            f"The {split} split is not the one '{run.path}' was trained with: its files, or the libraries that decode "
            f"them, have changed. To evaluate it as other data, name it: data.root=PATH"
        )


def _select_splits(wanted: str | None, available: Sequence[str]) -> list[str]:
    splits = [wanted] if wanted else [split for split in available if split != "train"] or ["train"]
    if splits[0] not in available:
        message = f"--split: there is no split '{splits[0]}'.{did_you_mean(splits[0], available)}"
        raise DataError(f"{message} Expected one of: {join_names(available)}.")
    return splits
