"""What a step costs through an interface beside the same step in a loop written by hand; and what the params interface
learns.

    python benchmarks/interfaces.py [--rounds 5] [--threads N] [--only params …] [--check] [--accuracy]

Both train on the same 8,000 handwritten digits, from the same weights, over the same loader, and must end with the
same weights, bit for bit. They take turns in one thread, some steps each, so that whatever else the machine does slows
both; the loop by hand thus runs with the memory settings that the interface makes. A round is an epoch; printed are
milliseconds a step, the median over the rounds with the least and the most, and the median over rounds of the ratio.
The first steps of an epoch, in which memory is taken for the first time, do not count. With --check, exits 1 where a
ratio is above 1.10.

`params`: `sightline.params.train` with steps that return floats, against a loop that calls the same steps; the
interface also writes TensorBoard's curves, a log and checkpoints. The documented network with four metrics of
torchmetrics in batches of 512, and a small one without metrics in batches of 64, where what surrounds a step shows
most.

`learner`: `StandardModel.train` against the loop of a tutorial, which reads every loss back, with the same loader and
metric; the interface also keeps every epoch's model, a log and checkpoints. 784-100-100-100-10 in batches of 64, over a
DataLoader of ready tensors, and over one that puts each picture through torchvision's transforms, as the tutorial does.

With --accuracy, nothing is timed: the documented parameters with the four-block network train 10 epochs on 8,000 digits
without flips, with their softmax and with logits, from three seeds each; printed is the accuracy on the other 2,000.

The digits are read from `$SIGHTLINE_SHARED/data/mnist10k-png.tar.gz` (default ../shared)."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import itertools
import platform
import re
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from archives import MNIST, unpacked
from sightline import learner
from sightline.params import build_classifier, params, set_seeds, torchmetrics, train
from sightline.params.data import build_loaders, open_splits
from sightline.params.updates import make_optimizer

MOST = 1.10
UNCOUNTED = 3
SHORT = 5
"""So many times the rounds where an epoch takes less than a second."""
TURN = 8
"""Steps."""


@dataclass
class Ratio:
    """One row of the table: milliseconds a step by hand and through the interface, round by round."""

    name: str
    bare: list[float] = field(default_factory=list)
    interface: list[float] = field(default_factory=list)

    @property
    def value(self) -> float:
        """The median over the rounds."""
        return statistics.median(interface / bare for bare, interface in zip(self.bare, self.interface, strict=True))


class Clock:
    """Calls a step of the interface, and before each turn of them as many steps of the loop written by hand. Notes how
    long each takes: the interface's from one call to the next, without the other's."""

    def __init__(self, step: Callable[..., Any], by_hand: Iterator[None]):
        self.step, self.by_hand = step, by_hand
        self.bare: list[float] = []
        self.interface: list[float] = []
        self.calls, self.mark = 0, 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The step's own answer."""
        if self.calls:
            self._lap(self.interface)
        else:
            self.mark = time.perf_counter()
        if self.calls % TURN == 0:
            for _ in itertools.islice(self.by_hand, TURN):
                self._lap(self.bare)
        self.mark = time.perf_counter()
        self.calls += 1
        return self.step(*args, **kwargs)

    def _lap(self, times: list[float]) -> None:
        now = time.perf_counter()
        times.append(now - self.mark)
        self.mark = now

    def note(self, row: Ratio) -> None:
        """The round, into its row."""
        counted = slice(UNCOUNTED, len(self.interface))  # the interface's last step has no call after it
        row.bare.append(1e3 * statistics.mean(self.bare[counted]))
        row.interface.append(1e3 * statistics.mean(self.interface[counted]))


def same_weights(one: nn.Module, other: nn.Module) -> None:
    """Ends the benchmark where they are not."""
    vectors = [nn.utils.parameters_to_vector(model.parameters()).detach() for model in (one, other)]
    assert torch.equal(*vectors), "the interface does not train as the loop does"


# --- params


def loss_func(y_pred: Tensor, y: Tensor) -> Tensor:
    """As the user has it."""
    return nn.functional.cross_entropy(y_pred, y)


def train_step(x: Tensor, y: Tensor, model: nn.Module, optim: Any, **kwargs: Any) -> tuple[float, Any]:
    """As the user has it: everything is read back as floats."""
    optim.zero_grad()
    y_pred = model(x)
    loss = loss_func(y_pred, y)
    loss.backward()
    optim.step()
    metrics = None
    if "train_torchmetrics" in kwargs:
        metrics = {name: value.item() for name, value in kwargs["train_torchmetrics"](y_pred, y).items()}
    return loss.item(), metrics


