"""The runs below a directory side by side: their columns, their order, and the best value of each metric."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.core.errors import ConfigError, did_you_mean, join_names
from sightline.core.mappings import flatten
from sightline.report.record import RunRecord, is_number, lower_is_better, read_record
from sightline.runs.alive import is_alive
from sightline.runs.directory import Run

OWN = ("name", "time", "state", "epochs", "steps", "network", "data")
Row = dict[str, Any]


@dataclass(frozen=True)
class Listing:
    """The runs of a directory in order. `rows` hold every value a column can be made of, `columns` are those to show,
    `metrics` which of them are measured, `best` the cells (row, column) that no other run surpasses."""

    records: tuple[RunRecord, ...]
    rows: tuple[Row, ...]
    columns: tuple[str, ...]
    metrics: frozenset[str]
    best: frozenset[tuple[int, str]]

    def cells(self) -> list[tuple[str, ...]]:
        """The rows as texts, in the order of the columns."""
        return [tuple(_text(row, column, column in self.metrics) for column in self.columns) for row in self.rows]

    def to_list(self) -> list[dict[str, Any]]:
        """Everything about each run, JSON-ready."""
        return [_plain(record, row) for record, row in zip(self.records, self.rows, strict=True)]


def list_runs(directory: Path, *, sort: str = "time", reverse: bool = False, columns: Sequence[str] = ()) -> Listing:
    """The runs at or below `directory`. `sort` is a column, a metric such as `test_f1` (best first) or a key of the
    config; runs without a value come last. `columns` adds such to those that are shown anyway.

    Raises ConfigError for a column that no run has."""
    records = [read_record(run) for run in find_runs(directory)]
    measured = [_measured(record) for record in records]
    metrics = _in_order({name for values in measured for name in values})
    rows = [{**_row(record, directory), **values} for record, values in zip(records, measured, strict=True)]
    if records:
        for option, name in [("--columns", name) for name in columns] + [("--sort", sort)]:
            _check(option, name, rows, metrics)
    lower = {name: _lower_is_better(name, rows) for name in metrics}
    missing = [pair for pair in zip(rows, records, strict=True) if pair[0].get(sort) is None]
    there = [pair for pair in zip(rows, records, strict=True) if pair[0].get(sort) is not None]
    there.sort(key=lambda pair: _rank(pair[0][sort], sort in metrics and not lower[sort]), reverse=reverse)
    ordered = [*there, *missing]
    rows, records = [row for row, _ in ordered], [record for _, record in ordered]
    shown = tuple(dict.fromkeys([*_usual(metrics), *columns, sort]))
    best = frozenset(
        cell
        for column in shown
        if lower.get(column) is not None
        for cell in _best(column, rows, min if lower[column] else max)
    )
    return Listing(tuple(records), tuple(rows), shown, frozenset(metrics), best)


def find_runs(directory: Path) -> list[Run]:
    """Every run at or below `directory`, by path. A run is not searched for further ones; one that links lead to as
    well is found once."""
    found: list[Run] = []
    seen: set[Path] = set()

    def look(folder: Path) -> None:
        real = folder.resolve()
        if real in seen:
            return
        seen.add(real)
        run = Run(folder)
        # one of the three may be lost or not there yet; a config.yaml alone is anybody's
        if sum(file.is_file() for file in (run.config, run.data, run.environment)) >= 2:
            found.append(run)
            return
        for entry in sorted(_inside(folder), key=lambda entry: (entry.is_symlink(), entry.name)):
            if not entry.name.startswith(".") and _is_folder(entry):
                look(Path(entry.path))

    look(directory)
    return sorted(found, key=lambda run: run.path)


def _inside(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:  # not there, or not for us to read
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _row(record: RunRecord, directory: Path) -> Row:
    path = record.run.path
    name = path.relative_to(directory).as_posix() if path != directory else path.resolve().name
    return {
        **flatten(record.config),
        "name": name,
        "time": record.began,
        "state": "running" if record.state == "unfinished" and is_alive(path) else record.state,
        "epochs": record.epoch,
        "max_epochs": record.max_epochs,
        "steps": record.steps,
        "network": record.network,
        "data": record.data_name,
    }


def _measured(record: RunRecord) -> dict[str, float]:
    best = {} if record.best is None else {f"best_{record.monitor}": record.best[0]}
    return {f"{split}_{name}": value for split, found in record.metrics.items() for name, value in found.items()} | best


def _in_order(names: Iterable[str]) -> list[str]:
    """What was watched before what was measured at the end, the validation before the test."""
    splits = ("best", "train", "val", "test")

    def place(name: str) -> tuple[int, str]:
        split = name.partition("_")[0]
        return (splits.index(split) if split in splits else len(splits), name)

    return sorted(names, key=place)


def _usual(metrics: Sequence[str]) -> list[str]:
    """The columns without a word: what was watched, and one measure of the test split, or of the others where no run
    has one."""
    watched = [name for name in metrics if name.startswith("best_")]
    measured = [name for name in metrics if name not in watched]
    measured = [name for name in measured if name.startswith("test_")] or measured
    accuracies = [name for name in measured if name.endswith("_accuracy")]
    chosen = accuracies or [name for name in measured if name.endswith("_loss")]
    return ["name", "time", "state", "epochs", *watched, *chosen, "network", "data"]


def _check(option: str, name: str, rows: Sequence[Row], metrics: Sequence[str]) -> None:
    keys = {key for row in rows for key in row} - {"max_epochs"}
    if name in keys or name in OWN:
        return
    below = [key for key in sorted(keys) if key.startswith((f"{name}.", f"{name}["))]
    if below:
        raise ConfigError(f"{option}: '{name}' is a group of keys; name one of: {join_names(below, 40)}.")
    raise ConfigError(
        f"{option}: no run here has '{name}'.{did_you_mean(name, keys)} There are: {join_names((*OWN, *metrics), 40)}; "
        f"and "
        f"every key of the config, such as module.optimizer.lr."
    )


def _lower_is_better(name: str, rows: Sequence[Row]) -> bool | None:
    """Whether the column's metric is better when lower; for the monitored one its run may say so. None where that is
    not known."""
    modes = {row.get("module.monitor_mode") for row in rows if name in row} if name.startswith("best_") else set()
    return lower_is_better(name, next((mode for mode in ("min", "max") if mode in modes), "auto"))


def _rank(value: Any, best_is_high: bool) -> tuple[int, Any]:
    """Numbers before texts, each in its own order."""
    if is_number(value):
        return (0, -value if best_is_high else value)
    return (1, value if isinstance(value, str) else format_value(value))


def _best(column: str, rows: Sequence[Row], choose: Any) -> list[tuple[int, str]]:
    values = [(position, row[column]) for position, row in enumerate(rows) if column in row]
    if len({value for _, value in values}) < 2:  # where all are equal, none stands out
        return []
    best = choose(value for _, value in values)
    return [(position, column) for position, value in values if value == best]


def format_time(began: float | None) -> str:
    """A Unix time for people."""
    return "" if began is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(began))


def _text(row: Row, column: str, is_metric: bool) -> str:
    value = row.get(column)
    if column == "time":
        return format_time(value)
    if column == "epochs":
        return f"{value}/{row['max_epochs']}" if row["max_epochs"] is not None else str(value)
    if column not in row:
        return ""
    return f"{value:.4f}" if is_metric else format_value(value)


def format_value(value: Any) -> str:
    """A value as a person reads it, and as a config has it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _plain(record: RunRecord, row: Row) -> dict[str, Any]:
    best = record.best
    return {
        "path": str(record.run.path),
        "name": row["name"],
        "time": None if record.began is None else time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(record.began)),
        "state": row["state"],
        "problems": list(record.problems),
        "epochs": record.epoch,
        "max_epochs": record.max_epochs,
        "steps": record.steps,
        "monitor": record.monitor,
        "best": None if best is None else {"value": best[0], "epoch": best[1]},
        "metrics": record.metrics,
        "network": record.network,
        "data": record.data_name,
        "config": record.config,
    }
