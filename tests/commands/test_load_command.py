"""`sightline load`: what it prints about a model, and which models it refuses."""

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
def run_load(here: Command) -> Any:
    """Runs `sightline load` in this process; returns (exit code, output, errors)."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        done = here("load", *arguments)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def copy(digits_run: Path, tmp_path: Path) -> Path:
    """A copy of a run, which a test may damage."""
    return Path(shutil.copytree(digits_run, tmp_path / "run"))


def change(run: Path, **values: Any) -> dict[str, Any]:
    """Changes values in the manifest of the exported model."""
    return rewrite(run / "exported", lambda manifest: manifest | values)


def test_a_model_is_described(run_load: Any, digits_run: Path) -> None:
    manifest = json.loads((digits_run / "exported" / "sightline.json").read_text())
    code, out, err = run_load(digits_run)
    assert (code, err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["model"] == str(digits_run / "exported")
    assert lines["network"].startswith("sightline.models.networks.SmallCNN(")
    weights = load_file(digits_run / "exported" / "model.safetensors")
    parameters = sum(value.numel() for name, value in weights.items() if not name.endswith(("mean", "var", "tracked")))
    assert lines["parameters"] == f"{parameters:,}"
    assert lines["input"].startswith("1 x 8 x 8 ")
    assert lines["normalise"].startswith(f"mean {manifest['preprocess']['mean'][0]:.4g}  std ")
    assert lines["resize"].startswith("stretch, bilinear")
    assert lines["classes"] == "10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert lines["sha256"].startswith(sha256(digits_run / "exported" / "model.safetensors"))
    assert f"accuracy {manifest['metrics']['test']['accuracy']:.4f}" in lines["test"]
    assert lines["run"] == "digits"
    assert f"data train   {manifest['provenance']['data']['train']}" in out
    assert f"torch {torch.__version__}" in lines["versions"]
    assert lines["check"].startswith("passed: predicted random input on cpu")


def test_the_exported_folder_alone_is_enough(run_load: Any, copy: Path, tmp_path: Path) -> None:
    """Under any path, without the other files of the run."""
    moved = (copy / "exported").rename(tmp_path / "model")
    shutil.rmtree(copy)
    code, out, _ = run_load(moved, "--device", "cpu")
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
    assert "check        passed" in python(code, str(digits_run))


@pytest.fixture
def exported(digits_run: Path, tmp_path: Path) -> Path:
    """An exported model without its run, with complete provenance."""
    model = load(digits_run)
    known = collect_environment() | {"id": "5" * 32, "git": {"commit": "c" * 40, "diff": "--- a\n+++ b\n-old\n+new\n"}}
    config = model.manifest["provenance"]["config"]
    provenance = make_provenance("digits", config, model.manifest["provenance"]["data"], known)
    folder = tmp_path / "exported"
    export_model(folder, model.model, model.spec, model.preprocess, model.classes, provenance)
    return folder


def test_the_provenance_is_printed(run_load: Any, exported: Path) -> None:
    code, out, err = run_load(exported)
    assert (code, err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["id"] == "5" * 32
    assert lines["seed"] == "0"
    assert lines["machine"] == machine_summary()
    assert lines["commit"] == f"{'c' * 40}  with 2 changed lines"
    assert lines["time"].startswith("started 20")
    assert "exported 20" in lines["time"]


def test_json_has_the_complete_provenance(run_load: Any, exported: Path) -> None:
    code, out, err = run_load(exported, "--json")
    assert (code, err) == (0, "")
    shown = json.loads(out)
    manifest = json.loads((exported / "sightline.json").read_text())
    assert shown["provenance"] == manifest["provenance"]
    assert {"run", "id", "config", "seed", "data", "packages", "python", "git", "machine", "time"} <= set(
        shown["provenance"]
    )
    assert shown["provenance"]["packages"]["torch"]
    assert shown["weights"]["sha256"] == sha256(exported / "model.safetensors")
    assert (shown["format"], shown["classes"], shown["answers"]["device"]) == (2, manifest["classes"], "cpu")


def test_the_machine_is_described_without_its_host_name() -> None:
    summary = machine_summary()
    assert re.fullmatch(r"\d+ cores? .+, (\d+ GiB, )?.+, [A-Z]\w+( [\d.]+)?", summary)
    assert socket.gethostname() not in summary.split()


def test_control_characters_in_a_name_are_escaped(run_load: Any, copy: Path) -> None:
    change(copy, provenance={"run": "\x1b]0;mine\x07\x1b[2J"})
    _, out, _ = run_load(copy)
    assert "\x1b" not in out
    assert "run          \\x1b]0;mine\\x07\\x1b[2J" in out


def test_unknown_values_are_left_out(run_load: Any, copy: Path) -> None:
    change(copy, metrics={}, provenance=None)
    (copy / "environment.json").write_text("{")
    code, out, err = run_load(copy)
    assert (code, err) == (0, "")
    assert "metrics      none: the model has not been evaluated" in out
    change(copy, metrics={"test": {"loss": None, "accuracy": 0.5}})
    assert "test         loss None  accuracy 0.5000" in run_load(copy)[1]


def damage_weights(run: Path, update_checksum: bool) -> None:
    """Sets every weight to NaN; `update_checksum` makes the checksum in the manifest match."""
    file = run / "exported" / "model.safetensors"
    save_file(
        {k: torch.full_like(v, torch.nan) if v.is_floating_point() else v for k, v in load_file(file).items()}, file
    )
    if update_checksum:
        change(run, weights_sha256=sha256(file))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: damage_weights(run, update_checksum=False), "its SHA-256 differs"),
        (lambda run: damage_weights(run, update_checksum=True), "The model returns NaN or infinite values"),
        (lambda run: (run / "exported" / "model.safetensors").unlink(), "model.safetensors' is missing"),
        (lambda run: (run / "exported" / "sightline.json").write_text("{"), "is damaged"),
        (lambda run: shutil.rmtree(run / "exported"), "Has the run finished?"),
        (lambda run: change(run, classes=["a"]), "do not match"),
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
            "is not on the list of names that a stored model may use",
        ),
    ],
)
def test_a_damaged_model_is_refused(damage: Any, message: str, run_load: Any, copy: Path) -> None:
    damage(copy)
    code, out, err = run_load(copy)
    assert (code, out) == (2, "")
    assert err.startswith("sightline: ")
    assert message in err
    assert "Traceback" not in err


def test_a_wrong_path_and_a_wrong_device(run_load: Any, copy: Path) -> None:
    code, _, err = run_load(copy.with_name("runn"))
    assert code == 2
    assert "Did you mean 'run'?" in err
    code, _, err = run_load(copy, "--device", "gpu")
    assert code == 2
    assert "'gpu' is not a torch device" in err
