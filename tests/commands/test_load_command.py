"""`sightline load`: what it tells of a model, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.commands import Command, python
from helpers.tampered_artifact import rewrite
from sightline.core.files import sha256
from sightline.inference.artifact import export_model, load, make_provenance
from sightline.runs.environment import collect_environment, machine_summary


@pytest.fixture
def told(here: Command) -> Any:
    """The command in this process: (exit code, output, errors)."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        done = here("load", *words)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def copy(digits_run: Path, tmp_path: Path) -> Path:
    """A run of one's own to spoil."""
    return Path(shutil.copytree(digits_run, tmp_path / "run"))


def change(run: Path, **values: Any) -> dict[str, Any]:
    """Other values in the description of the exported model."""
    return rewrite(run / "exported", lambda manifest: manifest | values)


def test_a_model_is_told(told: Any, digits_run: Path) -> None:
    manifest = json.loads((digits_run / "exported" / "sightline.json").read_text())
    code, out, err = told(digits_run)
    assert (code, err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["model"] == str(digits_run / "exported")
    assert lines["network"].startswith("sightline.models.networks.SmallCNN(")
    weights = load_file(digits_run / "exported" / "model.safetensors")
    least = sum(value.numel() for name, value in weights.items() if not name.endswith(("mean", "var", "tracked")))
    assert lines["parameters"] == f"{least:,}"
    assert lines["input"].startswith("1 x 8 x 8 ")
    assert lines["normalise"].startswith(f"mean {manifest['preprocess']['mean'][0]:.4g}  std ")
    assert lines["resize"].startswith("stretch, bilinear")
    assert lines["classes"] == "10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert lines["sha256"].startswith(sha256(digits_run / "exported" / "model.safetensors"))
    assert f"accuracy {manifest['metrics']['test']['accuracy']:.4f}" in lines["test"]
    assert lines["run"] == "digits"
    assert f"data train   {manifest['provenance']['data']['train']}" in out
    assert f"torch {torch.__version__}" in lines["made"]
    assert lines["answers"].startswith("yes: tried with noise on cpu")


def test_the_exported_folder_alone_is_enough(told: Any, copy: Path, tmp_path: Path) -> None:
    """Anywhere, with nothing else of the run."""
    moved = (copy / "exported").rename(tmp_path / "model")
    shutil.rmtree(copy)
    code, out, _ = told(moved, "--device", "cpu")
    assert code == 0
    assert "run          digits" in out
    assert f"torch {torch.__version__}" in out
    assert f"machine      {machine_summary()}" in out


def test_it_needs_no_network(digits_run: Path) -> None:
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k):\n    raise AssertionError('the network was used')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "from sightline.cli import main\nmain(['load', sys.argv[1]])"
    )
    assert "answers      yes" in python(code, str(digits_run))


@pytest.fixture
def exported(digits_run: Path, tmp_path: Path) -> Path:
    """The model alone, with all that can be known of where it came from."""
    model = load(digits_run)
    known = collect_environment() | {"id": "5" * 32, "git": {"commit": "c" * 40, "diff": "--- a\n+++ b\n-old\n+new\n"}}
    config = model.manifest["provenance"]["config"]
    told = make_provenance("digits", config, model.manifest["provenance"]["data"], known)
    folder = tmp_path / "exported"
    export_model(folder, model.model, model.spec, model.preprocess, model.classes, told)
    return folder


def test_where_it_came_from_is_told(told: Any, exported: Path) -> None:
    code, out, err = told(exported)
    assert (code, err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["id"] == "5" * 32
    assert lines["seed"] == "0"
    assert lines["machine"] == machine_summary()
    assert lines["commit"] == f"{'c' * 40}  and 2 changed lines"
    assert lines["time"].startswith("began 20")
    assert "exported 20" in lines["time"]


def test_all_of_it_is_told_as_json(told: Any, exported: Path) -> None:
    code, out, err = told(exported, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    manifest = json.loads((exported / "sightline.json").read_text())
    assert found["provenance"] == manifest["provenance"]
    assert {"run", "id", "config", "seed", "data", "packages", "python", "git", "machine", "time"} <= set(
        found["provenance"]
    )
    assert found["provenance"]["packages"]["torch"]
    assert found["weights"]["sha256"] == sha256(exported / "model.safetensors")
    assert (found["format"], found["classes"], found["answers"]["device"]) == (2, manifest["classes"], "cpu")


def test_the_machine_is_told_without_its_name() -> None:
    words = machine_summary()
    assert re.fullmatch(r"\d+ cores? .+, (\d+ GiB, )?.+, [A-Z]\w+( [\d.]+)?", words)
    assert socket.gethostname() not in words.split()


def test_a_name_cannot_write_on_the_terminal(told: Any, copy: Path) -> None:
    change(copy, provenance={"run": "\x1b]0;mine\x07\x1b[2J"})
    _, out, _ = told(copy)
    assert "\x1b" not in out
    assert "run          \\x1b]0;mine\\x07\\x1b[2J" in out


def test_what_is_not_known_is_left_out(told: Any, copy: Path) -> None:
    change(copy, metrics={}, provenance=None)
    (copy / "environment.json").write_text("{")
    code, out, err = told(copy)
    assert (code, err) == (0, "")
    assert "metrics      none: it has not been measured" in out
    change(copy, metrics={"test": {"loss": None, "accuracy": 0.5}})
    assert "test         loss None  accuracy 0.5000" in told(copy)[1]


def spoil_weights(run: Path, note: bool) -> None:
    """NaN in every weight; `note` makes the description agree."""
    file = run / "exported" / "model.safetensors"
    save_file(
        {k: torch.full_like(v, torch.nan) if v.is_floating_point() else v for k, v in load_file(file).items()}, file
    )
    if note:
        change(run, weights_sha256=sha256(file))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: spoil_weights(run, note=False), "its SHA-256 differs"),
        (lambda run: spoil_weights(run, note=True), "the model answers with NaN or infinite numbers"),
        (lambda run: (run / "exported" / "model.safetensors").unlink(), "model.safetensors' is missing"),
        (lambda run: (run / "exported" / "sightline.json").write_text("{"), "is damaged"),
        (lambda run: shutil.rmtree(run / "exported"), "Has the run finished?"),
        (lambda run: change(run, classes=["a"]), "disagree"),
        (
            lambda run: change(
                run,
                model={
                    "network": {"_target_": "os.system"},
                    "shape": [1, 8, 8],
                    "num_classes": 10,
                    "outputs": "logits",
                },
            ),
            "is not on the list of what a stored model may name",
        ),
    ],
)
def test_a_damaged_model_is_refused(spoil: Any, words: str, told: Any, copy: Path) -> None:
    spoil(copy)
    code, out, err = told(copy)
    assert (code, out) == (2, "")
    assert err.startswith("sightline: ")
    assert words in err
    assert "Traceback" not in err


def test_a_name_that_is_wrong(told: Any, copy: Path) -> None:
    code, _, err = told(copy.with_name("runn"))
    assert code == 2
    assert "Did you mean 'run'?" in err
    code, _, err = told(copy, "--device", "gpu")
    assert code == 2
    assert "'gpu' is no torch device" in err
