"""Opening data sources: every layout is read, and errors in one are reported before training."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.images import noise, write_folders, write_image, write_table
from sightline.core.errors import DataError, SightlineError
from sightline.data.records import Sample
from sightline.data.sources.labels import sort_class_names
from sightline.data.sources.open import open_source
from sightline.data.sources.tree import image_files

ALL = {"val": 0, "test": 0}  # nothing is held out


def labels(samples: list[Sample], classes: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(sample.id, classes[sample.label]) for sample in samples]


# --- digits


def test_without_a_root_the_embedded_digits_are_used() -> None:
    source = open_source()
    assert source.info.name == "digits"
    assert source.info.classes == tuple("0123456789")
    assert source.info.root is None
    assert {split: len(samples) for split, samples in source.splits.items()} == {"train": 1258, "val": 180, "test": 359}
    samples = [sample for split in source.splits.values() for sample in split]
    assert len({sample.id for sample in samples}) == 1797
    pixels = np.stack([np.asarray(sample.image) for sample in samples])
    assert pixels.dtype == np.uint8
    assert pixels.shape == (1797, 8, 8)
    assert pixels.min() == 0
    assert pixels.max() == 255


def test_the_digits_equal_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    source = open_source("digits", **ALL)
    for i, sample in enumerate(source.splits["train"]):
        assert sample.label == targets[i]
        assert np.array_equal(np.round(np.asarray(sample.image).reshape(-1) / 255 * 16), images[i])


# --- class folders


def test_flat_class_folders(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "pets", {"dog": 2, "cat": 3})
    source = open_source("auto", root, **ALL)
    assert source.info.name == "pets"
    assert source.info.classes == ("cat", "dog")
    assert set(source.splits) == {"train"}
    expected = [(f"cat/{i}.png", "cat") for i in range(3)] + [(f"dog/{i}.png", "dog") for i in range(2)]
    assert labels(source.splits["train"], source.info.classes) == expected
    assert all(isinstance(s.image, Path) and s.image.is_file() for s in source.splits["train"])


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_folders_named_like_splits_are_the_splits(tmp_path: Path, val: str) -> None:
    for split, count in (("train", 3), (val, 2), ("test", 1)):
        write_folders(tmp_path / split, {"a": count, "b": count})
    source = open_source("folder", tmp_path)
    assert {split: len(samples) for split, samples in source.splits.items()} == {"train": 6, "val": 4, "test": 2}
    assert source.splits["test"][0].id == "test/a/0.png"


def test_images_in_nested_folders_belong_to_the_outer_class(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / "one" / "deep" / "1.png")
    write_image(tmp_path / "a" / "2.JPG")
    write_image(tmp_path / "b" / "3.bmp")
    source = open_source("folder", tmp_path, **ALL)
    assert labels(source.splits["train"], source.info.classes) == [
        ("a/2.JPG", "a"),
        ("a/one/deep/1.png", "a"),
        ("b/3.bmp", "b"),
    ]


def test_hidden_and_other_files_are_skipped(tmp_path: Path) -> None:
    write_folders(tmp_path, {"a": 1, "b": 1})
    write_image(tmp_path / "a" / "._0.png")  # macOS adds these to archives
    write_image(tmp_path / "a" / ".thumbnails" / "0.png")
    write_image(tmp_path / ".cache" / "0.png")
    (tmp_path / "a" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "readme.txt").write_text("x", encoding="utf-8")
    source = open_source("folder", tmp_path, **ALL)
    assert [sample.id for sample in source.splits["train"]] == ["a/0.png", "b/0.png"]


def test_the_order_of_files_is_stable(tmp_path: Path) -> None:
    names = [f"{name}.png" for name in ("b", "a", "c", "10", "9")]
    for name in names:
        write_image(tmp_path / name)
    assert [file.name for file in image_files(tmp_path)] == sorted(names)


@pytest.mark.parametrize(
    ("names", "order"),
    [
        ({"10", "9", "2", "0"}, ("0", "2", "9", "10")),
        ({"-1", "1", "0.5"}, ("-1", "0.5", "1")),
        ({"10", "9", "x"}, ("10", "9", "x")),
        ({"01", "1", "2"}, ("01", "1", "2")),
        ({"b", "a", "C"}, ("C", "a", "b")),
    ],
)
def test_class_names_that_are_numbers_are_sorted_as_numbers(names: set[str], order: tuple[str, ...]) -> None:
    assert sort_class_names(names) == order


@pytest.mark.parametrize("word", ["nan", "NaN"])
def test_a_class_named_nan_is_text_and_not_a_number(word: str) -> None:
    # NaN cannot be ordered: the labels would depend on the hash seed of the process
    names = {word, *map(str, range(30))}
    assert sort_class_names(names) == tuple(sorted(names))


def test_numeric_class_folders_have_their_numbers_as_labels(tmp_path: Path) -> None:
    root = write_folders(tmp_path, {str(i): 1 for i in range(12)})
    source = open_source("folder", root, **ALL)
    assert all(sample.id.startswith(f"{sample.label}/") for sample in source.splits["train"])


# --- errors in folders


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    write_folders(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "ghost").mkdir()
    with pytest.raises(DataError, match=r"ghost' contains no images, so the class 'ghost' is empty"):
        open_source("folder", tmp_path)


def test_an_empty_folder_or_one_without_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No class folders in .*: it is empty"):
        open_source("auto", tmp_path)
    write_image(tmp_path / "0.png")
    write_image(tmp_path / "1.png")
    with pytest.raises(DataError, match=r"No class folders in .*: only 2 images"):
        open_source("auto", tmp_path)


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    write_folders(tmp_path, {"only": 3})
    with pytest.raises(DataError, match="only one class, 'only'"):
        open_source("folder", tmp_path)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_train_lacks_is_named_with_the_file(tmp_path: Path, split: str) -> None:
    write_folders(tmp_path / "train", {"cat": 1, "dog": 1})
    write_folders(tmp_path / split, {"cat": 1, "dgo": 1})
    with pytest.raises(DataError, match=rf"0\.png': the class 'dgo' is in the {split} split.*Did you mean 'dog'\?"):
        open_source("folder", tmp_path)


def test_two_folders_for_one_split_and_none_for_train_are_refused(tmp_path: Path) -> None:
    write_folders(tmp_path / "val", {"a": 1, "b": 1})
    with pytest.raises(DataError, match="a folder for val but none named 'train'"):
        open_source("folder", tmp_path)
    write_folders(tmp_path / "train", {"a": 1, "b": 1})
    write_folders(tmp_path / "valid", {"a": 1, "b": 1})
    with pytest.raises(DataError, match="two folders for the val split: 'val' and 'valid'"):
        open_source("folder", tmp_path)


def test_a_missing_root_suggests_the_nearest_name(tmp_path: Path) -> None:
    write_folders(tmp_path / "pets", {"a": 1, "b": 1})
    with pytest.raises(DataError, match=r"data\.root: '.*pest' does not exist.*Did you mean 'pets'\?"):
        open_source("auto", tmp_path / "pest")
    with pytest.raises(DataError, match=r"data\.root: the source 'folder' needs the directory"):
        open_source("folder")
    with pytest.raises(DataError, match=r"is a file\. Expected a directory"):
        open_source("auto", tmp_path / "pets" / "a" / "0.png")


# --- CSV


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A directory with 0.png to 5.png; labels 0 to 2."""
    for i in range(6):
        write_image(tmp_path / "images" / f"{i}.png", noise(4, 4, seed=i))
    write_table(tmp_path / "labels.csv", "file,target", [f"images/{i}.png,{i % 3}" for i in range(6)])
    return tmp_path


