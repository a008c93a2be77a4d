"""`sightline diff A B`: what is different between two runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sightline.commands.table import print_sections

if TYPE_CHECKING:
    from sightline.report.compare import Changes, Comparison


def main(argv: Sequence[str]) -> int:
    """Prints the differences, section by section; 0 whatever they are, unless the exit code was asked to tell."""
    options = argparse.ArgumentParser(
        "sightline diff", description="Show what differs between two runs: config, data, environment, metrics."
    )
    options.add_argument("a", metavar="A", help="a run's directory, or its exported folder")
    options.add_argument("b", metavar="B", help="the run to compare it with")
    options.add_argument("--json", action="store_true", help="one JSON object with every difference")
    options.add_argument("--exit-code", action="store_true", help="end with 1 when config or data differ")
    given = options.parse_args(argv)
    from sightline.report.compare import compare, open_record

    found = compare(open_record(given.a), open_record(given.b))
    if given.json:
        print(json.dumps(found.to_dict(), indent=2, ensure_ascii=False, default=str))
    else:
        print_sections(_header_lines(found), _sections(found))
    return 1 if given.exit_code and not found.same_input else 0


def _header_lines(found: Comparison) -> list[str]:
    from sightline.report.listing import format_time

    sides = (("A", found.a), ("B", found.b))
    facts = [
        (
            side,
            str(record.run.path),
            record.state,
            f"{record.epoch}/{record.max_epochs} epochs",
            format_time(record.began),
        )
        for side, record in sides
    ]
    widths = [max(map(len, column)) for column in zip(*facts, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in facts]


def _sections(found: Comparison) -> dict[str, list[str]]:
    from sightline.report.compare import round_pair

    return {
        "config": _change_lines(found.config),
        "data": _data_lines(found),
        "environment": _change_lines(found.environment),
        "training": _log_lines(found) + _change_lines({key: round_pair(pair) for key, pair in found.training.items()}),
        "metrics": _metric_lines(found),
    }


def _log_lines(found: Comparison) -> list[str]:
    """Where the logs part, or how far they are the same; nothing where they are the same to the end."""
    from sightline.report.compare import round_pair

    log = found.log
    if log.first is not None:
        a, b = map(_format, round_pair(log.first.values))
        return [f"first difference: {log.first.place}: {log.first.quantity} {a} -> {b}"]
    if log.same or not all(log.last):
        return []
    if not log.points:
        return ["the logs have no point in common"]
    for shorter, longer in ((0, 1), (1, 0)):
        if not log.alone[shorter] and log.last[shorter] < log.last[longer]:
            ends, goes_on = "AB"[shorter], "AB"[longer]
            return [f"the same up to step {log.last[shorter]}, where {ends} ends; {goes_on} goes on"]
    return [f"the same at the {log.points} log points that both have"]


def _format(value: Any) -> str:
    from sightline.report.compare import MISSING
    from sightline.report.listing import format_value

    return "(none)" if value is MISSING else format_value(value)


def _change_lines(changes: Changes) -> list[str]:
    width = max(map(len, changes), default=0)
    return [f"{key:<{width}}  {_format(a)} -> {_format(b)}" for key, (a, b) in changes.items()]


def _data_lines(found: Comparison) -> list[str]:
    """What differs, and then every split, for it matters as much which of them are equal."""
    if not found.data:
        return []
    lines = _change_lines({key: pair for key, pair in found.data.items() if key in ("name", "root", "left_out")})
    if "classes" in found.data:
        a, b = (side if isinstance(side, list) else [] for side in found.data["classes"])
        added, removed = [name for name in b if name not in a], [name for name in a if name not in b]
        lines += [f"classes added: {', '.join(map(str, added))}"] if added else []
        lines += [f"classes removed: {', '.join(map(str, removed))}"] if removed else []
        lines += [] if added or removed else ["classes: the same in another order"]
    width = max(map(len, found.splits), default=0)
    for name, ((a, b), same) in found.splits.items():
        counts = _format(b) if a == b else f"{_format(a)} -> {_format(b)}"
        lines.append(f"{name:<{width}}  {counts} images, {'the same' if same else 'other pictures or labels'}")
    return lines + (found.pictures.words() if found.pictures is not None else [])


def _metric_lines(found: Comparison) -> list[str]:
    """A small table, for numbers are compared at a glance; only those that differ."""
    from sightline.report.compare import MISSING

    if not (found.a.metrics or found.b.metrics):
        return ["neither run has measured an exported model yet"]
    if not found.metrics:
        return []
    width = max(map(len, found.metrics))
    lines = [f"{'':<{width}}  {'A':>8}  {'B':>8}  {'B - A':>9}"]
    for name, (a, b) in found.metrics.items():
        cells = ["-" if side is MISSING else f"{side:.4f}" for side in (a, b)]
        change = "" if MISSING in (a, b) else f"{b - a:+.4f}" if abs(b - a) >= 5e-5 else f"{b - a:+.1e}"
        lines.append(f"{name:<{width}}  {cells[0]:>8}  {cells[1]:>8}  {change:>9}".rstrip())
    return lines
