"""The code of the document that describes the original params-dict trainer, block by block, with this interface in
place of the document's modules. Broken blocks must fail with a message that names the fix."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

import sightline.params as interface
from helpers.params_digits import lay_out
from helpers.seed_documents import code_blocks, document, one_with
from sightline.core.errors import ModelError
from sightline.params import load_checkpoint, torchmetrics

PROSE = ("def train(", "def build_classifier(")
"""Blocks that show a signature instead of code."""


@pytest.fixture(scope="module")
def blocks(shared: Path) -> list[str]:
    return code_blocks(document(shared, "000"))


@pytest.fixture(scope="module")
def place(mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `data/train` and `data/test`."""
    directory = tmp_path_factory.mktemp("seed")
    lay_out(mnist, directory / "data", 600, 120)
    return directory


def namespace() -> dict[str, Any]:
    """The names that such a script imports, from `sightline.params` instead of the original modules."""
    return {name: getattr(interface, name) for name in interface.__all__} | {
        "torch": torch,
        "torchmetrics": torchmetrics,
    }


@pytest.fixture
def script(blocks: list[str], place: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The document's dict, loss and steps in one namespace, run in the directory with the data."""
    monkeypatch.chdir(place)
    names = namespace()
    for part in (r"^params = \{", r"^def loss_func", r"^def train_step", r"^def test_step"):
        exec(one_with(blocks, part), names)
    return names


def test_every_block_is_run_here_or_is_a_signature(blocks: list[str]) -> None:
    used = (r"^params = \{", r"^def loss_func", r"^def train_step", r"^def test_step", r"^set_seeds")
    code = [one_with(blocks, part) for part in used]
    prose = [one_with(blocks, part.replace("(", r"\(")) for part in PROSE]
    assert sorted(code + prose) == sorted(blocks)
    for block, name in zip(prose, ("train", "build_classifier"), strict=True):
        with pytest.raises(SyntaxError):
            compile(block, "block", "exec")
        names: dict[str, Any] = {"torch": torch}
        exec(block.rstrip() + ": ...", names)
        theirs, ours = (list(inspect.signature(owner).parameters) for owner in (names[name], getattr(interface, name)))
        assert ours[: len(theirs)] == theirs


def test_the_shorter_document_has_the_same_blocks(shared: Path, blocks: list[str]) -> None:
    short = code_blocks(document(shared, "001"))
    assert short == blocks[: len(short)]
    assert short


@pytest.mark.rows("A01", "A23", "AB5")
def test_our_dict_equals_the_documents_except_for_broken_or_removed_parts(script: dict[str, Any]) -> None:
    theirs, ours = script["params"], copy.deepcopy(interface.params)
    assert list(theirs) == list(ours)
    for entry in theirs["learning_rate_schedule"]:
        entry["kwargs"].pop("verbose", None)
    placeholders = {"GOOGLE_APPLICATION_CREDENTIALS": "service-account.json", "PUB_SUB_PROJECT": "my-project"}
    expected = {key: value for key, value in (theirs | placeholders).items() if key != "net_arch"}
    assert expected == {key: value for key, value in ours.items() if key != "net_arch"}
    # the document has the second block twice
    assert [*theirs["net_arch"][:4], *theirs["net_arch"][8:]][4:] == [*ours["net_arch"][4:]]
    assert theirs["net_arch"][:8] + theirs["net_arch"][12:] == ours["net_arch"]


@pytest.mark.rows("A17", "AB1", "AB2")
def test_the_documents_network_is_refused_with_the_fix(script: dict[str, Any]) -> None:
    with pytest.raises(ModelError) as error:
        script["build_classifier"](script["params"])
    message = str(error.value)
    for part in ("layer '8'", "got 64", "needs 32 channels", "set in_channels: 64", "35 x 35"):
        assert part in message


@pytest.mark.rows("A28", "A30", "A31", "A32", "A33", "A37", "AB5", "AB6", "AB7")
def test_the_documents_example_trains(
    script: dict[str, Any], blocks: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trains one epoch with the document's dict and a network that can be built."""
    script["params"] |= {"net_arch": interface.params["net_arch"], "num_epochs": 1, "batch_size": 64, "device": "cpu"}
    with pytest.warns(UserWarning, match="verbose|softmax") as warned:
        exec(one_with(blocks, r"^set_seeds"), script)
    messages = [str(warning.message) for warning in warned]
    assert sum("torch has removed 'verbose'" in line for line in messages) == 1
    assert sum("cannot fall below 1.4612 for 10 classes" in line for line in messages) == 1
    assert len(messages) == 2, messages
    assert script["done"] is True
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "Training Done."
    assert any(line.startswith("Accuracy 0.") and " F1Score 0." in line for line in lines)
    fresh = interface.build_classifier(script["params"])
    load_checkpoint(place / "logs" / "model_epoch_0.pt", fresh)
    assert torch.equal(fresh[0].weight, script["model"][0].weight)
