"""The manifest of a run's images: `images.csv.gz`, one row per image, written before the first step.

It is written from the digests computed while decoding, so no image is read again. Reading it needs neither torch nor
numpy.

The columns: `split`; `id`, the path as the data source names it; `label`, the class name, or the target value in a
regression; `bytes`, the size of the image file, if it is one; `pixels`, the first half of the SHA-256 of the resized
pixels, from which fingerprints are computed; `content`, a hash of the image before resizing, 16 hexadecimal digits
(8 in earlier versions, which used another hash)."""

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
_UNKNOWN_CONTENT = "0" * 16
_MAX_LINE_CHARS = 1 << 20
_MAX_NAMES = 5


class ImageRecord(NamedTuple):
    """One row of the manifest, all values as text; `bytes`, `pixels` and `content` are empty if unknown."""

    split: str
    id: str
    label: str
    bytes: str
    pixels: str
    content: str


@dataclass(frozen=True)
class ImageChanges:
    """The differences between two image manifests, each field a tuple of texts such as `cat/3.png (train)`.

    Images are matched by id, then by pixels, so a renamed image is not a change. `moved` images are in another split.
    `rewritten` images have the same pixels in a file of another size."""

    changed: tuple[str, ...] = ()
    relabelled: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    rewritten: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any(astuple(self))

    def words(self, limit: int = _MAX_NAMES) -> list[str]:
        """Returns one line per kind of change that occurs, each with at most `limit` names."""
        kinds = {
            "changed": self.changed,
            "relabelled": self.relabelled,
            "added": self.added,
            "removed": self.removed,
            "moved to another split": self.moved,
            "file rewritten, image unchanged": self.rewritten,
        }
        return [f"{kind}: {join_names(names, limit)}" for kind, names in kinds.items() if names]

    def to_dict(self) -> dict[str, list[str]]:
        """Returns every name by kind of change, JSON-ready."""
        return {kind: list(names) for kind, names in asdict(self).items()}


def list_images(data: Mapping[str, PackedDataset], sizes: Mapping[str, int] | None = None) -> Iterator[ImageRecord]:
    """Yields the rows of packed splits, in their order. `sizes` maps ids to file sizes in bytes."""
    file_sizes = sizes or {}
    for split, packed in data.items():
        names = packed.classes
        labels = packed.labels.flatten().tolist()
        texts = [names[label] for label in labels] if names else [f"{label:.9g}" for label in labels]
        pixels = contents = [""] * len(labels)
        if packed.stats is not None:
            rows: Any = slice(None) if packed.rows is None else packed.rows
            digests = packed.stats.digests[rows]
            hexadecimal, width = digests.tobytes().hex(), 2 * digests.shape[1]
            pixels = [hexadecimal[start : start + width] for start in range(0, len(hexadecimal), width)]
            contents = [f"{key:016x}" for key in packed.stats.keys[rows].tolist()]
        for name, label, digest, content in zip(packed.ids, texts, pixels, contents, strict=True):
            size = str(file_sizes.get(name, ""))
            yield ImageRecord(split, name, label, size, digest, "" if content == _UNKNOWN_CONTENT else content)


def write_images(path: Path, data: Mapping[str, PackedDataset], sizes: Mapping[str, int] | None = None) -> None:
    """Writes the rows of `list_images` to `path`, atomically. The same images give the same bytes."""
    with (
        atomic_write(path) as file,
        gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0) as packed,
        io.TextIOWrapper(packed, "utf-8", "surrogatepass", newline="") as text,  # file names may be invalid UTF-8
    ):
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(ImageRecord._fields)
        writer.writerows(list_images(data, sizes))


def read_images(path: Path) -> list[ImageRecord] | None:
    """Returns the rows of an image manifest, or None if the file does not exist, as in runs of earlier versions.

    Raises ArtifactError if the file is damaged."""
    try:
        return list(_rows(path))
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, TypeError, csv.Error, zlib.error) as error:
        raise ArtifactError(f"'{path}' is damaged or cannot be read: {error}.") from error


