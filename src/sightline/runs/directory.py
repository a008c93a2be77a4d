"""Run: one directory, and the only module that knows the names of the files in it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sightline.errors import ArtifactError, ConfigError, nearest
from sightline.files import read_json, write_json, write_text
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
        if name is not None:
            path = check_free(parent, name)
            path.mkdir(parents=True)
            return cls(path)
        stem = f"{default}-{time.strftime('%Y%m%d-%H%M%S')}"
        for suffix in ("", *(f"-{i}" for i in range(2, 1000))):  # other runs may start in the same second
            try:
                (path := Path(parent) / f"{stem}{suffix}").mkdir(parents=True)
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

    def read_data(self) -> dict[str, Any]:
        """What the run noted about its data."""
        try:
            found: dict[str, Any] = read_json(self.data)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"'{self.data}' cannot be read: {error}.") from error
        return found


def check_free(parent: str | Path, name: str) -> Path:
    """The path of a run that does not exist yet; raises ConfigError when it does."""
    path = Path(parent) / name
    if path.exists():
        raise ConfigError(
            f"run.name: '{path}' exists, and a run is never written over. Choose another run.name, "
            f"or go on with it: sightline resume {path}"
        )
    return path
