"""Zip and tar files as trees of images, read in place."""

from __future__ import annotations

import posixpath
import tarfile
import zipfile
import zlib
from lzma import LZMAError
from pathlib import Path

from sightline.data.members import Member, tar_members, zip_members
from sightline.data.rows import SPLIT_NAMES
from sightline.data.trees import NO_DATA, Entries, is_image
from sightline.errors import DataError, arg

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class Archive:
    """A zip or tar file as a tree. One folder that holds everything is looked through."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: dict[str, Member] = {}
        self._folders: dict[str, Entries] = {"": Entries([], [])}
        read = zip_members if root.name.lower().endswith(".zip") else tar_members
        try:
            for name, member in read(root):
                self._add(name, member)
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, LZMAError, OSError, ValueError) as error:
            raise DataError(
                f"{arg.root}: '{root}' is no archive that can be read, or a damaged one: {error}."
            ) from error
        self._top = self._leading_folder()

    def entries(self, folder: str) -> Entries:
        """What a folder of the archive holds."""
        return self._folders.get((self._top + folder).rstrip("/"), Entries([], []))

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
        """What `Tree.inside` says."""
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
        if not parts or not NO_DATA.isdisjoint(parts):
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

    def _folder(self, path: str) -> Entries:
        found = self._folders.get(path)
        if found is None:
            found = self._folders[path] = Entries([], [])
            parent, _, name = path.rpartition("/")
            outer = self._folder(parent)
            if name[0] != ".":
                outer.folders.append(name)
        return found

    def _leading_folder(self) -> str:
        folders, files = self._folders[""]
        if len(folders) != 1 or any(_matters(name) for name in files) or folders[0].lower() in SPLIT_NAMES:
            return ""
        inner = self._folders[folders[0]]
        holds = inner.folders or any(name.endswith(".csv") for name in inner.files)
        return f"{folders[0]}/" if holds else ""


def is_archive(path: Path) -> bool:
    """Whether the name is that of an archive that can be a data.root."""
    return path.name.lower().endswith(SUFFIXES)


def _matters(name: str) -> bool:
    return is_image(name) or name.endswith(".csv")
