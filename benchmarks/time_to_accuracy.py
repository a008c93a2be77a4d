"""The recipes as they ship: how accurate they get, and in what time, beside a plain loop of the same network.

    python benchmarks/time_to_accuracy.py [--only digits mnist cifar10] [--seeds 0 1 …] [--plain-steps 30 | --plain]
                                          [--device cpu] [--set key=value …] [--check]

Each recipe is `sightline train experiment=NAME`: everything is counted, from reading the files to the exported model
and its measurement on the test split. For CIFAR-10 a plain loop of the same network (eager, float32, channels first,
the same optimiser, loss and batches) is timed over some steps, and its time for as many epochs worked out from that;
--plain trains it to the end instead and measures it, too. The validation accuracy is printed with the clock.

CIFAR-10 and the handwritten digits are read from `$SIGHTLINE_SHARED/data` (default ../shared). With --check, exits 1
when CIFAR-10 ends below 0.90 or takes more than 30 minutes, or the digits of MNIST end below 0.985. With --device cuda,
the time to 0.94 is printed as well, the mark of the CIFAR-10 speed records, which the re-compressed pictures may not
allow."""

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
LEAST = {"digits": 0.96, "mnist": 0.985, "cifar10": 0.90}
MOST_MINUTES = {"cifar10": 30.0}
RECORD = 0.94


@dataclass
class Result:
    """Of one run: test accuracy, seconds in all, and (seconds, validation accuracy) after each epoch."""

    accuracy: float
    seconds: float
    curve: list[tuple[float, float]]


class Clock(Callback):
    """Prints the validation accuracy and how long it took so far."""

    def __init__(self, began: float):
        self.began = began
        self.curve: list[tuple[float, float]] = []

    def on_eval_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        """Once an epoch."""
        self.curve.append((time.perf_counter() - self.began, record["val_accuracy"]))
        seconds, accuracy = self.curve[-1]
        print(f"    epoch {trainer.state.epoch + 1:>2}  {seconds:7.1f} s  val_accuracy {accuracy:.4f}", flush=True)


def data_root(recipe: str, scratch: Path) -> Path | None:
    """Where the recipe's pictures are, unpacked; None where they come with Sightline."""
    if recipe not in ARCHIVES:
        return None
    archive, inner = ARCHIVES[recipe]
    return unpacked(archive, scratch / recipe) / inner


def config_of(recipe: str, root: Path | None, seed: int, scratch: Path, more: Sequence[str]) -> TrainConfig:
    """What the command line would make of it."""
    words = [f"experiment={recipe}", f"seed={seed}", f"run.dir={scratch / 'runs'}", f"run.name={recipe}-{seed}"]
    words += [f"data.cache_dir={scratch / 'cache'}-{recipe}-{seed}", "trainer.progress=false", *more]
    return compose_config([*words, *([f"data.root={root}"] if root else [])])


def train(config: TrainConfig, quiet: bool) -> Result:
    """One run, from the files to the measured model."""
    began = time.perf_counter()
    clock = Clock(began)
    result = assemble(config, callbacks=[] if quiet else [clock]).fit()
    return Result(result.metrics["test"]["accuracy"], time.perf_counter() - began, clock.curve)


def plain(config: TrainConfig, steps: int | None) -> tuple[float, float | None]:
    """(images a second, test accuracy) of the plain loop over `steps` batches, or to its end. It has the network, the
    optimiser, the schedule and the batches of the recipe; of the rest, nothing."""
    values = config.to_dict()
    values["trainer"] |= {"precision": "fp32", "channels_last": False, "compile": False}
    values["module"]["ema"] = None
    parts = build_parts(TrainConfig.from_dict(values), {})
    model, optimizer, train_loader = parts.state.model, parts.state.optimizer, parts.train
    assert optimizer is not None
    loss, seen, spent, done = parts.loss, 0, 0.0, 0
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
            if done > 3:  # the first ones are a warm-up
                spent += time.perf_counter() - start
                seen += len(batch.y)
            if steps is not None and done == steps + 3:
                return seen / spent, None
    return seen / spent, _test_accuracy(parts.state.model, parts)


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
    """Prints a table for each recipe; 1 when --check finds a target missed."""
    options = argparse.ArgumentParser(description="How accurate the recipes get, and in what time.")
    options.add_argument("--only", nargs="+", choices=list(LEAST), default=list(LEAST))
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--plain-steps", type=int, default=30, help="steps of the plain loop; 0 for none")
    options.add_argument("--plain", action="store_true", help="train the plain loop to its end")
    options.add_argument("--device", default="cpu")
    options.add_argument("--set", nargs="+", default=[], metavar="key=value", help="changes of the recipes' configs")
    options.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    found = options.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    missed: list[str] = []
    for recipe in found.only:
        with tempfile.TemporaryDirectory() as place:
            missed += _recipe(recipe, Path(place), found)
    for line in missed:
        print(f"missed: {line}")
    return 1 if found.check and missed else 0


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
        if result.accuracy < LEAST[recipe]:
            missed.append(f"{recipe}, seed {seed}: accuracy {result.accuracy:.4f}, the target is {LEAST[recipe]}")
        if result.seconds > 60 * MOST_MINUTES.get(recipe, float("inf")):
            missed.append(
                f"{recipe}, seed {seed}: {_minutes(result.seconds)}, the most is {MOST_MINUTES[recipe]:.0f} min"
            )
    accuracies, times = [result.accuracy for result in results], [result.seconds for result in results]
    spread = f" +- {statistics.stdev(accuracies):.4f}" if len(results) > 1 else ""
    print(f"  Sightline: {statistics.mean(accuracies):.4f}{spread} in {_minutes(statistics.mean(times))}")
    if recipe == "cifar10" and (options.plain or options.plain_steps) and options.device == "cpu":
        config = config_of(recipe, root, options.seeds[0], scratch, more)
        rate, accuracy = plain(config, None if options.plain else options.plain_steps)
        images = (50_000 - int(config.data.val)) * config.trainer.max_epochs
        told = f"worked out from {options.plain_steps} steps" if accuracy is None else f"test accuracy {accuracy:.4f}"
        print(
            f"  plain loop, eager float32: {_minutes(images / rate)} of training ({rate:,.0f} images/s, {told}); "
            f"{images / rate / statistics.mean(times):.2f} times Sightline's time for everything"
        )
    return missed


def _minutes(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


if __name__ == "__main__":
    sys.exit(main())
