"""A summary of a dataset, from its files alone: classes, image sizes, damaged, duplicate and unusual files.

Does not import torch, so that a folder of a few thousand images is summarised in seconds."""

import io
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image
from xxhash import xxh3_128_hexdigest

from sightline.core.errors import DataError, adopt_argument_names, arg, current_argument_names, first_line, join_names
from sightline.core.parallel import available_cores
from sightline.data.images.decode import (
    GRAY_MODES,
    RAW_SUFFIXES,
    decode_image,
    height_width,
    is_gray,
    read_source,
    sample_name,
)
from sightline.data.records import DataSource, Sample

MAX_DECODED_BYTES = 256 << 20
"""Files of at most this many bytes together are decoded completely; of more, only the headers are read."""
MAX_HEADERS = 20_000
"""The number of headers that are read of a larger dataset, evenly spaced."""
PHOTOGRAPH_SIDE = 64
"""Images whose shorter side has at least this many pixels count as photographs."""
FEW_IMAGES = 20
IMBALANCE = 10
_NAMED = 3
_REFERENCE_BYTES = 1 << 15  # assumed for an image in an archive or a table
_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True)
class Finding:
    """One problem: a stable `code`, `severity` (an error stops training), what was found, examples of where (a file, a
    class or a row), and what to do."""

    code: str
    severity: Literal["error", "warning", "note"]
    message: str
    where: tuple[str, ...] = ()
    fix: str = ""


