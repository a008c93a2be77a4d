"""What is in a zip or tar file, without unpacking it. A member's place is noted when it is listed and read from there
by position, so that any number of threads can read at once."""

from __future__ import annotations

import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tarfile import EOFHeaderError, HeaderError, ReadError  # type: ignore[attr-defined]
from typing import TypeAlias

from sightline.errors import DataError, arg
from sightline.files import SharedFile

IN_MEMORY = 256 * 2**20
"""A compressed tar has no places to read at; up to so many bytes of it are unpacked into memory."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """A file in an uncompressed tar."""

    file: SharedFile
    name: str
    offset: int
    size: int

    @property
    def token(self) -> str:
        """Path, size and time of the archive, the member and its place."""
        return f"{self.file.token}|{self.name}|{self.offset}"

    def read(self) -> bytes:
        """The member's bytes."""
        data = self.file.read(self.offset, self.size)
        if len(data) != self.size:
            raise DataError(f"'{self.file.path}', member '{self.name}': the archive ends before it; it is damaged.")
        return data


@dataclass(frozen=True, slots=True)
class ZipMember:
    """A file in a zip. Reading checks its size and its checksum."""

    file: SharedFile
    name: str
    offset: int
    packed: int
    size: int
    crc: int
    stored: bool

    @property
    def token(self) -> str:
        """Path, size and time of the archive, the member and its checksum."""
        return f"{self.file.token}|{self.name}|{self.crc:08x}"

    def read(self) -> bytes:
        """The member's bytes."""
        header = self.file.read(self.offset, 30)  # its name and extra field may be longer than in the directory
        data = b""
        if header[:4] == b"PK\3\4" and len(header) == 30:
            name, extra = struct.unpack("<HH", header[26:])
            data = self.file.read(self.offset + 30 + name + extra, self.packed)
        try:
            data = data if self.stored else zlib.decompressobj(-15).decompress(data, self.size + 1)
        except zlib.error:
            data = b""
        if len(data) != self.size or zlib.crc32(data) != self.crc:
            raise DataError(
                f"'{self.file.path}', member '{self.name}': damaged, its checksum is wrong. Copy the archive again."
            )
        return data


Member: TypeAlias = ZipMember | TarMember | bytes


def zip_members(path: Path) -> Iterator[tuple[str, Member | None]]:
    """Every file of a zip by name, and its folders (None)."""
    file = SharedFile(path)
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    end = file.read(max(file.size - 2**16, 0), 2**16)
    at = end.rfind(b"PK\5\6") + 10
    counted = int.from_bytes(end[at : at + 2], "little")
    if counted not in (len(infos) % 2**16, 2**16 - 1):  # zipfile does not compare; the last value stands for "many"
        raise zipfile.BadZipFile(f"its directory has {len(infos)} members, expected {counted}")
    for info in infos:
        where = f"'{path}', member '{info.filename}'"
        if info.is_dir():
            yield info.filename, None
            continue
        if info.flag_bits & 1:
            raise DataError(f"{where}: encrypted. Unpack the archive with its password and pack it without one.")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(
                f"{where}: compressed by method {info.compress_type}; only 'stored' and 'deflate' can be read. Unpack "
                f"the archive, or pack it anew."
            )
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(f"{where}: a link, no file. Pack the archive anew with the files themselves.")
        stored = info.compress_type == zipfile.ZIP_STORED
        yield (
            info.filename,
            ZipMember(file, info.filename, info.header_offset, info.compress_size, info.file_size, info.CRC, stored),
        )


class _StrictInfo(tarfile.TarInfo):
    """A header that is damaged or cut off is an error; tarfile would take it for the end and lose what follows."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> _StrictInfo:
        """The next header."""
        try:
            return super().fromtarfile(tarfile)
        except EOFHeaderError:
            raise
        except HeaderError as error:
            raise ReadError(f"{error}, {tarfile.offset:,} bytes from its start") from error


def tar_members(path: Path) -> Iterator[tuple[str, Member | None]]:
    """Every file of a tar by name, and its folders (None). Of a compressed one, the bytes."""
    plain = path.name.lower().endswith(".tar")
    file = SharedFile(path)
    total = 0
    with tarfile.open(path, "r:" if plain else "r:*", tarinfo=_StrictInfo) as archive:
        for info in archive:
            where = f"'{path}', member '{info.name}'"
            if info.isdir():
                yield info.name, None
                continue
            if not info.isreg() or info.issparse():
                raise DataError(
                    f"{where}: a link or another special file. Pack the archive anew with the files themselves "
                    f"(tar --dereference --hard-dereference)."
                )
            if plain:
                yield info.name, TarMember(file, info.name, info.offset_data, info.size)
                continue
            total += info.size
            if total > IN_MEMORY:
                raise DataError(
                    f"{arg.root}: '{path}' holds more than {IN_MEMORY // 2**20} MB. A compressed tar cannot be read in "
                    f"place: unpack it, or pack it as a .zip or as a .tar without compression."
                )
            data = archive.extractfile(info)
            yield info.name, b"" if data is None else data.read()
        while not plain and archive.fileobj is not None and archive.fileobj.read(2**20):
            pass  # a compressed file's checksum is compared at its very end
