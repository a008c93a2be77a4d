"""Files that are whole or not there: atomic writes, locks, checksums, JSON; and one that many threads read."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears at `path` only when the block ends well: written beside it, synced to disk, renamed.
    A reader sees the old file or the new one, never a part; a failure leaves the old one and no leftovers."""
    aside = beside(path)
    try:
        with aside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def expanded(path: str | Path) -> Path:
    """`path` with a `~` at its beginning replaced; one of a user that there is not stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def beside(path: Path) -> Path:
    """A free hidden name in the same directory, to write at before a rename to `path`. What is made there with a plain
    `open` or `mkdir` has the permissions the user's umask gives; with `tempfile`, only the owner could read it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Holds a lock on a directory or file for the block; yields False when another process holds it. The lock ends with
    the process, however it ends. Where the system or the file system has no such locks, it is always had."""
    try:
        import fcntl
    except ImportError:
        yield True
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = True
        except BlockingIOError:
            mine = False
        except OSError:
            mine = True
        yield mine
    finally:
        os.close(descriptor)


class SharedFile:
    """A file that threads read at positions of their own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._descriptor)
        status = os.fstat(self._descriptor)
        self.size = status.st_size
        self.token = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"

    def read(self, offset: int, size: int) -> bytes:
        """The bytes there; fewer where the file ends."""
        if not hasattr(os, "pread"):  # Windows
            with self.path.open("rb") as file:
                file.seek(offset)
                return file.read(size)
        data = os.pread(self._descriptor, size, offset)
        while 0 < len(data) < size and (more := os.pread(self._descriptor, size - len(data), offset + len(data))):
            data += more
        return data


def write_text(path: Path, text: str) -> None:
    """`text` as UTF-8, atomically."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, atomically; NaN and infinities, which JSON has no word for, become null."""
    text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    if not _is_unicode(text):  # a file name that is no UTF-8; escaped, it comes back as it was
        text = json.dumps(finite(value), indent=2, allow_nan=False)
    write_text(path, text + "\n")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_json(path: Path) -> Any:
    """The parsed file; raises ValueError when it is no JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def finite(value: Any) -> Any:
    """`value` with every NaN or infinite float inside it replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_directory(path: Path) -> None:
    with suppress(OSError):  # not every file system can open a directory; the rename is atomic all the same
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
