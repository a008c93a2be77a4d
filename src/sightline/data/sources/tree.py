"""What a directory and an archive have in common: folders, files, and an image at the end of a path. Paths inside a
tree are text with '/', relative to its top; a million of them are listed in seconds, which pathlib would not do."""

import os
import posixpath
from pathlib import Path
from typing import NamedTuple, Protocol

from sightline.core.errors import DataError
from sightline.data.images.decode import RAW_SUFFIXES
from sightline.data.records import Reference

IMAGE_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("apng", "avif", "avifs", "bmp", "dds", "dib", "gif", "ico", "j2c", "j2k", "jfif", "jp2", "jpc", "jpe"),
        *("jpeg", "jpf", "jpg", "jpx", "mpo", "pbm", "pcx", "pfm", "pgm", "png", "pnm", "ppm", "psd", "qoi", "sgi"),
        *("tga", "tif", "tiff", "webp", "xbm", "xpm"),
        # images that are not read, so that the error about them names them
        *("exr", "hdr", "heic", "heics", "heif", "heifs", "hif", "jxl", "svg", "svgz", "xcf"),
        *(suffix.removeprefix(".") for suffix in RAW_SUFFIXES),
    )
)
"""The suffixes of files that are taken for images. Whether one can be read is found out when it is decoded."""
IGNORED_NAMES = frozenset(("__MACOSX",))
"""Folders that systems leave beside the data."""


class FolderEntries(NamedTuple):
    """What a folder holds, by name, in no order; hidden names and `IGNORED_NAMES` are left out."""

    folders: list[str]
    files: list[str]


class FileTree(Protocol):
    """A directory or an archive as a source reads it. `root` is its path on disk."""

    root: Path

    def entries(self, folder: str) -> FolderEntries:
        """The folders and files in a folder; both empty where there is no such folder."""
        ...

    def files(self, folder: str) -> set[str]:
        """The files in a folder that can be read: no link that leads nowhere."""
        ...

    def identity(self, folder: str) -> str:
        """Equal for two folders that are the same one, by a link."""
        ...

    def has(self, path: str) -> bool:
        """Whether there is such a file, hidden ones included."""
        ...

    def inside(self, folder: str, name: str) -> str | None:
        """The path of what a table in the tree calls `name`, relative to `folder`; None when it lies outside."""
        ...

    def image(self, path: str) -> Path | bytes | Reference:
        """What a sample holds for the file."""
        ...

    def read(self, path: str) -> bytes:
        """A whole file."""
        ...

    def shown(self, path: str) -> str:
        """How messages write the path of a file or folder."""
        ...

    def where(self, path: str) -> str:
        """What a message about the image adds to its name; empty for a plain file."""
        ...


class DirectoryTree:
    """A directory on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._prefix = os.path.join(root, "")  # noqa: PTH118

    def entries(self, folder: str) -> FolderEntries:
        """What `FileTree.entries` says; links to folders are folders."""
        found = FolderEntries([], [])
        try:
            with os.scandir(self._prefix + folder) as entries:
                for entry in entries:
                    name = entry.name
                    if name[0] != "." and name not in IGNORED_NAMES:
                        (found.folders if entry.is_dir() else found.files).append(name)
        except (FileNotFoundError, NotADirectoryError):
            return found
        except OSError as error:
            raise DataError(f"cannot list the folder '{self.shown(folder)}': {error.strerror}.") from error
        return found

    def files(self, folder: str) -> set[str]:
        """The files, links to files among them."""
        try:
            with os.scandir(self._prefix + folder) as entries:
                return {entry.name for entry in entries if entry.is_file()}
        except OSError:
            return set()

    def identity(self, folder: str) -> str:
        """The folder without links."""
        return os.path.realpath(self._prefix + folder)

    def has(self, path: str) -> bool:
        """Whether there is such a file."""
        return is_file(Path(self.root, path))

    def inside(self, folder: str, name: str) -> str | None:
        """What `FileTree.inside` says, without following links: a linked folder inside the root is the user's own
        doing, '..' in a table is not."""
        joined = os.path.join(folder, name)  # noqa: PTH118
        path = posixpath.normpath(joined if os.sep == "/" else joined.replace(os.sep, "/"))
        if path == ".." or path.startswith("../") or os.path.isabs(path):  # noqa: PTH117
            top = os.path.abspath(self.root)  # noqa: PTH100
            whole = os.path.abspath(os.path.join(top, joined))  # noqa: PTH100, PTH118
            if not Path(whole).is_relative_to(top):
                return None
            path = Path(whole).relative_to(top).as_posix()
        return path

    def image(self, path: str) -> Path:
        """The file's own path."""
        return Path(self._prefix + path)

    def read(self, path: str) -> bytes:
        """The file's bytes."""
        return Path(self.root, path).read_bytes()

    def shown(self, path: str) -> str:
        """The path from where the user stands."""
        return str(Path(self.root, path))

    def where(self, path: str) -> str:
        """Nothing: the file's path says it."""
        return ""


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name too long to exist is no error."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_image(name: str) -> bool:
    """Whether the suffix is that of an image."""
    return name[name.rfind(".") :].lower() in IMAGE_SUFFIXES


def image_paths(tree: FileTree, folder: str = "") -> list[str]:
    """Every image below a folder, at any depth, in the order of the parts of their paths."""
    found: list[str] = []
    seen: set[str] = set()
    pending = [(folder, True)]
    while pending:
        path, is_folder = pending.pop()
        if not is_folder:
            found.append(path)
            continue
        identity = tree.identity(path)
        if identity in seen:  # a link back up: once is enough
            continue
        seen.add(identity)
        folders, files = tree.entries(path)
        prefix = f"{path}/" if path else ""
        images = [prefix + name for name in files if is_image(name)]
        _check_names(tree, images)
        if folders:
            mixed = [(prefix + name, True) for name in folders] + [(image, False) for image in images]
            pending += sorted(mixed, reverse=True)
        else:
            found += sorted(images)
    return found


def image_files(folder: Path) -> list[Path]:
    """Every image file below a folder, by suffix, hidden ones left out, in a stable order."""
    tree = DirectoryTree(folder)
    return [tree.image(path) for path in image_paths(tree)]


def _check_names(tree: FileTree, paths: list[str]) -> None:
    try:
        "".join(paths).encode()  # all at once: one by one costs more than listing them
    except UnicodeEncodeError:
        for path in paths:
            if path.encode(errors="replace").decode() != path:
                name = os.fsencode(tree.shown(path))
                raise DataError(f"the name {name!r} is no UTF-8; rename the file or its folder.") from None
