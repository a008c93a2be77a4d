"""Zip and tar files as a `FileTree`, read in place without unpacking.

Listing records the offset of every member. Members are read by position, so any number of threads can read at once."""

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

from sightline.core.errors import DataError, arg, first_line
from sightline.core.files import SharedFile
from sightline.data.sources.listing import SPLIT_NAMES
from sightline.data.sources.tree import IGNORED_NAMES, FolderEntries, is_image


@dataclass(frozen=True, slots=True)
class TarMember:
    """A reference to a file in an uncompressed tar archive."""

    file: SharedFile
    name: str
    offset: int
    size: int

    @property
    def token(self) -> str:
        """Identifies the content: path, size and modification time of the archive, and the member's name and offset."""
        return f"{self.file.token}|{self.name}|{self.offset}"

    def read(self) -> bytes:
        """Returns the bytes of the member. Raises DataError if the archive is truncated."""
        data = self.file.read(self.offset, self.size)
        if len(data) != self.size:
            raise DataError(
                f"'{self.file.path}', member '{self.name}': the archive is truncated. Copy the archive again."
            )
        return data


@dataclass(frozen=True, slots=True)
class ZipMember:
    """A reference to a file in a zip archive.

    `packed` and `size` are its compressed and uncompressed sizes in bytes; `stored` means that it is not compressed."""

    file: SharedFile
    name: str
    offset: int
    packed: int
    size: int
    crc: int
    stored: bool

    @property
    def token(self) -> str:
        """Identifies the content: path, size and modification time of the archive, and the member's name and CRC-32."""
        return f"{self.file.token}|{self.name}|{self.crc:08x}"

    def read(self) -> bytes:
        """Returns the uncompressed bytes of the member. Raises DataError if its size or checksum is wrong."""
        header = self.file.read(self.offset, 30)  # the local name and extra field may be longer than in the directory
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
                f"'{self.file.path}', member '{self.name}': damaged, with a wrong checksum. Copy the archive again."
            )
        return data


Member: TypeAlias = ZipMember | TarMember | bytes


def zip_members(path: Path) -> Iterator[tuple[str, Member | None]]:
    """Yields (name, member) for every file in a zip archive, and (name, None) for every folder.

    Raises DataError for encrypted members, links and compression methods other than deflate."""
    file = SharedFile(path)
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    end = file.read(max(file.size - 2**16, 0), 2**16)
    at = end.rfind(b"PK\5\6") + 10
    count = int.from_bytes(end[at : at + 2], "little")
    if count not in (len(infos) % 2**16, 2**16 - 1):  # zipfile does not compare them; 65535 means a zip64 count
        raise zipfile.BadZipFile(f"its directory has {len(infos)} members, expected {count}")
    for info in infos:
        where = f"'{path}', member '{info.filename}'"
        if info.is_dir():
            yield info.filename, None
            continue
        if info.flag_bits & 1:
            raise DataError(f"{where}: encrypted. Unpack the archive with its password and pack it without one.")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(
                f"{where}: compressed with method {info.compress_type}. Expected 'stored' or 'deflate'; unpack the "
                f"archive, or pack it again."
            )
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(f"{where}: a link, not a file. Pack the archive again with files instead of links.")
        stored = info.compress_type == zipfile.ZIP_STORED
        yield (
            info.filename,
            ZipMember(file, info.filename, info.header_offset, info.compress_size, info.file_size, info.CRC, stored),
        )


