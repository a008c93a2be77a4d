"""Measures the step time of the params and learner interfaces against a hand-written loop with the same step.

    python benchmarks/interfaces.py [--rounds 5] [--threads N] [--only params …] [--check] [--accuracy]

Both train on the same 8,000 handwritten digits, from the same weights and with the same loader, and must end with the
same weights, bit for bit. They alternate every few steps in one thread, so that other load on the machine slows both;
the hand-written loop therefore runs with the memory settings of the interface. A round is an epoch. Printed are
milliseconds per step (the median over the rounds, the minimum and the maximum) and the median ratio. The first steps of
an epoch, which allocate memory, are not counted. With --check, exits 1 if a ratio is above 1.10.

- `params`: `sightline.params.train` with steps that return floats, against a loop that calls the same steps. The
  interface also writes TensorBoard curves, a log and checkpoints. Measured are the documented network with four metrics
  of torchmetrics in batches of 512, and a small network without metrics in batches of 64, where overhead shows most.
- `learner`: `StandardModel.train` against the loop of a tutorial, which reads every loss back, with the same loader and
  metric. The interface also saves the model of every epoch, a log and checkpoints. Measured is 784-100-100-100-10 in
  batches of 64, with a DataLoader of prepared tensors and with one that applies torchvision's transforms.

With --accuracy, nothing is timed: the documented parameters with the four-block network train 10 epochs on 8,000 digits
without flips, with a softmax and with logits, from three seeds each. Printed is the accuracy on the other 2,000 digits.

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

MAX_RATIO = 1.10
SKIPPED_STEPS = 3
"""The steps at the start of an epoch that are not counted."""
SHORT = 5
"""The factor on the number of rounds where an epoch takes less than a second."""
TURN = 8
"""The number of steps after which the loops alternate."""


@dataclass
class Ratio:
    """One row of the table: milliseconds per step of the loop (`bare`) and of the interface, one value per round."""

    name: str
    bare: list[float] = field(default_factory=list)
    interface: list[float] = field(default_factory=list)

    @property
    def value(self) -> float:
        """The median ratio over the rounds."""
        return statistics.median(interface / bare for bare, interface in zip(self.bare, self.interface, strict=True))


class Clock:
    """Wraps the interface's step to alternate with a hand-written loop, and times both.

    Every `TURN` calls it first runs as many steps of `by_hand`. A step of the interface is timed from one call to the
    next, without the steps of the loop."""

    def __init__(self, step: Callable[..., Any], by_hand: Iterator[None]):
        self.step, self.by_hand = step, by_hand
        self.bare: list[float] = []
        self.interface: list[float] = []
        self.calls, self.mark = 0, 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the result of the interface's step."""
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
        """Adds the means of this round to its row."""
        counted = slice(SKIPPED_STEPS, len(self.interface))  # the last step of the interface has no end time
        row.bare.append(1e3 * statistics.mean(self.bare[counted]))
        row.interface.append(1e3 * statistics.mean(self.interface[counted]))


def same_weights(one: nn.Module, other: nn.Module) -> None:
    """Raises AssertionError if two networks do not have the same weights."""
    vectors = [nn.utils.parameters_to_vector(model.parameters()).detach() for model in (one, other)]
    assert torch.equal(*vectors), "the interface does not train as the loop does"


# --- params


def loss_func(y_pred: Tensor, y: Tensor) -> Tensor:
    """Returns the loss, as a user's script computes it."""
    return nn.functional.cross_entropy(y_pred, y)


def train_step(x: Tensor, y: Tensor, model: nn.Module, optim: Any, **kwargs: Any) -> tuple[float, Any]:
    """Runs one update, as in a user's script: loss and metrics are read back as floats."""
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
    """Evaluates one batch, as in a user's script."""
    with torch.no_grad():
        y_pred = model(x)
    if "test_torchmetrics" in kwargs:
        kwargs["test_torchmetrics"](y_pred, y)
    return loss_func(y_pred, y).item(), None


def metrics(**how: Any) -> Any:
    """Returns the four documented metrics."""
    names = ("Accuracy", "Precision", "Recall", "F1Score")
    return torchmetrics.MetricCollection(
        [getattr(torchmetrics, name)(num_classes=10, average="macro", **how) for name in names]
    )


def perceptron() -> nn.Module:
    """Returns a 784-100-100-100-10 network with ReLU."""
    hidden = [part for pair in itertools.pairwise((784, 100, 100, 100)) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(100, 10))


def params_rows(data: Path, scratch: Path, rounds: int) -> list[Ratio]:
    """Measures `sightline.params.train` against a loop over the same steps."""
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
            reference, loop_kwargs = make(), {"train_torchmetrics": metrics()} if measure else {}
            set_seeds(0)
            model, kwargs = make(), {"train_torchmetrics": metrics()} if measure else {}
            clock = Clock(train_step, by_hand(settings, reference, data, loop_kwargs))
            with contextlib.redirect_stdout(io.StringIO()):
                train(settings, model, clock, test_step, data, scratch / f"{id(row)}-{number}", **kwargs)
            same_weights(reference, model)
            if number:  # the first round is a warm-up
                clock.note(row)
    return [documented, small]


