"""Packs a data source: decodes and checks every image once, in parallel, and stores the result in the cache.

A cache entry contains each distinct image of the source once and is independent of splits and labels, so another seed,
another split or a corrected label needs no decoding. Its key is derived from the path, size and change times of every
file (for an archive: its own and the member's name), from the decoding options, and from the decoders' versions."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sightline.core.errors import DataError, ImageError, arg, join_names, render_hint
from sightline.core.log import logger
from sightline.core.parallel import short_switch_interval
from sightline.data.cache.dataset import PackedDataset
from sightline.data.cache.directory import Cache
from sightline.data.cache.entry import PackedImages, build_encoded, build_pixels, check_preserved, load_entry
from sightline.data.cache.split_by_content import SplitImages, split_by_content
from sightline.data.cache.workers import NAME_PLACEHOLDER, DecodingProcesses, Workers
from sightline.data.images.decode import decode_image, height_width, is_gray, sample_name
from sightline.data.images.digest import content_checksum
from sightline.data.images.preprocess import Preprocess
from sightline.data.records import DataInfo, DataSource, Sample
from sightline.data.sources.labels import is_float32_number, parse_number

FORMAT = 3


@dataclass(frozen=True)
class PackOptions:
    """How images are packed.

    `store` is "pixels", "encoded" or "auto"; without a `cache` nothing is written to disk. `on_bad` is "error" or
    "skip", for images that cannot be read. `crops` is whether training uses random crops. `workers` are the threads or
    processes that decode.

    `store="auto"` keeps decoded pixels up to `pixels_limit` bytes for all splits together, and encoded images above it.
    With random crops it keeps decoded pixels only if they are at most `crop_limit` pixels per image: crops of larger
    images are taken from the original, since enlarging a crop of the resized image would blur it."""

    store: str = "auto"
    cache: Cache | None = None
    on_bad: str = "error"
    crops: bool = False
    workers: Workers = Workers()
    pixels_limit: int = 4 * 2**30
    crop_limit: int = 64 * 64


def pack_splits(
    source: DataSource,
    preprocess: Preprocess | Mapping[str, object],
    progress: Callable[[int], None] = lambda _: None,
    only: Collection[str] | None = None,
    packing: PackOptions = PackOptions(),
) -> tuple[dict[str, PackedDataset], Preprocess]:
    """Packs all splits of a source, or those in `only`; returns them with the completed preprocessing.

    `preprocess` may be a mapping in which size, channels, mean and std are "auto". Size and channels are then taken
    from the first training image, mean and std from the training split. `progress` is called with the number of images
    just decoded; images from the cache are not reported.

    Raises DataError naming the images that cannot be read (with `on_bad="skip"` they are left out), or the first one
    that does not have the size or the colours that "auto" determined."""
    exact: set[str] = set()
    if isinstance(preprocess, Preprocess):
        decoder = preprocess
    else:
        exact = {name for name in ("size", "channels") if preprocess.get(name, "auto") == "auto"}
        decoder = resolve_decoder(source.splits["train"], preprocess, packing.on_bad)
    samples = [sample for part in source.splits.values() for sample in part]
    store = _choose_store(packing, len(samples), decoder)
    with short_switch_interval():
        built, rows = _build(samples, decoder, store, packing, progress, exact, _origin(source.info))
    if built.bad and packing.on_bad == "error":
        _refuse_unreadable(built, samples, rows)
    ends = np.cumsum([len(part) for part in source.splits.values()])[:-1]
    parts = {
        split: SplitImages(part, part_rows)
        for (split, part), part_rows in zip(source.splits.items(), np.split(rows, ends), strict=True)
    }
    drawn = getattr(source, "drawn", None)
    if drawn is not None:
        keys = _checksums(built, samples, rows) if drawn.checksum else built.stats.keys
        parts = split_by_content(parts, drawn, keys, built.bad)
    packed = {
        split: _split(built, part.samples, part.rows, source.info.classes, split)
        for split, part in parts.items()
        if only is None or split in only
    }
    if not isinstance(preprocess, Preprocess):
        auto = {name for name in ("mean", "std") if preprocess.get(name, "auto") == "auto"}
        if auto:
            mean, std = packed["train"].statistics()
            decoder = replace(
                decoder, mean=mean if "mean" in auto else decoder.mean, std=std if "std" in auto else decoder.std
            )
    return packed, decoder


def _checksums(built: PackedImages, samples: Sequence[Sample], rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Returns the `content_checksum` of each packed image, uint64 [N]; 0 for images that could not be read."""
    checksums = np.zeros(len(built.images), np.uint64)
    for sample, row in zip(samples, rows.tolist(), strict=True):
        if row not in built.bad:
            checksums[row] = content_checksum(sample.image, sample_name(sample))
    return checksums


