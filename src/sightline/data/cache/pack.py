"""Source -> packed splits: every image decoded once, in parallel, checked, and kept in the cache.

What is kept does not know of splits or labels: an entry holds each distinct image of the source once, so that another
seed, another split or a corrected label decodes nothing. Its key is made of every file's path, size and time of change
(or an archive's and the member), of how images are decoded, and of the decoders' versions."""

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
    """How images are kept: `store` "pixels", "encoded" or "auto"; `cache` None for this process alone; `on_bad` "error"
    or "skip"; `crops` whether training cuts random parts out of the images; `workers` what decodes.

    `store="auto"` keeps decoded pixels up to `pixels_limit` bytes for all splits together, encoded images above it.
    With random crops it keeps decoded pixels only for images of at most `crop_limit` pixels: a small part of a larger
    image is cut from the original, or it would be blurred."""

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
    """Every split of a source (or those in `only`), and the finished preprocessing: a mapping may leave size, channels,
    mean and std "auto", to be taken from the first training image and from the training split's own statistics.
    `progress` is called with the number of images just decoded, which is none of them where the cache has them.

    Raises DataError naming the images that cannot be read (with `on_bad="skip"` they are left out), or the first one
    that does not have the size or the colours that "auto" found."""
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
        split: SplitImages(part, own)
        for (split, part), own in zip(source.splits.items(), np.split(rows, ends), strict=True)
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
    """The `content_checksum` of each image that was built."""
    found = np.zeros(len(built.images), np.uint64)
    for sample, row in zip(samples, rows.tolist(), strict=True):
        if row not in built.bad:
            found[row] = content_checksum(sample.image, sample_name(sample))
    return found


def _origin(info: DataInfo) -> str:
    """What a list of the cache calls the source; text that any encoding takes, also of a path that is no UTF-8."""
    return str(info.root.resolve() if info.root else info.name).encode(errors="replace").decode()


def resolve_decoder(samples: Sequence[Sample], given: Mapping[str, object], on_bad: str = "error") -> Preprocess:
    """The decoding that `given` describes, with what it leaves "auto" taken from the first of the samples (the first
    that can be read, where bad ones are skipped)."""
    values: dict[str, Any] = {name: value for name, value in given.items() if value != "auto"}
    size = values.pop("size", None)
    channels = values.pop("channels", None)
    if size is None or channels is None:
        image = None
        for sample in samples:
            try:
                image = decode_image(sample.image, sample_name(sample))
                break
            except ImageError:
                if on_bad == "error":
                    raise
        if image is None:
            raise DataError(f"none of the {len(samples):,} training images can be read.")
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
    """The images, and which of them each sample is."""
    cache, workers = packing.cache, packing.workers
    build = partial(build_pixels if store == "pixels" else build_encoded, workers=workers)
    with ExitStack() as stack:
        if (
            cache is not None
            and store == "pixels"
            and workers.use_processes(samples)
            and not cache.has_entry_from(origin)
        ):
            # there will be much to decode: the processes for it start while the files are looked at
            processes = stack.enter_context(closing(DecodingProcesses(workers.threads)))
            build = partial(build, processes=processes)
        tokens = _tokens(samples) if cache is not None else None
        if cache is None or tokens is None:
            return build(samples, decoder, None, progress, exact), np.arange(len(samples))
        last = {token: position for position, token in enumerate(tokens)}
        order = sorted(last)
        place = {token: row for row, token in enumerate(order)}
        rows = np.fromiter((place[token] for token in tokens), np.int64, len(tokens))
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
    """For each image an identity that changes when the file does; None where one is in memory or cannot tell."""
    found = []
    here = f"{Path.cwd()}{os.sep}"
    for sample in samples:
        image = sample.image
        if isinstance(image, Path):
            name = os.fspath(image)
            if not image.is_absolute():
                name = here + name
            try:
                stat = os.stat(name)  # noqa: PTH116 a third of the time of Path.stat, for what may be a million files
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
        found.append(token)
    return found


