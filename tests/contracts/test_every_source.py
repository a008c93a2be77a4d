"""The contract of every data source: it lists the same samples each time, with labels in range, and several threads can
read its images."""

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

from helpers.shapes import check_shape
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
        writer = csv.writer(file)
        writer.writerow(["file", "label", "camera"])
        for row, pixels in enumerate(PIXELS):
            Image.fromarray(pixels).save(root / f"{row:02}.png")
            writer.writerow([f"{row:02}.png", NAMES[LABELS[row]], row % 3])
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
    """Items as torchvision's datasets return them with ToTensor."""

    classes = NAMES

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(PIXELS[row]).permute(2, 0, 1).float() / 255, int(LABELS[row])


def dataset(root: Path) -> Callable[[], DataSource]:
    return lambda: as_source(Items(), name="items")


@dataclass(frozen=True)
class CustomSource:
    """A user-defined source with only the members that the protocol requires."""

    info: DataInfo = DataInfo("custom", NAMES)

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
    "a custom source": lambda root: lambda: as_source(CustomSource()),
}


@pytest.fixture(params=SOURCES)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], DataSource]:
    """A function that opens the source of the same files, as often as needed."""
    return SOURCES[request.param](tmp_path)


def listed(source: DataSource) -> list[tuple[str, str, Any]]:
    return [(split, sample.id, sample.label) for split, samples in source.splits.items() for sample in samples]


def test_packed_images_and_labels_have_the_documented_shapes_and_dtypes(make: Callable[[], DataSource]) -> None:
    splits, preprocess = pack_splits(make(), AUTO)
    channels, height, width = preprocess.shape
    for data in splits.values():
        sizes = check_shape(data.labels, "int64 [N]", {"N": len(data), "C": channels, "H": height, "W": width})
        check_shape(data.pixels(np.arange(len(data))), "uint8 [N,C,H,W]", sizes)


def packed(source: DataSource, packing: PackOptions) -> dict[str, NDArray[np.uint8]]:
    """The pixels of every split, in its order, as a run reads them."""
    splits, _ = pack_splits(source, AUTO, packing=packing)
    return {split: data.pixels(np.arange(len(data))).numpy() for split, data in splits.items()}


def test_samples_have_unique_ids_and_labels_in_the_range_of_the_classes(make: Callable[[], DataSource]) -> None:
    source = make()
    assert "train" in source.splits
    rows = listed(source)
    assert len({name for _, name, _ in rows}) == len(rows), "each image is in one split, once"
    assert len(source.info.classes) >= 2
    assert {label for *_, label in rows} == set(range(len(source.info.classes)))
    assert all(isinstance(label, int | np.integer) for *_, label in rows)


def test_it_lists_the_same_samples_each_time(make: Callable[[], DataSource]) -> None:
    source, again = make(), make()
    assert listed(source) == listed(again)
    assert source.info.classes == again.info.classes
    assert source.info.name == again.info.name


def content(image: Any) -> Any:
    """The bytes of an image in any of its forms, to compare."""
    value = image.read() if hasattr(image, "read") else image
    if isinstance(value, Path):
        return value.read_bytes()
    return value if isinstance(value, bytes) else np.asarray(value).tobytes()


def test_several_threads_read_the_same_images_as_one(make: Callable[[], DataSource]) -> None:
    images = [sample.image for samples in make().splits.values() for sample in samples][:COUNT]
    expected = [content(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(content, images * 3)) == expected * 3
    assert len(set(expected)) > COUNT // 2, "too many images are equal"


def test_a_reference_has_the_same_token_each_time(make: Callable[[], DataSource]) -> None:
    """The token is equal whenever the same files are opened, or None where that is unknown."""
    for one, other in zip(make().splits["train"], make().splits["train"], strict=True):
        if hasattr(one.image, "token"):
            assert one.image.token == other.image.token


def test_packed_pixels_are_the_same_in_every_store_and_from_the_cache(
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
