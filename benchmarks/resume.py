"""What going on costs: resuming far into an epoch, and writing checkpoints.

    python benchmarks/resume.py [--only latency cost] [--rounds 5] [--check]

`latency`: a run of 100,200 steps in one epoch, interrupted after 10 steps and after 100,000. The time from the call of
`sightline.resume` to the end of the first step that follows, for both, in this process: reading the config, the data
out of the cache, the checkpoint and the log, building everything, and finding the place. Medians of interleaved rounds.

`cost`: the CIFAR-10 preset with a checkpoint every 30 s. Rounds of steps with one checkpoint in them beside rounds with
none, interleaved; what the step thread waits for a copy of the state, and what a checkpoint costs in all, as a share of
30 s of steps. The pictures are those of `$SIGHTLINE_SHARED/data` (default ../shared).

With --check, exits 1 when the two latencies differ by 0.2 s or more, or when checkpoints take 1 % or more."""

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
    """Ends the run between two steps, and notes when."""

    def __init__(self, step: int):
        self.step = step
        self.seconds = 0.0

    def on_step_end(self, trainer: Trainer, output: StepOutput) -> None:
        """At that step."""
        if trainer.state.step == self.step:
            self.seconds = time.perf_counter()
            trainer.interrupt()


def latency(rounds: int) -> list[str]:
    """Prints both; what was missed."""
    print(f"latency: from sightline.resume to the end of the next step, medians of {rounds}")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        archive = place / "pictures.npz"
        labels = np.arange(FAR + MORE) % 2
        np.savez(archive, x=np.repeat((labels * 255).astype(np.uint8), 16).reshape(-1, 4, 4), y=labels)
        config: dict[str, Any] = {
            "data": {
                "root": str(archive), "batch_size": 1, "val": 0, "test": 0, "augment": {"shift": 0},
                "cache_dir": str(place / "cache"),
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
            "run": {"dir": str(place)},
        }  # fmt: skip
        found: dict[int, list[float]] = {}
        for step in (NEAR, FAR):
            run = {**config, "run": {"dir": str(place), "name": f"at-{step}"}}
            assemble(run, callbacks=[StopAt(step)]).fit()
        for number in range(rounds + 1):
            for step in (NEAR, FAR):
                # each resume goes on by a step, so the next one starts a step later
                end = StopAt(step + number + 1)
                start = time.perf_counter()
                resume(place / f"at-{step}", callbacks=[end]).fit()
                if number:  # the first is a warm-up
                    found.setdefault(step, []).append(end.seconds - start)
    near, far = (statistics.median(found[step]) for step in (NEAR, FAR))
    print(f"  at batch {NEAR:>7,}  {near:6.3f} s")
    print(f"  at batch {FAR:>7,}  {far:6.3f} s  ({far - near:+.3f} s)")
    if abs(far - near) >= TARGET_SECONDS:
        return [f"resuming at batch {FAR:,} takes {far - near:+.3f} s more; the target is below {TARGET_SECONDS} s"]
    return []


def cost(rounds: int) -> list[str]:
    """Prints it; what was missed."""
    print(f"cost: the CIFAR-10 preset, {STEPS} steps with a checkpoint and without, medians of {rounds}")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        parts = build_parts(config_of("cifar10", data_root("cifar10", place), 0, place, []), {})
        keeper = Checkpointer(place / "last.ckpt", place / "best.ckpt", "val_accuracy", "max", flush=lambda: None)
        trainer = Trainer(parts.task, parts.state, parts.train, max_epochs=1, callbacks=[keeper], runtime=parts.runtime)
        waits: list[float] = []

        def steps(save: bool) -> float:
            start = time.perf_counter()
            for number in range(STEPS):
                parts.task.train_step(parts.state, next(batches))
                if save and not number:
                    began = time.perf_counter()
                    keeper._save(trainer)
                    waits.append(time.perf_counter() - began)
            keeper._wait()
            return time.perf_counter() - start

        with parts.runtime.active():
            keeper.on_fit_start(trainer)
            parts.state.model.train()
            batches = _endless(parts.train)
            steps(True)
            pairs = [(steps(True), steps(False)) for _ in range(rounds)]
        size = keeper.last.stat().st_size / 2**20
        keeper.on_exception(trainer, KeyboardInterrupt())
    plain = statistics.median(without for _, without in pairs)
    more = statistics.median(with_one - without for with_one, without in pairs)
    print(f"  {plain / STEPS * 1000:.0f} ms a step; a checkpoint of {size:.1f} MiB: the step waits "
          f"{statistics.median(waits) * 1000:.1f} ms, {more * 1000:+.0f} ms in all")  # fmt: skip
    print(f"  every {EVERY:.0f} s: {max(more, 0) / EVERY:.2%} of the time")
    return [f"checkpoints take {more / EVERY:.2%}; the target is below 1 %"] if more / EVERY >= TARGET_SHARE else []


def _endless(loader: Any) -> Any:
    while True:
        yield from loader


def main() -> int:
    """Prints the tables; 1 when --check finds a target missed."""
    options = argparse.ArgumentParser(description="What going on costs.")
    options.add_argument("--only", nargs="+", choices=["latency", "cost"], default=["latency", "cost"])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    found = options.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    works: dict[str, Callable[[int], list[str]]] = {"latency": latency, "cost": cost}
    missed = [line for name in found.only for line in works[name](found.rounds)]
    for line in missed:
        print(f"missed: {line}")
    return 1 if found.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
