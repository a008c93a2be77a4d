"""Metrics of torchmetrics and the config keys about metrics, in the adapter and in a run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sightline as package
from helpers.commands import python
from sightline import cli
from sightline.commands import evaluate
from sightline.compose.module import better_direction
from sightline.config.schema import TrainConfig
from sightline.core.errors import ConfigError, RunFailedError
from sightline.core.types import StepOutput
from sightline.metrics.meter import Meter
from sightline.metrics.scores import class_metric_names
from sightline.metrics.torchmetrics import TorchmetricsAdapter, check_metric

CLASSES = ("ant", "bee", "cat")


def auroc(**more: Any) -> dict[str, Any]:
    return {"_target_": "torchmetrics.AUROC", "task": "multiclass", "num_classes": "auto", **more}


def make_adapter(**metrics: Any) -> TorchmetricsAdapter:
    return TorchmetricsAdapter(metrics, "logits", CLASSES)


def multiclass(name: str, **more: Any) -> Any:
    return getattr(torchmetrics, name)(task="multiclass", num_classes=3, **more)


def test_a_metric_may_be_one_number_one_per_class_or_a_collection() -> None:
    adapter = make_adapter(
        auroc=multiclass("AUROC"),
        recall=multiclass("Recall", average="none"),
        both=torchmetrics.MetricCollection({"f1": multiclass("F1Score"), "kappa": multiclass("CohenKappa")}),
        spec=multiclass("SpecificityAtSensitivity", min_sensitivity=0.5),
    ).fresh()
    output, target = torch.randn(30, 3), torch.arange(30) % 3
    adapter.update(output, target)
    values = adapter.compute()
    assert list(values) == [
        "auroc",
        *(f"recall/{name}" for name in CLASSES),
        "both_f1",
        "both_kappa",
        *(f"spec/{part}/{name}" for part in (0, 1) for name in CLASSES),
    ]
    assert values["auroc"] == multiclass("AUROC")(output.softmax(1), target).item()
    assert values["recall/bee"] == multiclass("Recall", average="none")(output, target)[1].item()


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31), size=st.integers(3, 20), scale=st.sampled_from([0.1, 1.0, 20.0]))
def test_metrics_do_not_depend_on_batches(seed: int, size: int, scale: float) -> None:
    """Includes small positive logits, which torchmetrics takes for probabilities if a batch has no others."""
    random = torch.Generator().manual_seed(seed)
    output, target = torch.rand((40, 3), generator=random) * scale, torch.arange(40) % 3
    metrics = {"auroc": multiclass("AUROC"), "ece": multiclass("CalibrationError"), "kappa": multiclass("CohenKappa")}
    adapter = make_adapter(**metrics).fresh()
    for part, labels in zip(output.split(size), target.split(size), strict=True):
        adapter.update(part, labels)
    expected = {name: metric(output.softmax(1), target).item() for name, metric in metrics.items()}
    assert adapter.compute() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_each_evaluation_starts_empty_and_compute_can_be_called_twice() -> None:
    adapter = make_adapter(auroc=multiclass("AUROC"))
    output, target = torch.randn(12, 3), torch.arange(12) % 3
    results = []
    for _ in range(2):
        meter = Meter(CLASSES, extra_metrics=adapter.fresh())
        with torch.inference_mode():  # as the trainer evaluates
            meter.update(StepOutput(torch.tensor(1.0), 12, output, target))
        results += [meter.compute(), meter.compute()]
    assert results == [results[0]] * 4


class NoForward(torchmetrics.Metric):
    """Counts all samples and those under deterministic algorithms; its `forward` must not be called."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("n", torch.tensor([0, 0]))

    def forward(self, *_: Tensor) -> None:
        raise AssertionError

    def update(self, output: Tensor, target: Tensor) -> None:
        self.n += torch.tensor([len(target), len(target) * torch.are_deterministic_algorithms_enabled()])

    def compute(self) -> dict[str, Tensor]:
        return {"all": self.n[0], "slowly": self.n[1]}


