"""`Run`: the directory of one training run and the names of the files in it."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from sightline.core.errors import ArtifactError, ConfigError, arg, did_you_mean, reason
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
    """The directory of a run, with the path of each file in it as an attribute.

    `Run.create` creates a new directory, `Run.open` opens an existing one; the constructor does not access the disk."""

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
        """Returns the path of the per-sample table of a split."""
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
        """Creates the directory `parent`/`name`; if `name` is None, the name is `default` and the current time.

        `fill` writes the first files into a hidden temporary directory, which is then renamed. A killed process
        thus creates no incomplete run, and the next call removes its temporary directory. The directory is locked while
        it is filled; if `lock` is passed, the lock is kept until that stack closes. Raises ConfigError if the run
        exists or its directory cannot be created."""
        parent = expand_user(parent)
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _remove_stale_directories(parent)
            with ExitStack() as stack:
                temporary = _create_temporary_directory(parent, stack)
                try:
                    fill(cls(temporary))
                    run = cls(_rename_to_run(temporary, parent, name, default))
                except BaseException:
                    shutil.rmtree(temporary, ignore_errors=True)
                    raise
                if lock is not None:
                    lock.enter_context(stack.pop_all())
                return run
        except OSError as error:
            raise ConfigError(f"{arg.directory}: cannot create a directory in '{parent}': {error.strerror}.") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """A context manager that locks the run, so that no other process trains it.

        The lock is released when the block or the process ends. Raises ArtifactError if another process holds it."""
        with locked(self.path) as acquired:
            if not acquired:
                raise ArtifactError(f"'{self.path}' is being trained by another process.")
            yield

    def sweep(self) -> None:
        """Removes temporary files that a killed process left. The caller must hold the run's lock.

        Files that `sightline evaluate`, which does not take this lock, is still writing are kept."""
        patterns = {
            self.path: ("*.yaml", "*.json", "log.jsonl", "*.csv.gz"),
            self.exported: ("*.json",),
            self.predictions("").parent: ("*.csv",),
        }
        stale = [
            file for folder, names in patterns.items() for name in names for file in stale_temporaries(folder, name)
        ]
        for file in stale:
            if file.is_file():
                with suppress(FileNotFoundError), lock_if_free(file) as abandoned:
                    if abandoned:
                        file.unlink()

    @property
    def id(self) -> str | None:
        """The unique id of the run, independent of its directory's name; None if it has none or cannot be read."""
        try:
            run_id = read_json(self.environment).get("id")
        except (OSError, ValueError, AttributeError):
            return None
        return run_id if isinstance(run_id, str) else None

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Returns the run at `path`. Raises ArtifactError if the directory or its config.yaml does not exist."""
        run = cls(Path(path))
        if not run.path.is_dir():
            siblings = [entry.name for entry in run.path.parent.iterdir()] if run.path.parent.is_dir() else []
            raise ArtifactError(f"there is no run '{path}'.{did_you_mean(run.path.name, siblings)}")
        if not run.config.is_file():
            raise ArtifactError(f"'{path}' is not a run directory: it has no {run.config.name}.")
        return run

    def write_config(self, config: Mapping[str, Any], unresolved: Mapping[str, Any] | None = None) -> None:
        """Writes the resolved config and, if passed, the `unresolved` one, as YAML in the order of their keys."""
        if unresolved is not None:
            write_text(self.unresolved, dump_yaml(unresolved))
        write_text(self.config, dump_yaml(config))

    def write_json(self, path: Path, value: Any) -> None:
        """Writes one of the run's JSON files atomically, creating its directory if needed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)

    def read_environment(self) -> dict[str, Any]:
        """Returns the content of environment.json. Raises ArtifactError if it cannot be read or is not an object."""
        try:
            environment = read_json(self.environment)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"'{self.environment}' is damaged or cannot be read: {error}.") from error
        if not isinstance(environment, dict):
            kind = type(environment).__name__
            raise ArtifactError(f"'{self.environment}' is damaged: expected an object, found {kind}.")
        return environment

    def read_given(self) -> list[str]:
        """Returns the names of the arguments passed as Python objects when the run was created, such as `loss`.

        The list is empty if environment.json cannot be read."""
        try:
            return list(read_json(self.environment).get("given", ()))
        except (OSError, ValueError, AttributeError):
            return []

    def read_data(self) -> dict[str, Any]:
        """Returns the content of data.json. Raises ArtifactError if it cannot be read or has no valid `fingerprint`."""
        try:
            data: dict[str, Any] = read_json(self.data)
            fingerprint = data["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"'{self.data}' is damaged or cannot be read: {reason(error)}.") from error
        if not isinstance(fingerprint, dict):
            kind = type(fingerprint).__name__
            raise ArtifactError(f"'{self.data}' is damaged: 'fingerprint': expected an object, found {kind}.")
        return data


def _create_temporary_directory(parent: Path, lock: ExitStack) -> Path:
    """Creates and locks a directory with a hidden name; one without a lock counts as left by a killed process.

    Another process may remove the directory before it is locked; then a new one is created."""
    while True:
        path = temporary_sibling(parent / "run")
        path.mkdir()
        with suppress(FileNotFoundError):
            if lock.enter_context(locked(path)) and path.is_dir():
                return path


def _remove_stale_directories(parent: Path) -> None:
    """Removes the temporary directories of killed processes; one that is being filled is locked and stays."""
    for directory in stale_temporaries(parent, "run"):
        if directory.is_dir() and not directory.is_symlink():
            with suppress(OSError), lock_if_free(directory) as abandoned:
                if abandoned:
                    shutil.rmtree(directory, ignore_errors=True)


def _rename_to_run(temporary: Path, parent: Path, name: str | None, default: str) -> Path:
    """Renames the directory to its final name, which may be that of an empty directory; returns the new path."""
    if name is not None:
        path = check_free(parent, name)
        try:
            return temporary.rename(path)
        except OSError:
            check_free(parent, name)  # another run may have taken the name just now
            raise
    stem = f"{default}-{time.strftime('%Y%m%d-%H%M%S')}"
    for suffix in ("", *(f"-{i}" for i in range(2, 1000))):  # other runs may start in the same second
        path = parent / f"{stem}{suffix}"
        if path.exists():
            continue
        try:
            return temporary.rename(path)
        except OSError as error:  # another run may have taken the name just now
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
    raise ConfigError(f"{arg.directory}: no free name for a run in '{parent}'; 999 runs '{stem}…' exist.")


def check_place(parent: str | Path) -> None:
    """Raises ConfigError if no run can be created in `parent`, for a check before the data is decoded."""
    path = expand_user(parent).absolute()
    existing = next(place for place in (path, *path.parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        problem = "is not writable" if existing.is_dir() else "is a file"
        raise ConfigError(f"{arg.directory}: cannot create a run in '{parent}': '{existing}' {problem}.")


def check_free(parent: str | Path, name: str) -> Path:
    """Returns the path `parent`/`name` of a new run.

    Raises ConfigError if `name` is not a valid directory name, or if the path exists and is not an empty directory."""
    path = expand_user(parent) / name
    if not name or name in (".", "..") or "/" in name or "\\" in name:
        raise ConfigError(
            f"{arg.run_name}: {name!r} is not a valid directory name. To set the parent directory, use {arg.directory}."
        )
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ConfigError(
            f"{arg.run_name}: '{path}' exists, and a run is never overwritten. Choose another {arg.run_name}, "
            f"or resume the run: sightline resume {path}"
        )
    return path
