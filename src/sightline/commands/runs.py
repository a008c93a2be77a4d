"""`sightline runs [DIR]`: lists the runs below a directory with their state and metrics."""

import argparse
import sys
from collections.abc import Sequence

from sightline.commands.table import print_json, print_table
from sightline.core.errors import ArtifactError, did_you_mean
from sightline.core.files import expand_user


def main(argv: Sequence[str]) -> int:
    """Prints one row per run, or a JSON list. Reports what is wrong with a damaged run on standard error. Returns 0."""
    options = argparse.ArgumentParser(
        "sightline runs",
        description="List the runs below a directory. Prints one row per run with its name, start time, state "
        "(finished, running, unfinished or damaged), epochs, metrics, network and data. On a terminal, the best value "
        "of each metric is bold.",
        epilog="Example: sightline runs --sort test_accuracy --columns module.optimizer.lr",
    )
    options.add_argument(
        "directory", nargs="?", default="runs", metavar="DIR", help="searched at any depth; default: %(default)s"
    )
    options.add_argument(
        "--sort",
        default="time",
        metavar="COLUMN",
        help="sort by a column, a metric such as test_accuracy (best first) or a config key; default: %(default)s",
    )
    options.add_argument("--reverse", action="store_true", help="reverse the order")
    options.add_argument(
        "--columns",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY",
        help="more columns: metrics such as test_f1, or config keys such as module.optimizer.lr",
    )
    options.add_argument("--json", action="store_true", help="print one JSON list with everything about each run")
    args = options.parse_args(argv)
    from sightline.report.listing import OWN, list_runs

    directory = expand_user(args.directory)
    if not directory.is_dir():
        siblings = [entry.name for entry in directory.parent.iterdir()] if directory.parent.is_dir() else []
        raise ArtifactError(f"The directory '{args.directory}' does not exist.{did_you_mean(directory.name, siblings)}")
    runs = list_runs(directory, sort=args.sort, reverse=args.reverse, columns=args.columns)
    if args.json:
        print_json(runs.to_list())
        return 0
    if not runs.rows:
        print(f"sightline: no runs in '{args.directory}'", file=sys.stderr)
        return 0
    text_columns = {name for name in OWN if name not in ("epochs", "steps")}
    number_columns = [name for name in runs.columns if name not in text_columns]
    print_table(runs.columns, runs.cells(), right=number_columns, bold=runs.best)
    for record in runs.records:
        for problem in record.problems:
            print(f"sightline: {problem}", file=sys.stderr)
    return 0
