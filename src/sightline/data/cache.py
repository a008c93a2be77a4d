"""The cache directory: finished entries, each whole or not there, and one builder at a time for each.

An entry is a directory `<key>` with a `meta.json` that was written last. It is built beside its place under a lock that
ends with the process, then renamed. What a killed builder left is removed by the next one."""

from __future__ import annotations

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

from sightline.files import beside, expanded, locked, read_json, write_json

META = "meta.json"
GIB = 2**30
_KEY = re.compile(r"[0-9a-f]{32}")
_BUILDING = re.compile(r"\.[0-9a-f]{32}\.[0-9a-f]{16}")


@dataclass(frozen=True)
class Entry:
    """One packed data set: where, what (`meta`), its size in bytes, and when it was last used (seconds since 1970)."""

    path: Path
    meta: Mapping[str, Any]
    size: int
    used: float


class Cache:
    """Packed data sets in `folder` (by default `$SIGHTLINE_CACHE`, else the user's cache directory), together at most
    `limit` bytes: when a new one is made, those unused for longest go. `note` is told what takes long."""

    def __init__(
        self,
        folder: str | Path | None = None,
        limit: float = 50 * GIB,
        note: Callable[[str], None] = lambda _: None,
    ):
        given = folder or os.environ.get("SIGHTLINE_CACHE")
        self.folder = expanded(given) if given else user_cache_path("sightline", appauthor=False) / "packed"
        self.limit = limit
        self.note = note

    def find(self, key: str) -> Entry | None:
        """The entry of that key, marked as used now; None when there is none."""
        entry = _entry(self.folder / key)
        if entry is not None:
            with suppress(OSError):  # a cache that may only be read is as good
                os.utime(entry.path / META)
        return entry

    @contextmanager
    def building(self, key: str) -> Iterator[Path | None]:
        """An empty directory to build the entry in, which becomes the entry when the block ends well; None when
        another process has finished it meanwhile. Raises OSError when the cache cannot be written."""
        with self._alone(key):
            if _entry(self.folder / key) is not None:
                yield None
                return
            for leftover in self.folder.glob(f".{key}.*"):
                shutil.rmtree(leftover, ignore_errors=True)
            aside = beside(self.folder / key)
            aside.mkdir()
            try:
                yield aside
                shutil.rmtree(self.folder / key, ignore_errors=True)  # one without its meta.json, or a damaged one
                aside.rename(self.folder / key)
            except BaseException:
                shutil.rmtree(aside, ignore_errors=True)
                raise
        with suppress(OSError):  # the entry is there, whoever owns the others
            self.trim(keep=key)

    def holds(self, origin: str) -> bool:
        """Whether any entry was made from this place; likely, then, that the one that is wanted is there."""
        with suppress(OSError):
            return any(entry.meta.get("origin") == origin for entry in self.entries())
        return False

    def forget(self, entry: Entry) -> None:
        """Makes a damaged entry invisible; the next one to look builds it anew, or clears it away."""
        with suppress(OSError):
            (entry.path / META).unlink()

    def entries(self) -> list[Entry]:
        """All of them, the one used last first."""
        found = [entry for path in self._named(_KEY) if (entry := _entry(path)) is not None]
        return sorted(found, key=lambda entry: -entry.used)

    def remove(self, entry: Entry) -> None:
        """Deletes an entry. Whoever reads from it goes on doing so: its files live until they are closed."""
        self.forget(entry)
        shutil.rmtree(entry.path, ignore_errors=True)

    def clear(self) -> int:
        """Deletes every entry and what killed builders left; the number of bytes that are free for it. What another
        process is building now stays."""
        freed = 0
        for entry in self.entries():
            freed += entry.size
            self.remove(entry)
        return freed + self._sweep()

    def trim(self, keep: str = "") -> int:
        """Deletes what was unused for longest until all fits the limit; the entry `keep` stays. The bytes freed."""
        swept = self._sweep()
        entries = self.entries()
        before = total = sum(entry.size for entry in entries)
        for entry in reversed(entries):
            if total <= self.limit:
                break
            if entry.path.name != keep:
                self.remove(entry)
                total -= entry.size
        return before - total + swept

    def _named(self, pattern: re.Pattern[str]) -> list[Path]:
        """The directories whose names are of our making; whatever else is there is not ours to touch."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return [path for path in found if pattern.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]

    def _sweep(self) -> int:
        """Deletes what killed builders left and entries that are damaged; the bytes freed."""
        freed = 0
        ruins = [path for path in self._named(_KEY) if _entry(path) is None]
        for path in [*self._named(_BUILDING), *ruins]:
            with locked(self._lock(path.name.lstrip(".")[:32])) as mine:
                if mine and (path.name.startswith(".") or _entry(path) is None):
                    freed += _size(path)
                    shutil.rmtree(path, ignore_errors=True)
        return freed

    def _lock(self, key: str) -> Path:
        """The entry's lock file. It is never deleted: another process may be waiting for it."""
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / key).touch()
        return folder / key

    @contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """Waits until no other process builds the same entry."""
        lock, told = self._lock(key), False
        while True:
            with locked(lock) as mine:
                if mine:
                    yield
                    return
            if not told:
                self.note("waiting for another process that is decoding the same data")
                told = True
            time.sleep(0.1)


def finish(folder: Path, meta: Mapping[str, Any]) -> None:
    """Writes the file that makes a directory an entry: `meta`, which is plain JSON, and its checksum."""
    write_json(folder / META, {**meta, "sum": _sum(meta)})


def reserve(path: Path, size: int) -> None:
    """Makes a file of `size` bytes that are really there: a full disk is an OSError now, not a bus error later."""
    with path.open("xb") as file:
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def _entry(path: Path) -> Entry | None:
    file = path / META
    try:
        meta = read_json(file)
        if isinstance(meta, dict) and meta.pop("sum", None) == _sum(meta):
            return Entry(path, meta, _size(path), file.stat().st_mtime)
    except (OSError, ValueError):
        pass
    return None


def _sum(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(meta), sort_keys=True).encode()).hexdigest()


def _size(folder: Path) -> int:
    found = 0
    for file in folder.iterdir():
        with suppress(OSError):  # another process may be deleting it
            found += file.stat().st_size if file.is_file() else 0
    return found