def test_forward_is_not_called_and_deterministic_algorithms_are_off() -> None:
    """Under deterministic algorithms torchmetrics compares each value with each bin, which takes gigabytes."""
    adapter = make_adapter(seen=NoForward()).fresh()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        adapter.update(torch.randn(5, 3), torch.zeros(5, dtype=torch.int64))
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert adapter.compute() == {"seen_all": 5.0, "seen_slowly": 0.0}


def test_regression_values_are_compared_unchanged() -> None:
    adapter = TorchmetricsAdapter(
        {"mse": torchmetrics.MeanSquaredError(), "r": torchmetrics.PearsonCorrCoef()}, "values"
    )
    names, better = adapter.probe(1, torch.device("cpu"))
    assert (names, better) == (["mse", "r"], {"mse": "min"})
    fresh = adapter.fresh()
    fresh.update(torch.tensor([[3.0], [5.0]]), torch.tensor([[1.0], [2.0]]))
    assert fresh.compute() == {"mse": 6.5, "r": pytest.approx(1.0)}


def test_a_later_failure_names_the_metric() -> None:
    adapter = make_adapter(auroc=multiclass("AUROC")).fresh()
    with pytest.raises(
        RunFailedError,
        match=r"^module\.metrics\.auroc: MulticlassAUROC cannot compare outputs float32 \[2, 5\] with targets int64",
    ):
        adapter.update(torch.randn(2, 5), torch.tensor([0, 1]))


def test_an_object_that_is_not_a_metric_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"^here: expected a torchmetrics.Metric or MetricCollection, found a ReLU"):
        check_metric(torch.nn.ReLU(), "here")


def fit(folder: Path, **module: Any) -> Any:
    config = {"run": {"dir": str(folder)}, "trainer": {"max_epochs": 1, "progress": False}, "module": module}
    return package.fit(config)


def test_a_run_records_all_metrics_and_evaluate_measures_them_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {
        "run": {"dir": str(tmp_path), "name": "run"},
        "trainer": {"max_epochs": 1},
        "module": {
            "top_k": [2, 5],
            "per_class": True,
            "monitor": "val_calibration",
            "metrics": {
                "auroc": auroc(thresholds=100),
                "calibration": {**auroc(), "_target_": "torchmetrics.CalibrationError"},
            },
        },
    }
    result = package.fit(config)
    record = result.history[-1]
    digits = [str(i) for i in range(10)]
    extra = {"top2", "top5", "auroc", "calibration", *class_metric_names(digits)}
    assert {f"val_{name}" for name in extra} <= set(record)
    assert {name for name in record if name.startswith("train_")} & {f"train_{n}" for n in extra} == {
        "train_top2",
        "train_top5",
    }
    assert record["val_accuracy"] <= record["val_top2"] <= record["val_top5"] <= 1
    assert result.best == record["val_calibration"]
    manifest = json.loads((result.run / "exported" / "sightline.json").read_text())
    assert manifest["metrics"]["test"] == result.metrics["test"]
    assert extra <= set(manifest["metrics"]["test"])
    log = [json.loads(line) for line in (result.run / "log.jsonl").read_text().splitlines()]
    assert log[-1]["val_recall/7"] == record["val_recall/7"]
    output = capsys.readouterr().out
    assert re.search(r"^test  359 images .* top2 0\.\d{4}  top5 .*  auroc 0\.\d{4}  calibration", output, re.M)
    assert "recall/7" not in output
    # the name does not say that lower is better, so the config of the run stores it for reports
    assert yaml.safe_load((result.run / "config.yaml").read_text())["module"]["monitor_mode"] == "min"
    assert evaluate.main([str(result.run), "--split", "test"]) == 0
    assert f"auroc {result.metrics['test']['auroc']:.4f}" in capsys.readouterr().out


