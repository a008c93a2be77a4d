"""Measures fine-tuning on 650 photographs of flowers against a timm script and against training only the head.

    python benchmarks/finetune.py [--sizes 128 224] [--folds 5] [--epochs 3] [--check]

EfficientNet-Lite0 with its ImageNet weights (the extra `lite`) is trained on five kinds of flowers with five-fold
cross-validation: each image is evaluated once, by a network that was not trained on it. Three variants are compared:

- `finetune`: `sightline train experiment=finetune`, which trains the head for two epochs and then all layers.
- `head alone`: the same, with everything but the head frozen to the end.
- `timm script`: a hand-written script with timm's network, transform and optimiser, a DataLoader with two workers, and
  the same epochs of the head, batch size and schedule.

Each variant is trained in a separate process, one after the other within a fold. Printed are the mean accuracy over the
folds after each epoch, the loss of the first step, the seconds of the second epoch (frozen, after warm-up, evaluation
included), and the peak resident memory. The photographs are read from
`$SIGHTLINE_SHARED/data/photos-flowers.tar.gz` (default ../shared).

With --check, exits 1 if `finetune` ends below `head alone`, if it loses more than 0.01 of accuracy in the first epoch
that trains all layers, if its first loss is more than 5 % from ln 5, if its frozen epoch takes longer than the
script's, or if it takes 2.5 GB of memory or more at 224 pixels."""

from __future__ import annotations

import argparse
import csv
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from archives import FLOWERS, unpacked

NAME = "tf_efficientnet_lite0"
BODY = ["conv_stem", "bn1", "blocks", "conv_head", "bn2"]
ARMS = ("finetune", "head alone", "timm script")
FROZEN, BATCH, RATE = 2, 32, 0.001
FALL, FIRST, MEMORY = 0.01, 0.05, 2.5e9


def write_tables(flowers: Path, folds: int) -> int:
    """Writes a CSV for each fold, with every image and its split; returns the number of images."""
    files = sorted(flowers.rglob("*.jpg"))
    counts: dict[str, int] = {}
    rows = []
    for file in files:
        kind = file.parent.name
        counts[kind] = counts.get(kind, -1) + 1
        rows.append((str(file.relative_to(flowers)), kind, counts[kind] % folds))
    for fold in range(folds):
        with (flowers / f"fold{fold}.csv").open("w", newline="") as table:
            writer = csv.writer(table)
            writer.writerow(("file", "label", "split"))
            writer.writerows((name, kind, "val" if held_out == fold else "train") for name, kind, held_out in rows)
    return len(files)


def by_sightline(arm: str, flowers: Path, fold: int, size: int, epochs: int) -> dict[str, Any]:
    """Trains with Sightline; returns the seconds and accuracy of each epoch and the first loss."""
    from sightline.commands.hydra_config import compose_config
    from sightline.compose.assemble import assemble
    from sightline.core.types import StepOutput
    from sightline.engine.trainer import Callback, Trainer

    measured: dict[str, Any] = {"seconds": [], "accuracy": []}

    class Watch(Callback):
        """Records the measured values."""

        def on_epoch_start(self, trainer: Trainer) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, trainer: Trainer, output: StepOutput) -> None:
            if trainer.state.step == 1 and output.loss is not None:
                measured["first"] = float(output.loss)

        def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
            measured["seconds"].append(time.perf_counter() - self.start)
            measured["accuracy"].append(record["val_accuracy"])

    overrides = [
        "experiment=finetune", f"data.root={flowers}", f"data.csv=fold{fold}.csv", "data.source=csv",
        "data.split_column=split", f"data.preprocess.size={size}", f"trainer.max_epochs={epochs}",
        "trainer.progress=false", f"run.dir={flowers.parent / 'runs'}", f"data.cache_dir={flowers.parent / 'cache'}",
    ]  # fmt: skip
    if arm == "head alone":
        overrides += ["module.freeze_epochs=0", f"module.freeze=[{','.join(BODY)}]"]
    config = compose_config(overrides)
    step = config.data.batch_size * config.trainer.accumulate_grad_batches
    assert (step, config.module.head_lr) == (BATCH, RATE)
    assemble(config, callbacks=[Watch()]).fit()
    return measured


