"""Settings chosen by timing: which are tried, that timing changes nothing, and that a run stores the choice."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sightline.core.types import Batch
from sightline.engine.tools import autotune as tuning
from sightline.engine.tools.autotune import Setting, tune_settings


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3)
    )


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.randn(16, 1, 8, 8, generator=generator), torch.randint(0, 3, (16,), generator=generator))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[Setting, float]:
    """Seconds per step of each setting, instead of measured times; a setting that is not in it takes 1 s."""
    speeds: dict[Setting, float] = {}

    def timed(*arguments: Any) -> dict[Setting, float]:
        settings: list[Setting] = arguments[-1]
        return {setting: speeds.get(setting, 1.0) for setting in settings}

    monkeypatch.setattr(tuning, "_timed", timed)
    monkeypatch.setattr(tuning, "_thread_counts", lambda: [1, 2])
    return speeds


def test_model_and_random_state_are_not_changed() -> None:
    model = network()
    weights, seed, threads = copy.deepcopy(model.state_dict()), torch.get_rng_state(), torch.get_num_threads()
    tuned = tune_settings(model, nn.CrossEntropyLoss(), batch(), compile=False)
    assert set(tuned.seconds) >= {Setting(False, threads), Setting(True, threads)}
    assert all(second > 0 for second in tuned.seconds.values())
    assert tuned.setting in tuned.seconds
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(seed, torch.get_rng_state())
    assert threads == torch.get_num_threads()
    assert model.training


def test_the_fastest_setting_is_chosen_and_reported(clock: dict[Setting, float]) -> None:
    clock[Setting(True, 1)] = 0.25
    tuned = tune_settings(network(), nn.CrossEntropyLoss(), batch(), compile=False)
    assert tuned.setting == Setting(True, 1)
    assert tuned.summary == "channels last, 1 thread: 250 ms per step; 1 s with channels first, 2 threads"


def test_a_setting_that_is_hardly_faster_is_not_chosen(clock: dict[Setting, float]) -> None:
    clock[Setting(True, 2)] = 0.98
    tuned = tune_settings(network(), nn.CrossEntropyLoss(), batch(), compile=False)
    assert tuned.setting == Setting(False, 2)


def test_settings_that_are_passed_are_kept(clock: dict[Setting, float]) -> None:
    clock[Setting(False, 1)] = 0.1
    tuned = tune_settings(network(), nn.CrossEntropyLoss(), batch(), channels_last=True, threads=2, compile=False)
    assert tuned.setting == Setting(True, 2)


def test_a_network_without_images_has_one_format(clock: dict[Setting, float]) -> None:
    tuned = tune_settings(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), nn.CrossEntropyLoss(), batch(), compile=False)
    assert set(tuned.seconds) == {Setting(False, 1), Setting(False, 2)}


@pytest.mark.parametrize(
    ("steps", "speed", "compiled", "summary"),
    [
        (100, 0.1, False, "not compiled, because the run is too short (about 2 min)"),
        (1000, 0.5, True, "compiled: 500 ms per step"),
        (1000, 0.99, False, "not compiled: 990 ms per step does not justify"),
    ],
)
def test_compiling_must_save_time(
    clock: dict[Setting, float], steps: int, speed: float, compiled: bool, summary: str
) -> None:
    clock[Setting(False, 2, True)] = speed
    tuned = tune_settings(network(), nn.CrossEntropyLoss(), batch(), steps=steps)
    assert tuned.setting.compile is compiled
    assert summary in tuned.summary


def test_training_continues_without_compiling_if_it_fails(
    clock: dict[Setting, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tuning._timed

    def timed(*arguments: Any) -> dict[Setting, float]:
        if any(setting.compile for setting in arguments[-1]):
            raise RuntimeError("no C++ compiler\nand more")
        return plain(*arguments)

    monkeypatch.setattr(tuning, "_timed", timed)
    tuned = tune_settings(network(), nn.CrossEntropyLoss(), batch(), steps=1000)
    assert not tuned.setting.compile
    assert "torch.compile failed: RuntimeError: no C++ compiler" in tuned.summary
    assert "and more" not in tuned.summary


def test_a_run_stores_and_reports_the_chosen_settings(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import sightline
    from sightline.core.files import read_json
    from sightline.core.yamlfile import read_yaml

    chosen = {"channels_last": "auto", "compile": "auto", "threads": "auto"}
    config = {
        "run": {"dir": str(tmp_path), "name": "a"},
        "data": {"cache": False},
        "trainer": {"max_epochs": 1, "device": "cpu", **chosen},
    }
    assembly = sightline.assemble(config)
    stored = read_yaml(assembly.run.config)["trainer"]
    assert stored["channels_last"] in (True, False)
    assert stored["compile"] is False  # a training of seconds is too short to compile
    assert stored["threads"] in range(1, torch.get_num_threads() + 1)
    assert assembly.runtime.threads == stored["threads"]
    errors = capfd.readouterr().err
    assert errors.startswith("runtime: channels ")
    assert read_json(assembly.run.environment)["runtime"] in errors
    assembly.fit()
    again = sightline.resume(assembly.run.path)
    assert again.config.trainer.threads == stored["threads"]
    assert not capfd.readouterr().err  # nothing is timed again


def test_one_copy_is_used_for_every_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[nn.Module] = []

    class Counting(nn.Sequential):
        def __deepcopy__(self, memo: Any) -> Any:
            copies.append(self)
            return network()

    monkeypatch.setattr(tuning, "_thread_counts", lambda: [1, 1 + torch.get_num_threads()])
    tuned = tune_settings(Counting(*network()), nn.CrossEntropyLoss(), batch(), compile=False)
    assert len(tuned.seconds) == 4
    assert len(copies) == 2  # channels first and channels last


def test_a_step_that_fails_while_it_is_timed_is_an_error(tmp_path: Path) -> None:
    import sightline
    from sightline.core.errors import RunFailedError

    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> Any:
            if self.training:
                raise RuntimeError("out of memory")
            return self.layer(x.flatten(1))

    config = {"run": {"dir": str(tmp_path)}, "trainer": {"threads": "auto", "progress": False}}
    with pytest.raises(RunFailedError, match="Timing the trainer settings failed with RuntimeError: out of memory"):
        sightline.assemble(config, model=Failing())
