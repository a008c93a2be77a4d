"""Zip files of `torch.save` with a SHA-256 checksum, so that damaged files are detected before they are loaded.

The zip comment contains the checksum of all bytes before it, so `torch.load` can still read the file. A checksum does
not protect against malicious files: `weights_only` of torch ensures that loading runs no code, and `_check_records`
that a file cannot decompress to more than its size."""

import errno
import hashlib
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import torch

from sightline.core.errors import ArtifactError, first_line
from sightline.core.files import atomic_write

_MARK = b"sightline sha256 "
_COMMENT = len(_MARK) + 64
_CHECKSUM = 2 + _COMMENT  # with the length of the comment (2 bytes)
_BLOCK = 1 << 20
_SYSTEM_ERRORS = (errno.EIO, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENOMEM)


class UnreadableError(ArtifactError):
    """A file that cannot be read now or may not be loaded, but is not damaged."""


class _ChecksumWriter:
    """A writer that computes the checksum. Keeps back the last two bytes: the length of the zip comment."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._hash = hashlib.sha256()
        self._tail = b""
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Writes a buffer of any type, as torch passes them."""
        view = memoryview(data).cast("B")
        if len(view) >= 2:
            self._pass(self._tail)
            self._pass(view[:-2])  # not concatenated: it may be a large tensor
            self._tail = view[-2:].tobytes()
        else:
            pending = self._tail + view.tobytes()
            self._pass(pending[:-2])
            self._tail = pending[-2:]
        return len(view)

    def _pass(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Does nothing: torch calls it at the end, before the comment is written."""

    def close(self) -> None:
        """Writes the comment with the checksum."""
        if self._tail != b"\0\0":
            raise RuntimeError("torch.save wrote a zip file that has a comment, so there is no room for the checksum.")
        self._file.write(struct.pack("<H", _COMMENT) + _MARK + self._hash.hexdigest().encode())


def save_checksummed(path: Path, content: Any, before_rename: Callable[[], None] | None = None) -> None:
    """Writes `content` with `torch.save` and a checksum, atomically.

    `before_rename` is called when the new file is complete and the old one still exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, before_rename) as file:
        writer = _ChecksumWriter(file)
        try:
            torch.save(content, writer)  # type: ignore[arg-type]
        except RuntimeError as error:
            if writer.error is not None:  # torch's error only says that it could not finish the file
                raise writer.error from error
            raise
        writer.close()


def load_checksummed(path: Path, allowed: Sequence[Any]) -> Any:
    """Loads a file written by `save_checksummed` or `torch.save`, with tensors on the CPU.

    The file may contain tensors, plain values and the types in `allowed`; no code is run. Raises ArtifactError, naming
    the file, if it is missing, damaged or not a checkpoint, and UnreadableError if it contains other types or cannot
    be read for a reason other than damage, such as a lack of memory."""
    if not path.is_file():
        raise ArtifactError(f"The checkpoint '{path}' does not exist.")
    verified = False
    try:
        verified = _checksum_matches(path)
        if not verified:
            _check_crcs(path)
        _check_records(path)
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except ArtifactError:
        raise
    except pickle.UnpicklingError as error:
        forbidden_type = re.search(r"(?:GLOBAL|type) (\S+)", str(error))
        if forbidden_type is None:
            raise ArtifactError(f"'{path}' is not a checkpoint or is damaged: {first_line(error)}") from error
        raise UnreadableError(
            f"'{path}' cannot be read: it contains '{forbidden_type[1]}', which is neither a tensor nor a plain value "
            f"and could run code."
        ) from error
    except Exception as error:  # torch raises many kinds for a damaged file
        is_system_error = isinstance(error, MemoryError) or getattr(error, "errno", None) in _SYSTEM_ERRORS
        if verified or is_system_error:
            why = "memory is full" if isinstance(error, MemoryError) else first_line(error)
            raise UnreadableError(f"'{path}' cannot be read: {why}") from error
        raise ArtifactError(f"'{path}' is not a checkpoint or is damaged: {error}") from error


def has_checksum(path: Path) -> bool:
    """Returns whether the file has a checksum, matching or not."""
    return _read_checksum(path) is not None


def _read_checksum(path: Path) -> tuple[int, str] | None:
    """Returns (number of bytes that the checksum covers, SHA-256 in hexadecimal); None without a checksum."""
    size = path.stat().st_size - _CHECKSUM
    if size < 0:
        return None
    with path.open("rb") as file:
        file.seek(size)
        tail = file.read(_CHECKSUM)
    if tail[:2] != struct.pack("<H", _COMMENT) or not tail[2:].startswith(_MARK):
        return None
    return size, tail[2 + len(_MARK) :].decode("ascii", "replace")


def _checksum_matches(path: Path) -> bool:
    """Returns whether the file has a checksum. Raises ArtifactError if it has one that does not match."""
    checksum = _read_checksum(path)
    if checksum is None:
        return False
    remaining, expected = checksum
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while remaining and (block := file.read(min(remaining, _BLOCK))):
            digest.update(block)
            remaining -= len(block)
    if digest.hexdigest() != expected:
        raise ArtifactError(f"'{path}' is damaged: its content does not match its SHA-256 checksum.")
    return True


def _check_crcs(path: Path) -> None:
    """Checks the CRC-32 of every zip record, for files written before checksums were added."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip() if _stored(path, archive) else None
    if damaged is not None:
        raise ArtifactError(f"'{path}' is damaged: the CRC-32 checksum of its record '{damaged}' does not match.")


def _check_records(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        if not _stored(path, archive):
            raise ArtifactError(
                f"'{path}' is not a checkpoint: it contains compressed records, which torch does not write and which "
                f"may decompress to any size."
            )


def _stored(path: Path, archive: zipfile.ZipFile) -> bool:
    """Returns whether no record is compressed and all records together are no larger than the file."""
    records = archive.infolist()
    plain = all(record.compress_type == zipfile.ZIP_STORED for record in records)
    return plain and sum(record.file_size for record in records) <= path.stat().st_size
