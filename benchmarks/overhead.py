"""Measures the overhead of a training step in Sightline, hand-written loops and other training libraries.

    python benchmarks/overhead.py [--rounds 15] [--threads N] [--only sightline loader loop …] [--check]

The network is small, 784-100-100-100-10 with ReLU, Adam and batches of 64, so that the overhead shows. All contenders
train on the same 10,000 handwritten digits on the CPU, in one process, from the same weights, with 157 steps per epoch.
After a round of warm-up, each round runs one epoch of every contender, in random order. Work before the first and after
the last epoch is not counted. Printed are microseconds per step (median, minimum and maximum), and the median of the
ratios to the bare loop in the same round.

The digits are read from `$SIGHTLINE_SHARED/data/mnist10k-png.tar.gz` (default ../shared). The other libraries are
installed by `pip install 'sightline[bench]'`. With --check, exits 1 if Sightline takes more than 1.10 times as long as
the bare loop over prepared batches, or with its loader more than 1.20 times as long as the bare loop, 0.85 times as
long as the loop over a DataLoader, or 0.45 times as long as Lightning's Trainer."""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import itertools
import logging
import os
import platform
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from archives import MNIST, unpacked
from sightline.core.types import Batch, TrainState
from sightline.data.cache.dataset import PackedDataset
from sightline.data.cache.pack import PackOptions, pack_splits
from sightline.data.images.preprocess import Preprocess
from sightline.data.loading.loader import BatchLoader
from sightline.data.sources.open import open_source
from sightline.engine.progress import Progress
from sightline.engine.runtime import Runtime
from sightline.engine.tasks import SupervisedTask
from sightline.engine.trainer import Callback, Trainer
from sightline.runs.recorders import JsonlRecorder, RecorderList, TensorBoardRecorder

BATCH, RATE, CLASSES, WIDTH, SIDE = 64, 1e-3, 10, 100, 28
PREPROCESS = Preprocess(SIDE, SIDE, 1, (0.1307,), (0.3081,))
LIBRARIES = ("lightning", "torchmetrics", "keras", "skorch", "ignite")
MISSING = "not installed: pip install 'sightline[bench]'"


