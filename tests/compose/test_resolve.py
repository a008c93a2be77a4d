"""A config is resolved once: its open values are set from the data, the network and timed steps, and do not change
afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

import sightline
from helpers.images import write_folders
from sightline.compose.resolve import class_weights
from sightline.config.schema import ModuleConfig, TrainConfig
from sightline.core.errors import ConfigError
from sightline.core.mappings import flatten
from sightline.core.yamlfile import read_yaml
from sightline.engine.checkpoint.content import read_checkpoint

COUNTS = {"ant": 30, "bee": 10}


def config(folder: Path, **changes: Any) -> dict[str, Any]:
    """A config in which every value that can be resolved is open."""
    write_folders(folder / "data", COUNTS)
    return {
        "data": {"root": str(folder / "data"), "val": 10, "test": 0, "preprocess": {"size": 8}},
        "module": {"class_weights": "auto", "lr_scheduler": None},
        "trainer": {
            "max_epochs": 1, "progress": False, "device": "cpu", "threads": "auto", "channels_last": "auto",
            "compile": False,
        },
        "run": {"dir": str(folder / "runs"), "name": "one"},
    } | changes  # fmt: skip


FILLED = {"data.root", "data.eval_batch_size", "module.class_weights", "trainer.threads", "trainer.channels_last"}


def test_both_configs_are_saved_and_differ_only_in_resolved_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    values = config(tmp_path)
    monkeypatch.chdir(tmp_path)
    values["data"]["root"] = "data"  # relative to the working directory, which may change
    run = tmp_path / "runs" / "one"
    assembly = sightline.assemble(values)
    written, resolved = read_yaml(run / "config-unresolved.yaml"), read_yaml(run / "config.yaml")
    assert written == TrainConfig.from_dict(values).to_dict()
    assert resolved == assembly.config.to_dict()
    before, now = flatten(written), flatten(resolved)
    changed = {key for key in now if now.get(key) != before.get(key)}
    assert {key.rstrip("0123456789[].") for key in changed} == FILLED
    assert resolved["data"]["root"] == str(tmp_path / "data")
    assert resolved["module"]["class_weights"] == pytest.approx([40 / 60, 2.0], abs=0.2)
    assert assembly.fit().run == run
    assert read_yaml(run / "config.yaml") == resolved, "config.yaml was rewritten"
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["config"] == resolved


def test_a_resumed_run_keeps_its_resolved_config(tmp_path: Path, cache: Path) -> None:
    """It keeps every resolved value, and `config-unresolved.yaml` is unchanged."""
    values = config(tmp_path)
    run = sightline.fit(values).run
    assert run is not None
    written, resolved = (run / "config-unresolved.yaml").read_bytes(), read_yaml(run / "config.yaml")
    assembly = sightline.resume(run, {"trainer": {"max_epochs": 2}})
    assert assembly.config.to_dict() == resolved | {"trainer": resolved["trainer"] | {"max_epochs": 2}}
    assert assembly.parts.resolved.chosen == "", "settings were timed again"
    assert assembly.fit().epochs == 2
    assert (run / "config-unresolved.yaml").read_bytes() == written


def test_the_resolved_config_reproduces_the_run(tmp_path: Path, cache: Path) -> None:
    first = sightline.fit(config(tmp_path))
    assert first.run is not None
    again = sightline.fit(
        read_yaml(first.run / "config.yaml") | {"run": {"dir": str(tmp_path / "runs"), "name": "two"}}
    )
    assert again.run is not None
    weights = [(run / "exported" / "model.safetensors").read_bytes() for run in (first.run, again.run)]
    assert weights[0] == weights[1]


def test_a_config_with_custom_parts_is_resolved(tmp_path: Path, cache: Path) -> None:
    values = config(tmp_path, trainer={"max_epochs": 1, "progress": False, "device": "cpu"}, module={})
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    assembly = sightline.assemble(values, model=model, loss=nn.CrossEntropyLoss())
    assert assembly.config.data.eval_batch_size == 256
    assert assembly.config.module.class_weights is None
    assembly.session.close()


@pytest.mark.parametrize(
    ("weights", "expected"), [(None, None), ([1.0, 3.0], [1.0, 3.0]), ("auto", [40 / 60, 40 / 20])]
)
def test_class_weights(weights: Any, expected: Any) -> None:
    assert class_weights(ModuleConfig(class_weights=weights), COUNTS) == expected
    assert class_weights(ModuleConfig(class_weights="auto"), {"a": 4, "b": 0}) == [0.5, 2.0]


def test_class_weights_need_one_number_per_class() -> None:
    with pytest.raises(ConfigError, match=r"module\.class_weights: found 3 numbers for 2 classes\. .*: ant, bee"):
        class_weights(ModuleConfig(class_weights=[1.0, 2.0, 3.0]), COUNTS)
