"""A table of the runs below a directory: its columns, its order, and the best value of each metric."""

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
"""The columns that are neither metrics nor config keys."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Listing:
    """A sorted table of runs.

    `rows` has one dict per record, with every value that a column can show. `columns` are the columns to show,
    `metrics` the names of all metrics, and `best` the cells (row, column) with the best value of a metric."""

    records: tuple[RunRecord, ...]
    rows: tuple[Row, ...]
    columns: tuple[str, ...]
    metrics: frozenset[str]
    best: frozenset[tuple[int, str]]

    def cells(self) -> list[tuple[str, ...]]:
        """Returns the shown cells of each row as texts."""
        return [tuple(_text(row, column, column in self.metrics) for column in self.columns) for row in self.rows]

    def to_list(self) -> list[dict[str, Any]]:
        """Returns one JSON-ready dict per run, with all its values and its config."""
        return [_record_to_dict(record, row) for record, row in zip(self.records, self.rows, strict=True)]


def list_runs(directory: Path, *, sort: str = "time", reverse: bool = False, columns: Sequence[str] = ()) -> Listing:
    """Returns a table of the runs at or below `directory`.

    `sort` is a column, a metric such as `test_f1` (best value first), or a config key; runs without a value come last.
    `columns` adds metrics or config keys to the default columns. Raises ConfigError for a column that no run has."""
    records = [read_record(run) for run in find_runs(directory)]
    values = [_metric_values(record) for record in records]
    metrics = _sort_metrics({name for row in values for name in row})
    rows = [{**_row(record, directory), **row} for record, row in zip(records, values, strict=True)]
    if records:
        for option, name in [("--columns", name) for name in columns] + [("--sort", sort)]:
            _check_column(option, name, rows, metrics)
    lower = {name: _lower_is_better(name, rows) for name in metrics}
    missing = [pair for pair in zip(rows, records, strict=True) if pair[0].get(sort) is None]
    present = [pair for pair in zip(rows, records, strict=True) if pair[0].get(sort) is not None]
    present.sort(key=lambda pair: _rank(pair[0][sort], sort in metrics and not lower[sort]), reverse=reverse)
    ordered = [*present, *missing]
    rows, records = [row for row, _ in ordered], [record for _, record in ordered]
    shown = tuple(dict.fromkeys([*_default_columns(metrics), *columns, sort]))
    best = frozenset(
        cell
        for column in shown
        if lower.get(column) is not None
        for cell in _best_cells(column, rows, min if lower[column] else max)
    )
    return Listing(tuple(records), tuple(rows), shown, frozenset(metrics), best)


def find_runs(directory: Path) -> list[Run]:
    """Returns every run at or below `directory`, sorted by path.

    Directories inside a run are not searched. A run that symbolic links also lead to is returned once."""
    runs: list[Run] = []
    seen: set[Path] = set()

    def search(folder: Path) -> None:
        real = folder.resolve()
        if real in seen:
            return
        seen.add(real)
        run = Run(folder)
        # one of the files may be missing, but a config.yaml alone does not make a run
        if sum(file.is_file() for file in (run.config, run.data, run.environment)) >= 2:
            runs.append(run)
            return
        for entry in sorted(_entries(folder), key=lambda entry: (entry.is_symlink(), entry.name)):
            if not entry.name.startswith(".") and _is_folder(entry):
                search(Path(entry.path))

    search(directory)
    return sorted(runs, key=lambda run: run.path)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:  # it does not exist or may not be read
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


def _metric_values(record: RunRecord) -> dict[str, float]:
    best = {} if record.best is None else {f"best_{record.monitor}": record.best[0]}
    final = {f"{split}_{name}": value for split, values in record.metrics.items() for name, value in values.items()}
    return final | best


def _sort_metrics(names: Iterable[str]) -> list[str]:
    """Sorts metrics by split: the monitored one first, then train, val, test and others."""
    splits = ("best", "train", "val", "test")

    def position(name: str) -> tuple[int, str]:
        split = name.partition("_")[0]
        return (splits.index(split) if split in splits else len(splits), name)

    return sorted(names, key=position)


def _default_columns(metrics: Sequence[str]) -> list[str]:
    """Returns the default columns: the monitored metrics, and accuracy or else loss of the test split.

    If no run has metrics of a test split, those of the other splits are shown."""
    monitored = [name for name in metrics if name.startswith("best_")]
    final = [name for name in metrics if name not in monitored]
    final = [name for name in final if name.startswith("test_")] or final
    accuracies = [name for name in final if name.endswith("_accuracy")]
    shown = accuracies or [name for name in final if name.endswith("_loss")]
    return ["name", "time", "state", "epochs", *monitored, *shown, "network", "data"]


def _check_column(option: str, name: str, rows: Sequence[Row], metrics: Sequence[str]) -> None:
    keys = {key for row in rows for key in row} - {"max_epochs"}
    if name in keys or name in OWN:
        return
    below = [key for key in sorted(keys) if key.startswith((f"{name}.", f"{name}["))]
    if below:
        raise ConfigError(f"{option}: '{name}' is a group of keys. Expected one of: {join_names(below)}.")
    raise ConfigError(
        f"{option}: no run has the column '{name}'.{did_you_mean(name, keys)} Expected one "
        f"of: {join_names((*OWN, *metrics))}, or a config key, such as module.optimizer.lr."
    )


def _lower_is_better(name: str, rows: Sequence[Row]) -> bool | None:
    """Returns whether lower values of a column's metric are better, or None if unknown.

    For a monitored metric, the `monitor_mode` of a run that has it comes first."""
    modes = {row.get("module.monitor_mode") for row in rows if name in row} if name.startswith("best_") else set()
    return lower_is_better(name, next((mode for mode in ("min", "max") if mode in modes), "auto"))


def _rank(value: Any, best_is_high: bool) -> tuple[int, Any]:
    """Returns a sort key that puts numbers before texts."""
    if is_number(value):
        return (0, -value if best_is_high else value)
    return (1, value if isinstance(value, str) else format_value(value))


def _best_cells(column: str, rows: Sequence[Row], choose: Any) -> list[tuple[int, str]]:
    values = [(position, row[column]) for position, row in enumerate(rows) if column in row]
    if len({value for _, value in values}) < 2:  # equal values are not marked
        return []
    best = choose(value for _, value in values)
    return [(position, column) for position, value in values if value == best]


def format_time(began: float | None) -> str:
    """Returns a Unix time as local time, such as `2026-11-20 16:41`; an empty text for None."""
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
    """Returns a string unchanged, and any other value as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _record_to_dict(record: RunRecord, row: Row) -> dict[str, Any]:
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
