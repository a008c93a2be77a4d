"""Small image files and tables for the tests that read real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def noise(height: int, width: int, channels: int = 0, seed: int = 0) -> NDArray[np.uint8]:
    """Random pixels [H,W], or [H,W,C] if `channels` is set."""
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_image(path: Path, pixels: NDArray[np.uint8] | Image.Image | None = None, **options: object) -> Path:
    """Writes pixels, by default 4 x 4 gray noise, in the format of the suffix; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        pixels = noise(4, 4, seed=len(str(path)))
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def write_table(path: Path, header: str, rows: Sequence[str] = (), *, encoding: str = "utf-8") -> Path:
    """Writes a CSV file of these lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in (header, *rows)).encode(encoding))
    return path


def write_folders(root: Path, counts: Mapping[str, int]) -> Path:
    """`{"cat": 2}` -> root/cat/0.png and root/cat/1.png, gray noise, all different."""
    for number, (name, count) in enumerate(counts.items()):
        for i in range(count):
            write_image(root / name / f"{i}.png", noise(4, 4, seed=1000 * number + i))
    return root