def test_metrics_do_not_change_the_training(tmp_path: Path) -> None:
    plain = fit(tmp_path)
    more = fit(tmp_path, top_k=[3], per_class=True, metrics={"auroc": auroc()}, monitor="val_top3")
    assert more.best == more.history[-1]["val_top3"]
    for name, value in plain.history[-1].items():
        assert more.history[-1][name] == value


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ({"top_k": [11]}, "module.top_k: expected at most 10, the number of classes, found 11."),
        ({"top_k": [0]}, "module.top_k: expected an integer >= 1, found 0."),
        ({"monitor": "val_top5"}, "module.monitor: there is no metric 'val_top5'."),
        ({"monitor": "train_recall/7", "per_class": True}, "module.monitor: there is no metric 'train_recall/7'."),
        ({"monitor": "val_auroc"}, "module.monitor: there is no metric 'val_auroc'."),
        ({"metrics": {"a": {"task": "x"}}}, "module.metrics.a: expected a node with '_target_'"),
        (
            {"metrics": {"a": auroc(_target_="torchmetrics.AUROCK")}},
            "module.metrics.a._target_: 'torchmetrics' has no attribute 'AUROCK'. Did you mean 'AUROC'?",
        ),
        (
            {"metrics": {"a": {"_target_": "torch.nn.ReLU"}}},
            "module.metrics.a: expected a torchmetrics.Metric or MetricCollection, found a ReLU.",
        ),
        (
            {"metrics": {"a": auroc(num_classes=5)}},
            "module.metrics.a: MulticlassAUROC cannot compare outputs float32 [20, 10] with targets int64 [20]",
        ),
        ({"metrics": {"a": auroc(average="auto")}}, "module.metrics.a.average: auto is supported only for num_classes"),
        ({"metrics": {"accuracy": auroc()}}, "module.metrics: Sightline itself measures accuracy"),
        ({"metrics": {"a/b": auroc()}}, "module.metrics.a/b: '/' is reserved for the metrics of single classes"),
        (
            {"metrics": {"a": {**auroc(), "_target_": "torchmetrics.ROC"}}},
            "module.metrics.a: expected a number, or one for each class, found a tensor [",
        ),
        (
            {"metrics": {"a": {**auroc(), "_target_": "torchmetrics.ConfusionMatrix"}}},
            "module.metrics.a: expected a number, or one for each class, found a tensor [10, 10] as 'a'.",
        ),
    ],
)
def test_a_mistake_is_an_error_before_the_first_step(module: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        fit(tmp_path, **module)
    assert str(caught.value).startswith(message)
    assert not list(tmp_path.iterdir())


def test_the_direction_is_that_of_the_metric_unless_it_is_set() -> None:
    config = TrainConfig.from_dict({"module": {"monitor": "val_loss"}})
    assert better_direction(config, "val_calibration", {"calibration": "min"}) == "min"
    explicit = TrainConfig.from_dict({"module": {"monitor": "val_calibration", "monitor_mode": "max"}})
    assert better_direction(explicit, "val_calibration", {"calibration": "min"}) == "max"


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torchmetrics.image.PeakSignalNoiseRatio",
        "torchmetrics.text.Perplexity",
        "torchmetrics.utilities.data.apply_to_collection",
        "torch.nn.ReLU",
    ],
)
def test_a_stored_run_may_name_only_metrics(
    target: str, digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(digits_run, tmp_path / "run"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["module"]["metrics"] = {"a": auroc(), "b": {"_target_": target}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(run)])
    assert f"module.metrics.b._target_: '{target}' is not on the list" in capsys.readouterr().err


def test_without_torchmetrics_the_extra_is_named(tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules["torchmetrics"] = None
import sightline
try:
    sightline.fit({{"run": {{"dir": {str(tmp_path)!r}}}, "module": {{"metrics": {{"a": {auroc()!r}}}}}}})
except sightline.SightlineError as error:
    print(type(error).__name__, error)
"""
    assert "pip install 'sightline[metrics]'" in python(code)