def by_hand(flowers: Path, fold: int, size: int, epochs: int) -> dict[str, Any]:
    """Trains with timm and a hand-written loop; returns the same values as `by_sightline`."""
    import timm
    import torch
    from PIL import Image
    from torch import nn
    from torch.utils.data import DataLoader, Dataset

    from sightline.models.published import weights_of_package

    torch.manual_seed(0)
    model = timm.create_model(NAME)
    file = weights_of_package(NAME)
    assert file is not None
    model.load_state_dict(dict(zip(model.state_dict(), torch.load(file, weights_only=True).values(), strict=True)))
    model.reset_classifier(5)
    model.to(memory_format=torch.channels_last)
    data_config = timm.data.resolve_data_config({"input_size": (3, size, size)}, model=model)
    crops = {"scale": (0.35, 1.0), "hflip": 0.5, "color_jitter": None}
    with (flowers / f"fold{fold}.csv").open() as table:
        rows = list(csv.DictReader(table))
    kinds = sorted({row["label"] for row in rows})

    class Flowers(Dataset[Any]):
        """The images of one split."""

        def __init__(self, split: str, transform: Any) -> None:
            self.rows, self.transform = [row for row in rows if row["split"] == split], transform

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            row = self.rows[index]
            return self.transform(Image.open(flowers / row["file"]).convert("RGB")), kinds.index(row["label"])

    train_set = Flowers("train", timm.data.create_transform(**data_config, is_training=True, **crops))
    val_set = Flowers("val", timm.data.create_transform(**data_config))
    train = DataLoader(train_set, BATCH, shuffle=True, num_workers=2, persistent_workers=True)
    val = DataLoader(val_set, BATCH, num_workers=2, persistent_workers=True)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05)
    total = epochs * len(train)
    warm = max(1, round(0.05 * total))

    def rate(step: int) -> float:
        return (step + 1) / warm if step < warm else 0.5 + 0.5 * math.cos(math.pi * (step - warm) / (total - warm))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    loss_of = nn.CrossEntropyLoss()
    measured: dict[str, Any] = {"seconds": [], "accuracy": []}
    head = {id(parameter) for parameter in model.get_classifier().parameters()}
    for epoch in range(epochs):
        start = time.perf_counter()
        for parameter in model.parameters():
            parameter.requires_grad_(epoch >= FROZEN or id(parameter) in head)
        model.train()
        for x, y in train:
            loss = loss_of(model(x.contiguous(memory_format=torch.channels_last)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            measured.setdefault("first", loss.item())
        model.eval()
        right = 0
        with torch.inference_mode():
            for x, y in val:
                right += int((model(x.contiguous(memory_format=torch.channels_last)).argmax(1) == y).sum())
        measured["seconds"].append(time.perf_counter() - start)
        measured["accuracy"].append(right / len(val_set))
    return measured


def worker(request: str) -> None:
    """Runs one training in a worker process and prints the result as JSON on the last line."""
    arm, flowers, fold, size, epochs = json.loads(request)
    root = Path(flowers)
    run = by_hand(root, fold, size, epochs) if arm == "timm script" else by_sightline(arm, root, fold, size, epochs)
    run["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(run))


def measure(arm: str, flowers: Path, fold: int, size: int, epochs: int) -> dict[str, Any]:
    """Runs one training in a worker process; returns its result."""
    request = json.dumps([arm, str(flowers), fold, size, epochs])
    done = subprocess.run([sys.executable, __file__, "--worker", request], check=True, capture_output=True, text=True)
    run: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return run


def missed_targets(results: dict[str, list[dict[str, Any]]], size: int) -> list[str]:
    """Returns a line for each target that was missed at one image size."""
    pooled = {arm: [statistics.mean(values) for values in zip(*(run["accuracy"] for run in runs), strict=True)]
              for arm, runs in results.items()}  # fmt: skip
    ours, alone, lines = pooled["finetune"], pooled["head alone"], []
    if ours[-1] < alone[-1]:
        lines.append(f"accuracy {ours[-1]:.4f} after the last epoch, {alone[-1]:.4f} with the head alone")
    if ours[FROZEN] < ours[FROZEN - 1] - FALL:
        lines.append(f"training all layers: accuracy from {ours[FROZEN - 1]:.4f} to {ours[FROZEN]:.4f}")
    lines += [
        f"the first loss is {run['first']:.4f}, ln 5 is {math.log(5):.4f}"
        for run in results["finetune"]
        if abs(run["first"] / math.log(5) - 1) > FIRST
    ]
    ratio = statistics.median(
        run["seconds"][1] / script["seconds"][1]
        for run, script in zip(results["finetune"], results["timm script"], strict=True)
    )
    print(f"  a frozen epoch takes {ratio:.2f} x as long as in the script")
    if ratio > 1:
        lines.append(f"a frozen epoch takes {ratio:.2f} x as long as in the script")
    memory = max(run["memory"] for run in results["finetune"])
    if size >= 224 and memory >= MEMORY:
        lines.append(f"{memory / 1e9:.2f} GB of memory")
    return [f"{size} pixels: {line}" for line in lines]


def main() -> int:
    """Prints a table for each image size; returns the exit code."""
    options = argparse.ArgumentParser(description="Measures fine-tuning on photographs against a timm script.")
    options.add_argument("--sizes", type=int, nargs="+", default=[128, 224])
    options.add_argument("--folds", type=int, default=5)
    options.add_argument("--epochs", type=int, default=3)
    options.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    options.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.worker:
        worker(arguments.worker)
        return 0
    missed: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        flowers = unpacked(FLOWERS, Path(scratch)) / "flowers"
        count = write_tables(flowers, arguments.folds)
        for size in arguments.sizes:
            print(f"{count} photographs at {size} x {size} pixels, {arguments.folds} folds")
            results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
            for fold in range(arguments.folds):
                for arm in ARMS:
                    run = measure(arm, flowers, fold, size, arguments.epochs)
                    results[arm].append(run)
                    shown = "  ".join(f"{value:.4f}" for value in run["accuracy"])
                    print(
                        f"  fold {fold}  {arm:<12}  {shown}  {sum(run['seconds']):6.1f} s", file=sys.stderr, flush=True
                    )
            print(f"  {'':<12}  accuracy after each epoch  first loss  s a frozen epoch  peak memory")
            for arm, runs in results.items():
                curve = [statistics.mean(values) for values in zip(*(run["accuracy"] for run in runs), strict=True)]
                first = statistics.mean(run["first"] for run in runs)
                seconds = statistics.median(run["seconds"][1] for run in runs)
                memory = max(run["memory"] for run in runs) / 1e9
                shown = "  ".join(f"{value:.4f}" for value in curve)
                print(f"  {arm:<12}  {shown:<25}  {first:10.4f}  {seconds:16.1f}  {memory:8.2f} GB", flush=True)
            missed += missed_targets(results, size)
    for line in missed:
        print(f"missed: {line}")
    return 1 if arguments.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