def by_hand(settings: Mapping[str, Any], model: nn.Module, data: Path, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Trains one epoch with a minimal loop over the same steps; a generator that yields after each step."""
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
    """Returns the test accuracies of the documented parameters by kind of output, one per seed."""
    results: dict[str, list[float]] = {}
    for outputs in ("probabilities", "logits"):
        for seed in (17, 18, 19):
            changes = {"flip_images": False, "num_epochs": 10, "eval_batch_size": 500, "manual_seed": seed}
            settings, printed = params | changes, io.StringIO()
            set_seeds(seed)
            model = build_classifier(settings, outputs=outputs)
            model.to(settings["device"])
            measured = metrics(compute_on_step=False).to(settings["device"])
            directory = scratch / f"{outputs}-{seed}"
            with contextlib.redirect_stdout(printed):
                train(settings, model, train_step, test_step, data, directory, test_torchmetrics=measured)
            results.setdefault(outputs, []).append(float(re.findall(r"^Accuracy (\S+)", printed.getvalue(), re.M)[-1]))
    return results


# --- learner


class Images(Dataset[Any]):
    """Digits like those of torchvision's MNIST, with the transforms of a tutorial."""

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
    """Measures `sightline.learner.StandardModel.train` against a loop with the same loader and metric."""
    with (data / "train" / "info.csv").open(newline="") as table:
        samples = list(csv.DictReader(table))
    images = [np.asarray(Image.open(data / "train" / row["files"])) for row in samples]
    pixels, labels = torch.from_numpy(np.stack(images)), torch.tensor([int(row["type"]) for row in samples])
    rows = []
    ready = TensorDataset(pixels[:, None] / 127.5 - 1, labels)
    for name, dataset, times in (
        ("learner: a DataLoader of prepared tensors", ready, SHORT * rounds),
        ("learner: a DataLoader with transforms", Images(pixels, labels), rounds),
    ):
        row, loader = Ratio(name), DataLoader(dataset, batch_size=64)
        for number in range(times + 1):
            set_seeds(0)
            reference = perceptron()
            set_seeds(0)
            model = perceptron()
            clock = Clock(nn.CrossEntropyLoss(), tutorials_loop(reference, loader))
            optimizer, metric = torch.optim.Adam(model.parameters()), learner.Accuracy()
            quiet = {"batch_log": True, "display_metrics": False, "save_metrics": False, "num_epochs": 1}
            directory = scratch / f"{id(row)}-{number}"
            with contextlib.redirect_stdout(io.StringIO()):
                learner.StandardModel(model, use_cuda_if_available=False).train(
                    loader, clock, optimizer, [metric], model_dir=directory, **quiet
                )
            same_weights(reference, model)
            if number:  # the first round is a warm-up
                clock.note(row)
        rows.append(row)
    return rows


def tutorials_loop(model: nn.Module, loader: Any) -> Iterator[None]:
    """Trains one epoch as a tutorial does; a generator that yields after each step."""
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
"""The function that measures each interface: (directory with `train` and `test`, scratch directory, rounds) -> rows."""


def digits(scratch: Path) -> Path:
    """Writes 8,000 digits to `data/train` and 2,000 to `data/test`, each with its `info.csv`; returns `data`."""
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
    """Runs the benchmark and prints the table; returns the exit code."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5, help="rounds that are measured; default: %(default)s")
    options.add_argument("--threads", type=int, help="CPU threads of torch; default: set by torch")
    options.add_argument("--only", nargs="+", choices=tuple(TABLES), default=tuple(TABLES), metavar="INTERFACE")
    options.add_argument("--check", action="store_true", help="exit 1 when a ratio is too high")
    options.add_argument("--accuracy", action="store_true", help="measure accuracy instead of time")
    arguments = options.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, Python {platform.python_version()}")
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        data = digits(scratch)
        if arguments.accuracy:
            for outputs, values in accuracies(data, scratch).items():
                each = ", ".join(f"{value:.4f}" for value in values)
                print(f"{outputs:<15}{statistics.mean(values):.4f}  ({each})")
            return 0
        print(f"{'milliseconds per step':<56}{'hand-written loop':>26}{'interface':>26}{'ratio':>8}")
        for name in arguments.only:
            for row in TABLES[name](data, scratch, arguments.rounds):
                cells = [
                    f"{statistics.median(v):.2f} ({min(v):.2f} to {max(v):.2f})" for v in (row.bare, row.interface)
                ]
                print(f"{row.name:<56}{cells[0]:>26}{cells[1]:>26}{row.value:8.3f}")
                if row.value > MAX_RATIO:
                    missed.append(f"missed: {row.name}: ratio {row.value:.3f}, the limit is {MAX_RATIO}")
    for line in missed:
        print(line)
    return 1 if arguments.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
