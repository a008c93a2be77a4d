"""Regression, one number per image instead of a class: from a table to predictions, and the inputs that are refused."""

from __future__ import annotations

import csv
import importlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

import sightline
from helpers.commands import run_command
from helpers.tampered_artifact import rewrite
from sightline.commands import evaluate, predict, show, summary
from sightline.compose.data import with_saved_splits
from sightline.config.schema import TrainConfig
from sightline.config.typed import merge
from sightline.core.errors import ArtifactError, ConfigError, DataError, ModelError, SightlineError
from sightline.core.files import sha256
from sightline.data.cache.dataset import PackedDataset
from sightline.data.cache.pack import pack_splits
from sightline.data.loading.loader import BatchLoader
from sightline.data.records import DataInfo, DataSource, RawListing, Row
from sightline.data.sources.adapt import as_source
from sightline.data.sources.listing import build_source
from sightline.data.sources.open import open_source
from sightline.inference.predictor import Prediction, Value

COUNT = 160
QUICK: dict[str, Any] = {
    "data": {"target": "number", "batch_size": 32, "augment": {"shift": 0}},
    "module": {"network": {"width": 4}, "optimizer": {"lr": 0.01}},
    "trainer": {"max_epochs": 2, "progress": False},
}


def random_images(count: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Noise of 8 x 8 pixels with a random brightness per image; the label is the mean, in [0, 1]."""
    random = np.random.default_rng(seed)
    levels = random.uniform(0, 190, (count, 1, 1)) + random.uniform(0, 60, (count, 8, 8))
    images = levels.astype(np.uint8)
    return images, images.mean((1, 2), dtype=np.float64).astype(np.float32) / np.float32(255)


IMAGES, LABELS = random_images(COUNT)


def quick(folder: Path, **changes: Any) -> dict[str, Any]:
    return merge({**QUICK, "run": {"dir": str(folder)}}, changes)


def write_table(folder: Path, rows: dict[int, str] | None = None, images: int = COUNT) -> Path:
    """Writes images and a table of their brightness; `rows` replaces the labels of some rows."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "site"])
        for i in range(images):
            Image.fromarray(IMAGES[i]).save(folder / f"{i:03}.png")
            writer.writerow([f"{i:03}.png", (rows or {}).get(i, f"{LABELS[i]:.9g}"), f"s{i % 7}"])
    return folder


def packed(source: DataSource) -> dict[str, PackedDataset]:
    return pack_splits(source, {"mean": "auto", "std": "auto"})[0]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def column(rows: list[dict[str, str]], name: str) -> NDArray[np.float64]:
    return np.array([float(row[name]) for row in rows])


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("brightness") / "images")