@dataclass(frozen=True)
class Digits:
    """The digits, packed and as tensors: x float32 [N,1,28,28], y int64 [N]. `scratch` is a directory for logs."""

    packed: PackedDataset
    x: Tensor
    y: Tensor
    scratch: Path

    @property
    def steps(self) -> int:
        """The number of steps in an epoch."""
        return -(-len(self.y) // BATCH)

    def loader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Returns a DataLoader as in tutorials."""
        return DataLoader(TensorDataset(self.x, self.y), batch_size=BATCH, shuffle=True)


@dataclass(frozen=True)
class Contender:
    """One of the compared training loops.

    `epoch` trains one epoch and returns its seconds, `loss` returns the mean loss over all digits, `updates` the steps
    so far."""

    epoch: Callable[[], float]
    loss: Callable[[], float]
    updates: Callable[[], int]


class NullTerminal(io.StringIO):
    """A stream that acts as a terminal, so that progress bars are drawn, and discards all text."""

    def write(self, text: str, /) -> int:
        """Discards the text."""
        return len(text)

    def isatty(self) -> bool:
        """Returns True."""
        return True


def network() -> nn.Sequential:
    """Returns the network, with the same initial weights in every call."""
    torch.manual_seed(0)
    widths = (SIDE * SIDE, WIDTH, WIDTH, WIDTH)
    hidden = [part for pair in itertools.pairwise(widths) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(WIDTH, CLASSES))


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """Returns the optimiser of all contenders."""
    return torch.optim.Adam(model.parameters(), lr=RATE)


def timed(work: Callable[[], Any]) -> Callable[[], float]:
    """Returns a function that calls `work` and returns its seconds."""

    def run() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return run


def contender(
    digits: Digits, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: Callable[[], float]
) -> Contender:
    """Returns the contender for a torch module and a torch optimiser."""

    def loss() -> float:
        with torch.no_grad():
            return nn.functional.cross_entropy(model(digits.x), digits.y).item()

    def updates() -> int:
        return int(next(iter(optimizer.state.values()))["step"])

    return Contender(epoch, loss, updates)


def bare(digits: Digits) -> Contender:
    """A minimal loop over prepared batches, without metrics."""
    model, loss = network(), nn.CrossEntropyLoss()
    optimizer = adam(model)
    batches = list(zip(digits.x.split(BATCH), digits.y.split(BATCH), strict=True))

    def epoch() -> None:
        for x, y in batches:
            loss(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()

    return contender(digits, model, optimizer, timed(epoch))


def sightline(digits: Digits, train: Iterable[Batch], name: str, callbacks: tuple[Callback, ...] = ()) -> Contender:
    """`sightline train` without evaluation and checkpoints.

    It measures loss, accuracy and macro averages over every sample, checks every loss, and writes a log point to JSONL
    and TensorBoard every 50 steps."""
    model, runtime = network(), Runtime("cpu")
    optimizer = adam(model)
    directory = digits.scratch / name
    directory.mkdir()
    recorder = RecorderList(JsonlRecorder(), TensorBoardRecorder(("train",)))
    recorder.start(directory, {}, None)
    task = SupervisedTask(nn.CrossEntropyLoss())
    trainer = Trainer(
        task, TrainState(model, optimizer), train, max_epochs=0, callbacks=callbacks, recorder=recorder, runtime=runtime
    )

    def epoch() -> float:
        trainer.max_epochs += 1
        with runtime.active():
            return timed(trainer.fit)()

    return contender(digits, model, optimizer, epoch)


def sightline_ready(digits: Digits) -> Contender:
    """Sightline's engine over prepared batches."""
    batches = [Batch(x, y) for x, y in zip(digits.x.split(BATCH), digits.y.split(BATCH), strict=True)]
    return sightline(digits, batches, "ready")


def sightline_loader(digits: Digits, workers: int | None = None, bar: bool = False) -> Contender:
    """Sightline's engine with its loader over packed data; `bar` draws the progress bar."""
    from rich.console import Console

    train = BatchLoader(digits.packed, PREPROCESS, BATCH, shuffle=True, workers=workers)
    callbacks = (Progress(Console(file=NullTerminal(), force_terminal=True)),) if bar else ()
    return sightline(digits, train, f"loader-{workers}-{bar}", callbacks)


def loop(digits: Digits) -> Contender:
    """The loop of tutorials, which reads the loss back in every step."""
    model, loss_of, loader = network(), nn.CrossEntropyLoss(), digits.loader()
    optimizer = adam(model)

    def epoch() -> float:
        total = 0.0
        for x, y in loader:
            optimizer.zero_grad()
            loss = loss_of(model(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item()
        return total / len(loader)

    return contender(digits, model, optimizer, timed(epoch))


def lightning(digits: Digits, plain: bool = False) -> Contender:
    """Lightning's Trainer with a progress bar, a CSV log, the loss of each step and the accuracy of each epoch.

    `plain` turns all of these off."""
    import lightning as pl
    from lightning.pytorch.loggers import CSVLogger
    from torchmetrics import Accuracy

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(pl.LightningModule):
        """The network and its training step."""

        def __init__(self) -> None:
            super().__init__()
            self.model, self.loss = network(), nn.CrossEntropyLoss()
            self.accuracy = Accuracy(task="multiclass", num_classes=CLASSES)
            self.adam = adam(self.model)

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            """Returns the loss, and logs it with the accuracy."""
            x, y = batch
            output = self.model(x)
            loss: Tensor = self.loss(output, y)
            if not plain:
                self.accuracy.update(output, y)
                self.log("train_loss", loss, on_step=True, prog_bar=True)
                self.log("train_accuracy", self.accuracy, on_step=False, on_epoch=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            """Returns the same optimiser in every call, as `fit` is called in every round."""
            return self.adam

    class Clock(pl.Callback):
        """Measures the seconds of an epoch, without the work of `fit` before and after it."""

        def on_train_epoch_start(self, *_: Any) -> None:
            """Runs before the hook of the progress bar."""
            self.start = time.perf_counter()

        def on_train_epoch_end(self, *_: Any) -> None:
            """Runs before the hook of the progress bar."""
            self.seconds = time.perf_counter() - self.start

    clock, module, loader = Clock(), Module(), digits.loader()
    with contextlib.redirect_stdout(NullTerminal()), contextlib.redirect_stderr(NullTerminal()):
        trainer = pl.Trainer(
            max_epochs=0,
            accelerator="cpu",
            devices=1,
            callbacks=[clock],
            logger=False if plain else CSVLogger(digits.scratch / "lightning"),
            enable_progress_bar=not plain,
            enable_checkpointing=False,
            enable_model_summary=False,
        )

    def epoch() -> float:
        trainer.fit_loop.max_epochs += 1
        with contextlib.redirect_stdout(NullTerminal()), contextlib.redirect_stderr(NullTerminal()):
            trainer.fit(module, loader)
        return clock.seconds

    return contender(digits, module.model, module.adam, epoch)


def fabric(digits: Digits) -> Contender:
    """A hand-written loop with Lightning Fabric's setup."""
    from lightning import Fabric

    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    setup = Fabric(accelerator="cpu", devices=1)
    inner, loss_of = network(), nn.CrossEntropyLoss()
    inner_optimizer = adam(inner)
    model, optimizer = setup.setup(inner, inner_optimizer)
    loader = setup.setup_dataloaders(digits.loader())

    def epoch() -> None:
        for x, y in loader:
            optimizer.zero_grad()
            setup.backward(loss_of(model(x), y))
            optimizer.step()

    return contender(digits, inner, inner_optimizer, timed(epoch))


def keras(digits: Digits) -> Contender:
    """Keras on torch with its progress bar and accuracy, from NumPy arrays."""
    os.environ.update(KERAS_BACKEND="torch", KERAS_TORCH_DEVICE="cpu")  # keras reads these when it is first imported
    import keras as k

    hidden = [k.layers.Dense(WIDTH, activation="relu") for _ in range(3)]
    dense = [*hidden, k.layers.Dense(CLASSES)]
    model = k.Sequential([k.layers.Input((1, SIDE, SIDE)), k.layers.Flatten(), *dense])
    linear = [part for part in network() if isinstance(part, nn.Linear)]
    for layer, part in zip(dense, linear, strict=True):
        layer.set_weights([part.weight.detach().numpy().T, part.bias.detach().numpy()])
    optimizer, loss_of = k.optimizers.Adam(RATE, epsilon=1e-8), k.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss_of, metrics=["accuracy"])
    x, y = digits.x.numpy(), digits.y.numpy()

    class Clock(k.callbacks.Callback):
        """Measures the seconds of an epoch, without the work of `fit` before and after it."""

        def on_epoch_begin(self, *_: Any) -> None:
            """Records the start time."""
            self.start = time.perf_counter()

        def on_epoch_end(self, *_: Any) -> None:
            """Records the duration."""
            self.seconds = time.perf_counter() - self.start

    clock = Clock()

    def epoch() -> float:
        with contextlib.redirect_stdout(NullTerminal()):
            model.fit(x, y, batch_size=BATCH, epochs=1, verbose=1, callbacks=[clock])
        return clock.seconds

    def loss() -> float:
        with torch.no_grad():
            return nn.functional.cross_entropy(model(digits.x), digits.y).item()

    return Contender(epoch, loss, lambda: int(optimizer.iterations))


def skorch(digits: Digits) -> Contender:
    """skorch's classifier with its default callbacks, from NumPy arrays."""
    from skorch import NeuralNetClassifier

    net = NeuralNetClassifier(
        network(),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=RATE,
        max_epochs=1,
        batch_size=BATCH,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
    ).initialize()
    x, y = digits.x.numpy(), digits.y.numpy()
    return contender(digits, net.module_, net.optimizer_, timed(lambda: net.partial_fit(x, y)))


def ignite(digits: Digits) -> Contender:
    """PyTorch-Ignite's supervised trainer, which returns the loss."""
    from ignite.engine import create_supervised_trainer

    model, loader = network(), digits.loader()
    optimizer = adam(model)
    engine = create_supervised_trainer(model, optimizer, nn.CrossEntropyLoss())
    return contender(digits, model, optimizer, timed(lambda: engine.run(loader, max_epochs=1)))


ROWS: dict[str, tuple[str, Callable[[Digits], Contender]]] = {
    "bare": ("bare loop, ready batches", bare),
    "sightline": ("Sightline, ready batches", sightline_ready),
    "loader": ("Sightline, BatchLoader", sightline_loader),
    "loader-0": ("Sightline, BatchLoader, workers=0", lambda digits: sightline_loader(digits, workers=0)),
    "loader-bar": ("Sightline, BatchLoader, progress bar", lambda digits: sightline_loader(digits, bar=True)),
    "loop": ("loop over a DataLoader, loss.item()", loop),
    "lightning": ("Lightning Trainer, bar, log, accuracy", lightning),
    "lightning-plain": ("Lightning Trainer, no bar, log, accuracy", lambda digits: lightning(digits, plain=True)),
    "fabric": ("Lightning Fabric", fabric),
    "keras": ("Keras on torch, bar, accuracy", keras),
    "skorch": ("skorch", skorch),
    "ignite": ("Ignite", ignite),
}
TARGETS = (
    ("sightline", "bare", 1.10),
    ("loader", "bare", 1.20),
    ("loader", "loop", 0.85),
    ("loader", "lightning", 0.45),
)


def mnist(scratch: Path) -> Digits:
    """Extracts and packs the digits."""
    source = open_source("csv", unpacked(MNIST, scratch) / "mnist10k", val=0, test=0)
    packed = pack_splits(source, PREPROCESS, packing=PackOptions("pixels"))[0]["train"]
    return Digits(packed, PREPROCESS.normalizer()(packed.pixels(np.arange(len(packed)))), packed.labels, scratch)


def build(names: Iterable[str], digits: Digits) -> dict[str, Contender]:
    """Returns the contenders whose library is installed."""
    contenders = {}
    for name in names:
        try:
            contenders[name] = ROWS[name][1](digits)
        except ModuleNotFoundError as error:
            if error.name not in LIBRARIES:
                raise
    return contenders


def measure(contenders: dict[str, Contender], digits: Digits, rounds: int) -> dict[str, list[float]]:
    """Returns the microseconds per step of each contender in every counted round.

    Raises AssertionError if a contender did not make every step or did not reduce its loss to a quarter."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    before = {name: each.loss() for name, each in contenders.items()}
    for number in range(rounds + 1):
        for name in random.Random(number).sample(list(contenders), len(contenders)):
            gc.collect()
            seconds = contenders[name].epoch()
            if number:
                times[name].append(1e6 * seconds / digits.steps)
    for name, each in contenders.items():
        after, steps = each.loss(), each.updates()
        assert steps == (rounds + 1) * digits.steps, f"{name} made {steps} steps"
        assert after < before[name] / 4, f"{name} did not learn: its loss went from {before[name]:.3f} to {after:.3f}"
    return times


def ratio(times: dict[str, list[float]], name: str, other: str) -> float:
    """Returns the median over the rounds of the ratio of two contenders."""
    return statistics.median(one / two for one, two in zip(times[name], times[other], strict=True))


def main() -> int:
    """Runs the benchmark and prints the table; returns the exit code."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=15, help="rounds that are counted; default: %(default)s")
    options.add_argument("--threads", type=int, help="CPU threads of torch; default: set by torch")
    options.add_argument("--only", nargs="+", choices=tuple(ROWS), default=tuple(ROWS), metavar="ROW")
    options.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    arguments = options.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")  # other libraries warn of few workers and deprecations
    names = [name for name in ROWS if name == "bare" or name in arguments.only]
    with tempfile.TemporaryDirectory() as folder:
        digits = mnist(Path(folder))
        times = measure(build(names, digits), digits, arguments.rounds)
    print(f"{len(digits.y):,} digits, batches of {BATCH}, {digits.steps} steps per epoch, {arguments.rounds} rounds")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, Python {platform.python_version()}")
    print(f"{'':<40}{'us/step':>9}{'min to max':>20}{'ratio to bare loop':>20}")
    for name in names:
        if name in times:
            values = times[name]
            spread = f"({min(values):,.0f} to {max(values):,.0f})"
            print(
                f"{ROWS[name][0]:<40}{statistics.median(values):9,.0f}{spread:>20}{ratio(times, name, 'bare'):14.2f} x"
            )
        else:
            print(f"{ROWS[name][0]:<40}  {MISSING}")
    missed = []
    for name, other, most in TARGETS:
        if name in times and other in times:
            value = ratio(times, name, other)
            print(f"{ROWS[name][0]} / {ROWS[other][0]}: {value:.2f} (at most {most:.2f})")
            if value > most:
                missed.append(f"missed: '{ROWS[name][0]}' takes {value:.3f} x '{ROWS[other][0]}', the limit is {most}")
        elif other in names and other not in times:
            missed.append(f"missed: '{ROWS[other][0]}' is {MISSING}")
    for line in missed:
        print(line)
    return 1 if arguments.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
