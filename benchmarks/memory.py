"""Memory while feeding images: does it stay where it is?

    python benchmarks/memory.py [--gib 4] [--epochs 20] [--only packed encoded shuffle] [--check]

Three measurements, each in a process of its own. `packed`: 50,000 images of 32 x 32 decoded once, flip and shift-crop,
peak resident memory (VmHWM) after epoch 2 and after the last. `encoded`: so many GiB of generated photographs, kept as
they are in the cache and decoded ahead of the step, anonymous resident memory (RssAnon) through one epoch. `shuffle`:
the order of 100 million images, looked at in the middle. Reads /proc, so Linux alone.

With --check, exits 1 when the peak grows by 10 MB or more, when RssAnon ends over 64 MB above the first tenth of the
epoch, or when shuffling takes more than 64 MB."""

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
    """A line of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


def packed(epochs: int) -> float:
    """MiB by which the peak grows between epoch 2 and the last."""
    import torch

    from sightline.data.augment.flip_shift import Flip, ShiftCrop
    from sightline.data.cache.dataset import PackedDataset
    from sightline.data.images.preprocess import Preprocess
    from sightline.data.loading.loader import BatchLoader

    images = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8)
    data = PackedDataset(images, torch.zeros(50_000, dtype=torch.int64), [""] * 50_000, ("a", "b"))
    loader = BatchLoader(data, Preprocess(32, 32, 3), 512, shuffle=True, augment=(Flip(), ShiftCrop(4)))
    early = 0.0
    for epoch in range(1, epochs + 1):
        for _ in loader:
            pass
        if epoch in (1, 2, epochs):
            print(f"  after epoch {epoch:<3} peak {status('VmHWM'):8.1f} MiB, anonymous {status('RssAnon'):8.1f} MiB")
        if epoch == 2:
            early = status("VmHWM")
    return status("VmHWM") - early


def encoded(gib: float) -> float:
    """MiB of anonymous memory that an epoch ends with above its first tenth."""
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
        took = time.perf_counter() - start
        print(f"  {len(data):,} photographs, {size / 2**30:.2f} GiB, packed in {took:.0f} s")
        augment = (RandomResizedCrop(), Flip(0.5))
        loader = BatchLoader(data, preprocess, 64, shuffle=True, augment=augment)
        marks = [round(len(loader) * part / 10) for part in range(1, 11)]
        seen = []
        for number, _ in enumerate(loader, start=1):
            if number in marks:
                seen.append(status("RssAnon"))
        print("  RssAnon at each tenth of the epoch, MiB: " + " ".join(f"{value:.0f}" for value in seen))
    return seen[-1] - seen[0]


def write_photographs(root: Path, gib: float) -> int:
    """JPEGs of about a megabyte until there are so many GiB; the bytes written."""
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
    """MiB that looking at the order of 100 million images takes."""
    from sightline.core.rng import Permutation, derive_key

    before = status("VmHWM")
    order = Permutation(100_000_000, derive_key(0, 0, "order"))
    start = time.perf_counter()
    rows = order[50_000_000 : 50_000_000 + 65_536]
    took = time.perf_counter() - start
    print(
        f"  65,536 places in the middle of 100,000,000: {took * 1e3:.1f} ms, {len(set(rows.tolist())):,} distinct rows"
    )
    return status("VmHWM") - before


def main() -> int:
    """Measures in processes of their own, prints, and with --check judges."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--gib", type=float, default=4.0, help="photographs to write; default: %(default)s")
    options.add_argument("--epochs", type=int, default=20)
    names = ("packed", "encoded", "shuffle")
    options.add_argument("--only", nargs="+", choices=names, default=names, metavar="MEASUREMENT")
    options.add_argument("--check", action="store_true")
    options.add_argument("--inside", choices=names, help=argparse.SUPPRESS)
    found = options.parse_args()
    if found.inside:
        grown = {
            "packed": lambda: packed(found.epochs), "encoded": lambda: encoded(found.gib), "shuffle": shuffle
        }[found.inside]()  # fmt: skip
        print(f"grown {grown:.3f}")
        return 0
    limits = {"packed": LIMIT_PACKED, "encoded": LIMIT_ENCODED, "shuffle": LIMIT_SHUFFLE}
    missed = []
    for name in found.only:
        words = [sys.executable, __file__, "--inside", name, "--gib", str(found.gib), "--epochs", str(found.epochs)]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, env=dict(os.environ))
        *lines, last = done.stdout.splitlines()
        grown = float(last.split()[1])
        print("\n".join([name, *lines, f"  grows by {grown:.1f} MiB (limit {limits[name]:.0f})"]), flush=True)
        if grown >= limits[name]:
            missed.append(name)
    for name in missed:
        print(f"{name}: more than {limits[name]:.0f} MiB")
    return 1 if found.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