def _rows(path: Path) -> Iterator[ImageRecord]:
    with gzip.open(path, "rt", encoding="utf-8", errors="surrogatepass", newline="") as text:
        rows = csv.reader(iter(lambda: text.readline(_MAX_LINE_CHARS), ""))
        if tuple(next(rows, ())) != ImageRecord._fields:
            raise ValueError(f"expected the columns {', '.join(ImageRecord._fields)}")
        for row in rows:
            yield ImageRecord(*row)


def compare_images(before: Iterable[ImageRecord], after: Iterable[ImageRecord]) -> ImageChanges:
    """Returns the differences between the manifests `before` and `after`."""
    old, new = _by_occurrence(before), _by_occurrence(after)
    pairs = [(old.pop(key), new.pop(key)) for key in list(old) if key in new]
    removed, added = list(old.values()), list(new.values())
    removed, added = _match(removed, added, lambda image: image.id, pairs)  # random splits may have been redone
    removed, added = _match(removed, added, lambda image: image.pixels, pairs)
    changed = [(a, b) for a, b in pairs if _differ(a.pixels, b.pixels) or _differ_in_content(a, b)]
    changed_set = set(changed)
    return ImageChanges(
        changed=tuple(_name(a, b) for a, b in changed),
        relabelled=tuple(_name(a, b, f"{a.label} -> {b.label}") for a, b in pairs if a.label != b.label),
        added=tuple(_name(b, b) for b in added),
        removed=tuple(_name(a, a) for a in removed),
        moved=tuple(_name(a, b) for a, b in pairs if a.split != b.split),
        rewritten=tuple(_name(a, b) for a, b in pairs if _differ(a.bytes, b.bytes) and (a, b) not in changed_set),
    )


def describe_changes(path: Path, data: Mapping[str, PackedDataset], sizes: Mapping[str, int] | None = None) -> str:
    """Returns the differences between the manifest at `path` and packed splits as a sentence with a leading space.

    The text is empty if nothing differs or the file does not exist. Raises ArtifactError if the file is damaged."""
    before = read_images(path)
    if before is None:
        return ""
    changes = compare_images(before, list_images(data, sizes))
    kinds = changes.words()
    kinds = changes.words(max(_MAX_NAMES // len(kinds), 1)) if kinds else []
    return f" Images {'; '.join(kinds)}." if kinds else ""


def _by_occurrence(images: Iterable[ImageRecord]) -> dict[tuple[str, str, int], ImageRecord]:
    """Maps (split, id, how often that pair occurred before) to images, since a table may list a file twice."""
    records: dict[tuple[str, str, int], ImageRecord] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for image in images:
        records[image.split, image.id, counts[image.split, image.id]] = image
        counts[image.split, image.id] += 1
    return records


def _match(
    removed: Sequence[ImageRecord],
    added: Sequence[ImageRecord],
    key: Callable[[ImageRecord], str],
    pairs: list[tuple[ImageRecord, ImageRecord]],
) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """Appends images with an equal, non-empty `key` to `pairs`; returns those of both sides without a partner."""
    waiting: defaultdict[str, deque[ImageRecord]] = defaultdict(deque)
    for image in removed:
        waiting[key(image)].append(image)
    unmatched = []
    for image in added:
        if key(image) and waiting[key(image)]:
            pairs.append((waiting[key(image)].popleft(), image))
        else:
            unmatched.append(image)
    return [image for queue in waiting.values() for image in queue], unmatched


def _differ(a: str, b: str) -> bool:
    """Returns whether both are known and unequal."""
    return bool(a and b) and a != b


def _differ_in_content(a: ImageRecord, b: ImageRecord) -> bool:
    return _differ(a.content, b.content) and len(a.content) == len(b.content)  # earlier versions used another hash


def _name(a: ImageRecord, b: ImageRecord, more: str = "") -> str:
    """Returns an image's name in messages, with its split: `cat/3.png (train)`."""
    split = b.split if a.split == b.split else f"{a.split} -> {b.split}"
    details = [split, f"was {a.id}" if a.id != b.id else "", more]
    return f"{b.id} ({', '.join(detail for detail in details if detail)})"
