"""What a training step costs beside the mathematics: Sightline, hand-written loops and other libraries, in one process.

    python benchmarks/overhead.py [--rounds 7] [--threads N] [--only sightline loader loop …] [--check]

The network is small on purpose, 784-100-100-100-10 with ReLU, Adam and batches of 64, so that what surrounds it shows.
All train on the same 10,000 handwritten digits on the CPU, from the same weights, 157 steps an epoch. An epoch is the
unit; each round runs one of every contender, in an order of its own, after a round that is not counted. What a library
does before its first epoch and after its last is not counted either. Printed are microseconds a step, the median with
the least and the most, and the median over rounds of the ratio to the bare loop of the same round.

The digits are read from `$SIGHTLINE_SHARED/data/mnist10k-png.tar.gz` (default ../shared); `pip install
'sightline[bench]'` has the other libraries. With --check, exits 1 when Sightline takes more than 1.10 times the bare
loop over ready batches, or with its loader more than 1.20 times the bare loop, 0.85 times the loop over a DataLoader or
0.45 times Lightning's Trainer."""

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
    """The digits packed, and as tensors that are ready: x float32 [N,1,28,28], y int64 [N]. `scratch` is for logs."""

    packed: PackedDataset
    x: Tensor
    y: Tensor
    scratch: Path

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return -(-len(self.y) // BATCH)

    def loader(self) -> DataLoader[tuple[Tensor, ...]]:
        """As tutorials write it."""
        return DataLoader(TensorDataset(self.x, self.y), batch_size=BATCH, shuffle=True)


@dataclass(frozen=True)
class Contender:
    """`epoch` trains one and gives its seconds; `loss` is the mean over all digits, `updates` the steps so far."""

    epoch: Callable[[], float]
    loss: Callable[[], float]
    updates: Callable[[], int]


class Unseen(io.StringIO):
    """A terminal that nobody looks at: bars are drawn as for a user, and thrown away."""

    def write(self, text: str, /) -> int:
        """Forgets it."""
        return len(text)

    def isatty(self) -> bool:
        """So that a bar is a bar."""
        return True


def network() -> nn.Sequential:
    """The same weights for all."""
    torch.manual_seed(0)
    widths = (SIDE * SIDE, WIDTH, WIDTH, WIDTH)
    hidden = [part for pair in itertools.pairwise(widths) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(WIDTH, CLASSES))


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """The same optimiser for all."""
    return torch.optim.Adam(model.parameters(), lr=RATE)


def timed(work: Callable[[], Any]) -> Callable[[], float]:
    """Its seconds."""

    def run() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return run


def contender(
    digits: Digits, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: Callable[[], float]
) -> Contender:
    """One that trains a torch module with a torch optimiser."""

    def loss() -> float:
        with torch.no_grad():
            return nn.functional.cross_entropy(model(digits.x), digits.y).item()

    def updates() -> int:
        return int(next(iter(optimizer.state.values()))["step"])

    return Contender(epoch, loss, updates)


def bare(digits: Digits) -> Contender:
    """The least there is to do, over batches that are ready; nothing is measured."""
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
    """As `sightline train`, without evaluation and checkpoints: loss, accuracy and macro averages over every sample,
    every loss checked, and a log point every 50 steps as JSON and for TensorBoard."""
    model, runtime = network(), Runtime("cpu")
    optimizer = adam(model)
    place = digits.scratch / name
    place.mkdir()
    recorder = RecorderList(JsonlRecorder(), TensorBoardRecorder(("train",)))
    recorder.start(place, {}, None)
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
    """The engine alone."""
    batches = [Batch(x, y) for x, y in zip(digits.x.split(BATCH), digits.y.split(BATCH), strict=True)]
    return sightline(digits, batches, "ready")


def sightline_loader(digits: Digits, workers: int | None = None, bar: bool = False) -> Contender:
    """The engine with its own loader, out of packed bytes; `bar` draws what a user sees on a terminal."""
    from rich.console import Console

    train = BatchLoader(digits.packed, PREPROCESS, BATCH, shuffle=True, workers=workers)
    callbacks = (Progress(Console(file=Unseen(), force_terminal=True)),) if bar else ()
    return sightline(digits, train, f"loader-{workers}-{bar}", callbacks)


def loop(digits: Digits) -> Contender:
    """What tutorials teach: the loss is read back in every step."""
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
    """Lightning's Trainer as users run it: a bar, a CSV log, the loss of each step, the accuracy of each epoch; `plain`
    leaves all of that out."""
    import lightning as pl
    from lightning.pytorch.loggers import CSVLogger
    from torchmetrics import Accuracy

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(pl.LightningModule):
        """The network and what a step is."""

        def __init__(self) -> None:
            super().__init__()
            self.model, self.loss = network(), nn.CrossEntropyLoss()
            self.accuracy = Accuracy(task="multiclass", num_classes=CLASSES)
            self.adam = adam(self.model)

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            """Loss, and what is logged."""
            x, y = batch
            output = self.model(x)
            loss: Tensor = self.loss(output, y)
            if not plain:
                self.accuracy.update(output, y)
                self.log("train_loss", loss, on_step=True, prog_bar=True)
                self.log("train_accuracy", self.accuracy, on_step=False, on_epoch=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            """The one that is there already: `fit` is called for each round."""
            return self.adam

    class Clock(pl.Callback):
        """The seconds of an epoch, without what `fit` does before and after it."""

        def on_train_epoch_start(self, *_: Any) -> None:
            """Comes before the bar's."""
            self.start = time.perf_counter()

        def on_train_epoch_end(self, *_: Any) -> None:
            """Comes before the bar's too."""
            self.seconds = time.perf_counter() - self.start

    clock, module, loader = Clock(), Module(), digits.loader()
    with contextlib.redirect_stdout(Unseen()), contextlib.redirect_stderr(Unseen()):
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
        with contextlib.redirect_stdout(Unseen()), contextlib.redirect_stderr(Unseen()):
            trainer.fit(module, loader)
        return clock.seconds

    return contender(digits, module.model, module.adam, epoch)


def fabric(digits: Digits) -> Contender:
    """Lightning Fabric: one's own loop, its set-up."""
    from lightning import Fabric

    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    made = Fabric(accelerator="cpu", devices=1)
    inner, loss_of = network(), nn.CrossEntropyLoss()
    own = adam(inner)
    model, optimizer = made.setup(inner, own)
    loader = made.setup_dataloaders(digits.loader())

    def epoch() -> None:
        for x, y in loader:
            optimizer.zero_grad()
            made.backward(loss_of(model(x), y))
            optimizer.step()

    return contender(digits, inner, own, timed(epoch))


def keras(digits: Digits) -> Contender:
    """Keras on torch, with accuracy and its bar, out of NumPy arrays."""
    os.environ.update(KERAS_BACKEND="torch", KERAS_TORCH_DEVICE="cpu")  # read when it is first imported
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
        """The seconds of an epoch, without what `fit` does before and after it."""

        def on_epoch_begin(self, *_: Any) -> None:
            """Notes the time."""
            self.start = time.perf_counter()

        def on_epoch_end(self, *_: Any) -> None:
            """Notes the seconds."""
            self.seconds = time.perf_counter() - self.start

    clock = Clock()

    def epoch() -> float:
        with contextlib.redirect_stdout(Unseen()):
            model.fit(x, y, batch_size=BATCH, epochs=1, verbose=1, callbacks=[clock])
        return clock.seconds

    def loss() -> float:
        with torch.no_grad():
            return nn.functional.cross_entropy(model(digits.x), digits.y).item()

    return Contender(epoch, loss, lambda: int(optimizer.iterations))


def skorch(digits: Digits) -> Contender:
    """skorch's classifier with its default callbacks, out of NumPy arrays."""
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
    """PyTorch-Ignite's supervised trainer, whose output is the loss."""
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
    "loader-bar": ("Sightline, BatchLoader, with its bar", lambda digits: sightline_loader(digits, bar=True)),
    "loop": ("loop over a DataLoader, loss.item()", loop),
    "lightning": ("Lightning Trainer, bar, log, accuracy", lightning),
    "lightning-plain": ("Lightning Trainer, none of these", lambda digits: lightning(digits, plain=True)),
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
    """The digits, unpacked and packed."""
    source = open_source("csv", unpacked(MNIST, scratch) / "mnist10k", val=0, test=0)
    packed = pack_splits(source, PREPROCESS, packing=PackOptions("pixels"))[0]["train"]
    return Digits(packed, PREPROCESS.normalizer()(packed.pixels(np.arange(len(packed)))), packed.labels, scratch)


def build(names: Iterable[str], digits: Digits) -> dict[str, Contender]:
    """Those whose library is installed."""
    found = {}
    for name in names:
        try:
            found[name] = ROWS[name][1](digits)
        except ModuleNotFoundError as error:
            if error.name not in LIBRARIES:
                raise
    return found


def measure(contenders: dict[str, Contender], digits: Digits, rounds: int) -> dict[str, list[float]]:
    """Microseconds a step in every counted round. Each contender must have made every step, and learnt."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    before = {name: each.loss() for name, each in contenders.items()}
    for number in range(rounds + 1):
        for name in random.Random(number).sample(list(contenders), len(contenders)):
            gc.collect()
            seconds = contenders[name].epoch()
            if number:
                found[name].append(1e6 * seconds / digits.steps)
    for name, each in contenders.items():
        after, made = each.loss(), each.updates()
        assert made == (rounds + 1) * digits.steps, f"{name} made {made} steps"
        assert after < before[name] / 4, f"{name} did not learn: its loss went from {before[name]:.3f} to {after:.3f}"
    return found


def ratio(found: dict[str, list[float]], name: str, other: str) -> float:
    """The median over the rounds."""
    return statistics.median(one / two for one, two in zip(found[name], found[other], strict=True))


def main() -> int:
    """Measures, prints, and with --check judges."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--threads", type=int, help="CPU threads of torch; default: torch's own choice")
    options.add_argument("--only", nargs="+", choices=tuple(ROWS), default=tuple(ROWS), metavar="ROW")
    options.add_argument("--check", action="store_true")
    given = options.parse_args()
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")  # other libraries' advice on workers and on what they deprecate
    names = [name for name in ROWS if name == "bare" or name in given.only]
    with tempfile.TemporaryDirectory() as folder:
        digits = mnist(Path(folder))
        found = measure(build(names, digits), digits, given.rounds)
    print(f"{len(digits.y):,} digits, batches of {BATCH}, {digits.steps} steps an epoch, {given.rounds} rounds")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, Python {platform.python_version()}")
    print(f"{'':<40}{'us/step':>9}{'least to most':>20}{'of the bare loop':>20}")
    for name in names:
        if name in found:
            times = found[name]
            spread = f"({min(times):,.0f} to {max(times):,.0f})"
            print(
                f"{ROWS[name][0]:<40}{statistics.median(times):9,.0f}{spread:>20}{ratio(found, name, 'bare'):14.2f} x"
            )
        else:
            print(f"{ROWS[name][0]:<40}  {MISSING}")
    missed = []
    for name, other, most in TARGETS:
        if name in found and other in found:
            value = ratio(found, name, other)
            print(f"{ROWS[name][0]} / {ROWS[other][0]}: {value:.2f} (at most {most:.2f})")
            if value > most:
                missed.append(f"missed: {ROWS[name][0]} takes {value:.3f} x '{ROWS[other][0]}', more than {most}")
        elif other in names and other not in found:
            missed.append(f"missed: {ROWS[other][0]} is {MISSING}")
    for line in missed:
        print(line)
    return 1 if given.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
