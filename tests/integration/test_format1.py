"""A run of format 1, as the version that wrote it stored it: every later version reads it.

`fixtures/format1` was made by Sightline 0.1.0 at commit 798d324: a linear network on the embedded digits, one
epoch."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sightline
from helpers.commands import Command
from sightline.compose.assemble import as_config
from sightline.compose.data import config_source
from sightline.engine.checkpoint.content import read_checkpoint
from sightline.inference.artifact import add_metrics, load
from sightline.inference.manifest import read_manifest
from sightline.inference.predictor import Prediction

FIXTURE = Path(__file__).parents[1] / "fixtures" / "format1"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy, because reading a run may write into it."""
    return Path(shutil.copytree(FIXTURE, tmp_path / "runs" / "format1"))


def test_the_fixture_is_of_format_1() -> None:
    assert json.loads((FIXTURE / "exported" / "sightline.json").read_text())["format"] == 1
    assert torch.load(FIXTURE / "checkpoints" / "last.ckpt", weights_only=True)["format"] == 1
    assert not (FIXTURE / "images.csv.gz").exists()


@pytest.mark.rows("X06")
@pytest.mark.parametrize("split", ["val", "test"])
def test_the_model_predicts_as_before(split: str, run: Path) -> None:
    model = load(run)
    splits = config_source(as_config(run / "config.yaml")).splits
    images = {sample.id: sample.image for samples in splits.values() for sample in samples}
    with (run / "predictions" / f"{split}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    answers = model.predict([images[row["id"]] for row in rows])
    for row, answer in zip(rows, answers, strict=True):
        assert isinstance(answer, Prediction)
        assert answer.label == row["prediction"]
        assert answer.confidence == pytest.approx(float(row["confidence"]), abs=1e-6)
        assert answer.probabilities == pytest.approx([float(row[f"p_{name}"]) for name in model.classes], abs=1e-6)


def test_the_checkpoints_are_read(run: Path) -> None:
    last, best = (read_checkpoint(run / "checkpoints" / f"{name}.ckpt") for name in ("last", "best"))
    assert last["epoch"] == 1
    stored = load_file(run / "exported" / "model.safetensors")
    assert all(torch.equal(best["model"][name], value) for name, value in stored.items())


def test_it_is_described_listed_and_compared(run: Path, here: Command) -> None:
    described = here("load", run)
    assert (described.returncode, described.stderr) == (0, "")
    assert "run          format1" in described.stdout
    assert "versions     python" in described.stdout
    assert json.loads(here("load", run, "--json").stdout)["format"] == 1
    listed = here("runs", run.parent, "--json")
    (row,) = json.loads(listed.stdout)
    assert (row["name"], row["state"], row["epochs"], row["problems"]) == ("format1", "finished", 1, [])
    shutil.copytree(run, run.with_name("other"))
    compared = here("diff", run, run.with_name("other"))
    assert (compared.returncode, compared.stderr) == (0, "")


def test_new_metrics_are_written_in_the_current_format(run: Path) -> None:
    before = load(run).model.state_dict()
    add_metrics(run / "exported", {"test": {"accuracy": 0.5}})
    manifest = read_manifest(run / "exported")
    assert (manifest["format"], manifest["metrics"]) == (2, {"test": {"accuracy": 0.5}})
    assert all(torch.equal(value, before[name]) for name, value in load(run).model.state_dict().items())


def test_it_is_resumed_for_more_epochs(run: Path, here: Command) -> None:
    done = here("resume", run, "trainer.max_epochs=2")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows if "train_loss" in row] == [0, 1]
    old = [json.loads(line) for line in (FIXTURE / "log.jsonl").read_text().splitlines()]
    assert rows[: len(old)] == old
    assert read_manifest(run / "exported")["format"] == 2
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["epoch"] == 2


def test_another_run_starts_from_its_weights(run: Path, tmp_path: Path) -> None:
    config = {
        "run": {"dir": str(tmp_path), "name": "next"},
        "module": {"weights": str(run), "network": json.loads(json.dumps(load(run).spec.network))},
        "trainer": {"max_epochs": 1, "progress": False},
    }
    assembly = sightline.assemble(config)
    before = load(run).model.state_dict()
    assert all(np.array_equal(value, before[name]) for name, value in assembly.trainer.state.model.state_dict().items())
