"""Measures how class weights, balanced sampling and the focal loss change the recall of a rare class.

    python benchmarks/imbalance.py [--seeds 5] [--check]

A linear network is trained for four epochs on the embedded digits, in which the eights are reduced to 2 % of the
training images. Printed are the recall of the eights and the mean recall of the other digits on 600 test images, as
means over the seeds. With --check, exits 1 if class weights or balanced sampling do not at least triple the recall of
the eights."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import sightline
from sightline.data.sources.digits import load_digits

RARE, SHARE, TIMES = 8, 0.02, 3.0
FOCAL = {"module": {"loss": {"_target_": "sightline.models.losses.FocalLoss"}}}
WAYS: dict[str, Mapping[str, Any]] = {
    "plain": {},
    "data.sampler=balanced": {"data": {"sampler": "balanced"}},
    "module.class_weights=auto": {"module": {"class_weights": "auto"}},
    "focal loss alone": FOCAL,
}


def digits(seed: int) -> dict[str, tuple[Any, Any]]:
    """Returns 600 test images, and the others without most of the eights as training images."""
    images, labels = load_digits()
    order = np.random.default_rng(seed).permutation(len(labels))
    test, rest = order[:600], order[600:]
    others, eights = rest[labels[rest] != RARE], rest[labels[rest] == RARE]
    train = np.concatenate((others, eights[: round(len(others) * SHARE / (1 - SHARE))]))
    return {"train": (images[train], labels[train]), "test": (images[test], labels[test])}


def recalls(folder: Path, change: Mapping[str, Any], seed: int) -> tuple[float, float]:
    """Trains once; returns the recall of the rare class and the mean recall of the others."""
    layers = [
        {"_target_": "torch.nn.Flatten"},
        {"_target_": "torch.nn.Linear", "in_features": "auto", "out_features": "auto"},
    ]
    config = {
        "seed": seed,
        "run": {"dir": str(folder)},
        "data": {"val": 0, "cache": False, **change.get("data", {})},
        "module": {
            "network": {"layers": layers}, "optimizer": {"lr": 0.03}, "monitor": "train_loss",
            **change.get("module", {}),
        },
        "trainer": {"max_epochs": 4, "progress": False, "device": "cpu"},
    }  # fmt: skip
    splits = digits(seed)
    result = sightline.fit(config, source=splits)
    assert result.run is not None
    predictions = sightline.load(result.run).predict(list(splits["test"][0]))
    labels = splits["test"][1]
    right = np.array([item.label == str(label) for item, label in zip(predictions, labels, strict=True)])  # type: ignore[union-attr]
    each = [float(right[labels == digit].mean()) for digit in range(10)]
    return each[RARE], statistics.mean(value for digit, value in enumerate(each) if digit != RARE)


def main() -> int:
    """Prints the table; returns the exit code."""
    options = argparse.ArgumentParser(description="Measures what improves the recall of a rare class.")
    options.add_argument("--seeds", type=int, default=5, help="seeds to average over; default: %(default)s")
    options.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    arguments = options.parse_args()
    print(f"{'':<26}  recall of the eights  of the others")
    rare: dict[str, float] = {}
    for name, change in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            values = [recalls(Path(folder), change, seed) for seed in range(arguments.seeds)]
        rare[name], others = (statistics.mean(column) for column in zip(*values, strict=True))
        print(f"{name:<26}  {rare[name]:20.2f}  {others:13.2f}", flush=True)
    missed = [name for name in list(WAYS)[1:3] if rare[name] < TIMES * rare["plain"]]
    for name in missed:
        print(f"missed: {name}: recall {rare[name]:.2f} is below {TIMES:.0f} times {rare['plain']:.2f}")
    return 1 if arguments.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
