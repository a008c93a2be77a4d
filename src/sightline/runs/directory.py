"""Run: one directory, and the only module that knows what is in it by name."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from sightline.core.errors import ArtifactError, ConfigError, arg, did_you_mean
from sightline.core.files import (
    expand_user,
    lock_if_free,
    locked,
    read_json,
    stale_temporaries,
    temporary_sibling,
    write_json,
    write_text,
)
from sightline.core.yamlfile import dump_yaml


class Run:
    """A run's directory and the files in it. `Run.create` makes a new one, `Run.open` finds one that is there."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.yaml"
        self.unresolved = path / "config-unresolved.yaml"
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
    def create(
        cls,
        parent: str | Path,
        name: str | None,
        default: str,
        fill: Callable[[Run], None] = lambda run: None,
        lock: ExitStack | None = None,
    ) -> Run:
        """A new directory `parent`/`name`; without a name, `default` and the time. ConfigError when it exists.

        `fill` writes its first files, into a directory that has another name until then: what is killed in between
        leaves no half of a run, and what it does leave is cleared away by the next one. The run is `locked` from its
        beginning on, where a `lock` is given until that ends."""
        parent = expand_user(parent)
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _sweep_unnamed(parent)
            with ExitStack() as held:
                aside = _unnamed(parent, held)
                try:
                    fill(cls(aside))
                    run = cls(_moved(aside, parent, name, default))
                except BaseException:
                    shutil.rmtree(aside, ignore_errors=True)
                    raise
                if lock is not None:
                    lock.enter_context(held.pop_all())
                return run
        except OSError as error:
            raise ConfigError(f"{arg.directory}: cannot make a directory in '{parent}': {error.strerror}.") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps every other process from training this run, until the block or the process ends, however it ends.
        Raises ArtifactError when another one is at it."""
        with locked(self.path) as mine:
            if not mine:
                raise ArtifactError(f"'{self.path}' is being trained by another process.")
            yield

    def sweep(self) -> None:
        """Removes the parts of files that a kill in the middle of writing them left. Only for who holds the lock; what
        `sightline evaluate`, which needs none, is writing stays."""
        own = {
            self.path: ("*.yaml", "*.json", "log.jsonl", "*.csv.gz"),
            self.exported: ("*.json",),
            self.predictions("").parent: ("*.csv",),
        }
        for left in [
            left for folder, names in own.items() for name in names for left in stale_temporaries(folder, name)
        ]:
            if left.is_file():
                with suppress(FileNotFoundError), lock_if_free(left) as dead:
                    if dead:
                        left.unlink()

    @property
    def id(self) -> str | None:
        """The name that this run alone has, whatever its directory is called; None for one of before there were ids."""
        try:
            found = read_json(self.environment).get("id")
        except (OSError, ValueError, AttributeError):
            return None
        return found if isinstance(found, str) else None

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """The run at `path`; raises ArtifactError when there is none."""
        run = cls(Path(path))
        if not run.path.is_dir():
            siblings = [entry.name for entry in run.path.parent.iterdir()] if run.path.parent.is_dir() else []
            raise ArtifactError(f"there is no run '{path}'.{did_you_mean(run.path.name, siblings)}")
        if not run.config.is_file():
            raise ArtifactError(f"'{path}' is no run: it has no {run.config.name}.")
        return run

    def write_config(self, config: Mapping[str, Any], unresolved: Mapping[str, Any] | None = None) -> None:
        """The resolved config, and, when the run is made, the config before that, both in the schema's order."""
        if unresolved is not None:
            write_text(self.unresolved, dump_yaml(unresolved))
        write_text(self.config, dump_yaml(config))

    def write_json(self, path: Path, value: Any) -> None:
        """One of the run's JSON files, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)

    def read_environment(self) -> dict[str, Any]:
        """What the run was made with. Raises ArtifactError when that cannot be read."""
        try:
            found = read_json(self.environment)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"'{self.environment}' is damaged, or cannot be read: {error}.") from error
        if not isinstance(found, dict):
            raise ArtifactError(f"'{self.environment}' is damaged: expected an object, found {type(found).__name__}.")
        return found

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
            whole = isinstance(found["fingerprint"], dict)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"'{self.data}' is damaged, or cannot be read: {error}.") from error
        if not whole:
            raise ArtifactError(f"'{self.data}' is damaged: its fingerprint is no object.")
        return found


def _unnamed(parent: Path, lock: ExitStack) -> Path:
    """A new directory with a hidden name, locked: one without the lock is what a killed process left. Where another
    process takes it for that before it has the lock, another one."""
    while True:
        path = temporary_sibling(parent / "run")
        path.mkdir()
        with suppress(FileNotFoundError):
            if lock.enter_context(locked(path)) and path.is_dir():
                return path


def _sweep_unnamed(parent: Path) -> None:
    """Clears away what runs left that were killed before they had a name. One that is being filled is locked."""
    for left in stale_temporaries(parent, "run"):
        if left.is_dir() and not left.is_symlink():
            with suppress(OSError), lock_if_free(left) as dead:
                if dead:
                    shutil.rmtree(left, ignore_errors=True)


def _moved(aside: Path, parent: Path, name: str | None, default: str) -> Path:
    """Gives the directory its name, where there is none of that name, or an empty one."""
    if name is not None:
        path = check_free(parent, name)
        try:
            return aside.rename(path)
        except OSError:
            check_free(parent, name)  # another run was quicker
            raise
    stem = f"{default}-{time.strftime('%Y%m%d-%H%M%S')}"
    for suffix in ("", *(f"-{i}" for i in range(2, 1000))):  # other runs may start in the same second
        path = parent / f"{stem}{suffix}"
        if path.exists():
            continue
        try:
            return aside.rename(path)
        except OSError as error:  # another run was quicker
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
    raise ConfigError(f"{arg.directory}: no free name for a run in '{parent}'.")


def check_place(parent: str | Path) -> None:
    """Raises ConfigError when no run can be made in `parent`: better told now than after an hour of decoding."""
    path = expand_user(parent).absolute()
    there = next(place for place in (path, *path.parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        kind = "cannot be written to" if there.is_dir() else "is a file"
        raise ConfigError(f"{arg.directory}: no run can be made in '{parent}': '{there}' {kind}.")


def check_free(parent: str | Path, name: str) -> Path:
    """The path of a run that does not exist yet; raises ConfigError when it does."""
    path = expand_user(parent) / name
    if not name or name in (".", "..") or "/" in name or "\\" in name:
        raise ConfigError(
            f"{arg.run_name}: {name!r} is no name of a directory; the directory it is in is {arg.directory}."
        )
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ConfigError(
            f"{arg.run_name}: '{path}' exists, and a run is never written over. Choose another {arg.run_name}, "
            f"or go on with it: sightline resume {path}"
        )
    return path