def test_a_csv_beside_its_images(table: Path) -> None:
    source = open_source("auto", table, **ALL)
    assert source.info.classes == ("0", "1", "2")
    assert labels(source.splits["train"], source.info.classes) == [(f"images/{i}.png", str(i % 3)) for i in range(6)]


def test_the_root_may_be_the_csv_file_itself(table: Path) -> None:
    write_table(table / "other.csv", "file,target", ["images/0.png,x", "images/1.png,y"])
    source = open_source("auto", table / "other.csv", **ALL)
    assert source.info.classes == ("x", "y")
    assert source.info.root == table


def test_the_folder_of_the_images_can_be_configured(table: Path) -> None:
    write_table(table / "short.csv", "file,target", ["0.png,x", "1.png,y"])
    source = open_source("csv", table, csv="short.csv", images="images", **ALL)
    assert [sample.id for sample in source.splits["train"]] == ["images/0.png", "images/1.png"]


def test_several_csv_files_need_a_choice(table: Path) -> None:
    write_table(table / "more.csv", "file,target", ["images/0.png,x", "images/1.png,y"])
    with pytest.raises(DataError, match=r"has 2 CSV files: labels\.csv, more\.csv\. Set data\.csv to one of them"):
        open_source("auto", table)
    assert open_source("auto", table, csv="more.csv", **ALL).info.classes == ("x", "y")
    assert open_source("auto", table.parent, csv=f"{table.name}/more.csv", **ALL).info.classes == ("x", "y")
    with pytest.raises(DataError, match=r"data\.csv: '.*moer\.csv' does not exist\. Did you mean 'more\.csv'\?"):
        open_source("csv", table, csv="moer.csv")