class _StrictInfo(tarfile.TarInfo):
    """A `TarInfo` that raises for a damaged header, where tarfile would silently treat it as the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> _StrictInfo:
        """Reads the next header."""
        try:
            return super().fromtarfile(tarfile)
        except EOFHeaderError:
            raise
        except HeaderError as error:
            raise ReadError(f"{error}, {tarfile.offset:,} bytes from its start") from error


def tar_members(path: Path, max_unpacked: int) -> Iterator[tuple[str, Member | None]]:
    """Yields (name, member) for every file in a tar archive, and (name, None) for every folder.

    The members of a compressed archive are their bytes. Raises DataError for links and special files, and if a
    compressed archive has more than `max_unpacked` bytes."""
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
                    f"{where}: a link or another special file. Pack the archive again with files instead of links "
                    f"(tar --dereference --hard-dereference)."
                )
            if plain:
                yield info.name, TarMember(file, info.name, info.offset_data, info.size)
                continue
            total += info.size
            if total > max_unpacked:
                raise DataError(
                    f"{arg.root}: '{path}' is larger than {max_unpacked // 2**20} MB when unpacked. A compressed tar "
                    f"cannot be read in place. Unpack it, or pack it as a .zip or as a .tar without compression."
                )
            data = archive.extractfile(info)
            yield info.name, b"" if data is None else data.read()
        while not plain and archive.fileobj is not None and archive.fileobj.read(2**20):
            pass  # the checksum of the compression is verified only at the end of the file


SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class ArchiveTree:
    """A zip or tar file as a `FileTree`.

    A single folder that contains everything counts as the top. A compressed tar cannot be read in place, so it is
    unpacked into memory, up to `max_unpacked` bytes. Raises DataError if the archive is damaged or too large, or has
    unsafe, repeated or unreadable members."""

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
                f"{arg.root}: '{root}' is not a readable archive or is damaged: {first_line(error).rstrip('.:')}."
            ) from error
        self._top = self._leading_folder()

    def entries(self, folder: str) -> FolderEntries:
        """See `FileTree.entries`."""
        return self._folders.get((self._top + folder).rstrip("/"), FolderEntries([], []))

    def files(self, folder: str) -> set[str]:
        """See `FileTree.files`."""
        return set(self.entries(folder).files)

    def identity(self, folder: str) -> str:
        """Returns the folder unchanged, since archives with links are rejected."""
        return folder

    def has(self, path: str) -> bool:
        """See `FileTree.has`."""
        return self._top + path in self._files

    def inside(self, folder: str, name: str) -> str | None:
        """See `FileTree.inside`."""
        path = posixpath.normpath(posixpath.join(folder, name))
        return None if path.startswith(("/", "../")) or path == ".." else path

    def image(self, path: str) -> Member:
        """Returns a reference to the member, or its bytes if the archive was unpacked into memory."""
        return self._files[self._top + path]

    def read(self, path: str) -> bytes:
        """Returns the bytes of the member."""
        member = self.image(path)
        return member if isinstance(member, bytes) else member.read()

    def shown(self, path: str) -> str:
        """Returns the path with the archive in front, as if the archive were a folder."""
        return f"{self.root}/{self._top}{path}".rstrip("/")

    def where(self, path: str) -> str:
        """Returns the archive and the full name of the member."""
        return f"'{self.root}', member '{self._top}{path}'"

    def _add(self, name: str, member: Member | None) -> None:
        """Adds a file, or a folder if `member` is None."""
        parts = name.split("/")
        if name.startswith("/") or ".." in parts or name[1:2] == ":":
            raise DataError(
                f"'{self.root}': the member '{name}' points outside the archive. Do not use an archive like this."
            )
        parts = [part for part in parts if part not in ("", ".")]
        if not parts or not IGNORED_NAMES.isdisjoint(parts):
            return
        path = "/".join(parts)
        if path in self._files:
            raise DataError(f"'{self.root}': the member '{name}' is in the archive twice. Pack the archive again.")
        if member is None:
            self._folder(path)
        else:
            self._files[path] = member
            if parts[-1][0] != ".":
                self._folder("/".join(parts[:-1])).files.append(parts[-1])

    def _folder(self, path: str) -> FolderEntries:
        entries = self._folders.get(path)
        if entries is None:
            entries = self._folders[path] = FolderEntries([], [])
            parent, _, name = path.rpartition("/")
            outer = self._folder(parent)
            if name[0] != ".":
                outer.folders.append(name)
        return entries

    def _leading_folder(self) -> str:
        folders, files = self._folders[""]
        if len(folders) != 1 or any(_is_data_file(name) for name in files) or folders[0].lower() in SPLIT_NAMES:
            return ""
        inner = self._folders[folders[0]]
        is_top = inner.folders or any(name.endswith(".csv") for name in inner.files)
        return f"{folders[0]}/" if is_top else ""


def is_archive(path: Path) -> bool:
    """Whether the file name has the suffix of a supported archive (`SUFFIXES`)."""
    return path.name.lower().endswith(SUFFIXES)


def _is_data_file(name: str) -> bool:
    return is_image(name) or name.endswith(".csv")
