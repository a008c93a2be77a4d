"""The cache directory: complete entries, each built by one process at a time.

An entry is a directory `<key>` whose `meta.json` is written last. It is built in a temporary directory beside it, under
a lock that ends with the process, and then renamed. The remains of a killed build are removed by the next one."""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from sightline.core.files import expand_user, locked, read_json, temporary_sibling, write_json
from sightline.core.log import logger

META_FILENAME = "meta.json"
GIB = 2**30
_KEY_PATTERN = re.compile(r"[0-9a-f]{32}")
_STAGING_PATTERN = re.compile(r"\.[0-9a-f]{32}\.[0-9a-f]{16}")


@dataclass(frozen=True)
class CacheEntry:
    """One packed dataset: its directory, its `meta`, its size in bytes and its last use (seconds since 1970)."""

    path: Path
    meta: Mapping[str, Any]
    size: int
    last_used: float


class Cache:
    """A directory of packed datasets with a limited total size.

    `folder` is by default `$SIGHTLINE_CACHE`, or else the user's cache directory. When a new entry makes the total
    exceed `limit` bytes, the least recently used entries are deleted."""

    def __init__(self, folder: str | Path | None = None, limit: float = 50 * GIB):
        path = folder or os.environ.get("SIGHTLINE_CACHE")
        self.folder = expand_user(path) if path else user_cache_path("sightline", appauthor=False) / "packed"
        self.limit = limit

    def find(self, key: str) -> CacheEntry | None:
        """Returns the entry of that key and marks it as used now; None if there is no valid one."""
        entry = _read_entry(self.folder / key)
        if entry is not None:
            with suppress(OSError):  # the cache may be read-only
                os.utime(entry.path / META_FILENAME)
        return entry

    @contextmanager
    def build(self, key: str) -> Iterator[Path | None]:
        """Yields an empty directory, which becomes the entry when the block ends without an exception.

        Yields None if another process has built the entry in the meantime. Raises OSError if the cache cannot be
        written."""
        with self._build_lock(key):
            if _read_entry(self.folder / key) is not None:
                yield None
                return
            for leftover in self.folder.glob(f".{key}.*"):
                shutil.rmtree(leftover, ignore_errors=True)
            staging = temporary_sibling(self.folder / key)
            staging.mkdir()
            try:
                yield staging
                shutil.rmtree(self.folder / key, ignore_errors=True)  # an entry whose meta.json is missing or damaged
                staging.rename(self.folder / key)
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise
        with suppress(OSError):  # the new entry is valid even if others cannot be deleted
            self.trim(keep=key)

    def has_entry_from(self, origin: str) -> bool:
        """Whether any entry was made from this source. The requested entry then probably exists as well."""
        with suppress(OSError):
            return any(entry.meta.get("origin") == origin for entry in self.entries())
        return False

    def invalidate(self, entry: CacheEntry) -> None:
        """Removes the `meta.json` of a damaged entry, so that the entry is no longer found and is built again."""
        with suppress(OSError):
            (entry.path / META_FILENAME).unlink()

    def entries(self) -> list[CacheEntry]:
        """Returns all valid entries, the most recently used first."""
        valid = [entry for path in self._matching_directories(_KEY_PATTERN) if (entry := _read_entry(path)) is not None]
        return sorted(valid, key=lambda entry: -entry.last_used)

    def remove(self, entry: CacheEntry) -> None:
        """Deletes an entry. Processes that have its files open can still read them."""
        self.invalidate(entry)
        shutil.rmtree(entry.path, ignore_errors=True)

    def clear(self) -> int:
        """Deletes all entries and the remains of killed builds; returns the number of bytes freed. Entries that another
        process is building are kept."""
        freed = 0
        for entry in self.entries():
            freed += entry.size
            self.remove(entry)
        return freed + self._remove_leftovers()

    def trim(self, keep: str = "") -> int:
        """Deletes the least recently used entries, but not the entry `keep`, until the total is within the limit, and
        the remains of killed builds. Returns the number of bytes freed."""
        freed_leftovers = self._remove_leftovers()
        entries = self.entries()
        before = total = sum(entry.size for entry in entries)
        for entry in reversed(entries):
            if total <= self.limit:
                break
            if entry.path.name != keep:
                self.remove(entry)
                total -= entry.size
        return before - total + freed_leftovers

    def _matching_directories(self, pattern: re.Pattern[str]) -> list[Path]:
        """Returns the directories whose names match `pattern`. Other files in the folder must not be touched."""
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        return [path for path in paths if pattern.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]

    def _remove_leftovers(self) -> int:
        """Deletes the remains of killed builds and damaged entries; returns the number of bytes freed."""
        freed = 0
        damaged = [path for path in self._matching_directories(_KEY_PATTERN) if _read_entry(path) is None]
        for path in [*self._matching_directories(_STAGING_PATTERN), *damaged]:
            with locked(self._lock_path(path.name.lstrip(".")[:32])) as acquired:
                if acquired and (path.name.startswith(".") or _read_entry(path) is None):
                    freed += _folder_size(path)
                    shutil.rmtree(path, ignore_errors=True)
        return freed

    def _lock_path(self, key: str) -> Path:
        """Returns the entry's lock file, which is created if missing. It is never deleted, since another process may be
        waiting for it."""
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / key).touch()
        return folder / key

    @contextmanager
    def _build_lock(self, key: str) -> Iterator[None]:
        """Waits until no other process builds the same entry, and holds its lock for the block."""
        lock, notified = self._lock_path(key), False
        while True:
            with locked(lock) as acquired:
                if acquired:
                    yield
                    return
            if not notified:
                logger.info("Waiting for another process that is decoding the same data.")
                notified = True
            time.sleep(0.1)


def commit_entry(folder: Path, meta: Mapping[str, Any]) -> None:
    """Writes `meta.json`, which makes a directory a valid entry: `meta` (JSON values) and its checksum."""
    write_json(folder / META_FILENAME, {**meta, "sum": _checksum(meta)})


def preallocate(path: Path, size: int) -> None:
    """Creates a file of `size` bytes and reserves its disk space, so that a full disk raises OSError now instead of a
    bus error later."""
    with path.open("xb") as file:
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def _read_entry(path: Path) -> CacheEntry | None:
    file = path / META_FILENAME
    try:
        meta = read_json(file)
        if isinstance(meta, dict) and meta.pop("sum", None) == _checksum(meta):
            return CacheEntry(path, meta, _folder_size(path), file.stat().st_mtime)
    except (OSError, ValueError):
        pass
    return None


def _checksum(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(meta), sort_keys=True).encode()).hexdigest()


def _folder_size(folder: Path) -> int:
    size = 0
    for file in folder.iterdir():
        with suppress(OSError):  # another process may be deleting it
            size += file.stat().st_size if file.is_file() else 0
    return size