def test_step(x: Tensor, y: Tensor, model: nn.Module, **kwargs: Any) -> tuple[float, None]:
    """As the user has it."""
    with torch.no_grad():
        y_pred = model(x)
    if "test_torchmetrics" in kwargs:
        kwargs["test_torchmetrics"](y_pred, y)
    return loss_func(y_pred, y).item(), None


def metrics(**how: Any) -> Any:
    """The documented four."""
    names = ("Accuracy", "Precision", "Recall", "F1Score")
    return torchmetrics.MetricCollection(
        [getattr(torchmetrics, name)(num_classes=10, average="macro", **how) for name in names]
    )


def perceptron() -> nn.Module:
    """784-100-100-100-10 with ReLU."""
    hidden = [part for pair in itertools.pairwise((784, 100, 100, 100)) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(100, 10))


def params_rows(data: Path, scratch: Path, rounds: int) -> list[Ratio]:
    """`sightline.params.train` against a loop over the same steps."""
    documented = Ratio("params: documented network, batches of 512, 4 metrics")
    small = Ratio("params: 784-100-100-100-10, batches of 64, no metrics")
    usual = {"num_epochs": 1, "eval_batch_size": 500, "device": "cpu", "learning_rate_schedule": None}
    for row, changes, make, measure, times in (
        (documented, {}, lambda: build_classifier(params, outputs="logits"), True, rounds),
        (small, {"batch_size": 64, "flip_images": False}, perceptron, False, SHORT * rounds),
    ):
        settings = params | usual | changes
        for number in range(times + 1):
            set_seeds(0)
            own, kwargs = make(), {"train_torchmetrics": metrics()} if measure else {}
            set_seeds(0)
            model, theirs = make(), {"train_torchmetrics": metrics()} if measure else {}
            clock = Clock(train_step, by_hand(settings, own, data, kwargs))
            with contextlib.redirect_stdout(io.StringIO()):
                train(settings, model, clock, test_step, data, scratch / f"{id(row)}-{number}", **theirs)
            same_weights(own, model)
            if number:  # the first round does not count
                clock.note(row)
    return [documented, small]


def by_hand(settings: Mapping[str, Any], model: nn.Module, data: Path, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """The least there is to do around the steps, one of them at a time."""
    splits, preprocess, _ = open_splits(settings, data)
    loader, _ = build_loaders(settings, splits, preprocess, torch.device("cpu"))
    optimizer = make_optimizer(settings, model)
    model.train()
    total, count = 0.0, 0
    for batch in loader:
        loss, _ = train_step(batch.x, batch.y, model, optimizer, **kwargs)
        total += loss * len(batch.y)
        count += len(batch.y)
        yield
    assert total / count < 10


def accuracies(data: Path, scratch: Path) -> dict[str, list[float]]:
    """What the documented parameters reach, by what the network answers with."""
    found: dict[str, list[float]] = {}
    for outputs in ("probabilities", "logits"):
        for seed in (17, 18, 19):
            changes = {"flip_images": False, "num_epochs": 10, "eval_batch_size": 500, "manual_seed": seed}
            settings, said = params | changes, io.StringIO()
            set_seeds(seed)
            model = build_classifier(settings, outputs=outputs)
            model.to(settings["device"])
            measured = metrics(compute_on_step=False).to(settings["device"])
            place = scratch / f"{outputs}-{seed}"
            with contextlib.redirect_stdout(said):
                train(settings, model, train_step, test_step, data, place, test_torchmetrics=measured)
            found.setdefault(outputs, []).append(float(re.findall(r"^Accuracy (\S+)", said.getvalue(), re.M)[-1]))
    return found


# --- learner


class Pictures(Dataset[Any]):
    """Digits as torchvision's MNIST has them, through a tutorial's transforms."""

    def __init__(self, pixels: Tensor, labels: Tensor):
        from torchvision.transforms import transforms

        self.pixels, self.labels = pixels, labels
        steps = (transforms.Resize(28), transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,)))
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index].numpy())), int(self.labels[index])


