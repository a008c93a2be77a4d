"""Measures accuracy and training time of the recipes against a plain PyTorch loop with the same network.

    python benchmarks/time_to_accuracy.py [--only digits mnist cifar10] [--seeds 0 1 …] [--plain-steps 30 | --plain]
                                          [--device cpu] [--set key=value …] [--check]

Each recipe is `sightline train experiment=NAME`. The time includes everything from reading the files to the exported
model and its evaluation on the test split. The validation accuracy is printed after each epoch, with the elapsed time.
For CIFAR-10, a plain loop (eager, float32, channels first, the same network, optimiser, loss and batches) is timed over
some steps, and its training time is extrapolated from them; --plain trains it to the end and evaluates it.

CIFAR-10 and the handwritten digits are read from `$SIGHTLINE_SHARED/data` (default ../shared). With --check, exits 1 if
a test accuracy is below 0.96 (digits), 0.985 (MNIST) or 0.90 (CIFAR-10), or if CIFAR-10 takes more than 30 minutes. On
another device than the CPU, the time to 0.94 on CIFAR-10 is printed too. This is the mark of the CIFAR-10 speed
records, which may be out of reach with the re-compressed images."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from archives import CIFAR10, MNIST, unpacked
from sightline.commands.hydra_config import compose_config
from sightline.compose.assemble import assemble
from sightline.compose.parts import Parts, build_parts
from sightline.config.schema import TrainConfig
from sightline.engine.trainer import Callback, Trainer

ARCHIVES = {"mnist": (MNIST, "mnist10k"), "cifar10": (CIFAR10, ".")}
MIN_ACCURACY = {"digits": 0.96, "mnist": 0.985, "cifar10": 0.90}
MAX_MINUTES = {"cifar10": 30.0}
RECORD = 0.94


@dataclass
class Result:
    """The result of one run: test accuracy, total seconds, and (seconds, validation accuracy) after each epoch."""

    accuracy: float
    seconds: float
    curve: list[tuple[float, float]]


class Clock(Callback):
    """Prints the validation accuracy and the elapsed time after each epoch."""

    def __init__(self, start: float):
        self.start = start
        self.curve: list[tuple[float, float]] = []

    def on_eval_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        """Records and prints the evaluation of an epoch."""
        self.curve.append((time.perf_counter() - self.start, record["val_accuracy"]))
        seconds, accuracy = self.curve[-1]
        print(f"    epoch {trainer.state.epoch + 1:>2}  {seconds:7.1f} s  val_accuracy {accuracy:.4f}", flush=True)


def data_root(recipe: str, scratch: Path) -> Path | None:
    """Extracts a recipe's images; returns their directory, or None if they are part of the package."""
    if recipe not in ARCHIVES:
        return None
    archive, inner = ARCHIVES[recipe]
    return unpacked(archive, scratch / recipe) / inner


def config_of(recipe: str, root: Path | None, seed: int, scratch: Path, more: Sequence[str]) -> TrainConfig:
    """Returns the config that the command line composes for a recipe."""
    overrides = [f"experiment={recipe}", f"seed={seed}", f"run.dir={scratch / 'runs'}", f"run.name={recipe}-{seed}"]
    overrides += [f"data.cache_dir={scratch / 'cache'}-{recipe}-{seed}", "trainer.progress=false", *more]
    return compose_config([*overrides, *([f"data.root={root}"] if root else [])])


def train(config: TrainConfig, quiet: bool) -> Result:
    """Runs a recipe, from reading the files to the evaluation of the exported model."""
    start = time.perf_counter()
    clock = Clock(start)
    result = assemble(config, callbacks=[] if quiet else [clock]).fit()
    return Result(result.metrics["test"]["accuracy"], time.perf_counter() - start, clock.curve)