def test_a_folder_without_a_csv_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No CSV file in"):
        open_source("csv", tmp_path)


@pytest.mark.rows("A35")
def test_a_csv_inside_train_and_test(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("test", 2)):
        for i in range(count):
            colour = noise(4, 4, 3 * (i % 2), seed=i)  # gray and colour
            write_image(tmp_path / split / f"FashionMNIST_{i}.png", colour)
        rows = [f"FashionMNIST_{i}.png,{i % 2}" for i in range(count)]
        write_table(tmp_path / split / "info.csv", "files,type", rows)
    source = open_source("auto", tmp_path, val=0)
    assert {split: len(samples) for split, samples in source.splits.items()} == {"train": 4, "test": 2}
    assert source.splits["test"][1] == Sample(
        "test/FashionMNIST_1.png", tmp_path / "test" / "FashionMNIST_1.png", 1, f"{tmp_path}/test/info.csv, row 3"
    )


@pytest.mark.rows("C05")
def test_three_folders_with_a_table_that_pandas_wrote(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        for i in range(2):
            write_image(tmp_path / split / f"image_{i}.jpg", noise(8, 8, seed=i))
        rows = [f"{i},image_{i}.jpg,{7 + i}" for i in range(2)]
        write_table(tmp_path / split / "labels.csv", ",image name,label", rows)
    source = open_source("auto", tmp_path)
    assert source.info.classes == ("7", "8")
    assert {split: [sample.label for sample in samples] for split, samples in source.splits.items()} == {
        "train": [0, 1],
        "val": [0, 1],
        "test": [0, 1],
    }
    assert source.splits["val"][0].id == "validation/image_0.jpg"


def test_a_table_for_test_alone_is_refused(tmp_path: Path) -> None:
    write_folders(tmp_path / "train", {"a": 1, "b": 1})
    write_image(tmp_path / "test" / "0.png")
    write_table(tmp_path / "test" / "info.csv", "files,type", ["0.png,a"])
    with pytest.raises(DataError, match="a CSV file for test but none for train"):
        open_source("auto", tmp_path)


# --- classes


def test_the_number_of_classes_checks_the_labels(table: Path) -> None:
    assert open_source("csv", table, classes=5, **ALL).info.classes == ("0", "1", "2", "3", "4")
    with pytest.raises(DataError, match=r"labels\.csv, row 4: label '2' is out of range; data\.classes has 0 to 1"):
        open_source("csv", table, classes=2)


def test_the_names_of_the_classes_set_their_order(table: Path) -> None:
    source = open_source("csv", table, classes=["2", "0", "1"], **ALL)
    assert [sample.label for sample in source.splits["train"]] == [1, 2, 0, 1, 2, 0]
    with pytest.raises(DataError, match=r"row 4: label '2' is not in data\.classes: 0, 1, 02\. Did you"):
        open_source("csv", table, classes=["0", "1", "02"])
    with pytest.raises(DataError, match=r"data\.classes names a class twice"):
        open_source("csv", table, classes=["0", "1", "2", "0"])


@pytest.mark.parametrize("classes", [0, 1, -3, [], ["0"]])
def test_fewer_than_two_classes_are_refused(table: Path, classes: int | list[str]) -> None:
    with pytest.raises(SightlineError, match="class"):
        open_source("csv", table, classes=classes)


# --- held-out splits


def ids(source: object) -> dict[str, list[str]]:
    return {split: [sample.id for sample in samples] for split, samples in source.splits.items()}  # type: ignore[attr-defined]


@settings(max_examples=25)
@given(val=st.sampled_from([0, 0.1, 0.25, 30]), test=st.sampled_from([0, 0.2, 0.5, 45]), seed=st.integers(0, 99))
def test_held_out_splits_are_exact_stratified_and_a_function_of_the_seed(val: float, test: float, seed: int) -> None:
    source = open_source("digits", val=val, test=test, seed=seed)
    expected = {split: round(share * 1797) if share < 1 else share for split, share in (("val", val), ("test", test))}
    for split, count in expected.items():
        assert len(source.splits.get(split, ())) == count
    all_ids = [sample.id for samples in source.splits.values() for sample in samples]
    assert len(all_ids) == len(set(all_ids)) == 1797
    totals = Counter(sample.label for samples in source.splits.values() for sample in samples)
    for split, count in expected.items():
        counts = Counter(sample.label for sample in source.splits.get(split, ()))
        # the test split is taken first and val from the rest, so counts may differ from the exact share by up to two
        assert all(abs(counts[label] - totals[label] * count / 1797) < 2 for label in totals)
    assert ids(open_source("digits", val=val, test=test, seed=seed)) == ids(source)


def test_another_seed_holds_out_other_images() -> None:
    assert ids(open_source("digits", seed=0)) != ids(open_source("digits", seed=1))


def test_an_existing_split_is_not_changed(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_folders(tmp_path / split, {"a": 10, "b": 10})
    splits = ids(open_source("folder", tmp_path, val=0.2, test=0.5))
    assert splits["test"] == [f"test/{name}/{i}.png" for name in "ab" for i in range(10)]
    assert len(splits["val"]) == 4
    assert sorted(splits["train"] + splits["val"]) == sorted(
        f"train/{name}/{i}.png" for name in "ab" for i in range(10)
    )


def test_more_images_than_exist_cannot_be_held_out(table: Path) -> None:
    with pytest.raises(DataError, match=r"data\.test: 4 of 6 images cannot be held out"):
        open_source("csv", table, test=4)


def test_ids_are_paths_below_the_root_on_every_platform(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absolute = ids(open_source("auto", table, **ALL))
    monkeypatch.chdir(table.parent)
    assert ids(open_source("auto", table.name, **ALL)) == absolute
    monkeypatch.chdir(table)
    assert ids(open_source("auto", ".", **ALL)) == absolute
    assert open_source("auto", ".", **ALL).info.name == table.name
    assert json.dumps(absolute).count("\\\\") == 0


def test_mnist_as_it_is_distributed(mnist: Path) -> None:
    source = open_source("auto", mnist, val=800, test=2000)
    assert source.info.classes == tuple("0123456789")
    assert {split: len(samples) for split, samples in source.splits.items()} == {
        "train": 7200,
        "val": 800,
        "test": 2000,
    }


def test_labels_may_be_numbers_of_the_named_classes(tmp_path: Path) -> None:
    """The table contains 1 and the config names class 1. A number past the last class is an error, and class names that
    are numbers are matched as names."""
    rows = [f"{i}.png,{i % 2}" for i in range(4)]
    for i in range(4):
        write_image(tmp_path / f"{i}.png")
    (tmp_path / "labels.csv").write_text("\n".join(["file,target", *rows]))
    source = open_source("csv", tmp_path, classes=["shirt", "shoe"], **ALL)
    assert [source.info.classes[sample.label] for sample in source.splits["train"]] == ["shirt", "shoe"] * 2
    with pytest.raises(DataError, match=r"label '1' is not in data\.classes: 0, 7"):
        open_source("csv", tmp_path, classes=["0", "7"], **ALL)
    (tmp_path / "labels.csv").write_text("\n".join(["file,target", *rows[:3], "3.png,2"]))
    with pytest.raises(DataError, match=r"row 5: label '2' is not in data.classes: shirt, shoe"):
        open_source("csv", tmp_path, classes=["shirt", "shoe"], **ALL)


# --- splits and groups by a column


def write_columns(root: Path, header: str, rows: list[str]) -> Path:
    for i in range(len(rows)):
        if not (root / f"{i}.png").exists():
            write_image(root / f"{i}.png", noise(4, 4, seed=i))
    write_table(root / "labels.csv", header, [f"{i}.png,{row}" for i, row in enumerate(rows)])
    return root


def test_a_column_gives_the_splits(tmp_path: Path) -> None:
    root = write_columns(
        tmp_path, "file,label,part", ["a,Train", "b,train", "a,TEST", "b,test", "a,valid", "b,validation"]
    )
    source = open_source("auto", root, split_column="part")
    assert ids(source) == {"train": ["0.png", "1.png"], "val": ["4.png", "5.png"], "test": ["2.png", "3.png"]}
    assert source.splits["test"][0].where == f"{tmp_path}/labels.csv, row 4"
    with pytest.raises(DataError, match=r"data\.split_column: '.*' has no row in train, only in test"):
        open_source("csv", write_columns(tmp_path, "file,label,part", ["a,test", "b,test"]), split_column="part")


def test_a_split_column_together_with_split_folders_is_refused(tmp_path: Path) -> None:
    write_columns(tmp_path / "train", "file,label,part", ["a,train", "b,train"])
    with pytest.raises(DataError, match=r"data\.split_column: .* already has tables in split folders \(train\)"):
        open_source("auto", tmp_path, split_column="part")


def test_images_of_a_group_stay_together(tmp_path: Path) -> None:
    root = write_columns(tmp_path, "file,label,patient", [f"{'ab'[i % 2]},p{i // 4}" for i in range(80)])
    source = open_source("csv", root, group_column="patient", val=8, test=16)
    assert {split: len(samples) for split, samples in source.splits.items()} == {"train": 56, "val": 8, "test": 16}
    patients = [{sample.columns["patient"] for sample in samples} for samples in source.splits.values()]
    assert len(set.union(*patients)) == sum(map(len, patients)) == 20
    assert ids(source) == ids(open_source("csv", root, group_column="patient", val=8, test=16))


def test_a_group_in_two_splits_of_the_data_is_named(tmp_path: Path) -> None:
    rows = ["a,p1,train", "b,p2,train", "a,p3,test", "b,p2,test"]
    root = write_columns(tmp_path, "file,label,patient,part", rows)
    message = (
        r"row 5: the group 'p2' \(data\.group_column: patient\) is in the test split and in the train split \(.*row 3\)"
    )
    with pytest.raises(DataError, match=message):
        open_source("csv", root, group_column="patient", split_column="part")
    with pytest.raises(DataError, match=r"row 3: no group in column 'patient'"):
        open_source("csv", write_columns(tmp_path, "file,label,patient", ["a,p1", "b,"]), group_column="patient")


def test_column_keys_need_a_table(tmp_path: Path) -> None:
    write_folders(tmp_path, {"a": 1, "b": 1})
    for key in ("split_column", "group_column"):
        with pytest.raises(DataError, match=rf"data\.{key} needs a CSV or Parquet source; .folder. has no columns"):
            open_source("auto", tmp_path, **{key: "x"})  # type: ignore[arg-type]


# --- kinds


def test_an_unknown_source_suggests_the_nearest() -> None:
    with pytest.raises(
        DataError, match=r"data\.source: unknown source 'parqet'\. Did you mean 'parquet'\? Expected one of"
    ):
        open_source("parqet", ".")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    table = write_table(tmp_path / "labels.csv", "file,label")
    with pytest.raises(DataError, match=r"is a file\. Expected a directory .* that the source 'npz' reads\."):
        open_source("npz", table)


def test_a_lone_archive_in_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "pets.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"contains the archive pets\.zip\. Set data\.root='.*pets\.zip'"):
        open_source("auto", tmp_path)
    (tmp_path / "pets.zip").rename(tmp_path / "notes.txt")
    with pytest.raises(DataError, match=r"No class folders in .*: only notes\.txt\. Expected one folder"):
        open_source("auto", tmp_path)


def test_a_circular_link_is_followed_once(tmp_path: Path) -> None:
    root = write_folders(tmp_path, {"a": 2, "b": 1})
    (root / "a" / "again").symlink_to(root / "a", target_is_directory=True)
    assert [sample.id for sample in open_source("folder", root, **ALL).splits["train"]] == [
        "a/0.png",
        "a/1.png",
        "b/0.png",
    ]


def test_many_files_are_listed_without_a_stat_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: a stat for every file would take minutes for a million of them on a network disk."""
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(500):
            (tmp_path / name / f"{i}.png").touch()
    write_table(tmp_path / "labels.csv", "file,label", [f"{n}/{i}.png,{n}" for n in "ab" for i in range(500)])
    calls = Counter[str]()
    real = Path.stat
    monkeypatch.setattr(Path, "stat", lambda self, **k: (calls.update(["stat"]), real(self, **k))[1])
    for kind in ("folder", "csv"):
        assert len(open_source(kind, tmp_path, **ALL).splits["train"]) == 1000
    assert calls["stat"] < 40


def test_the_same_images_in_every_layout_are_the_same_samples(tmp_path: Path) -> None:
    """Pixels, labels, class names and order are equal, except that class folders are in the order of the classes."""
    import gzip
    import struct

    import torch
    from torch.utils.data import TensorDataset

    from sightline.data.sources.adapt import as_source

    images = {"train": noise(60, 6, 5, seed=1), "test": noise(20, 6, 5, seed=2)}
    targets = {split: np.arange(len(array), dtype=np.uint8) * 7 % 10 for split, array in images.items()}
    keys = {}
    for split, array in images.items():
        for i, (image, label) in enumerate(zip(array, targets[split], strict=True)):
            write_image(tmp_path / "csv" / split / f"{i}.png", image)
            write_image(tmp_path / "folders" / split / str(label) / f"{i:05d}.png", image)
        write_table(
            tmp_path / "csv" / split / "t.csv", "file,label", [f"{i}.png,{n}" for i, n in enumerate(targets[split])]
        )
        for what, values in (("images", array), ("labels", targets[split])):
            header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
            path = tmp_path / "idx" / f"{split}-{what}-idx{values.ndim}-ubyte.gz"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(gzip.compress(header + values.tobytes()))
        keys |= {f"x_{split}": array, f"y_{split}": targets[split]}
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz" / "mnist.npz", **keys)
    floats = {
        s: TensorDataset(torch.from_numpy(images[s])[:, None] / 255, torch.from_numpy(targets[s])) for s in images
    }
    sources = {kind: open_source("auto", tmp_path / kind, val=7) for kind in ("csv", "folders", "idx", "npz")}
    sources |= {
        "arrays": as_source({s: (images[s], targets[s]) for s in images}, val=7),
        "torch": as_source(floats, val=7),
    }

    def content(sample: Sample) -> tuple[bytes, int]:
        image = sample.image
        if isinstance(image, Path):
            with Image.open(image) as opened:
                return opened.tobytes(), sample.label
        return np.asarray(image if isinstance(image, np.ndarray) else image.read()).tobytes(), sample.label  # type: ignore[union-attr]

    contents = {
        kind: {s: list(map(content, part)) for s, part in source.splits.items()} for kind, source in sources.items()
    }
    folders = contents.pop("folders")
    assert all(source.info.classes == tuple("0123456789") for source in sources.values())
    assert all(splits == contents["csv"] for splits in contents.values())
    assert Counter(folders["test"]) == Counter(contents["csv"]["test"])
    assert Counter(folders["train"] + folders["val"]) == Counter(contents["csv"]["train"] + contents["csv"]["val"])
