"""Measures whether memory stays constant while images are loaded.

    python benchmarks/memory.py [--gib 4] [--epochs 20] [--only packed encoded shuffle] [--check]

It makes three measurements, each in a separate process. It reads /proc, so it runs only on Linux.

- `packed`: 50,000 images of 32 x 32, decoded once, with flips and shift-crops: the growth of the peak resident memory
  (VmHWM) from epoch 2 to the last.
- `encoded`: `--gib` GiB of generated photographs, stored encoded in the cache and decoded ahead of each step: the
  growth of anonymous resident memory (RssAnon) from the first tenth to the end of one epoch.
- `shuffle`: part of the order of 100 million images: the growth of VmHWM.

With --check, exits 1 if `packed` grows by 10 MiB or more, or `encoded` or `shuffle` by 64 MiB or more."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT_PACKED, LIMIT_ENCODED, LIMIT_SHUFFLE = 10.0, 64.0, 64.0
MIB = 2**20


def status(key: str) -> float:
    """Returns a line of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


def packed(epochs: int) -> float:
    """Returns the growth in MiB of the peak memory between epoch 2 and the last."""
    import torch

    from sightline.data.augment.flip_shift import Flip, ShiftCrop
    from sightline.data.cache.dataset import PackedDataset
    from sightline.data.images.preprocess import Preprocess
    from sightline.data.loading.loader import BatchLoader

    images = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8)
    data = PackedDataset(images, torch.zeros(50_000, dtype=torch.int64), [""] * 50_000, ("a", "b"))
    loader = BatchLoader(data, Preprocess(32, 32, 3), 512, shuffle=True, augment=(Flip(), ShiftCrop(4)))
    before = 0.0
    for epoch in range(1, epochs + 1):
        for _ in loader:
            pass
        if epoch in (1, 2, epochs):
            print(f"  after epoch {epoch:<3} peak {status('VmHWM'):8.1f} MiB, anonymous {status('RssAnon'):8.1f} MiB")
        if epoch == 2:
            before = status("VmHWM")
    return status("VmHWM") - before


def encoded(gib: float) -> float:
    """Returns the growth in MiB of anonymous memory from the first tenth of an epoch to its end."""
    from sightline.data.augment.flip_shift import Flip
    from sightline.data.augment.geometry import RandomResizedCrop
    from sightline.data.cache.directory import Cache
    from sightline.data.cache.pack import PackOptions, pack_splits
    from sightline.data.images.preprocess import Preprocess
    from sightline.data.loading.loader import BatchLoader
    from sightline.data.sources.open import open_source

    with tempfile.TemporaryDirectory() as folder:
        size = write_photographs(Path(folder) / "photographs", gib)
        source = open_source("folder", Path(folder) / "photographs", val=0, test=0)
        preprocess = Preprocess(224, 224, 3, resize="crop")
        start = time.perf_counter()
        packing = PackOptions("encoded", Cache(Path(folder) / "cache"))
        data = pack_splits(source, preprocess, packing=packing)[0]["train"]
        seconds = time.perf_counter() - start
        print(f"  {len(data):,} photographs, {size / 2**30:.2f} GiB, packed in {seconds:.0f} s")
        augment = (RandomResizedCrop(), Flip(0.5))
        loader = BatchLoader(data, preprocess, 64, shuffle=True, augment=augment)
        marks = [round(len(loader) * part / 10) for part in range(1, 11)]
        memory = []
        for number, _ in enumerate(loader, start=1):
            if number in marks:
                memory.append(status("RssAnon"))
        print("  RssAnon at each tenth of the epoch, MiB: " + " ".join(f"{value:.0f}" for value in memory))
    return memory[-1] - memory[0]


def write_photographs(root: Path, gib: float) -> int:
    """Writes JPEGs of about a megabyte until they have `gib` GiB; returns the bytes written."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    kinds = []
    for number in range(32):
        path = root / f"class{number % 2}" / f"kind{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (800, 1000, 3), np.uint8)
        Image.fromarray(pixels).save(path, quality=92)
        kinds.append(path.read_bytes())
    total = sum(map(len, kinds))
    number = len(kinds)
    while total < gib * 2**30:
        data = kinds[number % len(kinds)]
        (root / f"class{number % 2}" / f"{number:06}.jpg").write_bytes(data)
        total += len(data)
        number += 1
    return total


def shuffle() -> float:
    """Returns the growth in MiB of the peak memory from reading part of the order of 100 million images."""
    from sightline.core.rng import Permutation, derive_key

    before = status("VmHWM")
    order = Permutation(100_000_000, derive_key(0, 0, "order"))
    start = time.perf_counter()
    rows = order[50_000_000 : 50_000_000 + 65_536]
    milliseconds = (time.perf_counter() - start) * 1e3
    print(
        f"  65,536 positions in the middle of 100,000,000: {milliseconds:.1f} ms, {len(set(rows.tolist())):,} distinct "
        f"rows"
    )
    return status("VmHWM") - before


def main() -> int:
    """Runs each measurement in a separate process and prints the results; returns the exit code."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--gib", type=float, default=4.0, help="GiB of photographs to write; default: %(default)s")
    options.add_argument("--epochs", type=int, default=20, help="epochs of `packed`; default: %(default)s")
    names = ("packed", "encoded", "shuffle")
    options.add_argument("--only", nargs="+", choices=names, default=names, metavar="MEASUREMENT")
    options.add_argument("--check", action="store_true", help="exit 1 when a limit is exceeded")
    options.add_argument("--inside", choices=names, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.inside:
        growth = {
            "packed": lambda: packed(arguments.epochs), "encoded": lambda: encoded(arguments.gib), "shuffle": shuffle
        }[arguments.inside]()  # fmt: skip
        print(f"growth {growth:.3f}")
        return 0
    limits = {"packed": LIMIT_PACKED, "encoded": LIMIT_ENCODED, "shuffle": LIMIT_SHUFFLE}
    missed = []
    for name in arguments.only:
        command = [sys.executable, __file__, "--inside", name]
        command += ["--gib", str(arguments.gib), "--epochs", str(arguments.epochs)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=dict(os.environ))
        *lines, last = done.stdout.splitlines()
        growth = float(last.split()[1])
        print("\n".join([name, *lines, f"  grows by {growth:.1f} MiB (limit {limits[name]:.0f})"]), flush=True)
        if growth >= limits[name]:
            missed.append(f"missed: {name}: grows by {growth:.1f} MiB, the limit is {limits[name]:.0f} MiB")
    for line in missed:
        print(line)
    return 1 if arguments.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
