"""Zip and tar files as trees of images, read in place without unpacking. The offset of each member is recorded when it
is listed, and members are read from there by position, so that any number of threads can read at once."""

from __future__ import annotations

import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path
from tarfile import EOFHeaderError, HeaderError, ReadError  # type: ignore[attr-defined]
from typing import TypeAlias

from sightline.core.errors import DataError, arg
from sightline.core.files import SharedFile
from sightline.data.sources.listing import SPLIT_NAMES
from sightline.data.sources.tree import IGNORED_NAMES, FolderEntries, is_image


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


def tar_members(path: Path, max_unpacked: int) -> Iterator[tuple[str, Member | None]]:
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
            if total > max_unpacked:
                raise DataError(
                    f"{arg.root}: '{path}' holds more than {max_unpacked // 2**20} MB. A compressed tar cannot "
                    f"be read in "
                    f"place: unpack it, or pack it as a .zip or as a .tar without compression."
                )
            data = archive.extractfile(info)
            yield info.name, b"" if data is None else data.read()
        while not plain and archive.fileobj is not None and archive.fileobj.read(2**20):
            pass  # a compressed file's checksum is compared at its very end


SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class ArchiveTree:
    """A zip or tar file as a tree. A single folder that holds everything counts as the top. A compressed tar cannot be
    read in place: it is unpacked into memory, up to `max_unpacked` bytes of it."""

    def __init__(self, root: Path, max_unpacked: int = 256 * 2**20) -> None:
        self.root = root
        self._files: dict[str, Member] = {}
        self._folders: dict[str, FolderEntries] = {"": FolderEntries([], [])}
        is_zip = root.name.lower().endswith(".zip")
        try:
            for name, member in zip_members(root) if is_zip else tar_members(root, max_unpacked):
                self._add(name, member)
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, LZMAError, OSError, ValueError) as error:
            raise DataError(
                f"{arg.root}: '{root}' is no archive that can be read, or a damaged one: {error}."
            ) from error
        self._top = self._leading_folder()

    def entries(self, folder: str) -> FolderEntries:
        """What a folder of the archive holds."""
        return self._folders.get((self._top + folder).rstrip("/"), FolderEntries([], []))

    def files(self, folder: str) -> set[str]:
        """The files in a folder of the archive."""
        return set(self.entries(folder).files)

    def identity(self, folder: str) -> str:
        """The folder: archives have no links here."""
        return folder

    def has(self, path: str) -> bool:
        """Whether there is such a member."""
        return self._top + path in self._files

    def inside(self, folder: str, name: str) -> str | None:
        """What `FileTree.inside` says."""
        path = posixpath.normpath(posixpath.join(folder, name))
        return None if path.startswith(("/", "../")) or path == ".." else path

    def image(self, path: str) -> Member:
        """A reference to the member, or its bytes where they are in memory."""
        return self._files[self._top + path]

    def read(self, path: str) -> bytes:
        """The member's bytes."""
        member = self.image(path)
        return member if isinstance(member, bytes) else member.read()

    def shown(self, path: str) -> str:
        """The path as if the archive were a folder."""
        return f"{self.root}/{self._top}{path}".rstrip("/")

    def where(self, path: str) -> str:
        """The archive and the member's whole name."""
        return f"'{self.root}', member '{self._top}{path}'"

    def _add(self, name: str, member: Member | None) -> None:
        """Notes a file, or a folder (None)."""
        parts = name.split("/")
        if name.startswith("/") or ".." in parts or name[1:2] == ":":
            raise DataError(f"'{self.root}': the member '{name}' leaves the archive; that is no data set to trust.")
        parts = [part for part in parts if part not in ("", ".")]
        if not parts or not IGNORED_NAMES.isdisjoint(parts):
            return
        path = "/".join(parts)
        if path in self._files:
            raise DataError(f"'{self.root}': the member '{name}' is there twice; pack the archive anew.")
        if member is None:
            self._folder(path)
        else:
            self._files[path] = member
            if parts[-1][0] != ".":
                self._folder("/".join(parts[:-1])).files.append(parts[-1])

    def _folder(self, path: str) -> FolderEntries:
        found = self._folders.get(path)
        if found is None:
            found = self._folders[path] = FolderEntries([], [])
            parent, _, name = path.rpartition("/")
            outer = self._folder(parent)
            if name[0] != ".":
                outer.folders.append(name)
        return found

    def _leading_folder(self) -> str:
        folders, files = self._folders[""]
        if len(folders) != 1 or any(_is_data_file(name) for name in files) or folders[0].lower() in SPLIT_NAMES:
            return ""
        inner = self._folders[folders[0]]
        holds = inner.folders or any(name.endswith(".csv") for name in inner.files)
        return f"{folders[0]}/" if holds else ""


def is_archive(path: Path) -> bool:
    """Whether the name is that of an archive that can be a data.root."""
    return path.name.lower().endswith(SUFFIXES)


def _is_data_file(name: str) -> bool:
    return is_image(name) or name.endswith(".csv")
