"""Kills and resumes runs, and checks that each ends bit-identical to an uninterrupted run.

    python benchmarks/killtest.py [--kills 50] [--seed 0] [--jobs 2] [--keep DIR] [--check]

A small convolutional network is trained on 1,797 PNG files with mixup, an EMA of the weights, bf16, a one-cycle
schedule, early stopping, prefetching and a checkpoint every seven steps. Each of the `--kills` runs is a separate
process and is killed with SIGKILL once or twice at a uniformly random time. Every second run is killed before that at a
chosen moment: while a checkpoint is written, before and after it is renamed, while the previous one is kept, in an
evaluation, while the images are packed, when the run directory is created, in the export, or while the predictions are
written.

Then `sightline resume RUN` finishes the run (or `sightline train`, if there was no run yet), and its files are compared
with those of the uninterrupted run: the SHA-256 of every tensor of the exported model and of the last and best
checkpoint (weights, EMA, optimiser), the per-sample CSVs, the history, and every point of log.jsonl and of the
TensorBoard curves, except times and rates.

With --check, exits 1 if a run differs, or if a run ended before it could be killed."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

EPOCHS = 4
CLOCKS = {"seconds", "images_per_second"}
MOMENTS = ("write", "rename", "renamed", "shift", "evaluation", "packing", "begin", "export", "exported", "predictions")
"""The moments at which a run can be killed; see `_trap`."""


@dataclass
class Killed:
    """The result for one run: where it was killed, and what differs from the uninterrupted run."""

    kills: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)


def write_images(folder: Path) -> None:
    """Writes the embedded digits as PNG files of 16 x 16 pixels, with a folder for each class."""
    from PIL import Image

    from sightline.compose.data import config_source
    from sightline.config.schema import TrainConfig

    source = config_source(TrainConfig())
    for split in source.splits.values():
        for sample in split:
            class_folder = folder / source.info.classes[int(sample.label)]
            class_folder.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(sample.image).resize((16, 16), Image.Resampling.BICUBIC)
            image.save(class_folder / f"{sample.id.replace('/', '-')}.png")


def train_command(data: Path, directory: Path, name: str) -> list[str]:
    """Returns the arguments of `sightline` that train a run in `directory`."""
    return [
        "train", f"data.root={data}", "data.augment.shift=2", "data.workers=2", "data.prefetch=3",
        f"data.cache_dir={directory / 'cache'}", f"run.dir={directory}", f"run.name={name}",
        "module.network.width=8", "module.mixup=0.3", "module.ema=0.98",
        f"trainer.max_epochs={EPOCHS}", "trainer.precision=bf16", "trainer.threads=1", "trainer.checkpoint_every=7",
        "trainer.log_every=5", "trainer.early_stopping.patience=50", "trainer.device=cpu",
    ]  # fmt: skip


def _trap(moment: str, number: int) -> contextlib.AbstractContextManager[Any]:
    """Returns a context manager that kills this process when it reaches `moment` for the `number`-th time."""
    import torch

    from sightline.data.cache import entry as storage
    from sightline.engine.checkpoint import file, writer
    from sightline.inference import artifact, evaluate
    from sightline.metrics.meter import Meter
    from sightline.runs import directory

    remaining = number

    def due() -> None:
        nonlocal remaining
        remaining -= 1
        if remaining <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(owner: Any, name: str, when: Callable[..., bool] = lambda *_, **__: True) -> Any:
        original = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if when(*args, **kwargs):
                due()
            return original(*args, **kwargs)

        return mock.patch.object(owner, name, wrapper)

    def after(owner: Any, name: str) -> Any:
        original = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            due()
            return result

        return mock.patch.object(owner, name, wrapper)

    def of_checkpoint(source: Path, _target: Path) -> bool:
        return source.name.startswith(".last.ckpt")

    traps: dict[str, Callable[[], Any]] = {
        "write": lambda: before(file._ChecksumWriter, "write", lambda _, data: len(data) > 64),
        "rename": lambda: before(Path, "replace", of_checkpoint),
        "renamed": lambda: after(writer, "save_checksummed"),
        "shift": lambda: after(writer, "_link"),
        "evaluation": lambda: before(Meter, "update", lambda *_: not torch.is_grad_enabled()),
        "packing": lambda: before(storage._EntryBuilder, "take"),
        "begin": lambda: before(directory.Run, "write_config"),
        "export": lambda: before(artifact, "write_json"),
        "exported": lambda: after(artifact, "write_json"),
        "predictions": lambda: before(evaluate, "write_text"),
    }
    return traps[moment]()


def child(moment: str, number: int, line: list[str]) -> None:
    """Runs `sightline` with a trap, in the child process."""
    from sightline.cli import main as sightline

    with _trap(moment, number):
        sightline(line)


def launch(line: list[str], log: Path, trap: tuple[str, int] | None = None, after: float | None = None) -> int:
    """Runs `sightline` in a process that is killed after `after` seconds or by a trap; returns its exit code.

    The exit code is -9 if the process was killed."""
    program = [str(Path(__file__).resolve()), "--child", *map(str, trap)] if trap else ["-m", "sightline"]
    command = [sys.executable, *program, *line]
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.kill()
        return process.wait()


def content_of(run: Path) -> dict[str, Any]:
    """Returns everything of a run that must be equal, by name."""
    from safetensors.numpy import load_file

    from sightline.engine.checkpoint.content import read_checkpoint

    values: dict[str, Any] = {}
    for name, array in load_file(run / "exported" / "model.safetensors").items():
        values[f"exported/{name}"] = hashlib.sha256(array.tobytes()).hexdigest()
    for kind in ("last", "best"):
        content = read_checkpoint(run / "checkpoints" / f"{kind}.ckpt")
        for part in (
            "model",
            "ema",
            "optimizer",
            "schedules",
            "callbacks",
            "history",
            "best",
            "epoch",
            "step",
            "batch",
        ):
            values |= dict(_flat(content[part], f"{kind}.ckpt/{part}"))
    for table in sorted((run / "predictions").iterdir()):
        values[f"predictions/{table.name}"] = hashlib.sha256(table.read_bytes()).hexdigest()
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    values["log.jsonl"] = [{key: value for key, value in row.items() if key not in CLOCKS} for row in lines]
    values |= {f"tensorboard/{tag}": points for tag, points in _curves(run / "tensorboard").items()}
    values["metrics"] = json.loads((run / "exported" / "sightline.json").read_text(encoding="utf-8"))["metrics"]
    return values


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    import torch

    if isinstance(value, torch.Tensor):
        yield path, hashlib.sha256(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{path}/{key}")
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from _flat(item, f"{path}/{position}")
    else:
        yield path, value


def _curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with contextlib.redirect_stderr(io.StringIO()):
        events = EventAccumulator(str(folder), {"scalars": 0})
        events.Reload()
        tags = [tag for tag in events.Tags()["scalars"] if tag.rpartition("/")[2] not in CLOCKS]
        return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in tags}


def killed(number: int, data: Path, directory: Path, expected: dict[str, Any], duration: float, seed: int) -> Killed:
    """Kills and resumes one run, and compares it with `expected`.

    `duration` is how many seconds an uninterrupted run takes."""
    draw = random.Random(f"{seed}/{number}")
    result, name = Killed(), f"run-{number}"
    directory.mkdir()
    run, log = directory / name, directory / "output.txt"

    def line() -> list[str]:
        return ["resume", str(run)] if (run / "config.yaml").is_file() else train_command(data, directory, name)

    if number % 2:
        moment = MOMENTS[number // 2 % len(MOMENTS)]
        # these moments occur once per run; the first checkpoint is that of the initial state
        once = moment in ("packing", "begin", "export", "exported", "predictions")
        if launch(line(), log, (moment, 1 if once else draw.randint(2, 12))) == -9:
            result.kills.append(moment)
    remaining = draw.choice((1, 1, 2))
    while remaining:
        status = launch(line(), log, after=draw.uniform(0, duration))
        if status == -9:
            result.kills.append("random")
            remaining -= 1
        else:  # the run ended before it was killed: start over, and kill it earlier
            shutil.rmtree(run, ignore_errors=True)
            duration *= 0.8
    status = launch(line(), log)
    if status:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        result.different = [f"the run ended with exit code {status}: {' '.join(last)}"]
        return result
    actual = content_of(run)
    result.different = [key for key in {**expected, **actual} if expected.get(key) != actual.get(key)]
    return result


def main() -> int:
    """Prints a line for each run that differs, and a summary; returns the exit code."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]), sys.argv[4:])
        return 0
    options = argparse.ArgumentParser(description="Kills runs, resumes them, and compares the results.")
    options.add_argument("--kills", type=int, default=50, help="runs to kill; default: %(default)s")
    options.add_argument("--seed", type=int, default=0, help="seed of the kill times; default: %(default)s")
    options.add_argument(
        "--jobs", type=int, default=min(2, os.cpu_count() or 1), help="parallel runs; default: %(default)s"
    )
    options.add_argument("--keep", type=Path, help="directory in which all files are kept")
    options.add_argument("--check", action="store_true", help="exit 1 when a run differs")
    arguments = options.parse_args()
    directory = arguments.keep or Path(tempfile.mkdtemp(prefix="killtest-"))
    directory.mkdir(parents=True, exist_ok=True)
    try:
        return _test(arguments, directory)
    finally:
        if arguments.keep is None:
            shutil.rmtree(directory, ignore_errors=True)


