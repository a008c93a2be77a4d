"""Files that are whole or not there: atomic writes, locks, checksums, JSON; and one that many threads read."""

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
"""How large a JSON file may be, in bytes; how deep it may be nested; how long a number in it may be."""


@contextmanager
def atomic_write(path: Path, before_rename: Callable[[], None] | None = None) -> Iterator[IO[bytes]]:
    """A binary file that appears at `path` only when the block ends well: written beside it, synced to disk, renamed.
    A reader sees the old file or the new one, never a part; a failure leaves the old one and no leftovers.
    `before_rename` is called when the new file is whole and the old one still there."""
    aside = temporary_sibling(path)
    try:
        with ExitStack() as lock:
            with aside.open("xb") as file:
                lock.enter_context(locked(aside))  # a leftover that nobody has a lock on is cleared away
                yield file
                file.flush()
                os.fsync(file.fileno())
            if before_rename is not None:
                before_rename()
            aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def expand_user(path: str | Path) -> Path:
    """`path` with a `~` at its beginning replaced; one of a user that there is not stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def temporary_sibling(path: Path) -> Path:
    """A free hidden name in the same directory, to write at before a rename to `path`. What is made there with a plain
    `open` or `mkdir` has the permissions the user's umask gives; with `tempfile`, only the owner could read it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def stale_temporaries(directory: Path, name: str) -> list[Path]:
    """What a killed process left of writing at names of this pattern (of `fnmatch`): what `temporary_sibling` made for
    them. Only for who holds the lock on them."""
    hidden = re.compile(r"\.(.+)\.[0-9a-f]{16}")
    found = [(entry, hidden.fullmatch(entry.name)) for entry in directory.glob(".*")]
    return [entry for entry, match in found if match is not None and fnmatch.fnmatchcase(match[1], name)]


@contextmanager
def errors_name_path(path: Path) -> Iterator[None]:
    """What the system says against writing to a file that is open is told with the file's name."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


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
    held, close = _locks, os.close  # where the block ends with the interpreter, this module's names are gone by then
    held.add(descriptor)
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
        if descriptor in held:  # else this is a process that was forked off, and has let go of it
            held.discard(descriptor)
            close(descriptor)


@contextmanager
def lock_if_free(path: Path) -> Iterator[bool]:
    """Whether no living process holds a lock on a directory or file; for the block it is held here. Where there are no
    locks, as a second one that is had shows, nobody can tell: False."""
    with locked(path) as mine, locked(path) as again:
        yield mine and not again


_locks: set[int] = set()


def _drop_locks_after_fork() -> None:
    """In a process that was forked off: a lock is its parent's, and must not outlive it because a loader's worker is
    still there."""
    for descriptor in _locks:
        with suppress(OSError):
            os.close(descriptor)
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_locks_after_fork)


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
    text = json.dumps(replace_non_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    if not _is_unicode(text):  # a file name that is no UTF-8; escaped, it comes back as it was
        text = json.dumps(replace_non_finite(value), indent=2, allow_nan=False)
    write_text(path, text + "\n")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_json(path: Path) -> Any:
    """The parsed file, which may come from anywhere. Raises OSError when it cannot be read, ValueError when it is no
    file, no JSON (see `parse_json`), or larger than `MAX_JSON_BYTES`."""

    def without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait for somebody to write

    with open(path, "rb", opener=without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is a pipe or a device, no file")
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"it is larger than {MAX_JSON_BYTES // 2**20} MiB")
    return parse_json(data.decode("utf-8"))


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError for what is none, and for what a reader could be harmed or misled by:
    nesting beyond `MAX_JSON_DEPTH` levels, numbers of more than `LONGEST` digits or too large for a float, NaN, a key
    that is there twice."""
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
        raise ValueError(f"it has a number of {len(text)} digits")
    return int(text)


def _real(text: str) -> float:
    if len(text) > LONGEST:
        raise ValueError(f"it has a number of {len(text)} digits")
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it has the number {text}, which JSON has no word for")
    return value


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key '{twice}' is there twice")
    return made


def replace_non_finite(value: Any) -> Any:
    """`value` with every NaN or infinite float inside it replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: replace_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace_non_finite(item) for item in value]
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
