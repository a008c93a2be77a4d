"""Run: one directory, and the only module that knows what is in it by name."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sightline.errors import ArtifactError, ConfigError, nearest
from sightline.files import expanded, read_json, write_json, write_text
from sightline.yamlfile import dump_yaml


class Run:
    """A run's directory and the files in it. `Run.create` makes a new one, `Run.open` finds one that is there."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.data = path / "data.json"
        self.log = path / "log.jsonl"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.best = self.checkpoints / "best.ckpt"
        self.exported = path / "exported"

    def predictions(self, split: str) -> Path:
        """The per-sample table of a split."""
        return self.path / "predictions" / f"{split}.csv"

    @classmethod
    def create(cls, parent: str | Path, name: str | None, default: str) -> Run:
        """A new directory `parent`/`name`; without a name, `default` and the time. ConfigError when it exists."""
        parent = expanded(parent)
        try:
            return cls._create(parent, name, default)
        except OSError as error:
            raise ConfigError(f"run.dir: cannot make a directory in '{parent}': {error.strerror}.") from error

    @classmethod
    def _create(cls, parent: Path, name: str | None, default: str) -> Run:
        if name is not None:
            path = check_free(parent, name)
            path.mkdir(parents=True)
            return cls(path)
        stem = f"{default}-{time.strftime('%Y%m%d-%H%M%S')}"
        for suffix in ("", *(f"-{i}" for i in range(2, 1000))):  # other runs may start in the same second
            try:
                (path := parent / f"{stem}{suffix}").mkdir(parents=True)
            except FileExistsError:
                continue
            return cls(path)
        raise ConfigError(f"run.dir: no free name for a run in '{parent}'.")

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """The run at `path`; raises ArtifactError when there is none."""
        run = cls(Path(path))
        if not run.path.is_dir():
            siblings = [entry.name for entry in run.path.parent.iterdir()] if run.path.parent.is_dir() else []
            raise ArtifactError(f"there is no run '{path}'.{nearest(run.path.name, siblings)}")
        if not run.config.is_file():
            raise ArtifactError(f"'{path}' is no run: it has no {run.config.name}.")
        return run

    def write_config(self, config: Mapping[str, Any]) -> None:
        """The resolved config, in the schema's order."""
        write_text(self.config, dump_yaml(config))

    def write_json(self, path: Path, value: Any) -> None:
        """One of the run's JSON files, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)

    def read_given(self) -> list[str]:
        """The names of the parts that were handed over in Python when the run began."""
        try:
            return list(read_json(self.environment).get("given", ()))
        except (OSError, ValueError, AttributeError):
            return []

    def read_data(self) -> dict[str, Any]:
        """What the run noted about its data."""
        try:
            found: dict[str, Any] = read_json(self.data)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"'{self.data}' cannot be read: {error}.") from error
        return found


def check_place(parent: str | Path) -> None:
    """Raises ConfigError when no run can be made in `parent`: better told now than after an hour of decoding."""
    path = expanded(parent).absolute()
    there = next(place for place in (path, *path.parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        kind = "cannot be written to" if there.is_dir() else "is a file"
        raise ConfigError(f"run.dir: no run can be made in '{parent}': '{there}' {kind}.")


def check_free(parent: str | Path, name: str) -> Path:
    """The path of a run that does not exist yet; raises ConfigError when it does."""
    path = expanded(parent) / name
    if not name or name in (".", "..") or "/" in name or "\\" in name:
        raise ConfigError(f"run.name: {name!r} is no name of a directory; the directory it is in is run.dir.")
    if path.exists():
        raise ConfigError(
            f"run.name: '{path}' exists, and a run is never written over. Choose another run.name, "
            f"or go on with it: sightline resume {path}"
        )
    return path