@pytest.fixture(scope="module")
def run(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by the real command on the table."""
    folder = tmp_path_factory.mktemp("numbers")
    data = (f"data.root={table}", "data.target=number", "data.batch_size=16", "data.augment.shift=0")
    options = ("module.network.width=8", "module.optimizer.lr=0.01", "trainer.max_epochs=10", "run.name=numbers")
    done = run_command("train", *data, *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "precision" not in done.stdout
    assert "test  32 images  loss " in done.stdout
    return folder / "runs" / "numbers"


def test_predictions_are_much_better_than_the_mean(run: Path) -> None:
    rows = rows_of(run / "predictions" / "test.csv")
    trivial = np.abs(column(rows, "label") - LABELS.mean()).mean()
    assert np.abs(column(rows, "error")).mean() < 0.3 * trivial


def test_the_table_of_predictions(run: Path) -> None:
    for split, count in (("val", 16), ("test", 32)):
        rows = rows_of(run / "predictions" / f"{split}.csv")
        assert list(rows[0]) == ["id", "label", "prediction", "error", "loss", "data_site"]
        assert len(rows) == count
        label, prediction, error = (column(rows, name) for name in ("label", "prediction", "error"))
        for row in rows:
            assert np.float32(row["label"]) == LABELS[int(row["id"][:3])]
        assert np.allclose(prediction - label, error, atol=1e-8, rtol=0)
        assert np.allclose(error**2, column(rows, "loss"), atol=1e-8, rtol=1e-6)


def test_the_metrics_are_those_of_the_table(run: Path) -> None:
    manifest = json.loads((run / "exported" / "sightline.json").read_text())
    for split in ("val", "test"):
        error = column(rows_of(run / "predictions" / f"{split}.csv"), "error")
        metrics = manifest["metrics"][split]
        assert metrics["loss"] == pytest.approx((error**2).mean(), rel=1e-5)
        assert metrics["mse"] == pytest.approx((error**2).mean(), rel=1e-5)
        assert metrics["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-5)
        assert "accuracy" not in metrics


def test_the_files_of_a_regression_run(run: Path) -> None:
    manifest = json.loads((run / "exported" / "sightline.json").read_text())
    assert manifest["classes"] == []
    assert (manifest["model"]["outputs"], manifest["model"]["num_classes"]) == ("values", 1)
    data = json.loads((run / "data.json").read_text())
    assert data["classes"] == []
    assert {split: part["images"] for split, part in data["splits"].items()} == {"train": 112, "val": 16, "test": 32}
    label = column(rows_of(run / "predictions" / "test.csv"), "label")
    statistics = data["splits"]["test"]["labels"]
    assert statistics == pytest.approx({"min": label.min(), "max": label.max(), "mean": label.mean()})
    assert "_target_: torch.nn.MSELoss" in (run / "config.yaml").read_text()


def test_predict_equals_evaluate(run: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(run / "predictions" / "test.csv")
    files = [table / row["id"] for row in rows]
    predictor = sightline.load(run)
    answers = predictor.predict(files)
    assert all(isinstance(answer, Value) for answer in answers)
    assert [f"{answer.value:.9g}" for answer in answers] == [row["prediction"] for row in rows]
    assert predict.main([str(run), *map(str, files)]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["image", "value"]
    assert lines[1:] == [[str(file), row["prediction"]] for file, row in zip(files, rows, strict=True)]
    (tmp_path / "bad.png").write_bytes(b"no image")
    assert predict.main([str(run), str(files[0]), str(tmp_path / "bad.png"), "--json"]) == 2
    output = capsys.readouterr()
    first, second = map(json.loads, output.out.splitlines())
    assert list(first) == ["path", "value"]
    assert first["value"] == pytest.approx(float(rows[0]["prediction"]), abs=1e-6)
    assert "error" in second
    assert "1 of 2 files could not be read" in output.err
    with pytest.raises(ValueError, match=r"has no classes\. Use values"):
        predictor.probabilities(torch.zeros((1, 1, 8, 8), dtype=torch.uint8))


def test_evaluate_on_the_test_split_and_other_data(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "predictions" / "test.csv").read_bytes()
    assert evaluate.main([str(run), "--split", "test"]) == 0
    assert (run / "predictions" / "test.csv").read_bytes() == before
    assert "class" not in capsys.readouterr().out
    other = write_table(tmp_path / "other", dict.fromkeys(range(20), "0.5"), images=20)
    assert evaluate.main([str(run), f"data.root={other}"]) == 0
    (written,) = (run / "predictions").glob("all-*.csv")
    assert [row["label"] for row in rows_of(written)] == ["0.5"] * 20
    (tmp_path / "folders" / "cat").mkdir(parents=True)
    Image.fromarray(IMAGES[0]).save(tmp_path / "folders" / "cat" / "1.png")
    with pytest.raises(DataError, match=r"data.target=number: .* has folders of images"):
        evaluate.main([str(run), f"data.root={tmp_path / 'folders'}"])


def test_show_and_summary(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert show.main([str(table), "data.target=number", "--count", "2", "--epochs", "1"]) == 0
    with Image.open("sheet.png") as sheet:
        assert sheet.width > 100
    assert summary.main([f"data.root={table}", "data.target=number"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["total", "1"]


def test_a_changed_manifest_is_noticed(run: Path, tmp_path: Path) -> None:
    for change in ({"classes": ["a"]}, {"outputs": "logits"}, {"outputs": "votes"}, {"num_classes": 2}):
        copy = tmp_path / next(iter(change)) / str(*change.values())
        shutil.copytree(run / "exported", copy)
        rewrite(copy, lambda old, new=change: merge(old, new if "classes" in new else {"model": new}))
        with pytest.raises(ArtifactError, match="its network, classes and preprocessing do not match"):
            sightline.load(copy)


class Stop(sightline.Callback):
    """Ends a run after the first epoch's checkpoint, as a power cut would."""

    def on_epoch_start(self, trainer: Any) -> None:
        if trainer.state.epoch == 1:
            raise ConnectionError


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    source = (IMAGES, LABELS)
    uninterrupted = sightline.fit(quick(tmp_path, run={"name": "uninterrupted"}), source=source)
    with pytest.raises(SightlineError, match="ConnectionError"):
        sightline.fit(quick(tmp_path, run={"name": "interrupted"}), source=source, callbacks=[Stop()])
    resumed = sightline.resume(tmp_path / "interrupted", source=source).fit()
    assert resumed.history == uninterrupted.history
    first, second = (
        sha256(tmp_path / name / "exported" / "model.safetensors") for name in ("uninterrupted", "interrupted")
    )
    assert first == second
    with pytest.raises(ArtifactError, match="a training with other images or labels"):
        sightline.resume(tmp_path / "interrupted", source=(IMAGES, LABELS + np.float32(0.001)))


@pytest.mark.parametrize("kind", ["array", "column", "tensor", "double", "dataset", "integers"])
def test_numbers_from_python(kind: str) -> None:
    """The same numbers in any type are the same data."""
    labels = LABELS
    if kind == "integers":
        labels = np.arange(COUNT, dtype=np.float32)
    sources: dict[str, Any] = {
        "array": (IMAGES, labels),
        "column": (IMAGES, labels[:, None]),
        "tensor": (torch.from_numpy(IMAGES), torch.from_numpy(labels)),
        "double": (IMAGES, labels.astype(np.float64)),
        "dataset": torch.utils.data.TensorDataset(torch.from_numpy(IMAGES)[:, None], torch.from_numpy(labels)),
        "integers": (IMAGES, np.arange(COUNT)),
    }
    actual, expected = (packed(as_source(data, numbers=True)) for data in (sources[kind], (IMAGES, labels)))
    for split in ("train", "val", "test"):
        assert actual[split].labels.dtype == torch.float32
        assert actual[split].labels.shape == (len(actual[split]), 1)
        assert actual[split].fingerprint() == expected[split].fingerprint()


def test_a_fit_on_arrays(tmp_path: Path) -> None:
    result = sightline.fit(quick(tmp_path, module={"monitor": "val_mae", "mixup": 0.2}), source=(IMAGES, LABELS))
    assert {"loss", "mse", "mae"} <= set(result.metrics["test"])
    assert result.best == min(record["val_mae"] for record in result.history)
    assert "val_accuracy" not in result.history[0]


def test_batches_have_the_shape_of_the_outputs() -> None:
    """[B] and [B,1] would broadcast silently."""
    data, preprocess = pack_splits(as_source((IMAGES, LABELS), numbers=True), {})
    batch = next(iter(BatchLoader(data["train"], preprocess, 8, workers=0)))
    assert isinstance(batch.y, torch.Tensor)
    assert (batch.y.dtype, tuple(batch.y.shape)) == (torch.float32, (8, 1))


def test_a_fingerprint_covers_the_numbers() -> None:
    def fingerprint(labels: Any, order: Any = slice(None)) -> str:
        return packed(as_source((IMAGES[order], labels[order]), numbers=True, val=0, test=0))["train"].fingerprint()

    plain = fingerprint(LABELS)
    assert fingerprint(LABELS, np.random.default_rng(1).permutation(COUNT)) == plain
    changed = LABELS.copy()
    changed[3] = np.nextafter(changed[3], np.float32(1))
    assert fingerprint(changed) != plain
    zeros = LABELS.copy()
    zeros[3] = 0.0
    assert fingerprint(zeros) == fingerprint(np.where(zeros == 0, np.float32(-0.0), zeros))


def test_splits_are_drawn_by_content_and_keep_copies_together() -> None:
    images, labels = np.concatenate([IMAGES, IMAGES[:40]]), np.concatenate([LABELS, LABELS[:40] + 1])
    order = np.random.default_rng(2).permutation(len(images))
    splits = packed(as_source((images, labels), numbers=True))
    reordered = packed(as_source((images[order], labels[order]), numbers=True))
    assert {name: part.fingerprint() for name, part in splits.items()} == {
        name: part.fingerprint() for name, part in reordered.items()
    }
    pixels = {name: set(map(bytes, part.pixels(range(len(part))).numpy())) for name, part in splits.items()}
    assert not pixels["train"] & pixels["test"]
    assert not pixels["train"] & pixels["val"]
    assert not pixels["val"] & pixels["test"]
    assert sum(map(len, splits.values())) == len(images)


def test_groups_stay_together(table: Path) -> None:
    source = open_source("csv", table, group_column="site", numbers=True)
    sites = {split: {sample.columns["site"] for sample in part} for split, part in source.splits.items()}
    assert sum(map(len, sites.values())) == 7
    rows = [
        Row(str(i), image, str(label), columns={"site": "x"})
        for i, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True))
    ]
    with pytest.raises(DataError, match="all 160 images are in one group, 'x'"):
        build_source(RawListing({"train": rows}), "one", group_column="site", numbers=True)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("bright", "the label 'bright' is not a finite number; data.target=number needs one for every image"),
        ("0,5", "the label '0,5' is not a finite number"),
        ("nan", "the label 'nan' is not a finite number"),
        ("-inf", "the label '-inf' is not a finite number"),
        ("1_000", "the label '1_000' is not a finite number"),
        ("1e39", "the label '1e39' is too large for float32"),
        ("", "no label in column 'label'"),
    ],
)
def test_a_label_that_is_not_a_number(label: str, message: str, tmp_path: Path) -> None:
    folder = write_table(tmp_path / "images", {4: label}, images=6)
    with pytest.raises(DataError) as caught:
        open_source("csv", folder, numbers=True)
    assert str(caught.value).startswith(f"{folder / 'labels.csv'}, row 6: {message}")