def _origin(info: DataInfo) -> str:
    """Returns the source's name in cache listings. Characters that cannot be encoded as UTF-8 are replaced."""
    return str(info.root.resolve() if info.root else info.name).encode(errors="replace").decode()


def resolve_decoder(samples: Sequence[Sample], given: Mapping[str, object], on_bad: str = "error") -> Preprocess:
    """Returns the `Preprocess` that `given` describes, with "auto" size and channels taken from the first sample.

    With `on_bad="skip"`, they are taken from the first sample that can be read. Raises DataError if none can be."""
    values: dict[str, Any] = {name: value for name, value in given.items() if value != "auto"}
    size = values.pop("size", None)
    channels = values.pop("channels", None)
    if size is None or channels is None:
        image = None
        for sample in samples:
            try:
                image = decode_image(sample.image, sample_name(sample))
                break
            except ImageError as error:
                if on_bad == "error":
                    raise ImageError(f"{error}{render_hint(' Set {on_bad}=skip to leave it out.')}") from error
        if image is None:
            raise DataError(f"None of the {len(samples):,} training images can be read.")
        channels = channels or (1 if is_gray(image) else 3)
        size = size or list(height_width(image))
    height, width = (size, size) if isinstance(size, int) else (list(size) * 2)[:2]
    return Preprocess(height=height, width=width, channels=channels, **values)


def _build(
    samples: Sequence[Sample],
    decoder: Preprocess,
    store: str,
    packing: PackOptions,
    progress: Callable[[int], None],
    exact: Collection[str],
    origin: str,
) -> tuple[PackedImages, NDArray[np.int64]]:
    """Returns the packed images, and the row of each sample's image in them."""
    cache, workers = packing.cache, packing.workers
    build = partial(build_pixels if store == "pixels" else build_encoded, workers=workers)
    with ExitStack() as stack:
        if (
            cache is not None
            and store == "pixels"
            and workers.use_processes(samples)
            and not cache.has_entry_from(origin)
        ):
            # probably all files have to be decoded: the processes start while the cache key is computed
            processes = stack.enter_context(closing(DecodingProcesses(workers.threads)))
            build = partial(build, processes=processes)
        tokens = _tokens(samples) if cache is not None else None
        if cache is None or tokens is None:
            return build(samples, decoder, None, progress, exact), np.arange(len(samples))
        last = {token: position for position, token in enumerate(tokens)}
        order = sorted(last)
        row_of = {token: row for row, token in enumerate(order)}
        rows = np.fromiter((row_of[token] for token in tokens), np.int64, len(tokens))
        distinct = [samples[last[token]] for token in order]
        make = partial(build, distinct, decoder, progress=progress, exact=exact, origin=origin)
        return _cached(cache, _key(order, store, decoder), store, distinct, decoder, exact, make), rows


def _choose_store(packing: PackOptions, count: int, decoder: Preprocess) -> str:
    if packing.store != "auto":
        return packing.store
    small = decoder.height * decoder.width <= packing.crop_limit
    fits = count * decoder.channels * decoder.height * decoder.width <= packing.pixels_limit
    return "pixels" if fits and (small or not packing.crops) else "encoded"


def _tokens(samples: Sequence[Sample]) -> list[str] | None:
    """Returns an identity for each image that changes with its file; None if any image has none."""
    tokens = []
    prefix = f"{Path.cwd()}{os.sep}"
    for sample in samples:
        image = sample.image
        if isinstance(image, Path):
            name = os.fspath(image)
            if not image.is_absolute():
                name = prefix + name
            try:
                stat = os.stat(name)  # noqa: PTH116 a third of the time of Path.stat, for up to a million files
            except OSError:
                token = f"{name}|missing"
            else:
                token = f"{name}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}"
        elif isinstance(image, bytes):
            token = hashlib.sha256(image).hexdigest()
        elif isinstance(image, np.ndarray) or image.token is None:
            return None
        else:
            token = image.token
        tokens.append(token)
    return tokens


