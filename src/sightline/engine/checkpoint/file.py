"""torch's zip files with a checksum of their own: what was cut off, changed or exchanged is noticed before it is read.

The SHA-256 of everything before it stands in the zip's comment, so that the file stays one that `torch.load` reads. A
checksum tells damage, not malice: that nothing in the file can run code is torch's `weights_only`, and that it cannot
unfold into more than it is, `_check_records`."""

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
_CHECKSUM = 2 + _COMMENT  # with the length of the comment, which ends a zip that has none
_BLOCK = 1 << 20
_NOT_THE_FILE = (errno.EIO, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENOMEM)


class UnreadableError(ArtifactError):
    """A file that is as it was written, or cannot be looked at now; it is not damaged."""


class _ChecksumWriter:
    """Passes on what is written, hashes it, and holds back the last two bytes: a zip's length of its comment."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._hash = hashlib.sha256()
        self._held = b""
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Any bytes, as torch's writer hands them over."""
        view = memoryview(data).cast("B")
        if len(view) >= 2:
            self._pass(self._held)
            self._pass(view[:-2])  # not joined: it may be a large tensor
            self._held = view[-2:].tobytes()
        else:
            whole = self._held + view.tobytes()
            self._pass(whole[:-2])
            self._held = whole[-2:]
        return len(view)

    def _pass(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """torch asks for it at the end; the two bytes stay."""

    def close(self) -> None:
        """Writes the comment."""
        if self._held != b"\0\0":
            raise RuntimeError("torch.save wrote a zip with a comment of its own, which leaves no room for the seal")
        self._file.write(struct.pack("<H", _COMMENT) + _MARK + self._hash.hexdigest().encode())


def save_checksummed(path: Path, content: Any, before_rename: Callable[[], None] | None = None) -> None:
    """`content` by `torch.save`, sealed, atomically; `before_rename` is called when the new file is whole, beside the
    old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, before_rename) as file:
        sealing = _ChecksumWriter(file)
        try:
            torch.save(content, sealing)  # type: ignore[arg-type]
        except RuntimeError as error:
            if sealing.error is not None:  # torch tells of its own trouble with a file that it could not end
                raise sealing.error from error
            raise
        sealing.close()


def load_checksummed(path: Path, allowed: Sequence[Any]) -> Any:
    """What `save_checksummed` or `torch.save` wrote, on the CPU: tensors, plain values, and what is `allowed`, no code.

    Raises ArtifactError, naming the file, when it is missing, damaged, or no such file; an UnreadableError where that
    is not the file's fault, or it holds more than is allowed."""
    if not path.is_file():
        raise ArtifactError(f"there is no checkpoint '{path}'.")
    sealed = False
    try:
        sealed = _checksum_matches(path)
        if not sealed:
            _check_sums(path)
        _check_records(path)
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except ArtifactError:
        raise
    except pickle.UnpicklingError as error:
        foreign = re.search(r"(?:GLOBAL|type) (\S+)", str(error))
        if foreign is None:
            raise ArtifactError(f"'{path}' is no checkpoint, or a damaged one: {first_line(error)}") from error
        raise UnreadableError(
            f"'{path}' cannot be read: it holds '{foreign[1]}', which is neither a tensor nor a plain value, and could "
            f"run code."
        ) from error
    except Exception as error:  # torch raises many kinds for a damaged file
        elsewhere = isinstance(error, MemoryError) or getattr(error, "errno", None) in _NOT_THE_FILE
        if sealed or elsewhere:
            why = "memory is full" if isinstance(error, MemoryError) else first_line(error)
            raise UnreadableError(f"'{path}' cannot be read: {why}") from error
        raise ArtifactError(f"'{path}' is no checkpoint, or a damaged one: {error}") from error


def has_checksum(path: Path) -> bool:
    """Whether the file ends in a seal, be it right or wrong."""
    return _read_checksum(path) is not None


def _read_checksum(path: Path) -> tuple[int, str] | None:
    """(how many bytes are sealed, their SHA-256 as it is written there); None for a file without a seal."""
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
    """False without a seal; raises ArtifactError when there is one and the file is not what was sealed."""
    seal = _read_checksum(path)
    if seal is None:
        return False
    left, expected = seal
    found = hashlib.sha256()
    with path.open("rb") as file:
        while left and (block := file.read(min(left, _BLOCK))):
            found.update(block)
            left -= len(block)
    if found.hexdigest() != expected:
        raise ArtifactError(f"'{path}' is damaged: its SHA-256 is not the one it was written with.")
    return True


def _check_sums(path: Path) -> None:
    """A file of before there were seals has the checksums of a zip."""
    with zipfile.ZipFile(path) as opened:
        wrong = opened.testzip() if _stored(path, opened) else None
    if wrong is not None:
        raise ArtifactError(f"'{path}' is damaged: the checksum of '{wrong}' in it is wrong.")


def _check_records(path: Path) -> None:
    with zipfile.ZipFile(path) as opened:
        if not _stored(path, opened):
            raise ArtifactError(
                f"'{path}' is no checkpoint: it holds compressed records, which torch does not write, and which may "
                f"unfold into any size."
            )


def _stored(path: Path, opened: zipfile.ZipFile) -> bool:
    """Whether every record is as large as it stands in the file, and all of them together no larger than that."""
    records = opened.infolist()
    plain = all(record.compress_type == zipfile.ZIP_STORED for record in records)
    return plain and sum(record.file_size for record in records) <= path.stat().st_size