def test_constant_labels_and_an_empty_train_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"all 112 training labels are 2\.5, so there is nothing to learn"):
        sightline.assemble(quick(tmp_path), source=(IMAGES, np.full(COUNT, 2.5)))
    folder = write_table(tmp_path / "images", images=6)
    with pytest.raises(
        DataError, match=r"data\.val: 6 of 6 images cannot be held out for val: at least one must remain"
    ):
        open_source("csv", folder, numbers=True, val=6, test=0)


def test_numbers_in_arrays_and_tables(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=IMAGES[:8], labels=LABELS[:8])
    source = open_source("auto", tmp_path / "a.npz", numbers=True, val=0, test=0)
    assert [sample.label for sample in source.splits["train"]] == LABELS[:8].tolist()
    assert source.info == DataInfo("a", (), tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", images=IMAGES[:8], labels=np.where(np.arange(8) == 3, np.nan, LABELS[:8]))
    with pytest.raises(DataError, match=r"b\.npz, images\[3\]: the label 'nan' is not a finite number"):
        open_source("npz", tmp_path / "b.npz", numbers=True)
    with pytest.raises(DataError, match=r"labels: found the shape \[8, 2\].* Regression predicts one number per image"):
        as_source((IMAGES[:8], np.zeros((8, 2))), numbers=True)
    with pytest.raises(DataError, match=r"expected integers or text, found float32; .* set data.target=number"):
        open_source("npz", tmp_path / "a.npz")


def test_numbers_in_parquet(tmp_path: Path) -> None:
    pa, pq = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    cells = []
    for image in IMAGES[:6]:
        data = io.BytesIO()
        Image.fromarray(image).save(data, "PNG")
        cells.append(data.getvalue())
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": cells, "label": LABELS[:6], "kind": [0, 1] * 3}), path)
    source = open_source("auto", path, numbers=True, val=0, test=0)
    assert [sample.label for sample in source.splits["train"]] == LABELS[:6].tolist()
    for label, message in ((float("nan"), "the label nan is not a finite number"), (None, "no label")):
        pq.write_table(pa.table({"image": cells, "label": [0.5, label, 1.0, 2.0, 3.0, 4.0]}), path)
        with pytest.raises(DataError) as caught:
            open_source("auto", path, numbers=True)
        assert f"a.parquet, row 1, column 'label': {message}" in str(caught.value)


def test_a_source_must_match_the_target_of_the_config() -> None:
    numbers, classes = as_source((IMAGES, LABELS), numbers=True), as_source((IMAGES, np.arange(COUNT) % 3))
    assert as_source(numbers, numbers=True) is numbers
    with pytest.raises(
        DataError, match=r"has no classes, so its labels are numbers to predict; set data.target=number"
    ):
        as_source(numbers)
    with pytest.raises(DataError, match=r"the source 'arrays' has the classes 0, 1, 2"):
        as_source(classes, numbers=True)

    class Named(torch.utils.data.TensorDataset):
        classes = ("dark", "bright")

    named = Named(torch.from_numpy(IMAGES)[:, None], torch.arange(COUNT) % 2)
    with pytest.raises(DataError, match=r"the data names the classes of its labels \(dark, bright\)"):
        as_source(named, numbers=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"classes": 3}}, "data.classes: with data.target=number there are no classes. Remove this key"),
        ({"data": {"sampler": "balanced"}}, "data.sampler: .* Set data.sampler=shuffle"),
        ({"module": {"class_weights": "auto"}}, "module.class_weights: "),
        ({"module": {"top_k": [5]}}, "module.top_k: .* mse and mae are measured"),
        ({"module": {"per_class": True}}, "module.per_class: "),
        ({"module": {"outputs": "logits"}}, "module.outputs: .* Set module.outputs=auto"),
        (
            {"module": {"loss": {"_target_": "torch.nn.CrossEntropyLoss"}}},
            "module.loss: CrossEntropyLoss compares classes.* torch.nn.MSELoss, or set torch.nn.L1Loss",
        ),
        ({"module": {"loss": {"class": "sightline.models.losses.FocalLoss"}}}, "module.loss: FocalLoss compares"),
    ],
)
def test_options_for_classes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_dict(merge({"data": {"target": "number"}}, changes))


