"""Atomic file writes, file locks, checksums and JSON, and a file that several threads read at once."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
import os
import re
import secrets
import stat
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

MAX_JSON_BYTES = 32 * 2**20
MAX_JSON_DEPTH = 100
LONGEST = 128
"""The limits of a JSON file: its size in bytes, its nesting depth, and the characters of a number in it."""


@contextmanager
def atomic_write(path: Path, before_rename: Callable[[], None] | None = None) -> Iterator[IO[bytes]]:
    """Opens a binary file for writing that replaces `path` only if the block ends without an error.

    The data goes to a temporary file in the same directory, which is synced to disk and then renamed. A reader sees the
    old file or the complete new one. After an error the old file is unchanged and the temporary file is deleted.
    `before_rename` is called when the new file is complete and the old one still exists."""
    temporary = temporary_sibling(path)
    try:
        with ExitStack() as lock:
            with temporary.open("xb") as file:
                lock.enter_context(locked(temporary))  # unlocked temporary files are treated as stale and deleted
                yield file
                file.flush()
                os.fsync(file.fileno())
            if before_rename is not None:
                before_rename()
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def expand_user(path: str | Path) -> Path:
    """Returns `path` with a leading `~` expanded; a path with an unknown user is returned unchanged."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def temporary_sibling(path: Path) -> Path:
    """Returns an unused hidden path in the same directory, to write to before renaming it to `path`.

    A file or directory created there with plain `open` or `mkdir` has the permissions that the user's umask gives; with
    `tempfile`, only its owner could read it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def stale_temporaries(directory: Path, name: str) -> list[Path]:
    """Returns the temporary files that killed processes did not delete: paths from `temporary_sibling` for a name that
    matches the `fnmatch` pattern `name`. Call it only while holding the lock that protects these files."""
    hidden = re.compile(r"\.(.+)\.[0-9a-f]{16}")
    entries = [(entry, hidden.fullmatch(entry.name)) for entry in directory.glob(".*")]
    return [entry for entry, match in entries if match is not None and fnmatch.fnmatchcase(match[1], name)]


@contextmanager
def errors_name_path(path: Path) -> Iterator[None]:
    """Adds the path to an OSError from the block. Errors from writing to an open file have no file name."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Locks a file or directory for the block; yields False if another process holds the lock.

    The system releases the lock when the process ends for any reason. If the system or the file system does not support
    locks, it yields True."""
    try:
        import fcntl
    except ImportError:
        yield True
        return
    descriptor = os.open(path, os.O_RDONLY)
    locks, close = _locks, os.close  # local names, because module globals are gone when the interpreter exits
    locks.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            acquired = True
        except BlockingIOError:
            acquired = False
        except OSError:
            acquired = True
        yield acquired
    finally:
        if descriptor in locks:  # not in a forked process, which has closed it already
            locks.discard(descriptor)
            close(descriptor)


@contextmanager
def lock_if_free(path: Path) -> Iterator[bool]:
    """Locks a file or directory for the block; yields whether no other process held the lock.

    Yields False if locks are not supported, which shows in that a second lock succeeds too."""
    with locked(path) as first, locked(path) as second:
        yield first and not second


_locks: set[int] = set()


def _drop_locks_after_fork() -> None:
    """Closes the parent's locks in a forked process: they must not outlive the parent because a worker still runs."""
    for descriptor in _locks:
        with suppress(OSError):
            os.close(descriptor)
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_locks_after_fork)


class SharedFile:
    """A file that several threads read at once. `size` is in bytes, and `token` changes when the file does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._descriptor)
        status = os.fstat(self._descriptor)
        self.size = status.st_size
        self.token = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"

    def read(self, offset: int, size: int) -> bytes:
        """Returns `size` bytes from `offset`, or fewer at the end of the file."""
        if not hasattr(os, "pread"):  # Windows
            with self.path.open("rb") as file:
                file.seek(offset)
                return file.read(size)
        data = os.pread(self._descriptor, size, offset)
        while 0 < len(data) < size and (more := os.pread(self._descriptor, size - len(data), offset + len(data))):
            data += more
        return data


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8, atomically."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically. NaN and infinities, which JSON cannot express, become null."""
    text = json.dumps(replace_non_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    if not _is_unicode(text):  # a file name that is not UTF-8; escaped, it is read back unchanged
        text = json.dumps(replace_non_finite(value), indent=2, allow_nan=False)
    write_text(path, text + "\n")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_json(path: Path) -> Any:
    """Parses a JSON file, which need not be trusted. Raises OSError if it cannot be read, and ValueError if it is not a
    regular file, is not valid JSON (see `parse_json`), or is larger than `MAX_JSON_BYTES`."""

    def without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would wait for a writer

    with open(path, "rb", opener=without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is a pipe or a device, not a file")
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"it is larger than {MAX_JSON_BYTES // 2**20} MiB")
    return parse_json(data.decode("utf-8"))


def parse_json(text: str) -> Any:
    """Parses a JSON text, with limits that protect the reader.

    Raises ValueError for invalid JSON, nesting beyond `MAX_JSON_DEPTH` levels, numbers of more than `LONGEST`
    characters or too large for a float, NaN, and duplicate keys."""
    try:
        value = json.loads(
            text, parse_int=_integer, parse_float=_real, parse_constant=_real, object_pairs_hook=_reject_duplicate_keys
        )
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_JSON_DEPTH} levels") from None
    level = [value]
    for _ in range(MAX_JSON_DEPTH + 1):
        level = [item for each in level if isinstance(each, dict | list) for item in _items(each)]
        if not level:
            return value
    raise ValueError(f"it is nested deeper than {MAX_JSON_DEPTH} levels")


def _items(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _integer(text: str) -> int:
    if len(text) > LONGEST:
        raise ValueError(f"it contains a number of {len(text)} digits; at most {LONGEST} are allowed")
    return int(text)


def _real(text: str) -> float:
    if len(text) > LONGEST:
        raise ValueError(f"it contains a number of {len(text)} digits; at most {LONGEST} are allowed")
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it contains the number {text}, which JSON cannot express")
    return value


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        seen: set[str] = set()
        duplicate = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key '{duplicate}' appears twice")
    return mapping


def replace_non_finite(value: Any) -> Any:
    """Returns `value` with every NaN or infinite float in it, at any depth, replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: replace_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace_non_finite(item) for item in value]
    return value


def sha256(path: Path) -> str:
    """Returns the hexadecimal SHA-256 digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_directory(path: Path) -> None:
    with suppress(OSError):  # some file systems cannot open a directory; the rename is atomic anyway
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
