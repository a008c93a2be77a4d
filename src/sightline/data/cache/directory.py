"""The cache directory: finished entries, each whole or not there, and one builder at a time for each.

An entry is a directory `<key>` with a `meta.json` that was written last. It is built beside its place under a lock that
ends with the process, then renamed. What a killed builder left is removed by the next one."""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from sightline.core.files import expand_user, locked, read_json, temporary_sibling, write_json

META_FILENAME = "meta.json"
GIB = 2**30
_KEY_PATTERN = re.compile(r"[0-9a-f]{32}")
_STAGING_PATTERN = re.compile(r"\.[0-9a-f]{32}\.[0-9a-f]{16}")


@dataclass(frozen=True)
class CacheEntry:
    """One packed data set: where, what (`meta`), its size in bytes, and when it was last used (seconds since 1970)."""

    path: Path
    meta: Mapping[str, Any]
    size: int
    last_used: float


class Cache:
    """Packed data sets in `folder` (by default `$SIGHTLINE_CACHE`, else the user's cache directory), together at most
    `limit` bytes: when a new one is made, those unused for longest go. `note` is told what takes long."""

    def __init__(
        self, folder: str | Path | None = None, limit: float = 50 * GIB, note: Callable[[str], None] = lambda _: None
    ):
        given = folder or os.environ.get("SIGHTLINE_CACHE")
        self.folder = expand_user(given) if given else user_cache_path("sightline", appauthor=False) / "packed"
        self.limit = limit
        self.note = note

    def find(self, key: str) -> CacheEntry | None:
        """The entry of that key, marked as used now; None when there is none."""
        entry = _read_entry(self.folder / key)
        if entry is not None:
            with suppress(OSError):  # a cache that may only be read is as good
                os.utime(entry.path / META_FILENAME)
        return entry

    @contextmanager
    def build(self, key: str) -> Iterator[Path | None]:
        """An empty directory to build the entry in, which becomes the entry when the block ends well; None when
        another process has finished it meanwhile. Raises OSError when the cache cannot be written."""
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
                shutil.rmtree(self.folder / key, ignore_errors=True)  # one without its meta.json, or a damaged one
                staging.rename(self.folder / key)
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise
        with suppress(OSError):  # the entry is there, whoever owns the others
            self.trim(keep=key)

    def has_entry_from(self, origin: str) -> bool:
        """Whether any entry was made from this place; likely, then, that the one that is wanted is there."""
        with suppress(OSError):
            return any(entry.meta.get("origin") == origin for entry in self.entries())
        return False

    def invalidate(self, entry: CacheEntry) -> None:
        """Makes a damaged entry invisible; the next one to look builds it anew, or clears it away."""
        with suppress(OSError):
            (entry.path / META_FILENAME).unlink()

    def entries(self) -> list[CacheEntry]:
        """All of them, the one used last first."""
        found = [entry for path in self._matching_directories(_KEY_PATTERN) if (entry := _read_entry(path)) is not None]
        return sorted(found, key=lambda entry: -entry.last_used)

    def remove(self, entry: CacheEntry) -> None:
        """Deletes an entry. Whoever reads from it goes on doing so: its files live until they are closed."""
        self.invalidate(entry)
        shutil.rmtree(entry.path, ignore_errors=True)

    def clear(self) -> int:
        """Deletes every entry and what killed builders left; the number of bytes that are free for it. What another
        process is building now stays."""
        freed = 0
        for entry in self.entries():
            freed += entry.size
            self.remove(entry)
        return freed + self._remove_leftovers()

    def trim(self, keep: str = "") -> int:
        """Deletes what was unused for longest until all fits the limit; the entry `keep` stays. The bytes freed."""
        swept = self._remove_leftovers()
        entries = self.entries()
        before = total = sum(entry.size for entry in entries)
        for entry in reversed(entries):
            if total <= self.limit:
                break
            if entry.path.name != keep:
                self.remove(entry)
                total -= entry.size
        return before - total + swept

    def _matching_directories(self, pattern: re.Pattern[str]) -> list[Path]:
        """The directories whose names are of our making; whatever else is there is not ours to touch."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return [path for path in found if pattern.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]

    def _remove_leftovers(self) -> int:
        """Deletes what killed builders left and entries that are damaged; the bytes freed."""
        freed = 0
        damaged = [path for path in self._matching_directories(_KEY_PATTERN) if _read_entry(path) is None]
        for path in [*self._matching_directories(_STAGING_PATTERN), *damaged]:
            with locked(self._lock_path(path.name.lstrip(".")[:32])) as mine:
                if mine and (path.name.startswith(".") or _read_entry(path) is None):
                    freed += _folder_size(path)
                    shutil.rmtree(path, ignore_errors=True)
        return freed

    def _lock_path(self, key: str) -> Path:
        """The entry's lock file. It is never deleted: another process may be waiting for it."""
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / key).touch()
        return folder / key

    @contextmanager
    def _build_lock(self, key: str) -> Iterator[None]:
        """Waits until no other process builds the same entry."""
        lock, notified = self._lock_path(key), False
        while True:
            with locked(lock) as mine:
                if mine:
                    yield
                    return
            if not notified:
                self.note("waiting for another process that is decoding the same data")
                notified = True
            time.sleep(0.1)


def commit_entry(folder: Path, meta: Mapping[str, Any]) -> None:
    """Writes the file that makes a directory an entry: `meta`, which is plain JSON, and its checksum."""
    write_json(folder / META_FILENAME, {**meta, "sum": _checksum(meta)})


def preallocate(path: Path, size: int) -> None:
    """Makes a file of `size` bytes that are really there: a full disk is an OSError now, not a bus error later."""
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
    found = 0
    for file in folder.iterdir():
        with suppress(OSError):  # another process may be deleting it
            found += file.stat().st_size if file.is_file() else 0
    return found
