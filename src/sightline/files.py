"""Files that are whole or not there: atomic writes, checksums, JSON."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
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


def beside(path: Path) -> Path:
    """A free hidden name in the same directory, to write at before a rename to `path`. What is made there with a plain
    `open` or `mkdir` has the permissions the user's umask gives; with `tempfile`, only the owner could read it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


@contextmanager
def locked(directory: Path) -> Iterator[bool]:
    """Holds a lock on a directory for the block; yields False when another process holds it. The lock ends with the
    process, however it ends. Where the system has no such locks, it is always had."""
    try:
        import fcntl
    except ImportError:
        yield True
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = True
        except OSError:
            mine = False
        yield mine
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """`text` as UTF-8, atomically."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, atomically; NaN and infinities, which JSON has no word for, become null."""
    write_text(path, json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


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