def test_the_default_loss() -> None:
    def loss(**module: Any) -> dict[str, Any]:
        return TrainConfig.from_dict({"data": {"target": "number"}, "module": module}).module.loss

    assert loss() == {"_target_": "torch.nn.MSELoss"}
    assert loss(loss={"reduction": "sum"}) == {"_target_": "torch.nn.MSELoss", "reduction": "sum"}
    assert loss(loss={"_target_": "torch.nn.HuberLoss"}) == {"_target_": "torch.nn.HuberLoss"}
    assert TrainConfig.from_dict({}).module.loss == {"_target_": "torch.nn.CrossEntropyLoss"}
    config = TrainConfig.from_dict({"data": {"target": "number"}})
    assert TrainConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.CrossEntropyLoss(), "CrossEntropyLoss is not smallest where the network's output equals the label"),
        (nn.BCEWithLogitsLoss(), "BCEWithLogitsLoss is not smallest where"),
        (nn.NLLLoss(), r"NLLLoss cannot compare .* with numbers, float32 \[batch, 1\]"),
        (nn.MSELoss(reduction="sum"), "the loss grows with the batch size"),
        (nn.MSELoss(reduction="none"), r"expected one number for a batch, found a tensor \[3, 1\]"),
    ],
)
def test_a_loss_that_does_not_fit_numbers_is_refused(loss: nn.Module, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        sightline.assemble(quick(tmp_path), source=(IMAGES, LABELS), loss=loss)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("loss", [nn.L1Loss(), nn.SmoothL1Loss(), nn.HuberLoss(), nn.BCELoss()])
def test_a_loss_for_numbers_is_accepted(loss: nn.Module, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Sigmoid())
    config = {**QUICK, "module": {}, "run": {"dir": str(tmp_path)}}
    assert sightline.assemble(config, source=(IMAGES, LABELS), model=network, loss=loss).spec.outputs == "values"


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (
            nn.Linear(64, 10),
            r"outputs a tensor of size 10 for each image, but the labels are numbers.* 1 number, \[batch, 1\]",
        ),
        (nn.Sequential(nn.Linear(64, 1), nn.Flatten(0)), r"Its last layer must output 1 number, \[batch, 1\]"),
    ],
)
def test_a_network_has_one_output(last: nn.Module, message: str, tmp_path: Path) -> None:
    config = {**QUICK, "module": {}, "run": {"dir": str(tmp_path)}}
    with pytest.raises(ModelError, match=message):
        sightline.assemble(config, source=(IMAGES, LABELS), model=nn.Sequential(nn.Flatten(), last))


