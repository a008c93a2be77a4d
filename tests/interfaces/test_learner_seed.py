"""Every block of code of the learner's tutorial, which is part of the shared data, run on real digits. Only the import
line is changed, what the tutorial's text says to change, and mistakes that must be refused."""

from __future__ import annotations

import csv
import re
import struct
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sightline.learner as tf
from helpers.learner_problem import files, same, weights
from helpers.seed_documents import document
from sightline.core.errors import DataError

# the tutorial uses four workers, also on machines with fewer CPUs
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

PROSE = [12]
"""Blocks that are a list of arguments instead of code."""
METHODS = [13, 14, 15, 16]
"""Blocks that are methods of one class."""
COUNT = 17


@pytest.fixture
def blocks(shared: Path) -> list[str]:
    """The tutorial's blocks, without the blank lines around them."""
    contents = re.findall(r"<pre>(.*?)</pre>", document(shared, "002"), re.DOTALL)
    assert len(contents) == COUNT
    return [textwrap.dedent(block.strip("\n")) + "\n" for block in contents]


@pytest.fixture(scope="session")
def idx(mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, int, int], None]:
    """A function that writes the first and last of the 10,000 digits to the files that torchvision's MNIST reads."""
    with next(mnist.glob("*.csv")).open(newline="") as file:
        rows = [(row["file"], int(row["target"])) for row in csv.DictReader(file)]

    def lay_out(root: Path, train: int, test: int) -> None:
        raw = root / "data" / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for name, part in (("train", rows[:train]), ("t10k", rows[len(rows) - test :])):
            pixels = np.stack([np.asarray(Image.open(mnist / file)) for file, _ in part])
            header = struct.pack(">IIII", 0x803, *pixels.shape)
            (raw / f"{name}-images-idx3-ubyte").write_bytes(header + pixels.astype(np.uint8).tobytes())
            labels = bytes(label for _, label in part)
            (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, len(part)) + labels)

    return lay_out


class Script:
    """A script that is composed of blocks."""

    def __init__(self, blocks: list[str]):
        self.blocks = blocks
        self.module = ModuleType("__main__")

    def run(self, *numbers: int, change: Callable[[str], str] = lambda code: code) -> None:
        for number in numbers:
            code = change(self.blocks[number])
            exec(compile(code, f"block {number}", "exec"), self.module.__dict__)

    def __getattr__(self, name: str) -> Any:
        return self.module.__dict__[name]


def with_import(code: str) -> str:
    """Changes the import line."""
    assert code.count("import torchfusion as tf\n") == 1
    return code.replace("import torchfusion as tf\n", "import sightline.learner as tf\n")


def without_heading(code: str) -> str:
    """Removes the section heading with which a block starts."""
    heading, _, rest = code.partition("\n")
    assert heading.startswith("Step2: ")
    return rest


def for_one_channel(code: str) -> str:
    """Makes the change that the error message asks for."""
    assert code.count("(0.5,0.5,0.5)") == 2
    return without_heading(code.replace("(0.5,0.5,0.5)", "(0.5,)"))


def epochs(count: int) -> Callable[[str], str]:
    """Reduces the `num_epochs` of the tutorial."""

    def changed(code: str) -> str:
        assert code.count("num_epochs=20") == 1
        return textwrap.dedent(code.replace("num_epochs=20", f"num_epochs={count}"))

    return changed


def two_epochs_in(directory: str) -> Callable[[str], str]:
    """Trains two epochs, in another directory."""
    return lambda code: epochs(2)(code).replace('"mnist_mlp_saved_models"', repr(directory))