def learner_rows(data: Path, scratch: Path, rounds: int) -> list[Ratio]:
    """`sightline.learner.StandardModel.train` against a loop with the same loader and metric."""
    with (data / "train" / "info.csv").open(newline="") as table:
        listed = list(csv.DictReader(table))
    pictures = [np.asarray(Image.open(data / "train" / row["files"])) for row in listed]
    pixels, labels = torch.from_numpy(np.stack(pictures)), torch.tensor([int(row["type"]) for row in listed])
    found = []
    ready = TensorDataset(pixels[:, None] / 127.5 - 1, labels)
    for name, dataset, times in (
        ("learner: a DataLoader of ready tensors", ready, SHORT * rounds),
        ("learner: a DataLoader with transforms", Pictures(pixels, labels), rounds),
    ):
        row, loader = Ratio(name), DataLoader(dataset, batch_size=64)
        for number in range(times + 1):
            set_seeds(0)
            own = perceptron()
            set_seeds(0)
            model = perceptron()
            clock = Clock(nn.CrossEntropyLoss(), tutorials_loop(own, loader))
            optimizer, metric = torch.optim.Adam(model.parameters()), learner.Accuracy()
            quiet = {"batch_log": True, "display_metrics": False, "save_metrics": False, "num_epochs": 1}
            place = scratch / f"{id(row)}-{number}"
            with contextlib.redirect_stdout(io.StringIO()):
                learner.StandardModel(model, use_cuda_if_available=False).train(
                    loader, clock, optimizer, [metric], model_dir=place, **quiet
                )
            same_weights(own, model)
            if number:  # the first round does not count
                clock.note(row)
        found.append(row)
    return found


def tutorials_loop(model: nn.Module, loader: Any) -> Iterator[None]:
    """An epoch, one step at a time."""
    loss_of, metric, optimizer = nn.CrossEntropyLoss(), learner.Accuracy(), torch.optim.Adam(model.parameters())
    model.train()
    total, count = 0.0, 0
    for x, y in loader:
        optimizer.zero_grad()
        output = model(x)
        loss = loss_of(output, y)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(y)
        count += len(y)
        metric.update(output.detach(), y)
        yield
    assert metric.getValue() > 0.3
    assert total / count < 10


# --- both


TABLES: dict[str, Callable[[Path, Path, int], list[Ratio]]] = {"params": params_rows, "learner": learner_rows}
"""An interface -> its rows, from (the data in `train` and `test`, a directory for what is written, rounds)."""


def digits(scratch: Path) -> Path:
    """8,000 digits in `data/train` and 2,000 in `data/test`, each with its `info.csv`."""
    unpacked(MNIST, scratch)
    with (scratch / "mnist10k" / "mnist_10k_test_images.csv").open(newline="") as table:
        rows = [(row["file"], row["target"]) for row in csv.DictReader(table)]
    for split, part in (("train", rows[:8000]), ("test", rows[8000:])):
        folder = scratch / "data" / split
        folder.mkdir(parents=True)
        with (folder / "info.csv").open("w", newline="") as table:
            writer = csv.writer(table)
            writer.writerow(("files", "type"))
            for name, label in part:
                (scratch / "mnist10k" / name).rename(folder / Path(name).name)
                writer.writerow((Path(name).name, label))
    return scratch / "data"


def main() -> int:
    """Measures, prints, and with --check judges."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--threads", type=int, help="CPU threads of torch; default: torch's own choice")
    options.add_argument("--only", nargs="+", choices=tuple(TABLES), default=tuple(TABLES), metavar="INTERFACE")
    options.add_argument("--check", action="store_true")
    options.add_argument("--accuracy", action="store_true")
    given = options.parse_args()
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, Python {platform.python_version()}")
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        data = digits(scratch)
        if given.accuracy:
            for outputs, values in accuracies(data, scratch).items():
                each = ", ".join(f"{value:.4f}" for value in values)
                print(f"{outputs:<15}{statistics.mean(values):.4f}  ({each})")
            return 0
        print(f"{'milliseconds a step':<56}{'by hand':>26}{'through the interface':>26}{'ratio':>8}")
        for name in given.only:
            for row in TABLES[name](data, scratch, given.rounds):
                cells = [
                    f"{statistics.median(v):.2f} ({min(v):.2f} to {max(v):.2f})" for v in (row.bare, row.interface)
                ]
                print(f"{row.name:<56}{cells[0]:>26}{cells[1]:>26}{row.value:8.3f}")
                if row.value > MOST:
                    missed.append(f"missed: {row.name}: {row.value:.3f}, more than {MOST}")
    for line in missed:
        print(line)
    return 1 if given.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
