"""`FileTree`, the common interface of directories and archives, and its implementation for directories.

Paths inside a tree are strings with '/', relative to its root. A million of them are listed in seconds; `pathlib` would
be slower."""

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
        # formats that cannot be decoded, listed so that an error names the file instead of ignoring it
        *("exr", "hdr", "heic", "heics", "heif", "heifs", "hif", "jxl", "svg", "svgz", "xcf"),
        *(suffix.removeprefix(".") for suffix in RAW_SUFFIXES),
    )
)
"""Suffixes of the files that are listed as images. Whether a file can be decoded is checked later."""
IGNORED_NAMES = frozenset(("__MACOSX",))
"""Names of folders that operating systems add to archives and that are skipped."""


class FolderEntries(NamedTuple):
    """The names of the folders and files in a folder, unsorted, without hidden ones and `IGNORED_NAMES`."""

    folders: list[str]
    files: list[str]


class FileTree(Protocol):
    """A directory or an archive that a data source reads. `root` is its path on disk."""

    root: Path

    def entries(self, folder: str) -> FolderEntries:
        """Returns the folders and files in a folder; both are empty if the folder does not exist."""
        ...

    def files(self, folder: str) -> set[str]:
        """Returns the names of the files in a folder, without broken links."""
        ...

    def identity(self, folder: str) -> str:
        """Returns a path that is equal for two folders that are the same through a link."""
        ...

    def has(self, path: str) -> bool:
        """Whether the file exists; it may be hidden."""
        ...

    def inside(self, folder: str, name: str) -> str | None:
        """Returns the path in the tree of `name` relative to `folder`, normalised; None if it is outside the tree."""
        ...

    def image(self, path: str) -> Path | bytes | Reference:
        """Returns the file in the form that `Sample.image` stores."""
        ...

    def read(self, path: str) -> bytes:
        """Returns the content of a file."""
        ...

    def shown(self, path: str) -> str:
        """Returns the path of a file or folder as messages show it."""
        ...

    def where(self, path: str) -> str:
        """Returns the value for `Sample.where`; empty for a plain file, whose path is enough."""
        ...


class DirectoryTree:
    """A directory on disk as a `FileTree`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._prefix = os.path.join(root, "")  # noqa: PTH118

    def entries(self, folder: str) -> FolderEntries:
        """See `FileTree.entries`. Links to folders count as folders."""
        listed = FolderEntries([], [])
        try:
            with os.scandir(self._prefix + folder) as entries:
                for entry in entries:
                    name = entry.name
                    if name[0] != "." and name not in IGNORED_NAMES:
                        (listed.folders if entry.is_dir() else listed.files).append(name)
        except (FileNotFoundError, NotADirectoryError):
            return listed
        except OSError as error:
            raise DataError(f"Cannot list the folder '{self.shown(folder)}': {error.strerror}.") from error
        return listed

    def files(self, folder: str) -> set[str]:
        """See `FileTree.files`. Includes links to files; empty if the folder cannot be read."""
        try:
            with os.scandir(self._prefix + folder) as entries:
                return {entry.name for entry in entries if entry.is_file()}
        except OSError:
            return set()

    def identity(self, folder: str) -> str:
        """Returns the real path of the folder, with links resolved."""
        return os.path.realpath(self._prefix + folder)

    def has(self, path: str) -> bool:
        """See `FileTree.has`."""
        return is_file(Path(self.root, path))

    def inside(self, folder: str, name: str) -> str | None:
        """See `FileTree.inside`. Links are not resolved: users may link folders into the data directory, but a table
        must not reach outside with '..'."""
        joined = os.path.join(folder, name)  # noqa: PTH118
        path = posixpath.normpath(joined if os.sep == "/" else joined.replace(os.sep, "/"))
        if path == ".." or path.startswith("../") or os.path.isabs(path):  # noqa: PTH117
            top = os.path.abspath(self.root)  # noqa: PTH100
            absolute = os.path.abspath(os.path.join(top, joined))  # noqa: PTH100, PTH118
            if not Path(absolute).is_relative_to(top):
                return None
            path = Path(absolute).relative_to(top).as_posix()
        return path

    def image(self, path: str) -> Path:
        """Returns the path of the file on disk."""
        return Path(self._prefix + path)

    def read(self, path: str) -> bytes:
        """Returns the content of the file."""
        return Path(self.root, path).read_bytes()

    def shown(self, path: str) -> str:
        """Returns the path with the root in front, relative if the root is relative."""
        return str(Path(self.root, path))

    def where(self, path: str) -> str:
        """Returns an empty string, since the path of the file is enough."""
        return ""


def is_file(path: Path) -> bool:
    """Whether the file exists. A name that is too long or otherwise invalid is False, not an error."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_image(name: str) -> bool:
    """Whether the file name has one of `IMAGE_SUFFIXES`, in any case."""
    return name[name.rfind(".") :].lower() in IMAGE_SUFFIXES


def image_paths(tree: FileTree, folder: str = "") -> list[str]:
    """Returns the paths of all images below a folder, at any depth, sorted by path component.

    Every folder is visited once, even if links form a cycle. Raises DataError for a name that is not UTF-8."""
    paths: list[str] = []
    seen: set[str] = set()
    pending = [(folder, True)]
    while pending:
        path, is_folder = pending.pop()
        if not is_folder:
            paths.append(path)
            continue
        identity = tree.identity(path)
        if identity in seen:  # a link to a folder that was visited
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
            paths += sorted(images)
    return paths


def image_files(folder: Path) -> list[Path]:
    """Returns all image files below a directory, chosen by suffix and without hidden ones, in a stable order."""
    tree = DirectoryTree(folder)
    return [tree.image(path) for path in image_paths(tree)]


def _check_names(tree: FileTree, paths: list[str]) -> None:
    try:
        "".join(paths).encode()  # all at once: a check per name is slower than listing them
    except UnicodeEncodeError:
        for path in paths:
            if path.encode(errors="replace").decode() != path:
                name = os.fsencode(tree.shown(path))
                raise DataError(f"The file name {name!r} is not UTF-8. Rename the file or its folder.") from None
