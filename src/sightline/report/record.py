"""Reads the files of a run, as far as they are readable, into a `RunRecord`. Does not import torch."""

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
    """The content of a run's files.

    Files that cannot be read are empty here, and `problems` has a message for each. `epochs` are the log rows that end
    an epoch, `steps` is the last logged step, `manifest` is empty before the export."""

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
        """`damaged` if a file cannot be read; `finished` if the model was exported and measured for the `max_epochs` in
        the config; otherwise `unfinished`."""
        if self.problems:
            return "damaged"
        # a run may be resumed with more epochs than it was exported with
        exported = get_at_path(self.manifest, "provenance", "config", "trainer", "max_epochs")
        return "finished" if self.metrics and exported == self.max_epochs else "unfinished"

    @property
    def epoch(self) -> int:
        """The number of complete epochs."""
        return int(self.epochs[-1]["epoch"]) + 1 if self.epochs else 0

    @property
    def max_epochs(self) -> int | None:
        """The number of epochs that the config asks for; None if unknown."""
        value = get_at_path(self.config, "trainer", "max_epochs")
        return value if isinstance(value, int) else None

    @property
    def monitor(self) -> str | None:
        """The metric that determines the best epoch."""
        value = get_at_path(self.config, "module", "monitor")
        return value if isinstance(value, str) else None

    @property
    def best(self) -> tuple[float, int] | None:
        """The best value of the monitored metric so far and its epoch, counted from 0.

        None if the metric was not measured, or if it is not known whether lower values are better."""
        monitor = self.monitor
        if monitor is None:
            return None
        rows = [(row[monitor], row["epoch"]) for row in self.epochs if is_number(row.get(monitor))]
        if not rows:
            return None
        lower = lower_is_better(monitor, get_at_path(self.config, "module", "monitor_mode"))
        if lower is None:  # only in runs of earlier versions, which took it for better when higher
            return None
        sign = 1 if lower else -1
        return min(rows, key=lambda row: sign * row[0])  # the earliest of equal values, as for best.ckpt

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The finite metrics of the exported model, by split and name."""
        metrics = self.manifest.get("metrics")
        splits = metrics.items() if isinstance(metrics, Mapping) else ()
        return {
            split: {name: value for name, value in values.items() if is_number(value)}
            for split, values in splits
            if isinstance(values, Mapping)
        }

    @property
    def began(self) -> float | None:
        """The Unix time at which the run was created, or None if unknown.

        For runs of earlier versions, which did not record it, it is taken from the name of the directory. Times of
        files are not used, since copying changes them."""
        with suppress(KeyError, TypeError, ValueError):
            return datetime.fromisoformat(self.environment["began"]).timestamp()
        match = re.search(r"-(\d{8}-\d{6})(?:-\d+)?$", self.run.path.name)
        with suppress(ValueError, OverflowError):
            return time.mktime(time.strptime(match[1], "%Y%m%d-%H%M%S")) if match else None
        return None

    @property
    def network(self) -> str:
        """A short name of the network, such as `resnet18` or `5 layers`; empty if unknown."""
        node = get_at_path(self.config, "module", "network")
        passed = self.environment.get("given")
        if isinstance(passed, list) and "model" in passed:
            node = get_at_path(self.manifest, "model", "network", "object") or "passed in Python"
        if isinstance(node, Mapping):
            if isinstance(node.get("layers"), list):
                return f"{len(node['layers'])} layers"
            # timm.create_model and torchvision.models.get_model take the network's name as an argument
            named = next((node[key] for key in ("model_name", "name") if isinstance(node.get(key), str)), None)
            node = named or node.get("_target_") or node.get("class")
        return "" if node is None else str(node).rpartition(".")[2]

    @property
    def data_name(self) -> str:
        """The name of the data; empty if unknown."""
        return str(self.data.get("name") or "")


def read_record(run: Run) -> RunRecord:
    """Reads the files of a run. Never raises for a damaged file; its message is added to `problems` instead."""
    problems: list[str] = []

    def attempt(read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            return read()
        except SightlineError as error:
            problems.append(" ".join(str(error).split()))  # YAML errors have several lines
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
    """Returns whether `value` is a finite int or float, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def lower_is_better(metric: str, mode: Any = "auto") -> bool | None:
    """Returns whether lower values of a metric are better.

    This is decided by `mode` if it is `min` or `max`, otherwise by the name of the metric; None if unknown."""
    direction = mode if mode in ("min", "max") else metric_mode(metric)
    return None if direction is None else direction == "min"


def recorded_config(path: Path) -> dict[str, Any]:
    """Returns the config of a run from its config.yaml; a missing `data.preprocess.crop_pct` is added as None.

    Raises ArtifactError if the file does not exist, ConfigError if it is not valid YAML."""
    if not path.is_file():  # the message of read_yaml would suggest writing a new config
        raise ArtifactError(f"'{path}' is missing.")
    config = read_yaml(path)
    preprocess = get_at_path(config, "data", "preprocess")
    if isinstance(preprocess, dict):
        preprocess.setdefault("crop_pct", None)
    return config


def _object(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"'{path}' is missing.") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"'{path}' cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"'{path}' is damaged: expected an object, found {type(content).__name__}.")
    return content


def _log(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """Returns the valid rows of a log and adds a message for invalid ones to `problems`.

    An incomplete last line, which a killed process may have written, is ignored. Resuming removes it."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:  # it is created at the first log point
        return []
    except OSError as error:
        problems.append(f"'{path}' cannot be read: {error}.")
        return []
    rows: list[dict[str, Any]] = []
    invalid: list[int] = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = parse_json(line.decode())
        except ValueError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
        else:
            invalid.append(number)
    if invalid:
        more = f" (and {len(invalid) - 1} more)" if len(invalid) > 1 else ""
        problems.append(f"'{path}', line {invalid[0]}{more}: expected a JSON object with 'step'.")
    return rows