def _key(tokens: Sequence[str], store: str, decoder: Preprocess) -> str:
    import PIL
    import simplejpeg

    options = {name: value for name, value in decoder.to_dict().items() if name not in ("mean", "std")}
    versions = [FORMAT, PIL.__version__, simplejpeg.__version__]
    digest = hashlib.sha256(json.dumps([versions, store, options], sort_keys=True).encode())
    digest.update("\n".join(tokens).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _cached(
    cache: Cache,
    key: str,
    store: str,
    samples: Sequence[Sample],
    decoder: Preprocess,
    exact: Collection[str],
    make: Callable[[Path | None], PackedImages],
) -> PackedImages:
    """Returns the images from the cache entry, which `make` builds in a folder first if it is missing or damaged. If
    the cache cannot be written, warns and builds without it."""
    fresh = False
    for _ in range(2):
        entry = cache.find(key)
        if entry is not None:
            built = load_entry(entry, store, samples, decoder, partial(cache.invalidate, entry), check=not fresh)
            if built is not None:
                check_preserved(built.stats, samples, decoder, exact)
                logger.debug("%s images in the cache entry '%s'", f"{len(samples):,}", entry.path)
                return built
            if entry.path.is_dir():  # otherwise another process has just deleted it
                logger.warning(f"The cached images in '{entry.path}' are damaged. They are decoded again.")
                cache.invalidate(entry)
        try:
            with cache.build(key) as folder:
                if folder is not None:
                    make(folder)
                    fresh = True
        except OSError as error:
            warnings.warn(
                f"The decoded images cannot be kept in '{cache.folder}': {error.strerror or error}. This run decodes "
                f"them without the cache. Set $SIGHTLINE_CACHE or {arg.cache_dir} to another directory, or "
                f"{arg.cache}=false.",
                UserWarning,
                stacklevel=2,
            )
            break
    return make(None)


def _unreadable(built: PackedImages, samples: Sequence[Sample], rows: NDArray[np.int64]) -> list[tuple[str, str]]:
    """Returns (id, reason) of the samples that could not be read, each reason with the sample's name."""
    pairs = zip(samples, rows.tolist(), strict=True)
    return [
        (sample.id, built.bad[row].replace(NAME_PLACEHOLDER, sample_name(sample)))
        for sample, row in pairs
        if row in built.bad
    ]


def _refuse_unreadable(built: PackedImages, samples: Sequence[Sample], rows: NDArray[np.int64]) -> None:
    reasons = [reason for _, reason in _unreadable(built, samples, rows)]
    if len(reasons) > 1:
        shown = "\n  ".join(reasons[:10]) + (f"\n  … and {len(reasons) - 10} more" if len(reasons) > 10 else "")
        skip = render_hint(" (set {on_bad}=skip to leave them out)")
        raise DataError(f"{len(reasons)} images cannot be used{skip}:\n  {shown}")
    if reasons:
        raise DataError(f"{reasons[0]}{render_hint(' Set {on_bad}=skip to leave it out.')}")


def _split(
    built: PackedImages, samples: Sequence[Sample], rows: NDArray[np.int64], classes: tuple[str, ...], split: str
) -> PackedDataset:
    """Returns one split of the packed images, without those that could not be read."""
    readable, left_out = samples, list[tuple[str, str]]()
    if built.bad:
        is_readable = [row not in built.bad for row in rows.tolist()]
        left_out = _unreadable(built, samples, rows)
        readable = [sample for sample, good in zip(samples, is_readable, strict=True) if good]
        rows = rows[np.array(is_readable, dtype=bool)]
    if classes:
        labels = torch.tensor([sample.label for sample in readable], dtype=torch.int64)
    else:  # [N, 1] as the network's outputs: with [N], a loss would broadcast and compare each output with every label
        values = [s.label if is_float32_number(s.label) else parse_number(s.label, sample_name(s)) for s in readable]
        labels = torch.tensor(values, dtype=torch.float32).reshape(-1, 1)
    first_reason = f"The first of {len(left_out)} reasons: {left_out[0][1]}" if left_out else ""
    if left_out and not classes and not readable:
        raise DataError(f"No image in the {split} split can be read. {first_reason}")
    if left_out and classes:
        present = set(labels.tolist())
        lost = [classes[int(label)] for label in sorted({sample.label for sample in samples} - present)]
        if not readable or (split == "train" and lost):
            raise DataError(f"No image of {join_names(lost)} in the {split} split can be read. {first_reason}")
    names = sorted({name for sample in readable for name in sample.columns})
    columns = {name: tuple(sample.columns.get(name, "") for sample in readable) for name in names}
    is_identity = len(rows) == len(built.images) and bool((rows == np.arange(len(rows))).all())
    return PackedDataset(
        built.images,
        labels,
        tuple(sample.id for sample in readable),
        classes,
        None if is_identity else rows,
        built.stats,
        columns,
        tuple(left_out),
    )
