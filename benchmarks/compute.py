"""Measures the speed and precision settings on a convolutional network against a plain PyTorch loop.

    python benchmarks/compute.py [--rounds 7] [--seeds 5] [--only speed accuracy deterministic features] [--check]

It prints four tables, all for a four-block network of 406,218 parameters on 28 x 28 digits, with batches of 512 and
Adam, on the CPU, in one process:

- `speed`: milliseconds per step of a hand-written loop (eager, float32, channels first, batches prepared in advance)
  and of Sightline, loader included, with the defaults, with runtime=auto, with bf16, and with both.
- `accuracy`: the test accuracy after 6 epochs over several seeds, of the loop and of Sightline with both settings.
- `deterministic`: the cost of trainer.deterministic=true.
- `features`: the cost of a step with one training feature at a time.

Times are medians over interleaved rounds, ratios medians of the ratios within a round. The digits are read from
`$SIGHTLINE_SHARED/data/mnist10k-png.tar.gz` (default ../shared). With --check, exits 1 if runtime=auto is less than 1.3
times as fast as the loop, runtime=auto with bf16 less than 2 times, or the mean accuracies differ by more than 0.005.
On a processor without bf16 instructions, `speed` does not measure bf16."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from archives import MNIST, unpacked
from sightline.compose.assemble import as_config
from sightline.compose.parts import Parts, build_parts
from sightline.config.typed import merge
from sightline.core.types import Batch
from sightline.engine.trainer import Trainer

TARGET_AUTO, TARGET_BOTH, TARGET_ACCURACY = 1.3, 2.0, 0.005
BATCH, EPOCHS, IMAGES = 512, 6, 8000
AUTO = {"trainer": {"channels_last": "auto", "threads": "auto", "compile": "auto"}}
BF16 = {"trainer": {"precision": "bf16"}}


def block(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> list[dict[str, Any]]:
    """Returns the layer nodes of one block: convolution, batch normalisation, ELU, pooling."""
    return [
        {"_target_": "torch.nn.Conv2d", "in_channels": in_channels, "out_channels": out_channels,
         "kernel_size": kernel, "stride": stride},
        {"_target_": "torch.nn.BatchNorm2d", "num_features": out_channels},
        {"_target_": "torch.nn.ELU"},
        {"_target_": "torch.nn.MaxPool2d", "kernel_size": 2, "stride": 1},
    ]  # fmt: skip


LAYERS = [
    *block(1, 32, 5, 2), *block(32, 64, 4), *block(64, 128, 3), *block(128, 256, 3),
    {"_target_": "torch.nn.Flatten"},
    {"_target_": "torch.nn.Linear", "in_features": 256, "out_features": 10},
]  # fmt: skip


def config(digits: Path, seed: int = 0, *changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config: 8,000 digits to train on, 2,000 to test on, no augmentation, a constant learning rate."""
    values: dict[str, Any] = {
        "seed": seed,
        "data": {
            "source": "csv", "root": str(digits), "test": 2000, "val": 0, "batch_size": BATCH,
            "augment": {"shift": 0}, "cache_dir": str(digits.parent / "cache"),
        },
        "module": {
            "network": {"layers": LAYERS},
            "optimizer": {"_target_": "torch.optim.Adam", "lr": 1e-3},
            "lr_scheduler": None,
            "monitor": "train_loss",
        },
        "trainer": {"device": "cpu", "max_epochs": EPOCHS, "progress": False},
    }  # fmt: skip
    for change in changes:
        values = merge(values, change)
    return values


def parts_of(digits: Path, seed: int, *changes: Mapping[str, Any]) -> Parts:
    """Builds network, optimiser, loaders and task as for a run, but without a run directory."""
    return build_parts(as_config(config(digits, seed, *changes)), {})


def epoch_of(parts: Parts) -> Callable[[], None]:
    """Returns a function that trains the next epoch with the engine's loop, as a run does."""
    trainer = Trainer(parts.task, parts.state, parts.train, max_epochs=0, runtime=parts.runtime)

    def epoch() -> None:
        trainer.max_epochs += 1
        with parts.runtime.active():
            trainer.fit()

    return epoch