def _test(arguments: argparse.Namespace, directory: Path) -> int:
    data = directory / "images"
    write_images(data)
    start = time.perf_counter()
    if launch(train_command(data, directory / "uninterrupted", "run"), directory / "uninterrupted.txt"):
        raise SystemExit((directory / "uninterrupted.txt").read_text(encoding="utf-8"))
    duration = time.perf_counter() - start
    expected = content_of(directory / "uninterrupted" / "run")
    steps = expected["last.ckpt/step"]
    print(f"uninterrupted: {steps} steps, {duration:.1f} s, {len(expected)} values to compare", flush=True)
    duration *= 1.0 if arguments.jobs == 1 else 1.2  # parallel runs are slower
    results: list[Killed] = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        runs = [
            pool.submit(killed, number, data, directory / str(number), expected, duration, arguments.seed)
            for number in range(arguments.kills)
        ]
        for number, future in enumerate(runs):
            results.append(future.result())
            result = results[-1]
            if result.different:
                names = ", ".join(result.different[:6])
                print(f"  run {number}, killed at {', '.join(result.kills)}: DIFFERENT in {names}", flush=True)
            if arguments.keep is None:
                shutil.rmtree(directory / str(number), ignore_errors=True)
    equal = sum(not result.different for result in results)
    where = Counter(kill for result in results for kill in result.kills)
    print(f"killed {sum(where.values())} times: {', '.join(f'{name} {count}' for name, count in where.most_common())}")
    print(f"{equal} of {arguments.kills} runs equal the uninterrupted run")
    not_killed = sum(not result.kills for result in results)
    if not_killed:
        print(f"{not_killed} runs ended before they could be killed")
    return 1 if arguments.check and (equal < arguments.kills or not_killed) else 0


if __name__ == "__main__":
    sys.exit(main())