def plain(config: TrainConfig, steps: int | None) -> tuple[float, float | None]:
    """Trains the plain loop for `steps` batches; returns (images per second, None).

    With `steps=None` it trains to the end and returns the test accuracy too. The loop uses only the recipe's network,
    loss, optimiser, schedule and batches."""
    values = config.to_dict()
    values["trainer"] |= {"precision": "fp32", "channels_last": False, "compile": False}
    values["module"]["ema"] = None
    parts = build_parts(TrainConfig.from_dict(values), {})
    model, optimizer, train_loader = parts.state.model, parts.state.optimizer, parts.train
    assert optimizer is not None
    loss, images, seconds, done = parts.loss, 0, 0.0, 0
    model.train()
    for epoch in range(config.trainer.max_epochs):
        train_loader.seek(epoch)
        for batch in train_loader:
            start = time.perf_counter()
            optimizer.zero_grad()
            value = loss(model(batch.x), batch.y)
            value.backward()
            optimizer.step()
            value.item()
            for schedule in parts.state.schedules:
                schedule.scheduler.step()
            done += 1
            if done > 3:  # the first steps are a warm-up
                seconds += time.perf_counter() - start
                images += len(batch.y)
            if steps is not None and done == steps + 3:
                return images / seconds, None
    return images / seconds, _test_accuracy(parts.state.model, parts)


def _test_accuracy(model: nn.Module, parts: Parts) -> float:
    data, preprocess = parts.data.splits["test"], parts.data.preprocess
    model.eval()
    right = 0
    with torch.inference_mode():
        for start in range(0, len(data), 500):
            stop = min(start + 500, len(data))
            x = preprocess.normalizer()(data.pixels(range(start, stop)))
            right += int((model(x).argmax(1) == data.labels[start:stop]).sum())
    return right / len(data)


def main() -> int:
    """Prints the results of each recipe; returns the exit code."""
    options = argparse.ArgumentParser(description="Measures accuracy and training time of the recipes.")
    options.add_argument("--only", nargs="+", choices=list(MIN_ACCURACY), default=list(MIN_ACCURACY))
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument(
        "--plain-steps", type=int, default=30, help="steps of the plain loop, 0 for none; default: %(default)s"
    )
    options.add_argument("--plain", action="store_true", help="train the plain loop to the end")
    options.add_argument("--device", default="cpu")
    options.add_argument("--set", nargs="+", default=[], metavar="key=value", help="overrides of the recipes' configs")
    options.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    arguments = options.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    missed: list[str] = []
    for recipe in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            missed += _recipe(recipe, Path(folder), arguments)
    for line in missed:
        print(f"missed: {line}")
    return 1 if arguments.check and missed else 0


def _recipe(recipe: str, scratch: Path, options: argparse.Namespace) -> list[str]:
    root = data_root(recipe, scratch)
    more = [f"trainer.device={options.device}", *options.set]
    missed, results = [], []
    print(f"experiment={recipe}", flush=True)
    for seed in options.seeds:
        config = config_of(recipe, root, seed, scratch, more)
        result = train(config, quiet=recipe == "digits")
        results.append(result)
        print(f"  seed {seed}: test accuracy {result.accuracy:.4f} in {_minutes(result.seconds)}", flush=True)
        if options.device != "cpu" and recipe == "cifar10":
            reached = next((seconds for seconds, accuracy in result.curve if accuracy >= RECORD), None)
            print(f"    {RECORD} on the validation split: {'not reached' if reached is None else f'{reached:.1f} s'}")
        if result.accuracy < MIN_ACCURACY[recipe]:
            missed.append(
                f"{recipe}, seed {seed}: accuracy {result.accuracy:.4f}, the target is {MIN_ACCURACY[recipe]}"
            )
        if result.seconds > 60 * MAX_MINUTES.get(recipe, float("inf")):
            missed.append(
                f"{recipe}, seed {seed}: {_minutes(result.seconds)}, the limit is {MAX_MINUTES[recipe]:.0f} min"
            )
    accuracies, times = [result.accuracy for result in results], [result.seconds for result in results]
    spread = f" +- {statistics.stdev(accuracies):.4f}" if len(results) > 1 else ""
    print(f"  Sightline: {statistics.mean(accuracies):.4f}{spread} in {_minutes(statistics.mean(times))}")
    if recipe == "cifar10" and (options.plain or options.plain_steps) and options.device == "cpu":
        config = config_of(recipe, root, options.seeds[0], scratch, more)
        rate, accuracy = plain(config, None if options.plain else options.plain_steps)
        images = (50_000 - int(config.data.val)) * config.trainer.max_epochs
        detail = f"test accuracy {accuracy:.4f}"
        if accuracy is None:
            detail = f"extrapolated from {options.plain_steps} steps"
        print(
            f"  plain loop, eager float32: {_minutes(images / rate)} of training ({rate:,.0f} images/s, {detail}); "
            f"{images / rate / statistics.mean(times):.2f} times Sightline's total time"
        )
    return missed


def _minutes(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


if __name__ == "__main__":
    sys.exit(main())
