"""Whether lower or higher values of a metric are better: known from its name, set by a key, or an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sightline
from sightline.config.typed import merge
from sightline.core.errors import ConfigError
from sightline.core.types import Batch, StepOutput, TrainState
from sightline.engine.checkpoint.content import read_checkpoint
from sightline.engine.checkpoint.file import save_checksummed
from sightline.engine.checkpoint.writer import Checkpointer
from sightline.engine.tasks import SupervisedTask
from sightline.report.listing import list_runs
from sightline.report.record import read_record

QUICK: dict[str, Any] = {
    "trainer": {"max_epochs": 4, "progress": False},
    "module": {"network": {"width": 4}, "lr_scheduler": None},
    "data": {"cache": False},
}


class Measures(SupervisedTask):
    """Reports the loss and one metric, `name`, with one of `values` per epoch."""

    def __init__(self, name: str, values: tuple[float, ...]):
        super().__init__(nn.CrossEntropyLoss())
        self._name, self._values = name, values

    def eval_step(self, state: TrainState, batch: Batch) -> StepOutput:
        return super().eval_step(state, batch)._replace(metrics={self._name: self._values[state.epoch]})


def assembled(folder: Path, name: str, values: tuple[float, ...], **changes: Any) -> Any:
    config = merge(
        merge(QUICK, {"run": {"dir": str(folder), "name": "r"}, "module": {"monitor": f"val_{name}"}}), changes
    )
    return sightline.assemble(config, task=Measures(name, values))


@pytest.mark.parametrize(
    ("name", "best"),
    [
        ("rmse", 1.0),
        ("error_rate", 1.0),
        ("perplexity", 1.0),
        ("mape", 1.0),
        ("brier_score", 1.0),
        ("hamming_distance", 1.0),
        ("cohen_kappa", 5.0),
        ("MulticlassAUROC", 5.0),
    ],
)
def test_the_best_epoch_of_a_metric_with_a_known_name(name: str, best: float, tmp_path: Path) -> None:
    assembly = assembled(tmp_path, name, (3.0, 1.0, 5.0, 2.0))
    assert assembly.fit().best == best
    (checkpointer,) = [callback for callback in assembly.trainer.callbacks if isinstance(callback, Checkpointer)]
    assert torch.load(checkpointer.best, weights_only=True)["epoch"] == (2 if best == 1.0 else 3)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({}, "module.monitor_mode"),
        (
            {
                "module": {"monitor": "val_loss"},
                "trainer": {"early_stopping": {"patience": 1, "monitor": "val_quality"}},
            },
            "trainer.early_stopping.monitor_mode",
        ),
        (
            {
                "module": {
                    "monitor": "val_loss",
                    "lr_scheduler": {
                        "_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau",
                        "monitor": "val_quality",
                    },
                }
            },
            "module.lr_scheduler.mode",
        ),
    ],
    ids=["best", "early stopping", "plateau"],
)
def test_a_metric_with_an_unknown_direction_is_an_error(changes: dict[str, Any], key: str, tmp_path: Path) -> None:
    message = f"^{key}: it is not known whether lower or higher values of 'val_quality' are better. Set {key}=min or"
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        assembled(tmp_path, "quality", (1.0, 2.0, 3.0, 4.0), **changes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("mode", "best"), [("min", 1.0), ("max", 5.0)])
def test_monitor_mode_sets_the_direction(mode: str, best: float, tmp_path: Path) -> None:
    """For the best checkpoint, for reports on the run, and for a plateau and early stopping on the same metric."""
    plateau = {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau"}
    assembly = assembled(
        tmp_path,
        "quality",
        (3.0, 1.0, 5.0, 2.0),
        module={"monitor_mode": mode, "lr_scheduler": plateau},
        trainer={"early_stopping": {"patience": 2}},
    )
    assert assembly.trainer.state.schedules[0].scheduler.mode == mode
    assert assembly.fit().best == best
    run = assembly.run
    record = read_record(run)
    assert record.best == (best, 1 if mode == "min" else 2)
    assert list_runs(tmp_path).to_list()[0]["best"] == {"value": best, "epoch": record.best[1]}


@pytest.mark.parametrize("mode", ["min", "max"])
def test_plateau_and_early_stopping_have_separate_modes(mode: str, tmp_path: Path) -> None:
    plateau = {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "monitor": "val_quality", "mode": mode}
    stopping = {"patience": 1, "monitor": "val_quality", "monitor_mode": mode}
    assembly = assembled(
        tmp_path,
        "quality",
        (1.0, 2.0, 3.0, 4.0),
        module={"monitor": "val_loss", "lr_scheduler": plateau},
        trainer={"early_stopping": stopping},
    )
    (schedule,) = assembly.trainer.state.schedules
    assert (schedule.monitor, schedule.scheduler.mode) == ("val_quality", mode)
    assert assembly.fit().epochs == (4 if mode == "max" else 2)


@pytest.mark.parametrize(("monitor", "mode"), [("val_loss", "max"), ("val_accuracy", "min")])
def test_a_plateau_on_another_metric_must_have_the_direction_of_that_metric(
    monitor: str, mode: str, tmp_path: Path
) -> None:
    plateau = {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "monitor": monitor, "mode": mode}
    other = "val_accuracy" if monitor == "val_loss" else "val_loss"
    with pytest.raises(ConfigError, match=rf"module\.lr_scheduler\.mode: '{mode}' contradicts the metric it watches"):
        assembled(tmp_path, "quality", (1.0,), module={"monitor": other, "lr_scheduler": plateau})


def test_a_run_of_an_earlier_version_is_resumed_with_its_direction(tmp_path: Path) -> None:
    """`auto` was max for every unknown name; to set max is therefore not a change."""
    assembled(
        tmp_path, "quality", (3.0, 5.0, 4.0, 1.0), module={"monitor_mode": "max"}, trainer={"max_epochs": 2}
    ).fit()
    run = tmp_path / "r"
    for file in (run / "config.yaml", *(run / "checkpoints").glob("*.ckpt")):
        if file.suffix == ".yaml":
            file.write_text(file.read_text().replace("monitor_mode: max", "monitor_mode: auto", 1))
        else:
            content = read_checkpoint(file)
            content["config"]["module"]["monitor_mode"] = "auto"
            save_checksummed(file, content)
    task = Measures("quality", (3.0, 5.0, 4.0, 1.0))
    with pytest.raises(ConfigError, match="it is not known whether lower or higher"):
        sightline.resume(run, {"trainer": {"max_epochs": 4}}, task=task)
    changes = {"trainer": {"max_epochs": 4}, "module": {"monitor_mode": "max"}}
    assert sightline.resume(run, changes, task=task).fit().best == 5.0
    assert not json.loads((run / "environment.json").read_text()).get("drift")


def test_a_plateau_on_an_error_metric_has_mode_min(tmp_path: Path) -> None:
    """Earlier versions took every unknown metric as better when higher and refused the correct mode."""
    plateau = {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "monitor": "val_rmse", "mode": "min"}
    with pytest.raises(ConfigError, match=r"module\.lr_scheduler\.mode: 'max' contradicts the metric it watches"):
        assembled(tmp_path, "rmse", (1.0,), module={"lr_scheduler": {**plateau, "mode": "max"}})
    assembly = assembled(tmp_path, "rmse", (1.0, 2.0, 3.0, 4.0), module={"lr_scheduler": plateau})
    assert assembly.trainer.state.schedules[0].scheduler.mode == "min"
    assembly.fit()
