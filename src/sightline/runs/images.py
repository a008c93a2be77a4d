"""What every picture of a run was: `images.csv.gz`, one row a picture, written before the first step. No picture is
read or hashed for it again; it is read without torch or numpy.

The columns: `split`; `id`, the path as the data source names it; `label`, the name of its class or its number; `bytes`,
the size of its file, where it is one; `pixels`, the first half of the SHA-256 of what the network is shown of it, of
which fingerprints are made; `content`, a hash of what it showed before it was brought to size, as 16 hexadecimal digits
(8 in earlier versions, which had another hash)."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sightline.core.errors import ArtifactError, join_names
from sightline.core.files import atomic_write

if TYPE_CHECKING:
    from sightline.data.cache.dataset import PackedDataset

IMAGES = "images.csv.gz"
_UNKNOWN = "0" * 16
_LONGEST = 1 << 20  # characters of a line
_SHOWN = 5


class ImageRecord(NamedTuple):
    """One row, all of it text; `bytes`, `pixels` and `content` are empty where they are not known."""

    split: str
    id: str
    label: str
    bytes: str
    pixels: str
    content: str


@dataclass(frozen=True)
class ImageChanges:
    """What became of the pictures, each as a name with its split. Pictures are the same by name, else by what they
    show, so that one that was renamed is no change. `rewritten` ones show the same in a file of another size."""

    changed: tuple[str, ...] = ()
    relabelled: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    rewritten: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any(astuple(self))

    def words(self, limit: int = _SHOWN) -> list[str]:
        """One line for each kind of change there is, with at most `limit` names."""
        kinds = {
            "changed": self.changed,
            "with another label": self.relabelled,
            "added": self.added,
            "removed": self.removed,
            "in another split": self.moved,
            "the same in another file": self.rewritten,
        }
        return [f"{kind}: {join_names(names, limit)}" for kind, names in kinds.items() if names]

    def to_dict(self) -> dict[str, list[str]]:
        """Every name, JSON-ready."""
        return {kind: list(names) for kind, names in asdict(self).items()}


def list_images(data: Mapping[str, PackedDataset], sizes: Mapping[str, int] | None = None) -> Iterator[ImageRecord]:
    """The rows of packed splits, in their order; `sizes` are the bytes of files by id."""
    known = sizes or {}
    for split, packed in data.items():
        names = packed.classes
        labels = packed.labels.flatten().tolist()
        words = [names[label] for label in labels] if names else [f"{label:.9g}" for label in labels]
        pixels = contents = [""] * len(labels)
        if packed.stats is not None:
            rows: Any = slice(None) if packed.rows is None else packed.rows
            digests = packed.stats.digests[rows]
            text, width = digests.tobytes().hex(), 2 * digests.shape[1]
            pixels = [text[start : start + width] for start in range(0, len(text), width)]
            contents = [f"{key:016x}" for key in packed.stats.keys[rows].tolist()]
        for name, label, shown, content in zip(packed.ids, words, pixels, contents, strict=True):
            yield ImageRecord(
                split, name, label, str(known.get(name, "")), shown, "" if content == _UNKNOWN else content
            )


def write_images(path: Path, data: Mapping[str, PackedDataset], sizes: Mapping[str, int] | None = None) -> None:
    """Writes the rows of `list_images`, atomically; the same pictures give the same bytes."""
    with (
        atomic_write(path) as file,
        gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0) as packed,
        io.TextIOWrapper(packed, "utf-8", "surrogatepass", newline="") as text,  # a file name may be no UTF-8
    ):
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(ImageRecord._fields)
        writer.writerows(list_images(data, sizes))


def read_images(path: Path) -> list[ImageRecord] | None:
    """The rows of a run's file; None where there is none, as in runs of before there were such files. Raises
    ArtifactError when it is damaged."""
    try:
        return list(_rows(path))
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, TypeError, csv.Error, zlib.error) as error:
        raise ArtifactError(f"'{path}' is damaged, or cannot be read: {error}.") from error


def _rows(path: Path) -> Iterator[ImageRecord]:
    with gzip.open(path, "rt", encoding="utf-8", errors="surrogatepass", newline="") as text:
        rows = csv.reader(iter(lambda: text.readline(_LONGEST), ""))
        if tuple(next(rows, ())) != ImageRecord._fields:
            raise ValueError(f"its columns are not {', '.join(ImageRecord._fields)}")
        for row in rows:
            yield ImageRecord(*row)


def compare_images(before: Iterable[ImageRecord], after: Iterable[ImageRecord]) -> ImageChanges:
    """What became of the pictures `before` in those `after`."""
    old, new = _numbered(before), _numbered(after)
    pairs = [(old.pop(key), new.pop(key)) for key in list(old) if key in new]
    gone, came = list(old.values()), list(new.values())
    gone, came = _match(gone, came, lambda image: image.id, pairs)  # splits that were drawn may be drawn anew
    gone, came = _match(gone, came, lambda image: image.pixels, pairs)
    other = [(a, b) for a, b in pairs if _differ(a.pixels, b.pixels) or _differ_in_content(a, b)]
    changed = set(other)
    return ImageChanges(
        changed=tuple(_name(a, b) for a, b in other),
        relabelled=tuple(_name(a, b, f"{a.label} -> {b.label}") for a, b in pairs if a.label != b.label),
        added=tuple(_name(b, b) for b in came),
        removed=tuple(_name(a, a) for a in gone),
        moved=tuple(_name(a, b) for a, b in pairs if a.split != b.split),
        rewritten=tuple(_name(a, b) for a, b in pairs if _differ(a.bytes, b.bytes) and (a, b) not in changed),
    )


def describe_changes(path: Path, data: Mapping[str, PackedDataset], sizes: Mapping[str, int] | None = None) -> str:
    """What became of the pictures of the run's file in packed splits, as a sentence that follows another; empty where
    nothing did, or the run has no such file."""
    before = read_images(path)
    words = [] if before is None else compare_images(before, list_images(data, sizes)).words()
    return f" Pictures {'; '.join(words)}." if words else ""


def _numbered(images: Iterable[ImageRecord]) -> dict[tuple[str, str, int], ImageRecord]:
    """By split and name, and by how often that was there before: a table may list a file twice."""
    found: dict[tuple[str, str, int], ImageRecord] = {}
    times: Counter[tuple[str, str]] = Counter()
    for image in images:
        found[image.split, image.id, times[image.split, image.id]] = image
        times[image.split, image.id] += 1
    return found


def _match(
    gone: Sequence[ImageRecord],
    came: Sequence[ImageRecord],
    same: Callable[[ImageRecord], str],
    pairs: list[tuple[ImageRecord, ImageRecord]],
) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """Adds to `pairs` what is the same by what `same` gives; the rest of both."""
    waiting: defaultdict[str, deque[ImageRecord]] = defaultdict(deque)
    for image in gone:
        waiting[same(image)].append(image)
    left = []
    for image in came:
        if same(image) and waiting[same(image)]:
            pairs.append((waiting[same(image)].popleft(), image))
        else:
            left.append(image)
    return [image for queue in waiting.values() for image in queue], left


def _differ(a: str, b: str) -> bool:
    """Whether both are known and not equal."""
    return bool(a and b) and a != b


def _differ_in_content(a: ImageRecord, b: ImageRecord) -> bool:
    return _differ(a.content, b.content) and len(a.content) == len(b.content)  # earlier versions had another hash


def _name(a: ImageRecord, b: ImageRecord, more: str = "") -> str:
    """A picture as a message names it, with its split: cat/3.png (train)."""
    stats = [b.split if a.split == b.split else f"{a.split} -> {b.split}", f"was {a.id}" if a.id != b.id else "", more]
    return f"{b.id} ({', '.join(fact for fact in stats if fact)})"