def test_sources_of_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.target=number: the embedded digits have classes, not numbers"):
        open_source(numbers=True)
    for name in ("1", "2"):
        (tmp_path / "folders" / name).mkdir(parents=True)
        Image.fromarray(IMAGES[0]).save(tmp_path / "folders" / name / "1.png")
    with pytest.raises(DataError, match=r"has folders of images, which are classes.* Set data.root to a CSV"):
        open_source("auto", tmp_path / "folders", numbers=True)


def test_numbers_far_from_one_are_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"the training labels have a mean of .* another unit, such as thousands"):
        sightline.assemble(quick(tmp_path), source=(IMAGES, LABELS * 1e6))


def test_the_splits_of_classes_are_unchanged() -> None:
    """Fingerprints of the splits of a dataset with classes: for a run from before regression was added, which keeps its
    splits, and for a new run."""
    saved = {"train": "697ab3597f4ff887", "val": "2f357901c7860e3e", "test": "dc894fb5a21c0b19"}
    new = {"train": "3c86db442ba38de4", "val": "e14cbe7309de3d20", "test": "bd8ce3b53c436262"}
    for source, prints in ((with_saved_splits(open_source(), {}), saved), (open_source(), new)):
        splits = packed(source)
        assert {split: part.fingerprint()[:16] for split, part in splits.items()} == prints
        assert (splits["train"].labels.dtype, splits["train"].labels.ndim) == (torch.int64, 1)
    assert Prediction._fields == ("label", "confidence", "probabilities")
