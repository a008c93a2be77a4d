"""`sightline runs [DIR]`: the runs in a directory, side by side."""

import argparse
import json
import sys
from collections.abc import Sequence

from sightline.commands.table import print_table
from sightline.core.errors import ArtifactError, did_you_mean
from sightline.core.files import expand_user, replace_non_finite


def main(argv: Sequence[str]) -> int:
    """Prints one line or one JSON object for each run; a damaged one is listed and what is wrong with it told."""
    options = argparse.ArgumentParser("sightline runs", description="List runs with their state and metrics.")
    options.add_argument(
        "directory", nargs="?", default="runs", metavar="DIR", help="where to look, however deep; default: %(default)s"
    )
    options.add_argument(
        "--sort",
        default="time",
        metavar="COLUMN",
        help="a column, a metric such as test_accuracy (the best first), or a key of the config; default: %(default)s",
    )
    options.add_argument("--reverse", action="store_true", help="the other way round")
    options.add_argument(
        "--columns",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY",
        help="also show these: metrics such as test_f1, keys of the config such as module.optimizer.lr",
    )
    options.add_argument("--json", action="store_true", help="one JSON list with everything about each run")
    found = options.parse_args(argv)
    from sightline.report.listing import OWN, list_runs

    directory = expand_user(found.directory)
    if not directory.is_dir():
        siblings = [entry.name for entry in directory.parent.iterdir()] if directory.parent.is_dir() else []
        raise ArtifactError(f"there is no directory '{found.directory}'.{did_you_mean(directory.name, siblings)}")
    runs = list_runs(directory, sort=found.sort, reverse=found.reverse, columns=found.columns)
    if found.json:
        print(json.dumps(replace_non_finite(runs.to_list()), indent=2, ensure_ascii=False, default=str))
        return 0
    if not runs.rows:
        print(f"sightline: no runs in '{found.directory}'", file=sys.stderr)
        return 0
    texts = {name for name in OWN if name not in ("epochs", "steps")}
    print_table(runs.columns, runs.cells(), right=[name for name in runs.columns if name not in texts], bold=runs.best)
    for record in runs.records:
        for problem in record.problems:
            print(f"sightline: {problem}", file=sys.stderr)
    return 0
