"""`sightline diff A B`: shows what differs between two runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sightline.commands.table import print_json, print_sections

if TYPE_CHECKING:
    from sightline.report.compare import Changes, Comparison


def main(argv: Sequence[str]) -> int:
    """Prints the differences section by section. Returns 0, or with `--exit-code` 1 if config or data differ."""
    options = argparse.ArgumentParser(
        "sightline diff",
        description="Show what differs between two runs. Prints the sections config, data, environment, training and "
        "metrics; a section without differences is 'same'.",
        epilog="Example: sightline diff runs/first runs/second",
    )
    options.add_argument("a", metavar="A", help="a run's directory, or its exported folder")
    options.add_argument("b", metavar="B", help="the run to compare it with")
    options.add_argument("--json", action="store_true", help="print one JSON object with every difference")
    options.add_argument("--exit-code", action="store_true", help="exit with 1 if config or data differ")
    args = options.parse_args(argv)
    from sightline.report.compare import compare, open_record

    comparison = compare(open_record(args.a), open_record(args.b))
    if args.json:
        print_json(comparison.to_dict())
    else:
        print_sections(_header_lines(comparison), _sections(comparison))
    return 1 if args.exit_code and not comparison.same_input else 0


def _header_lines(comparison: Comparison) -> list[str]:
    from sightline.report.listing import format_time

    sides = (("A", comparison.a), ("B", comparison.b))
    cells = [
        (
            side,
            str(record.run.path),
            record.state,
            f"{record.epoch}/{record.max_epochs} epochs",
            format_time(record.began),
        )
        for side, record in sides
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]


def _sections(comparison: Comparison) -> dict[str, list[str]]:
    from sightline.report.compare import round_pair

    training = {key: round_pair(pair) for key, pair in comparison.training.items()}
    return {
        "config": _change_lines(comparison.config),
        "data": _data_lines(comparison),
        "environment": _change_lines(comparison.environment),
        "training": _log_lines(comparison) + _change_lines(training),
        "metrics": _metric_lines(comparison),
    }


def _log_lines(comparison: Comparison) -> list[str]:
    """Describes the first difference between the logs, or how far they are equal; empty if they are equal."""
    from sightline.report.compare import round_pair

    log = comparison.log
    if log.first is not None:
        a, b = map(_format, round_pair(log.first.values))
        return [f"first difference: {log.first.place}: {log.first.quantity} {a} -> {b}"]
    if log.same or not all(log.last):
        return []
    if not log.points:
        return ["the logs have no log point in common"]
    for shorter, longer in ((0, 1), (1, 0)):
        if not log.alone[shorter] and log.last[shorter] < log.last[longer]:
            return [f"the same up to step {log.last[shorter]}, where {'AB'[shorter]} ends; {'AB'[longer]} continues"]
    return [f"the same at the {log.points} log points that both runs have"]


def _format(value: Any) -> str:
    from sightline.report.compare import MISSING
    from sightline.report.listing import format_value

    return "(none)" if value is MISSING else format_value(value)


def _change_lines(changes: Changes) -> list[str]:
    width = max(map(len, changes), default=0)
    return [f"{key:<{width}}  {_format(a)} -> {_format(b)}" for key, (a, b) in changes.items()]


def _data_lines(comparison: Comparison) -> list[str]:
    """Lists what differs in the data and then every split, the equal ones too. Empty if the data is the same."""
    if not comparison.data:
        return []
    lines = _change_lines({key: pair for key, pair in comparison.data.items() if key in ("name", "root", "left_out")})
    if "classes" in comparison.data:
        a, b = (side if isinstance(side, list) else [] for side in comparison.data["classes"])
        added, removed = [name for name in b if name not in a], [name for name in a if name not in b]
        lines += [f"classes added: {', '.join(map(str, added))}"] if added else []
        lines += [f"classes removed: {', '.join(map(str, removed))}"] if removed else []
        lines += [] if added or removed else ["classes: the same in another order"]
    width = max(map(len, comparison.splits), default=0)
    for name, ((a, b), same) in comparison.splits.items():
        counts = _format(b) if a == b else f"{_format(a)} -> {_format(b)}"
        lines.append(f"{name:<{width}}  {counts} images, {'the same' if same else 'different images or labels'}")
    return lines + (comparison.images.words() if comparison.images is not None else [])


def _metric_lines(comparison: Comparison) -> list[str]:
    """Formats the metrics that differ as a table with the columns A, B and B - A. Empty if none differ."""
    from sightline.report.compare import MISSING

    if not (comparison.a.metrics or comparison.b.metrics):
        return ["neither run has evaluated an exported model yet"]
    if not comparison.metrics:
        return []
    width = max(map(len, comparison.metrics))
    lines = [f"{'':<{width}}  {'A':>8}  {'B':>8}  {'B - A':>9}"]
    for name, (a, b) in comparison.metrics.items():
        cells = ["-" if side is MISSING else f"{side:.4f}" for side in (a, b)]
        change = "" if MISSING in (a, b) else f"{b - a:+.4f}" if abs(b - a) >= 5e-5 else f"{b - a:+.1e}"
        lines.append(f"{name:<{width}}  {cells[0]:>8}  {cells[1]:>8}  {change:>9}".rstrip())
    return lines
