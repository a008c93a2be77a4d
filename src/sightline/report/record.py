"""What a run wrote about itself, read without torch and as far as it can be read."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sightline.core.errors import ArtifactError, SightlineError
from sightline.core.files import parse_json, read_json
from sightline.core.mappings import get_at_path
from sightline.core.yamlfile import read_yaml
from sightline.inference.manifest import MANIFEST, read_manifest
from sightline.metrics.direction import metric_mode
from sightline.runs.directory import Run


@dataclass(frozen=True)
class RunRecord:
    """A run as its files tell it. What could not be read is empty, and `problems` says why. `epochs` are the rows of
    the log that end an epoch, `manifest` is empty before the export."""

    run: Run
    config: dict[str, Any]
    data: dict[str, Any]
    environment: dict[str, Any]
    manifest: dict[str, Any]
    epochs: list[dict[str, Any]]
    steps: int
    problems: tuple[str, ...]

    @property
    def state(self) -> str:
        """`finished` when what the config asks for was trained, exported and measured; else `unfinished`, or `damaged`
        when a file cannot be read."""
        if self.problems:
            return "damaged"
        exported = get_at_path(
            self.manifest, "provenance", "config", "trainer", "max_epochs"
        )  # a run may be resumed for longer
        return "finished" if self.metrics and exported == self.max_epochs else "unfinished"

    @property
    def epoch(self) -> int:
        """How many epochs were trained to their end."""
        return int(self.epochs[-1]["epoch"]) + 1 if self.epochs else 0

    @property
    def max_epochs(self) -> int | None:
        """How many there are to be."""
        found = get_at_path(self.config, "trainer", "max_epochs")
        return found if isinstance(found, int) else None

    @property
    def monitor(self) -> str | None:
        """The metric that picks the best epoch."""
        found = get_at_path(self.config, "module", "monitor")
        return found if isinstance(found, str) else None

    @property
    def best(self) -> tuple[float, int] | None:
        """(value, epoch counted from 0) of the monitored metric where it was best so far; None where it was not
        measured, or its direction is not known."""
        monitor = self.monitor
        if monitor is None:
            return None
        rows = [(row[monitor], row["epoch"]) for row in self.epochs if is_number(row.get(monitor))]
        if not rows:
            return None
        lower = lower_is_better(monitor, get_at_path(self.config, "module", "monitor_mode"))
        if lower is None:  # a run of an earlier version, which took such a metric for one that is better when higher
            return None
        sign = 1 if lower else -1
        return min(rows, key=lambda row: sign * row[0])  # on a tie the earlier one, as the checkpoint has it

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """What the exported model measured, by split."""
        found = self.manifest.get("metrics")
        splits = found.items() if isinstance(found, Mapping) else ()
        return {
            split: {name: value for name, value in values.items() if is_number(value)}
            for split, values in splits
            if isinstance(values, Mapping)
        }

    @property
    def began(self) -> float | None:
        """The Unix time at which the run was made. A run of an older version did not note it; it may have it in the
        name it was given. The times of files do not outlive a copy."""
        with suppress(KeyError, TypeError, ValueError):
            return datetime.fromisoformat(self.environment["began"]).timestamp()
        match = re.search(r"-(\d{8}-\d{6})(?:-\d+)?$", self.run.path.name)
        with suppress(ValueError, OverflowError):
            return time.mktime(time.strptime(match[1], "%Y%m%d-%H%M%S")) if match else None
        return None

    @property
    def network(self) -> str:
        """The network in a word or two."""
        node = get_at_path(self.config, "module", "network")
        given = self.environment.get("given")
        if isinstance(given, list) and "model" in given:
            node = get_at_path(self.manifest, "model", "network", "object") or "given in Python"
        if isinstance(node, Mapping):
            if isinstance(node.get("layers"), list):
                return f"{len(node['layers'])} layers"
            # a function that makes many networks is told which: timm.create_model, torchvision.models.get_model
            named = next((node[key] for key in ("model_name", "name") if isinstance(node.get(key), str)), None)
            node = named or node.get("_target_") or node.get("class")
        return "" if node is None else str(node).rpartition(".")[2]

    @property
    def data_name(self) -> str:
        """What the data is called."""
        return str(self.data.get("name") or "")


def read_record(run: Run) -> RunRecord:
    """The record of a run, as far as it can be read; what is wrong with the rest is in its `problems`."""
    problems: list[str] = []

    def attempt(read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            return read()
        except SightlineError as error:
            problems.append(" ".join(str(error).split()))  # YAML's own words come in several lines
            return {}

    config = attempt(lambda: recorded_config(run.config))
    data = attempt(lambda: _object(run.data))
    environment = attempt(lambda: _object(run.environment))
    manifest = attempt(lambda: read_manifest(run.exported) if (run.exported / MANIFEST).exists() else {})
    rows = _log(run.log, problems)
    epochs = [row for row in rows if "train_loss" in row and isinstance(row.get("epoch"), int)]
    steps = max((row["step"] for row in rows), default=0)
    return RunRecord(run, config, data, environment, manifest, epochs, steps, tuple(problems))


def is_number(value: Any) -> bool:
    """Whether a value of a record is a number that can be compared."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def lower_is_better(metric: str, mode: Any = "auto") -> bool | None:
    """Whether a metric is better when lower: by `mode`, `min` or `max`, else by its name; None where neither says."""
    found = mode if mode in ("min", "max") else metric_mode(metric)
    return None if found is None else found == "min"


def recorded_config(path: Path) -> dict[str, Any]:
    """The config that a run was made with. A run of before there was `data.preprocess.crop_pct` did without it."""
    if not path.is_file():  # read_yaml's words are for a config that was to be trained
        raise ArtifactError(f"'{path}' is missing.")
    config = read_yaml(path)
    preprocess = get_at_path(config, "data", "preprocess")
    if isinstance(preprocess, dict):
        preprocess.setdefault("crop_pct", None)
    return config


def _object(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"'{path}' is missing.") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"'{path}' cannot be read: {error}.") from error
    if not isinstance(found, dict):
        raise ArtifactError(f"'{path}' is damaged: expected an object, found a {type(found).__name__}.")
    return found


def _log(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The rows that can be read; a last line that a kill cut off is no damage, it is dropped when the run goes on."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:  # it is made at the first log point
        return []
    except OSError as error:
        problems.append(f"'{path}' cannot be read: {error}.")
        return []
    rows: list[dict[str, Any]] = []
    torn: list[int] = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = parse_json(line.decode())
        except ValueError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
        else:
            torn.append(number)
    if torn:
        more = f" (and {len(torn) - 1} more)" if len(torn) > 1 else ""
        problems.append(f"'{path}', line {torn[0]}{more}: expected a JSON object with 'step'.")
    return rows