@pytest.fixture
def script(blocks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """The blocks as a script in an empty directory."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return Script(blocks)


@pytest.mark.slow
@pytest.mark.rows("B01", "B03", "B04", "B05", "B07", "B08", "BB1")
def test_the_tutorial_from_its_first_block_to_its_last(
    script: Script,
    idx: Callable[[Path, int, int], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    idx(tmp_path, 320, 64)
    script.run(0, change=with_import)
    script.run(1, change=without_heading)
    script.run(2, 3, 4, 5, 6, 7)
    assert "Total Parameters: 99,710\nTotal Multiply Adds: 99,400\n" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"write Normalize\(\(0\.5,\), \(0\.5,\)\)"):
        script.run(8, change=epochs(2))
    # the directory has the initial checkpoint and no epoch, so training resumes from it
    script.run(1, change=for_one_channel)
    script.run(2)
    script.run(8, change=epochs(2))
    models = tmp_path / "mnist_mlp_saved_models"
    assert "all_models/model_1.pth" in files(models)
    assert "best_models/model_0.pth" in files(models)
    assert (tmp_path / "logs.txt").read_text().count("Epoch: ") == 2
    output = capsys.readouterr().out
    script.run(9)
    assert [script.lr_schedule(epoch) for epoch in (0, 30, 31, 61, 91)] == [1e-3, 1e-3, 1e-4, 1e-5, 1e-6]
    assert "LR:  0.0001" in capsys.readouterr().out
    script.run(10, change=epochs(4))  # resumes, with the schedule
    resumed = capsys.readouterr().out
    assert resumed.count("LR:  0.001") == 2
    assert resumed.count("Epoch: ") == output.count("Epoch: ") == 2
    script.run(10, change=epochs(4))
    assert "is already finished (4 epochs)" in capsys.readouterr().out
    script.run(11)
    values = script.model.evaluate(script.test_loader, [script.top1, script.top2, script.top5])
    assert list(values) == ["Top 1 Acc ", "Top 2 Acc ", "Top 5 Acc "]
    assert 0 < values["Top 1 Acc "] <= values["Top 2 Acc "] <= values["Top 5 Acc "] <= 1


@pytest.mark.rows("B19", "B20", "BB2", "BB5")
def test_the_methods_of_the_tutorial_train_like_the_standard_model(
    script: Script, idx: Callable[[Path, int, int], None], tmp_path: Path
) -> None:
    idx(tmp_path, 320, 64)
    methods = "".join(textwrap.indent(textwrap.dedent(script.blocks[number]), "    ") for number in METHODS)
    script.run(0, change=with_import)
    head = "from torch.autograd import Variable\n\nclass StandardModel(tf.BaseModel):\n"
    script.run(METHODS[0], change=lambda _: head + methods)
    script.run(1, change=for_one_channel)
    script.run(2, 3, 4, 5, 6, 7)
    trained = []
    for name, cls in (("standard", tf.StandardModel), ("custom", script.StandardModel)):
        script.run(3, 5, 6)  # a new network with the same initial weights
        script.net.load_state_dict(
            {key: torch.full_like(value, 0.01) for key, value in script.net.state_dict().items()}
        )
        script.module.__dict__["model"] = cls(script.net)
        torch.manual_seed(2)
        script.run(8, change=two_epochs_in(name))
        trained.append(weights(tmp_path / name / "all_models" / "model_1.pth"))
        assert not script.model.train_running_loss.requires_grad
    assert same(*trained)
    assert len(script.model.predict(script.test_loader)) == 64
    assert script.model.predict(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


def test_the_listed_arguments_exist(blocks: list[str]) -> None:
    (text,) = (blocks[number] for number in PROSE)
    names = re.findall(r"^(\w+): ", text, re.MULTILINE)
    assert len(names) == 7
    assert set(names) <= set(tf.StandardModel.train.__annotations__)


@pytest.mark.slow
@pytest.mark.rows("B01", "B17")
def test_the_tutorials_network_learns_real_digits(
    script: Script, idx: Callable[[Path, int, int], None], tmp_path: Path
) -> None:
    idx(tmp_path, 8000, 2000)
    script.run(0, change=with_import)
    script.run(1, change=for_one_channel)
    script.run(2, 3, 4, 5, 6, 7)
    script.run(8, change=epochs(5))
    assert script.test_metrics_top1.getValue() >= 0.90
    best = sorted((tmp_path / "mnist_mlp_saved_models" / "best_models").iterdir())[-1]
    script.model.load_model(best)
    metric = tf.Accuracy()
    script.model.evaluate(script.test_loader, [metric])
    print(f"held-out accuracy {metric.getValue():.4f}")
    assert metric.getValue() == max(script.model.get_train_history()["test_Top 1 Acc "])
