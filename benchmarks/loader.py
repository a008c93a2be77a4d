"""Measures Sightline's packed data and loader against torchvision's ImageFolder with torch's DataLoader.

    python benchmarks/loader.py [--rounds 9] [--only loading packing photographs] [--check]

It prints three tables of medians over interleaved rounds, in one process:

- `loading`: CIFAR-10 as JPEG folders, with flips, shift-crops and normalisation, in batches of 512; and the cost of
  each of these over a bare `index_select` of the same bytes.
- `packing`: the speed of decoding a dataset for the first time, against one thread that reads and decodes.
- `photographs`: 1,000 generated JPEGs of about 500 x 400, random resized crops of 224, the first epoch and later ones.

CIFAR-10 is read from `$SIGHTLINE_SHARED/data/cifar10-jpg.tar.gz` (default ../shared). With --check, exits 1 if loading
is less than 12 times as fast as ImageFolder with its best number of workers, if packing CIFAR-10 is slower than one
thread, or if packing photographs is less than 0.8 times the number of cores as fast as one thread."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from archives import CIFAR10, unpacked
from sightline.core.parallel import available_cores
from sightline.data.augment.flip_shift import Flip, ShiftCrop
from sightline.data.augment.geometry import RandomResizedCrop
from sightline.data.cache.dataset import PackedDataset
from sightline.data.cache.directory import Cache
from sightline.data.cache.pack import PackOptions, pack_splits
from sightline.data.images.preprocess import Preprocess
from sightline.data.loading.loader import BatchLoader
from sightline.data.records import DataSource
from sightline.data.sources.open import open_source

TARGET_LOADING, TARGET_PACKING, TARGET_PHOTOGRAPHS = 12.0, 1.0, 0.8
BATCH, PHOTO_BATCH, SIDE = 512, 64, 224
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)


def rate(work: Callable[[], int]) -> float:
    """Returns the images per second of `work`, which returns the number of images."""
    start = time.perf_counter()
    count = work()
    return count / (time.perf_counter() - start)


def interleaved(rounds: int, works: Mapping[str, Callable[[], int]], rest: float = 0.0) -> dict[str, float]:
    """Runs all functions once per round; returns the median rate of each. `rest` is a pause in seconds."""
    measured: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            measured[name].append(rate(work))
            time.sleep(rest)
    return {name: statistics.median(rates) for name, rates in measured.items()}


def drained(batches: Iterable[Any], images: Callable[[Any], int]) -> Callable[[], int]:
    """Returns a function that iterates over all batches and returns the number of images."""
    return lambda: sum(images(batch) for batch in batches)


def image_folder(root: Path, steps: list[Any], workers: int, batch: int, most: int | None = None) -> Callable[[], int]:
    """Returns an epoch over an ImageFolder, as users write it, with persistent workers and at most `most` images."""
    dataset: Any = datasets.ImageFolder(str(root), transforms.Compose(steps))
    if most is not None and most < len(dataset):
        rows = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:most]
        dataset = Subset(dataset, rows.tolist())
    loader = DataLoader(dataset, batch_size=batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    return drained(loader, lambda pair: len(pair[1]))


def best_workers(make: Callable[[int], Callable[[], int]], label: str) -> tuple[int, Callable[[], int]]:
    """Returns the number of workers that is fastest on this machine, and its function."""
    results = {}
    for workers in sorted({0, 1, 2, available_cores(), 2 * available_cores()}):
        work = make(workers)
        work()  # starts the workers and reads the files into the page cache
        results[workers] = (rate(work), work)
        print(f"  {label}, {workers} workers: {results[workers][0]:,.0f} images/s", flush=True)
    best = max(results, key=lambda workers: results[workers][0])
    return best, results[best][1]


def packed(source: DataSource, preprocess: Preprocess, cache: Path, store: str) -> dict[str, PackedDataset]:
    """Packs all splits of a source."""
    return pack_splits(source, preprocess, packing=PackOptions(store, Cache(cache)))[0]


def loading(root: Path, rounds: int, scratch: Path) -> float:
    """Prints the `loading` table; returns the ratio to ImageFolder."""
    steps = [
        transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]  # fmt: skip
    workers, theirs = best_workers(lambda n: image_folder(root / "train", steps, n, BATCH, 20_000), "ImageFolder")
    preprocess = Preprocess(32, 32, 3, MEAN, STD)
    source = open_source("folder", root, val=0)
    data = packed(source, preprocess, scratch / "cifar", "pixels")["train"]
    pixels = data.pixels(np.arange(len(data)))
    flip, shift = (Flip(0.5),), (Flip(0.5), ShiftCrop(4))
    plain = Preprocess(32, 32, 3)
    order = torch.randperm(len(data)).split(BATCH)
    ours = f"Sightline, {available_cores()} threads"

    def gather() -> int:
        return sum(len(pixels.index_select(0, rows)) for rows in order)

    def loader(augment: tuple[Any, ...], preprocess: Preprocess, threads: int) -> Callable[[], int]:
        batches = BatchLoader(data, preprocess, BATCH, shuffle=True, augment=augment, workers=threads)
        return drained(batches, lambda batch: len(batch.y))

    class Bytes(BatchLoader):
        """A loader that stops before the conversion to float32."""

        def _change(self, images: Any, chunk: Any) -> Any:
            return self._augmented(images, chunk.keys, chunk.epoch)

    def uint8(augment: tuple[Any, ...]) -> Callable[[], int]:
        batches = Bytes(data, plain, BATCH, shuffle=True, augment=augment, workers=1)
        return drained(batches, lambda batch: len(batch.y))

    medians = interleaved(
        rounds,
        {
            "ImageFolder + DataLoader": theirs,
            ours: loader(shift, preprocess, available_cores()),
            "bare index_select": gather,
            "  gathered in order, 1 thread": uint8(()),
            "  + flip": uint8(flip),
            "  + shift-crop": uint8(shift),
            "  + float32, normalised": loader(shift, preprocess, 1),
        },
    )
    ratio = medians[ours] / medians["ImageFolder + DataLoader"]
    print(f"\nloading: CIFAR-10, {len(data):,} JPEGs of 32 x 32, batches of {BATCH}; {workers} workers for ImageFolder")
    for name, value in medians.items():
        print(f"  {name:<34} {value:12,.0f} images/s {1e6 / value:8.2f} us/image")
    gap = medians["bare index_select"] / medians[ours]
    print(
        f"  Sightline is {ratio:.1f} x as fast as ImageFolder; the bare index_select {gap:.1f} x as fast as Sightline"
    )
    return ratio


def packing(root: Path, rounds: int, scratch: Path) -> float:
    """Prints the `packing` table; returns the ratio to one thread that reads and decodes."""
    preprocess = Preprocess(32, 32, 3, MEAN, STD)
    source = open_source("folder", root, val=0)
    files: list[Path] = [sample.image for sample in source.splits["train"]]  # type: ignore[misc]
    total = sum(map(len, source.splits.values()))

    def pack() -> int:
        with tempfile.TemporaryDirectory(dir=scratch) as cache:
            packed(source, preprocess, Path(cache), "pixels")
        return total

    def again() -> int:
        packed(source, preprocess, scratch / "cifar", "pixels")
        return total

    def ours() -> int:
        for file in files:
            preprocess.decode(file)
        return len(files)

    def jpeg() -> int:
        for file in files:
            with open(file, "rb") as opened:
                simplejpeg.decode_jpeg(opened.read(), "RGB", fastdct=False, fastupsample=False)
        return len(files)

    def pillow() -> int:
        for file in files[:10_000]:
            np.asarray(Image.open(file).convert("RGB"))
        return 10_000

    again()
    medians = interleaved(
        rounds,
        {
            "read + decode, one thread": ours,
            "  with Pillow": pillow,
            "  with bare libjpeg-turbo": jpeg,
            "packing": pack,
            "opening the packed data": again,
        },
    )
    ratio = medians["packing"] / medians["read + decode, one thread"]
    print(f"\npacking: CIFAR-10, {total:,} JPEGs, {available_cores()} cores")
    show(medians)
    print(f"  packing is {ratio:.2f} x as fast as one thread")
    return ratio


def photographs(rounds: int, scratch: Path) -> float:
    """Prints the `photographs` table; returns the speed of packing per core, relative to one thread."""
    root = scratch / "photographs"
    draw_photographs(root / "train", 1000)
    preprocess = Preprocess(SIDE, SIDE, 3, MEAN, STD, resize="crop")
    source = open_source("folder", root, val=0, test=0)
    files: list[Path] = [sample.image for sample in source.splits["train"]]  # type: ignore[misc]

    def one_thread() -> int:
        for file in files:
            preprocess.decode(file)
        return len(files)

    def pack() -> int:
        with tempfile.TemporaryDirectory(dir=scratch) as cache:
            packed(source, preprocess, Path(cache), "encoded")
        return len(files)

    steps = [
        transforms.RandomResizedCrop(SIDE), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]  # fmt: skip
    workers, theirs = best_workers(lambda n: image_folder(root / "train", steps, n, PHOTO_BATCH), "ImageFolder")

    def epoch(cache: Path) -> int:
        data = packed(source, preprocess, cache, "encoded")["train"]
        augment = (RandomResizedCrop(), Flip(0.5))
        loader = BatchLoader(data, preprocess, PHOTO_BATCH, shuffle=True, augment=augment)
        return drained(loader, lambda batch: len(batch.y))()

    def first() -> int:
        with tempfile.TemporaryDirectory(dir=scratch) as cache:
            return epoch(Path(cache))

    def first_of_theirs() -> int:
        return image_folder(root / "train", steps, workers, PHOTO_BATCH)()

    epoch(scratch / "packed")
    medians = interleaved(
        rounds,
        {
            "read + decode, one thread": one_thread,
            "packing": pack,
            "first epoch, packing included": first,
            "later epochs": lambda: epoch(scratch / "packed"),
            "ImageFolder, first epoch": first_of_theirs,
            "ImageFolder, later epochs": theirs,
        },
    )
    ratio = medians["packing"] / medians["read + decode, one thread"]
    print(f"\nphotographs: 1,000 JPEGs, crops of {SIDE}, {available_cores()} cores; {workers} workers for ImageFolder")
    show(medians)
    later = medians["later epochs"] / medians["ImageFolder, later epochs"]
    print(
        f"  packing is {ratio:.2f} x as fast as one thread, {ratio / available_cores():.2f} x per core; later epochs "
        f"{later:.2f} x as fast as ImageFolder"
    )
    return ratio / available_cores()


def show(medians: Mapping[str, float]) -> None:
    """Prints a line for each rate."""
    for name, value in medians.items():
        print(f"  {name:<34} {value:12,.0f} images/s")


def draw_photographs(folder: Path, count: int) -> None:
    """Writes random JPEGs of about 500 x 400 in two classes, with coarse and fine structures and noise."""
    random = np.random.default_rng(0)
    for number in range(count):
        width, height = (int(side + random.integers(-60, 60)) for side in (500, 400))
        image = np.zeros((height, width, 3), np.float32)
        for cells, strength in ((6, 90), (40, 40), (200, 16)):
            coarse = random.normal(0, strength, (cells, cells, 3)).astype(np.float32)
            layers = [
                Image.fromarray(coarse[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(3)
            ]
            image += np.stack([np.asarray(layer) for layer in layers], -1)
        image += random.normal(128, 6, image.shape)
        path = folder / f"class{number % 2}" / f"{number:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path, quality=88)


def main() -> int:
    """Runs the benchmark and prints the tables; returns the exit code."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=9, help="rounds that are measured; default: %(default)s")
    names = ("loading", "packing", "photographs")
    options.add_argument("--only", nargs="+", choices=names, default=names, metavar="TABLE")
    options.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    arguments = options.parse_args()
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        root = unpacked(CIFAR10, scratch / "cifar10") if {"loading", "packing"} & set(arguments.only) else scratch
        targets = {"loading": TARGET_LOADING, "packing": TARGET_PACKING, "photographs": TARGET_PHOTOGRAPHS}
        for name in arguments.only:
            if name == "photographs":
                ratio = photographs(arguments.rounds, scratch)
            else:
                ratio = (loading if name == "loading" else packing)(root, arguments.rounds, scratch)
            if ratio < targets[name]:
                missed.append(f"missed: {name}: ratio {ratio:.2f}, the target is {targets[name]}")
    for line in missed:
        print(line)
    return 1 if arguments.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
