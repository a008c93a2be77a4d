"""Parquet tables as Hugging Face and other programs write them."""

from __future__ import annotations

import importlib
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from helpers.images import noise, write_image
from sightline.core.errors import DataError
from sightline.data.records import Row, Sample
from sightline.data.sources import parquet
from sightline.data.sources.csv import Columns
from sightline.data.sources.open import open_source
from sightline.data.sources.parquet import ReadLimits, read_parquet

pa = importlib.import_module("pyarrow")
pq = importlib.import_module("pyarrow.parquet")
ALL = {"val": 0, "test": 0}


def png(seed: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(noise(5, 4, seed=seed)).save(data, "PNG")
    return data.getvalue()


PNGS = [png(i) for i in range(40)]


def write(
    path: Path, n: int = 6, images: str = "struct", names: list[str] | None = None, group: int = 2, **columns: Any
) -> Path:
    """Writes a table of n images with the labels 0, 1, 0, …; `columns` are added or replace these."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells: dict[str, Any] = {
        "image": [{"bytes": data, "path": None} if images == "struct" else data for data in PNGS[:n]],
        "label": [i % 2 for i in range(n)],
    } | columns
    table = pa.table({name: value for name, value in cells.items() if value is not None})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        metadata = json.dumps({"info": {"features": {k: v for k, v in features.items() if k in cells}}})
        table = table.replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, path, row_group_size=group)
    return path


def read(sample: Sample | Row) -> bytes:
    return sample.image.read()  # type: ignore[union-attr, return-value]


@pytest.mark.parametrize("images", ["struct", "binary"])
def test_one_table(tmp_path: Path, images: str) -> None:
    path = write(tmp_path / "pets.parquet", images=images, site=["x", None, "y", "z", "x", "y"], age=list(range(6)))
    for root in (tmp_path, path):
        source = open_source("auto", root, **ALL)
        samples = source.splits["train"]
        assert source.info.classes == ("0", "1")
        assert [read(sample) for sample in samples] == PNGS[:6]
        assert [sample.label for sample in samples] == [0, 1] * 3
        assert dict(samples[1].columns) == {"site": "", "age": "1"}
        assert samples[5].id == "pets.parquet/00005"
        assert samples[5].where == f"{path}, row 5"
        tokens = [sample.image.token for sample in samples]  # type: ignore[union-attr]
        assert len(set(tokens)) == 6
        assert tokens[3] == f"{path}|{path.stat().st_size}|{path.stat().st_mtime_ns}|3"
    assert open_source("parquet", path, **ALL).info.name == "pets"


def test_tables_of_the_datasets_library(tmp_path: Path) -> None:
    datasets = importlib.import_module("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["dog", "cat"]),
            "note": datasets.Value("string"),
        }
    )
    cells = {
        "image": [Image.fromarray(noise(5, 4, seed=i)) for i in range(6)],
        "label": [1, 0] * 3,
        "note": list("abcdef"),
    }
    dataset = datasets.Dataset.from_dict(cells, features=features)
    dataset.to_parquet(str(tmp_path / "data" / "train-00000-of-00002.parquet"))
    dataset.select([3, 4]).to_parquet(str(tmp_path / "data" / "train-00001-of-00002.parquet"))
    dataset.select([0, 1]).to_parquet(str(tmp_path / "data" / "test-00000-of-00001.parquet"))
    source = open_source("auto", tmp_path, val=0)
    assert source.info.classes == ("dog", "cat")
    assert {split: len(samples) for split, samples in source.splits.items()} == {"train": 8, "test": 2}
    assert [sample.columns["note"] for sample in source.splits["train"]] == list("abcdefde")
    with Image.open(io.BytesIO(read(source.splits["train"][6]))) as image:
        assert image.tobytes() == noise(5, 4, seed=3).tobytes()


@pytest.mark.parametrize(
    "names",
    [
        {"train": ["train-00000-of-00001.parquet"], "test": ["test.parquet"], "val": ["validation-00000.parquet"]},
        {"train": ["train/a.parquet", "train/b.parquet"], "val": ["Valid/a.parquet"]},
        {"train": ["data/train_1.parquet"], "test": ["data/test_1.parquet"]},
        {"train": ["one.parquet", "two.parquet"]},
        {"train": ["trainer.parquet"]},
    ],
)
def test_the_names_of_files_and_folders_give_the_splits(tmp_path: Path, names: dict[str, list[str]]) -> None:
    for files in names.values():
        for file in files:
            write(tmp_path / file)
    source = open_source("auto", tmp_path, **ALL)
    assert {split: len(samples) // 6 for split, samples in source.splits.items()} == {
        split: len(names[split]) for split in ("train", "val", "test") if split in names
    }


def test_columns_can_be_configured(tmp_path: Path) -> None:
    photos = [{"bytes": data, "path": "x.png"} for data in PNGS[:4]]
    parts = ["train", "train", "Test", "TEST"]
    kinds = ["b", "a", "b", "a"]
    write(tmp_path / "a.parquet", 4, label=None, photo=photos, kind=kinds, part=parts, patient=[1, 1, 2, 2])
    source = open_source(
        "auto", tmp_path, image_column="photo", label_column="kind", split_column="part", group_column="patient"
    )
    assert source.info.classes == ("a", "b")
    assert {split: len(samples) for split, samples in source.splits.items()} == {"train": 2, "test": 2}
    assert dict(source.splits["test"][0].columns) == {"patient": "2"}


def test_images_may_be_paths(tmp_path: Path) -> None:
    for i in range(4):
        write_image(tmp_path / "images" / f"{i}.png")
    write(tmp_path / "data.parquet", 4, image=[f"images/{i}.png" for i in range(4)])
    samples = open_source("auto", tmp_path, **ALL).splits["train"]
    assert [sample.image for sample in samples] == [tmp_path / "images" / f"{i}.png" for i in range(4)]
    assert samples[2].id == "images/2.png"
    write(tmp_path / "data.parquet", 2, image=["images/0.png", "images/00.png"])
    with pytest.raises(DataError, match=r"data\.parquet, row 1: the file '.*00\.png' does not exist\. Did you mean"):
        open_source("auto", tmp_path)


@pytest.mark.parametrize("limit", [0, 2**26])
def test_rows_are_read_in_any_order_by_any_thread(tmp_path: Path, limit: int) -> None:
    """Complete row groups, and pieces of those that are too large to keep."""
    write(tmp_path / "train" / "a.parquet", 40, group=16)
    write(tmp_path / "train" / "b.parquet", 25, group=100)
    samples = read_parquet(tmp_path, Columns(), ReadLimits(limit, 3)).splits["train"]
    expected = PNGS + PNGS[:25]
    assert [read(sample) for sample in samples] == expected
    assert [read(sample) for sample in reversed(samples)] == expected[::-1]
    order = [i * 37 % 65 for i in range(65 * 4)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda i: read(samples[i]), order)) == [expected[i] for i in order]


@pytest.mark.parametrize("limit", [0, 2**26])
def test_a_row_group_is_entered_once_when_rows_come_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Counted, not timed: reading in order must not start a group again for each row."""
    write(tmp_path / "a.parquet", 40, group=10)
    entered = []
    real = parquet._Reader._seek_row_group
    monkeypatch.setattr(
        parquet._Reader, "_seek_row_group", lambda self, *place: (entered.append(place), real(self, *place))[1]
    )
    for sample in read_parquet(tmp_path, Columns(), ReadLimits(limit)).splits["train"]:
        read(sample)
    assert len(entered) == 4


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [0, 1, None, 1, 0, 1]}, r"a\.parquet, row 2, column 'label': no label\."),
        ({"label": [0, 1, -1, 1, 0, 1], "names": ["a", "b"]}, "row 2, column 'label': no label"),
        ({"label": [0, 1, 2, 1, 0, 1], "names": ["a", "b"]}, "label 2 is out of range; the data names 2 classes: a, b"),
        ({"label": [0.5] * 6}, "row 0, column 'label': the label 0.5 is neither an integer nor text"),
        ({"label": None}, r"has none of the columns type, label, target, class; it has: image\. Set .*label_column"),
        ({"image": None}, r"none of the columns files, .* it has: label\. Set data\.image_column"),
        ({"image": [[1, 2]] * 6}, "the column 'image' holds list<.*expected encoded images"),
    ],
)
def test_an_invalid_table_is_an_error(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    write(tmp_path / "a.parquet", **columns)
    with pytest.raises(DataError, match=message):
        open_source("auto", tmp_path)


def test_an_empty_cell_is_an_error_when_it_is_read(tmp_path: Path) -> None:
    write(
        tmp_path / "a.parquet", image=[{"bytes": PNGS[0], "path": None}] * 4 + [None, {"bytes": None, "path": "x.png"}]
    )
    samples = open_source("auto", tmp_path, **ALL).splits["train"]
    with pytest.raises(DataError, match=r"a\.parquet, row 4: no image in column 'image'\."):
        read(samples[4])
    with pytest.raises(DataError, match=r"row 5: no image in column 'image', only the path 'x\.png'\. Write the table"):
        read(samples[5])


def test_invalid_files_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No \.parquet file in '.*' or in its folder 'data'\."):
        open_source("parquet", tmp_path)
    write(tmp_path / "plain_text" / "train.parquet")
    with pytest.raises(DataError, match=r"There are some in .*plain_text\. Set data\.root to one of these"):
        open_source("parquet", tmp_path)
    write(tmp_path / "train.parquet", names=["a", "b"])
    write(tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"has tables for train, and tables without a split: other\.parquet"):
        open_source("parquet", tmp_path)
    (tmp_path / "other.parquet").rename(tmp_path / "test.parquet")
    with pytest.raises(DataError, match="do not have the same classes"):
        open_source("parquet", tmp_path)
    with pytest.raises(DataError, match=r"data\.split_column: the tables in .* already have splits \(test, train\)"):
        open_source("parquet", tmp_path, split_column="label")
    (tmp_path / "train.parquet").unlink()
    with pytest.raises(DataError, match="has tables for test, but none for train"):
        open_source("parquet", tmp_path)
    (tmp_path / "test.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"test\.parquet' is not a Parquet file or is damaged"):
        open_source("parquet", tmp_path / "test.parquet")
    write(tmp_path / "test.parquet", 0, image=pa.array([], pa.binary()), label=pa.array([], pa.int64()), group=1)
    with pytest.raises(DataError, match="no rows for train"):
        open_source("parquet", tmp_path / "test.parquet")
