"""What every data source must do: list the same samples each time, with labels in range, and read any of them from
several threads."""

from __future__ import annotations

import csv
import gzip
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from sightline.data.cache.directory import Cache
from sightline.data.cache.pack import PackOptions, pack_splits
from sightline.data.records import DataInfo, DataSource, Sample
from sightline.data.sources.adapt import as_source
from sightline.data.sources.open import open_source

COUNT, SIDE = 24, 6
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 3), dtype=np.uint8)
NAMES = ("cat", "dog")
LABELS = np.arange(COUNT) % 2
AUTO = {"size": "auto", "channels": "auto", "mean": "auto", "std": "auto"}


def folders(root: Path) -> Callable[[], DataSource]:
    for row, pixels in enumerate(PIXELS):
        path = root / NAMES[LABELS[row]] / f"{row:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return lambda: open_source("folder", root)


def archive(root: Path) -> Callable[[], DataSource]:
    folders(root / "files")
    with zipfile.ZipFile(root / "images.zip", "w") as file:
        for path in sorted((root / "files").rglob("*.png")):
            file.write(path, path.relative_to(root / "files"))
    return lambda: open_source("auto", root / "images.zip")


def table(root: Path) -> Callable[[], DataSource]:
    with (root / "table.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "label", "camera"])
        for row, pixels in enumerate(PIXELS):
            Image.fromarray(pixels).save(root / f"{row:02}.png")
            rows.writerow([f"{row:02}.png", NAMES[LABELS[row]], row % 3])
    return lambda: open_source("csv", root / "table.csv")


def parquet(root: Path) -> Callable[[], DataSource]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    encoded = []
    for pixels in PIXELS:
        path = root / "one.png"
        Image.fromarray(pixels).save(path)
        encoded.append(path.read_bytes())
    columns = {"image": encoded, "label": [NAMES[label] for label in LABELS]}
    pq.write_table(pa.table(columns), root / "train.parquet", row_group_size=7)
    return lambda: open_source("parquet", root / "train.parquet")


def idx(root: Path) -> Callable[[], DataSource]:
    for name, values in (("images-idx3", PIXELS[..., 0]), ("labels-idx1", LABELS.astype(np.uint8))):
        head = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
        (root / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(head + values.tobytes()))
    return lambda: open_source("idx", root)


def npz(root: Path) -> Callable[[], DataSource]:
    np.savez(root / "images.npz", x_train=PIXELS, y_train=LABELS)
    return lambda: open_source("npz", root / "images.npz")


def arrays(root: Path) -> Callable[[], DataSource]:
    return lambda: as_source((PIXELS, LABELS), name="arrays")


class Items(Dataset[tuple[torch.Tensor, int]]):
    """Items as torchvision's data sets give them with ToTensor."""

    classes = NAMES

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(PIXELS[row]).permute(2, 0, 1).float() / 255, int(LABELS[row])


def dataset(root: Path) -> Callable[[], DataSource]:
    return lambda: as_source(Items(), name="items")


@dataclass(frozen=True)
class Own:
    """A user's, with what the protocol asks for alone."""

    info: DataInfo = DataInfo("own", NAMES)

    @property
    def splits(self) -> Mapping[str, Sequence[Sample]]:
        samples = [Sample(str(row), pixels, int(LABELS[row])) for row, pixels in enumerate(PIXELS)]
        return {"train": samples[:16], "val": samples[16:]}


SOURCES: dict[str, Callable[[Path], Callable[[], DataSource]]] = {
    "folders": folders,
    "zip": archive,
    "csv": table,
    "parquet": parquet,
    "idx": idx,
    "npz": npz,
    "digits": lambda root: lambda: open_source("digits"),
    "arrays": arrays,
    "a torch Dataset": dataset,
    "a user's": lambda root: lambda: as_source(Own()),
}


@pytest.fixture(params=SOURCES)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], DataSource]:
    """Opens the source of the same files again and again."""
    return SOURCES[request.param](tmp_path)


def listed(source: DataSource) -> list[tuple[str, str, Any]]:
    return [(split, sample.id, sample.label) for split, samples in source.splits.items() for sample in samples]


def packed(source: DataSource, packing: PackOptions) -> dict[str, NDArray[np.uint8]]:
    """The pixels of every split, in its order, as a run gets them."""
    found, _ = pack_splits(source, AUTO, packing=packing)
    return {split: data.pixels(np.arange(len(data))).numpy() for split, data in found.items()}


def test_samples_have_an_identity_and_a_label_that_means_a_class(make: Callable[[], DataSource]) -> None:
    source = make()
    assert "train" in source.splits
    rows = listed(source)
    assert len({name for _, name, _ in rows}) == len(rows), "each image is in one split, once"
    assert len(source.info.classes) >= 2
    assert {label for *_, label in rows} == set(range(len(source.info.classes)))
    assert all(isinstance(label, int | np.integer) for *_, label in rows)


def test_it_lists_the_same_each_time(make: Callable[[], DataSource]) -> None:
    source, again = make(), make()
    assert listed(source) == listed(again)
    assert source.info.classes == again.info.classes
    assert source.info.name == again.info.name


def content(image: Any) -> Any:
    """Something to compare of an image in any of its forms."""
    value = image.read() if hasattr(image, "read") else image
    if isinstance(value, Path):
        return value.read_bytes()
    return value if isinstance(value, bytes) else np.asarray(value).tobytes()


def test_images_are_read_by_threads_as_by_one(make: Callable[[], DataSource]) -> None:
    images = [sample.image for samples in make().splits.values() for sample in samples][:COUNT]
    alone = [content(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(content, images * 3)) == alone * 3
    assert len(set(alone)) > COUNT // 2, "they are not the same image"


def test_a_reference_names_what_it_depends_on(make: Callable[[], DataSource]) -> None:
    """The same whenever the same files are opened; None where nothing can be said."""
    for one, other in zip(make().splits["train"], make().splits["train"], strict=True):
        if hasattr(one.image, "token"):
            assert one.image.token == other.image.token


def test_it_is_packed_the_same_as_pixels_as_files_and_from_the_cache(
    make: Callable[[], DataSource], tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = Cache(tmp_path_factory.mktemp("cache"))
    first = packed(make(), PackOptions())
    for packing in (
        PackOptions(cache=cache),
        PackOptions(cache=cache),
        PackOptions("encoded", cache),
        PackOptions("encoded", cache),
    ):
        again = packed(make(), packing)
        assert list(again) == list(first)
        assert all(np.array_equal(again[split], first[split]) for split in first)