def _key(tokens: Sequence[str], store: str, decoder: Preprocess) -> str:
    import PIL
    import simplejpeg

    how = {name: value for name, value in decoder.to_dict().items() if name not in ("mean", "std")}
    versions = [FORMAT, PIL.__version__, simplejpeg.__version__]
    digest = hashlib.sha256(json.dumps([versions, store, how], sort_keys=True).encode())
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
    """The entry out of the cache, made first, in the folder it is given, where it is not there or is damaged."""
    fresh = False
    for _ in range(2):
        entry = cache.find(key)
        if entry is not None:
            built = load_entry(entry, store, samples, decoder, partial(cache.invalidate, entry), check=not fresh)
            if built is not None:
                check_preserved(built.stats, samples, decoder, exact)
                return built
            if entry.path.is_dir():  # else another process has just made room
                cache.note(f"the cached images in '{entry.path}' are damaged; decoding them again")
                cache.invalidate(entry)
        try:
            with cache.build(key) as folder:
                if folder is not None:
                    make(folder)
                    fresh = True
        except OSError as error:
            warnings.warn(
                f"the decoded images cannot be kept in '{cache.folder}': {error.strerror or error}. This run decodes "
                f"them for itself; $SIGHTLINE_CACHE or {arg.cache_dir} names another place, {arg.cache}=false asks for "
                f"none.",
                UserWarning,
                stacklevel=2,
            )
            break
    return make(None)


def _unreadable(built: PackedImages, samples: Sequence[Sample], rows: NDArray[np.int64]) -> list[tuple[str, str]]:
    """(id, reason) of the samples that could not be read, each reason with the sample's own name."""
    pairs = zip(samples, rows.tolist(), strict=True)
    return [
        (sample.id, built.bad[row].replace(NAME_PLACEHOLDER, sample_name(sample)))
        for sample, row in pairs
        if row in built.bad
    ]


def _refuse_unreadable(built: PackedImages, samples: Sequence[Sample], rows: NDArray[np.int64]) -> None:
    wrong = [reason for _, reason in _unreadable(built, samples, rows)]
    if len(wrong) > 1:
        shown = "\n  ".join(wrong[:10]) + (f"\n  … and {len(wrong) - 10} more" if len(wrong) > 10 else "")
        skip = render_hint("; {on_bad}=skip leaves them out")
        raise DataError(f"{len(wrong)} images cannot be used{skip}:\n  {shown}")
    if wrong:
        raise DataError(f"{wrong[0]}{render_hint(' ({on_bad}=skip leaves such images out)')}")


def _split(
    built: PackedImages, samples: Sequence[Sample], rows: NDArray[np.int64], classes: tuple[str, ...], split: str
) -> PackedDataset:
    """One split of what was built, without the images that could not be read."""
    kept, left_out = samples, list[tuple[str, str]]()
    if built.bad:
        fine = [row not in built.bad for row in rows.tolist()]
        left_out = _unreadable(built, samples, rows)
        kept = [sample for sample, good in zip(samples, fine, strict=True) if good]
        rows = rows[np.array(fine, dtype=bool)]
    if classes:
        labels = torch.tensor([sample.label for sample in kept], dtype=torch.int64)
    else:  # [N,1] as the network's answers: against [N] a loss would compare each answer with every label
        found = [s.label if is_float32_number(s.label) else parse_number(s.label, sample_name(s)) for s in kept]
        labels = torch.tensor(found, dtype=torch.float32).reshape(-1, 1)
    if left_out and not classes and not kept:
        raise DataError(f"no image in the {split} split can be read; the first of {len(left_out)}: {left_out[0][1]}")
    if left_out and classes:
        there = set(labels.tolist())
        lost = [classes[int(label)] for label in sorted({sample.label for sample in samples} - there)]
        if not kept or (split == "train" and lost):
            raise DataError(
                f"no image of {join_names(lost)} in the {split} split can be read; the first of {len(left_out)}: "
                f"{left_out[0][1]}"
            )
    names = sorted({name for sample in kept for name in sample.columns})
    columns = {name: tuple(sample.columns.get(name, "") for sample in kept) for name in names}
    whole = len(rows) == len(built.images) and bool((rows == np.arange(len(rows))).all())
    return PackedDataset(
        built.images,
        labels,
        tuple(sample.id for sample in kept),
        classes,
        None if whole else rows,
        built.stats,
        columns,
        tuple(left_out),
    )