def plain_loop(parts: Parts) -> Callable[[], None]:
    """Returns a function that trains one epoch with a hand-written loop over prepared batches."""
    model, optimizer = parts.state.model, parts.state.optimizer
    loss = nn.CrossEntropyLoss()
    assert optimizer is not None
    batches = [(batch.x, batch.y) for batch in parts.train]

    def epoch() -> None:
        for x, y in batches:
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()

    return epoch


def seconds(work: Callable[[], None]) -> float:
    """Returns the duration of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def table(works: Mapping[str, Callable[[], None]], steps: int, rounds: int) -> dict[str, float]:
    """Times the functions in interleaved rounds and prints a row for each; returns speeds relative to the first."""
    durations: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            duration = seconds(work)
            if number:  # the first round is a warm-up
                durations[name].append(duration)
    first = next(iter(durations.values()))
    ratios = {
        name: statistics.median(base / time for base, time in zip(first, times, strict=True))
        for name, times in durations.items()
    }
    width = max(map(len, works))
    print(f"  {'':<{width}}  ms a step  images/s  times as fast")
    for name, times in durations.items():
        median = statistics.median(times)
        rate = IMAGES / median  # not from the batch size, as the last batch is smaller
        print(f"  {name:<{width}}  {median / steps * 1000:9.1f}  {rate:8,.0f}  {ratios[name]:13.2f}", flush=True)
    return ratios


def has_bf16() -> bool:
    """Returns whether the processor has bf16 instructions."""
    return any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def speed(digits: Path, rounds: int) -> list[str]:
    """Prints the `speed` table; returns the missed targets."""
    print("speed: one step of 512 digits, forward, backward and update")
    loop = parts_of(digits, 0)
    auto = parts_of(digits, 0, AUTO)
    print(f"  runtime=auto chose {auto.resolved.chosen}")
    works = {
        "plain loop, eager float32": plain_loop(loop),
        "Sightline": epoch_of(parts_of(digits, 0)),
        "Sightline, runtime=auto": epoch_of(auto),
    }
    if has_bf16():
        both = parts_of(digits, 0, AUTO, BF16)
        print(f"  with bf16 it chose {both.resolved.chosen}")
        works["Sightline, bf16"] = epoch_of(parts_of(digits, 0, BF16))
        works["Sightline, runtime=auto and bf16"] = epoch_of(both)
    else:
        print("  bf16 is not measured: this processor has no bf16 instructions")
    ratios = table(works, len(loop.train), rounds)
    missed = []
    for name, target in (("Sightline, runtime=auto", TARGET_AUTO), ("Sightline, runtime=auto and bf16", TARGET_BOTH)):
        if name in ratios and ratios[name] < target:
            missed.append(f"{name}: {ratios[name]:.2f} times as fast, the target is {target}")
    return missed


def accuracy_on(parts: Parts, low: bool) -> float:
    """Returns the accuracy on the test split, under bf16 autocast if `low`."""
    right = 0
    parts.state.model.eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=low):
        for start in range(0, len(parts.data.splits["test"]), BATCH):
            batch = test_batch(parts, start)
            right += int((parts.state.model(batch.x).argmax(1) == batch.y).sum())
    parts.state.model.train()
    return right / len(parts.data.splits["test"])


def test_batch(parts: Parts, start: int) -> Batch:
    """Returns a batch of the test split from row `start`, normalised as in training."""
    rows = range(start, min(start + BATCH, len(parts.data.splits["test"])))
    labels: Tensor = parts.data.splits["test"].labels[rows.start : rows.stop]
    return Batch(parts.data.preprocess.normalizer()(parts.data.splits["test"].pixels(rows)), labels)


def accuracy(digits: Path, seeds: int) -> list[str]:
    """Prints the `accuracy` table; returns the missed targets."""
    print(f"accuracy: 2,000 test digits after {EPOCHS} epochs, seeds 0 to {seeds - 1}")
    results: dict[str, list[float]] = {"plain loop, eager float32": [], "Sightline, runtime=auto and bf16": []}
    for seed in range(seeds):
        loop, both = parts_of(digits, seed), parts_of(digits, seed, AUTO, BF16)
        work, ours = plain_loop(loop), epoch_of(both)
        for _ in range(EPOCHS):
            work()
            ours()
        for values, parts, low in zip(results.values(), (loop, both), (False, True), strict=True):
            values.append(accuracy_on(parts, low))
    for name, values in results.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"  {name:<34}  {statistics.mean(values):.4f} +- {spread:.4f}  ({', '.join(f'{v:.4f}' for v in values)})")
    plain, low = (statistics.mean(values) for values in results.values())
    if abs(plain - low) > TARGET_ACCURACY:
        return [f"the mean accuracies differ by {abs(plain - low):.4f}, the target is {TARGET_ACCURACY}"]
    return []


def deterministic(digits: Path, rounds: int) -> list[str]:
    """Prints the `deterministic` table; it has no targets."""
    print("deterministic: trainer.deterministic=true against false, all else at the defaults")
    off = {"trainer": {"deterministic": False}}
    works = {
        "false": epoch_of(parts_of(digits, 0, off)),
        "true": epoch_of(parts_of(digits, 0)),
        "false, bf16 and channels last": epoch_of(parts_of(digits, 0, off, BF16, {"trainer": {"channels_last": True}})),
        "true, bf16 and channels last": epoch_of(parts_of(digits, 0, BF16, {"trainer": {"channels_last": True}})),
    }
    table(works, -(-IMAGES // BATCH), rounds)
    return []


def features(digits: Path, rounds: int) -> list[str]:
    """Prints the `features` table; it has no targets."""
    print("features: each one alone, in float32 and channels first")
    quarter = {"data": {"batch_size": BATCH // 4}, "trainer": {"accumulate_grad_batches": 4}}
    changes: dict[str, Mapping[str, Any]] = {
        "none": {},
        "module.ema=0.999": {"module": {"ema": 0.999}},
        "module.mixup=0.2": {"module": {"mixup": 0.2}},
        "module.cutmix=1": {"module": {"cutmix": 1.0}},
        "trainer.gradient_clip_val=1": {"trainer": {"gradient_clip_val": 1.0}},
        "trainer.accumulate_grad_batches=4": quarter,
        "module.class_weights=auto": {"module": {"class_weights": "auto"}},
        "module.loss=FocalLoss": {"module": {"loss": {"_target_": "sightline.models.losses.FocalLoss"}}},
        "data.sampler=balanced": {"data": {"sampler": "balanced"}},
        "module.top_k=[5]": {"module": {"top_k": [5]}},
    }
    works = {name: epoch_of(parts_of(digits, 0, change)) for name, change in changes.items()}
    table(works, -(-IMAGES // BATCH), rounds)
    return []


def main() -> int:
    """Prints the tables; returns the exit code."""
    options = argparse.ArgumentParser(description="Measures the speed and precision settings.")
    options.add_argument("--rounds", type=int, default=7, help="rounds that are measured; default: %(default)s")
    options.add_argument("--seeds", type=int, default=5, help="seeds of the accuracy table; default: %(default)s")
    options.add_argument("--only", nargs="+", choices=["speed", "accuracy", "deterministic", "features"])
    options.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    arguments = options.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    wanted = arguments.only or ["speed", "accuracy", "deterministic", "features"]
    missed: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        digits = unpacked(MNIST, Path(scratch)) / "mnist10k"
        if "speed" in wanted:
            missed += speed(digits, arguments.rounds)
        if "accuracy" in wanted:
            missed += accuracy(digits, arguments.seeds)
        if "deterministic" in wanted:
            missed += deterministic(digits, arguments.rounds)
        if "features" in wanted:
            missed += features(digits, arguments.rounds)
    for line in missed:
        print(f"missed: {line}")
    return 1 if arguments.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