class ImageSize(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int

    @property
    def shorter_side(self) -> int:
        """The smaller of both."""
        return min(self)

    def __str__(self) -> str:
        return f"{self.width} x {self.height}"


@dataclass(frozen=True)
class DatasetSummary:
    """What `summarise_dataset` found. `splits` are images per split, `classes` are training images per class (empty for
    regression). `sizes` counts (height, width) over the `examined` images, `formats` their file formats, `colour` how
    many have colours. `decoded` says whether the examined images were decoded completely; otherwise only their headers
    were read."""

    splits: Mapping[str, int]
    classes: Mapping[str, int]
    examined: int
    decoded: bool
    sizes: Mapping[ImageSize, int]
    formats: Mapping[str, int]
    colour: int
    findings: tuple[Finding, ...] = field(default=())

    @property
    def images(self) -> int:
        """The number of images of all splits."""
        return sum(self.splits.values())

    @property
    def median_size(self) -> ImageSize | None:
        """The size that lies in the middle by area; None if no image could be read."""
        ordered = sorted(self.sizes.items(), key=lambda item: (math.prod(item[0]), item[0]))
        left = sum(self.sizes.values()) // 2
        for size, count in ordered:
            left -= count
            if left < 0:
                return size
        return None

    def to_dict(self) -> dict[str, Any]:
        """The summary as plain values for JSON."""
        return {
            **{name: getattr(self, name) for name in ("images", "examined", "decoded", "colour")},
            **{name: dict(getattr(self, name)) for name in ("splits", "classes", "formats")},
            "sizes": [{"height": size.height, "width": size.width, "images": n} for size, n in self.sizes.items()],
            "findings": [asdict(finding) for finding in self.findings],
        }


class Selection(NamedTuple):
    """The samples to examine, each with its split, and whether they are decoded completely."""

    samples: list[tuple[str, Sample]]
    decode: bool


def select_samples(
    source: DataSource, max_decoded_bytes: int = MAX_DECODED_BYTES, max_headers: int = MAX_HEADERS
) -> Selection:
    """Selects the samples that `summarise_dataset` examines.

    All are decoded if their files have at most `max_decoded_bytes` together; the size of an image in a table or an
    archive may be estimated. Otherwise the headers of up to `max_headers` evenly spaced images are read."""
    samples = [(split, sample) for split, rows in source.splits.items() for sample in rows]
    if _total_bytes([sample for _, sample in samples], max_decoded_bytes) <= max_decoded_bytes:
        return Selection(samples, True)
    count = min(len(samples), max_headers)
    return Selection([samples[i * len(samples) // count] for i in range(count)], False)


def summarise_dataset(
    source: DataSource, selection: Selection, progress: Callable[[int], None] = lambda _: None, *, numbers: bool = True
) -> DatasetSummary:
    """Summarises the images of a source, and finds what is wrong or unusual about them.

    Damaged pixels and duplicates are only found if the selection is decoded. `progress` is called with the number of
    images just examined. `numbers` says whether the source could also be read with numbers as labels (regression). An
    image that cannot be read is a finding, not an exception."""
    samples = [sample for _, sample in selection.samples]
    examine = _decoded if selection.decode else _header
    examined = []
    # a new thread has no argument names
    threads = ThreadPoolExecutor(
        available_cores(), initializer=adopt_argument_names, initargs=(current_argument_names(),)
    )
    with threads as pool:
        for image in pool.map(examine, samples):
            examined.append(image)
            progress(1)
    readable = [image for image in examined if not image.problem]
    counts = Counter(sample.label for sample in source.splits.get("train", ()))
    classes = {name: counts[label] for label, name in enumerate(source.info.classes)}
    return DatasetSummary(
        splits={split: len(rows) for split, rows in source.splits.items()},
        classes=classes,
        examined=len(samples),
        decoded=selection.decode,
        sizes=Counter(image.size for image in readable),
        formats=Counter(image.format for image in readable),
        colour=sum(image.colour for image in readable),
        findings=(
            *_image_findings(samples, examined),
            *(_duplicates(source.info.classes, selection.samples, examined) if selection.decode else ()),
            *_class_findings(classes, sum(map(len, source.splits.values())), numbers),
        ),
    )


class _Examined(NamedTuple):
    """What one image is. `problem` is why it cannot be read."""

    size: ImageSize = ImageSize(0, 0)
    colour: bool = False
    format: str = ""
    frames: int = 1
    digest: str = ""
    problem: str = ""


def _decoded(sample: Sample) -> _Examined:
    """Reads and decodes an image as training does."""
    try:
        source = read_source(sample.image, sample_name(sample))
        image = decode_image(source, sample_name(sample))
    except DataError as error:
        return _Examined(problem=str(error))
    size = ImageSize(*height_width(image))
    if not isinstance(source, bytes):
        pixels = np.ascontiguousarray(source)
        return _Examined(size, not is_gray(image), "pixels", 1, xxh3_128_hexdigest(pixels.data) + str(pixels.shape))
    return _Examined(size, not is_gray(image), *_format_and_frames(source), xxh3_128_hexdigest(source))


def _format_and_frames(data: bytes) -> tuple[str, int]:
    """Returns Pillow's name of the format and the number of frames; 1 frame if counting fails, as in a file that is
    damaged after its first frame, which is all that training reads."""
    name, frames = "unknown", 1
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as opened:
            name = str(opened.format)
            frames = int(getattr(opened, "n_frames", 1))
    return name, frames


def _header(sample: Sample) -> _Examined:
    """Reads the start of a file. An image in an archive or a table is read completely, but not decoded."""
    name = sample_name(sample)
    try:
        image = sample.image if isinstance(sample.image, Path) else read_source(sample.image, name)
        if isinstance(image, Path) and image.suffix.lower() in RAW_SUFFIXES:
            image = read_source(image, name)  # raises the error about raw files
        if isinstance(image, Path) and not image.is_file():
            return _Examined(problem=f"{name} is not a regular file.")
        if isinstance(image, np.ndarray):
            return _Examined(ImageSize(*image.shape[:2]), image.ndim == 3 and image.shape[2] >= 3, "pixels")
        if isinstance(image, Image.Image):
            return _Examined(ImageSize(*image.size[::-1]), image.mode not in GRAY_MODES, "pixels")
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            turned = opened.getexif().get(_ORIENTATION_TAG, 1) in range(5, 9)
            size = ImageSize(*(opened.size if turned else opened.size[::-1]))
            return _Examined(
                size, opened.mode not in (*GRAY_MODES, "1", "I", "I;16", "I;16B", "I;16L", "I;16N"), str(opened.format)
            )
    except DataError as error:
        return _Examined(problem=str(error))
    except Exception as error:  # Pillow's readers raise nearly anything on damaged bytes
        return _Examined(problem=f"{name} cannot be read: {first_line(error)}.")


def _total_bytes(samples: Sequence[Sample], limit: int) -> int:
    """The bytes of all images, up to the first sum above `limit`."""
    total = 0
    for sample in samples:
        if isinstance(sample.image, Path):
            try:
                total += sample.image.stat().st_size
            except OSError:
                continue
        elif isinstance(sample.image, bytes | np.ndarray):
            total += sample.image.nbytes if isinstance(sample.image, np.ndarray) else len(sample.image)
        else:
            total += _REFERENCE_BYTES
        if total > limit:
            break
    return total


def _image_findings(samples: Sequence[Sample], examined: Sequence[_Examined]) -> Iterator[Finding]:
    names = [sample_name(sample) for sample in samples]
    if damaged := [image.problem for image in examined if image.problem]:
        yield Finding(
            "unreadable-image",
            "error",
            f"{_count(len(damaged), 'image')} cannot be read.",
            tuple(damaged),
            f"Repair or remove them, or leave them out with {arg.on_bad}=skip.",
        )
    readable = [(name, image) for name, image in zip(names, examined, strict=True) if not image.problem]
    if animated := [name for name, image in readable if image.frames > 1]:
        yield Finding(
            "several-frames",
            "warning",
            f"{_count(len(animated), 'file')} of several frames or pages; only the first one is used.",
            tuple(animated),
            "Save the frames as separate images if all of them matter.",
        )
    gray = [name for name, image in readable if not image.colour]
    if gray and len(gray) < len(readable):
        yield Finding(
            "mixed-channels",
            "note",
            f"{len(gray):,} of {len(readable):,} images are gray, the others are in colour.",
            tuple(gray),
            f"Set {arg.channels}=3 to read all of them as RGB.",
        )
    sides = sorted(image.size.shorter_side for _, image in readable)
    if sides and (tiny := [name for name, image in readable if image.size.shorter_side * 8 < sides[len(sides) // 2]]):
        yield Finding(
            "tiny-image",
            "warning",
            f"{_count(len(tiny), 'image')} with a side below an eighth of the usual {sides[len(sides) // 2]} pixels.",
            tuple(tiny),
            "Check whether these are thumbnails or icons.",
        )


def _duplicates(
    classes: Sequence[str], samples: Sequence[tuple[str, Sample]], examined: Sequence[_Examined]
) -> Iterator[Finding]:
    """Files with the same bytes: with several labels, in several splits, and others."""
    groups: dict[str, list[tuple[str, Sample]]] = {}
    for pair, image in zip(samples, examined, strict=True):
        if not image.problem:
            groups.setdefault(image.digest, []).append(pair)
    conflicts, leaks, copies = [], [], []
    for group in groups.values():
        if len({sample.label for _, sample in group}) > 1:
            conflicts.append(join_names((_labelled(sample, classes) for _, sample in group), _NAMED))
        elif len({split for split, _ in group}) > 1:
            leaks.append(join_names((f"{sample_name(sample)} ({split})" for split, sample in group), _NAMED))
        elif len(group) > 1:
            copies.append(join_names((sample_name(sample) for _, sample in group), _NAMED))
    if conflicts:
        yield Finding(
            "label-conflict",
            "warning",
            f"{_count(len(conflicts), 'image')} with several labels.",
            tuple(conflicts),
            "Keep one copy of each, with the right label.",
        )
    if leaks:
        yield Finding(
            "split-leak",
            "warning",
            f"{_count(len(leaks), 'image')} in several splits, so that results on them are too good.",
            tuple(leaks),
            "Keep each image in one split.",
        )
    if copies:
        yield Finding(
            "duplicate-image",
            "note",
            f"{_count(len(copies), 'image')} with exact copies in the same split and class.",
            tuple(copies),
            "Remove the copies if they are not meant.",
        )


def _labelled(sample: Sample, classes: Sequence[str]) -> str:
    return f"{sample_name(sample)} ({classes[int(sample.label)] if classes else sample.label})"


def _class_findings(classes: Mapping[str, int], images: int, numbers: bool) -> Iterator[Finding]:
    few = {name: count for name, count in classes.items() if count < FEW_IMAGES}
    if few:
        yield Finding(
            "few-images",
            "warning",
            f"{_count(len(few), 'class', 'classes')} with fewer than {FEW_IMAGES} training images.",
            tuple(f"{name}: {count}" for name, count in sorted(few.items(), key=lambda item: item[1])),
            "Metrics of these classes will vary by chance; add images, or merge classes.",
        )
    if classes and max(classes.values()) > IMBALANCE * max(1, min(classes.values())):
        most, least = (choose(classes, key=lambda name: classes[name]) for choose in (max, min))
        yield Finding(
            "imbalance",
            "warning",
            f"'{most}' has {classes[most]:,} training images, '{least}' has {classes[least]:,}.",
            (),
            f"Try {arg.class_weights}=auto, and look at the recall of each class.",
        )
    folded: dict[str, list[str]] = {}
    for name in classes:
        folded.setdefault(re.sub(r"(?<=[^\W\d])[\s_.-]+(?=[^\W\d])", "", name.strip().casefold()), []).append(name)
    if similar := [names for names in folded.values() if len(names) > 1]:
        yield Finding(
            "similar-class-names",
            "warning",
            "Some class names differ only in case, spaces or hyphens.",
            tuple(join_names(f"'{name}'" for name in names) for names in similar),
            "Give one class one name.",
        )
    if numbers and looks_numeric(classes, images):
        yield Finding(
            "numeric-labels",
            "warning",
            f"The {len(classes):,} labels are numbers with few images each.",
            (),
            f"To predict the number itself (regression), set {arg.target}=number.",
        )


def looks_numeric(classes: Iterable[str], images: int) -> bool:
    """Whether labels are probably quantities and not classes: all of them numbers, and some with a fraction, or more
    than 20 of them with fewer than 5 images each on average."""
    names = list(classes)
    try:
        values = [float(name) for name in names]
    except ValueError:
        return False
    if not all(map(math.isfinite, values)):
        return False
    return bool(names) and (any(value % 1 for value in values) or (len(names) > 20 and images < 5 * len(names)))


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
