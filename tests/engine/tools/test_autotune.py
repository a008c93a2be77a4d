"""Settings found by timing: which are tried, that nothing is changed by it, and that the choice is kept."""

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
    """Seconds a step of each setting takes, in place of a clock; what is not in it takes one."""
    speeds: dict[Setting, float] = {}

    def timed(*arguments: Any) -> dict[Setting, float]:
        settings: list[Setting] = arguments[-1]
        return {setting: speeds.get(setting, 1.0) for setting in settings}

    monkeypatch.setattr(tuning, "_timed", timed)
    monkeypatch.setattr(tuning, "_thread_counts", lambda: [1, 2])
    return speeds


def test_model_and_random_state_stay_as_they_were() -> None:
    model = network()
    weights, seed, threads = copy.deepcopy(model.state_dict()), torch.get_rng_state(), torch.get_num_threads()
    found = tune_settings(model, nn.CrossEntropyLoss(), batch(), compile=False)
    assert set(found.seconds) >= {Setting(False, threads), Setting(True, threads)}
    assert all(second > 0 for second in found.seconds.values())
    assert found.setting in found.seconds
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(seed, torch.get_rng_state())
    assert threads == torch.get_num_threads()
    assert model.training


def test_the_fastest_is_chosen_and_said(clock: dict[Setting, float]) -> None:
    clock[Setting(True, 1)] = 0.25
    found = tune_settings(network(), nn.CrossEntropyLoss(), batch(), compile=False)
    assert found.setting == Setting(True, 1)
    assert found.summary == "channels last, 1 thread: 250 ms a step; 1 s with channels first, 2 threads"


def test_what_is_hardly_faster_stays_ordinary(clock: dict[Setting, float]) -> None:
    clock[Setting(True, 2)] = 0.98
    found = tune_settings(network(), nn.CrossEntropyLoss(), batch(), compile=False)
    assert found.setting == Setting(False, 2)


def test_what_is_given_is_kept(clock: dict[Setting, float]) -> None:
    clock[Setting(False, 1)] = 0.1
    found = tune_settings(network(), nn.CrossEntropyLoss(), batch(), channels_last=True, threads=2, compile=False)
    assert found.setting == Setting(True, 2)


def test_a_network_without_images_has_one_format(clock: dict[Setting, float]) -> None:
    found = tune_settings(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), nn.CrossEntropyLoss(), batch(), compile=False)
    assert set(found.seconds) == {Setting(False, 1), Setting(False, 2)}


@pytest.mark.parametrize(
    ("steps", "speed", "compiled", "words"),
    [
        (100, 0.1, False, "not compiled, the run is too short for it (about 2 min)"),
        (1000, 0.5, True, "compiled: 500 ms a step"),
        (1000, 0.99, False, "not compiled: 990 ms a step would not repay"),
    ],
)
def test_compiling_must_pay(clock: dict[Setting, float], steps: int, speed: float, compiled: bool, words: str) -> None:
    clock[Setting(False, 2, True)] = speed
    found = tune_settings(network(), nn.CrossEntropyLoss(), batch(), steps=steps)
    assert found.setting.compile is compiled
    assert words in found.summary


def test_where_compiling_fails_training_goes_on_without(
    clock: dict[Setting, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tuning._timed

    def timed(*arguments: Any) -> dict[Setting, float]:
        if any(setting.compile for setting in arguments[-1]):
            raise RuntimeError("no C++ compiler\nand more")
        return plain(*arguments)

    monkeypatch.setattr(tuning, "_timed", timed)
    found = tune_settings(network(), nn.CrossEntropyLoss(), batch(), steps=1000)
    assert not found.setting.compile
    assert "torch.compile fails here: RuntimeError: no C++ compiler" in found.summary
    assert "and more" not in found.summary


def test_a_run_pins_and_notes_what_was_chosen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import sightline
    from sightline.core.files import read_json
    from sightline.core.yamlfile import read_yaml

    chosen = {"channels_last": "auto", "compile": "auto", "threads": "auto"}
    config = {
        "run": {"dir": str(tmp_path), "name": "a"},
        "data": {"cache": False},
        "trainer": {"max_epochs": 1, "device": "cpu", **chosen},
    }
    made = sightline.assemble(config)
    kept = read_yaml(made.run.config)["trainer"]
    assert kept["channels_last"] in (True, False)
    assert kept["compile"] is False  # seconds of training do not pay for it
    assert kept["threads"] in range(1, torch.get_num_threads() + 1)
    assert made.runtime.threads == kept["threads"]
    told = capfd.readouterr().err
    assert told.startswith("runtime: channels ")
    assert read_json(made.run.environment)["runtime"] in told
    made.fit()
    again = sightline.resume(made.run.path)
    assert again.config.trainer.threads == kept["threads"]
    assert not capfd.readouterr().err  # nothing is timed anew


def test_one_copy_serves_every_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[nn.Module] = []

    class Counting(nn.Sequential):
        def __deepcopy__(self, memo: Any) -> Any:
            copies.append(self)
            return network()

    monkeypatch.setattr(tuning, "_thread_counts", lambda: [1, 1 + torch.get_num_threads()])
    found = tune_settings(Counting(*network()), nn.CrossEntropyLoss(), batch(), compile=False)
    assert len(found.seconds) == 4
    assert len(copies) == 2  # channels first and channels last


def test_a_step_that_fails_while_it_is_timed_is_told(tmp_path: Path) -> None:
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
    with pytest.raises(RunFailedError, match="timing the settings failed with RuntimeError: out of memory"):
        sightline.assemble(config, model=Failing())
