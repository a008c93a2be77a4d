"""Measures the latency of resuming far into an epoch, and the cost of writing checkpoints.

    python benchmarks/resume.py [--only latency cost] [--rounds 5] [--check]

- `latency`: a run of 100,200 steps in one epoch is interrupted after 10 steps, and another after 100,000. Measured is
  the time from the call of `sightline.resume` to the end of the next step, in one process. It includes reading the
  config, the cached data, the checkpoint and the log, building all parts, and seeking to the batch.
- `cost`: rounds of steps of the CIFAR-10 preset with one checkpoint and without. Measured is how long the training
  thread waits for a copy of the state, and the total cost of a checkpoint as a share of 30 s, if there is a checkpoint
  every 30 s. The images are read from `$SIGHTLINE_SHARED/data` (default ../shared).

Times are medians over interleaved rounds. With --check, exits 1 if the two latencies differ by 0.2 s or more, or if
checkpoints take 1 % or more of the time."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sightline.compose.assemble import assemble, resume
from sightline.compose.parts import build_parts
from sightline.core.types import StepOutput
from sightline.engine.checkpoint.writer import Checkpointer
from sightline.engine.trainer import Callback, Trainer
from time_to_accuracy import config_of, data_root

NEAR, FAR, MORE = 10, 100_000, 200
TARGET_SECONDS, TARGET_SHARE, EVERY = 0.2, 0.01, 30.0
STEPS = 12


class StopAt(Callback):
    """Interrupts the run after a step, and records the time."""

    def __init__(self, step: int):
        self.step = step
        self.seconds = 0.0

    def on_step_end(self, trainer: Trainer, output: StepOutput) -> None:
        """Interrupts the run if this was the step."""
        if trainer.state.step == self.step:
            self.seconds = time.perf_counter()
            trainer.interrupt()


def latency(rounds: int) -> list[str]:
    """Prints both latencies; returns the missed targets."""
    print(f"latency: from sightline.resume to the end of the next step, medians of {rounds}")
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        archive = directory / "images.npz"
        labels = np.arange(FAR + MORE) % 2
        np.savez(archive, x=np.repeat((labels * 255).astype(np.uint8), 16).reshape(-1, 4, 4), y=labels)
        config: dict[str, Any] = {
            "data": {
                "root": str(archive), "batch_size": 1, "val": 0, "test": 0, "augment": {"shift": 0},
                "cache_dir": str(directory / "cache"),
            },
            "module": {
                "network": {"layers": [
                    {"_target_": "torch.nn.Flatten"},
                    {"_target_": "torch.nn.Linear", "in_features": "auto", "out_features": "auto"},
                ]},
                "optimizer": {"_target_": "torch.optim.SGD", "lr": 1e-3},
                "lr_scheduler": None, "monitor": "train_loss",
            },
            "trainer": {"max_epochs": 1, "progress": False, "device": "cpu", "threads": 1},
            "run": {"dir": str(directory)},
        }  # fmt: skip
        seconds: dict[int, list[float]] = {}
        for step in (NEAR, FAR):
            run = {**config, "run": {"dir": str(directory), "name": f"at-{step}"}}
            assemble(run, callbacks=[StopAt(step)]).fit()
        for number in range(rounds + 1):
            for step in (NEAR, FAR):
                # each resumed run trains one step, so the next one resumes a step later
                end = StopAt(step + number + 1)
                start = time.perf_counter()
                resume(directory / f"at-{step}", callbacks=[end]).fit()
                if number:  # the first round is a warm-up
                    seconds.setdefault(step, []).append(end.seconds - start)
    near, far = (statistics.median(seconds[step]) for step in (NEAR, FAR))
    print(f"  at batch {NEAR:>7,}  {near:6.3f} s")
    print(f"  at batch {FAR:>7,}  {far:6.3f} s  ({far - near:+.3f} s)")
    if abs(far - near) >= TARGET_SECONDS:
        return [f"latency: resuming at batch {FAR:,} takes {far - near:+.3f} s, the target is below {TARGET_SECONDS} s"]
    return []


def cost(rounds: int) -> list[str]:
    """Prints the cost of a checkpoint; returns the missed targets."""
    print(f"cost: the CIFAR-10 preset, {STEPS} steps with a checkpoint and without, medians of {rounds}")
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        parts = build_parts(config_of("cifar10", data_root("cifar10", directory), 0, directory, []), {})
        last, best = directory / "last.ckpt", directory / "best.ckpt"
        checkpointer = Checkpointer(last, best, "val_accuracy", "max", flush=lambda: None)
        trainer = Trainer(
            parts.task, parts.state, parts.train, max_epochs=1, callbacks=[checkpointer], runtime=parts.runtime
        )
        waits: list[float] = []

        def steps(save: bool) -> float:
            start = time.perf_counter()
            for number in range(STEPS):
                parts.task.train_step(parts.state, next(batches))
                if save and not number:
                    save_start = time.perf_counter()
                    checkpointer._save(trainer)
                    waits.append(time.perf_counter() - save_start)
            checkpointer._wait()
            return time.perf_counter() - start

        with parts.runtime.active():
            checkpointer.on_fit_start(trainer)
            parts.state.model.train()
            batches = _endless(parts.train)
            steps(True)
            pairs = [(steps(True), steps(False)) for _ in range(rounds)]
        size = checkpointer.last.stat().st_size / 2**20
        checkpointer.on_exception(trainer, KeyboardInterrupt())
    plain = statistics.median(without for _, without in pairs)
    extra = statistics.median(with_one - without for with_one, without in pairs)
    print(f"  {plain / STEPS * 1000:.0f} ms per step; a checkpoint of {size:.1f} MiB: the step waits "
          f"{statistics.median(waits) * 1000:.1f} ms, {extra * 1000:+.0f} ms in total")  # fmt: skip
    print(f"  every {EVERY:.0f} s: {max(extra, 0) / EVERY:.2%} of the time")
    share = extra / EVERY
    return (
        [f"cost: checkpoints take {share:.2%}, the target is below {TARGET_SHARE:.0%}"] if share >= TARGET_SHARE else []
    )


def _endless(loader: Any) -> Any:
    while True:
        yield from loader


def main() -> int:
    """Prints the tables; returns the exit code."""
    options = argparse.ArgumentParser(description="Measures resuming and writing checkpoints.")
    options.add_argument("--only", nargs="+", choices=["latency", "cost"], default=["latency", "cost"])
    options.add_argument("--rounds", type=int, default=5, help="rounds that are measured; default: %(default)s")
    options.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    arguments = options.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    works: dict[str, Callable[[int], list[str]]] = {"latency": latency, "cost": cost}
    missed = [line for name in arguments.only for line in works[name](arguments.rounds)]
    for line in missed:
        print(f"missed: {line}")
    return 1 if arguments.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
