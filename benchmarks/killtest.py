"""Runs that are killed and resumed, beside one that was not: is anything different?

    python benchmarks/killtest.py [--kills 50] [--seed 0] [--jobs 2] [--keep DIR] [--check]

A small convolutional network is trained on 1,797 PNG files with mixup, an average of the weights, bf16, one-cycle,
early stopping, prefetching, and a checkpoint every seven steps. Of `--kills` such runs, a process each, every
one is killed with SIGKILL at a uniformly random moment of its life, and every other one before that at a moment that is
forced: in the middle of writing a checkpoint, before and after the rename that puts it in place, while an older one is
kept, in an evaluation, while the pictures are packed, when the run's directory is made, in the export, and while the
predictions are written. Then `sightline resume RUN` finishes it (or `sightline train` again, where no run was there
yet), and all that it leaves is compared with the uninterrupted run: the SHA-256 of every tensor of the exported model
and of its last and best checkpoint (weights, average, optimiser), the per-sample CSVs, the history, and every point of
log.jsonl and of TensorBoard's curves; of these, only clocks and rates are left out.

With --check, exits 1 when one run differs, or when one was not killed."""

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
"""The moments that are forced; see `_trap`."""


@dataclass
class Killed:
    """What happened to one run: where it was killed, and what of it is not as it should be."""

    kills: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)


def pictures(folder: Path) -> None:
    """The embedded digits as PNG files of 16 x 16 pixels, a folder for each class."""
    from PIL import Image

    from sightline.compose.data import config_source
    from sightline.config.schema import TrainConfig

    source = config_source(TrainConfig())
    for split in source.splits.values():
        for sample in split:
            place = folder / source.info.classes[int(sample.label)]
            place.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(sample.image).resize((16, 16), Image.Resampling.BICUBIC)
            picture.save(place / f"{sample.id.replace('/', '-')}.png")


def words(data: Path, place: Path, name: str) -> list[str]:
    """The command line of a run in `place`."""
    return [
        "train", f"data.root={data}", "data.augment.shift=2", "data.workers=2", "data.prefetch=3",
        f"data.cache_dir={place / 'cache'}", f"run.dir={place}", f"run.name={name}",
        "module.network.width=8", "module.mixup=0.3", "module.ema=0.98",
        f"trainer.max_epochs={EPOCHS}", "trainer.precision=bf16", "trainer.threads=1", "trainer.checkpoint_every=7",
        "trainer.log_every=5", "trainer.early_stopping.patience=50", "trainer.device=cpu",
    ]  # fmt: skip


def _trap(moment: str, number: int) -> contextlib.AbstractContextManager[Any]:
    """Kills this process, as a power cut would, when it comes to a moment for the given time."""
    import torch

    from sightline.data.cache import entry as storage
    from sightline.engine.checkpoint import file, writer
    from sightline.inference import artifact, evaluate
    from sightline.metrics.meter import Meter
    from sightline.runs import directory

    left = number

    def due() -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(owner: Any, name: str, when: Callable[..., bool] = lambda *_, **__: True) -> Any:
        true = getattr(owner, name)

        def stand_in(*given: Any, **named: Any) -> Any:
            if when(*given, **named):
                due()
            return true(*given, **named)

        return mock.patch.object(owner, name, stand_in)

    def after(owner: Any, name: str) -> Any:
        true = getattr(owner, name)

        def stand_in(*given: Any, **named: Any) -> Any:
            made = true(*given, **named)
            due()
            return made

        return mock.patch.object(owner, name, stand_in)

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
    """`sightline` with a trap in it."""
    from sightline.cli import main as sightline

    with _trap(moment, number):
        sightline(line)


def launch(line: list[str], log: Path, trap: tuple[str, int] | None = None, after: float | None = None) -> int:
    """Runs a command, killed after so many seconds or by a trap; its exit code, -9 when it was killed."""
    own = [sys.executable, str(Path(__file__).resolve()), "--child", *map(str, trap)] if trap else []
    command = [*own, *line] if own else [sys.executable, "-m", "sightline", *line]
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.kill()
        return process.wait()


def left_by(run: Path) -> dict[str, Any]:
    """All that must be equal, by name."""
    from safetensors.numpy import load_file

    from sightline.engine.checkpoint.content import read_checkpoint

    found: dict[str, Any] = {}
    for name, array in load_file(run / "exported" / "model.safetensors").items():
        found[f"exported/{name}"] = hashlib.sha256(array.tobytes()).hexdigest()
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
            found |= dict(_flat(content[part], f"{kind}.ckpt/{part}"))
    for table in sorted((run / "predictions").iterdir()):
        found[f"predictions/{table.name}"] = hashlib.sha256(table.read_bytes()).hexdigest()
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    found["log.jsonl"] = [{key: value for key, value in row.items() if key not in CLOCKS} for row in lines]
    found |= {f"tensorboard/{tag}": points for tag, points in _curves(run / "tensorboard").items()}
    found["metrics"] = json.loads((run / "exported" / "sightline.json").read_text(encoding="utf-8"))["metrics"]
    return found


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


def killed(number: int, data: Path, place: Path, whole: dict[str, Any], life: float, seed: int) -> Killed:
    """One run: killed, resumed, and compared."""
    draw = random.Random(f"{seed}/{number}")
    found, name = Killed(), f"run-{number}"
    place.mkdir()
    run, log = place / name, place / "output.txt"

    def line() -> list[str]:
        return ["resume", str(run)] if (run / "config.yaml").is_file() else words(data, place, name)

    if number % 2:
        moment = MOMENTS[number // 2 % len(MOMENTS)]
        # the first checkpoints are the beginning's; an export happens once
        once = moment in ("packing", "begin", "export", "exported", "predictions")
        if launch(line(), log, (moment, 1 if once else draw.randint(2, 12))) == -9:
            found.kills.append(moment)
    left = draw.choice((1, 1, 2))
    while left:
        status = launch(line(), log, after=draw.uniform(0, life))
        if status == -9:
            found.kills.append("random")
            left -= 1
        else:  # it was done before its moment came: once more, from nothing, and earlier
            shutil.rmtree(run, ignore_errors=True)
            life *= 0.8
    status = launch(line(), log)
    if status:
        end = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        found.different = [f"the run ended with {status}: {' '.join(end)}"]
        return found
    now = left_by(run)
    found.different = [key for key in {**whole, **now} if whole.get(key) != now.get(key)]
    return found


def main() -> int:
    """Prints a line for each run that differs, and the summary; 1 when --check finds one."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]), sys.argv[4:])
        return 0
    options = argparse.ArgumentParser(description="Kill runs, resume them, and compare.")
    options.add_argument("--kills", type=int, default=50, help="how many runs are killed (default: %(default)s)")
    options.add_argument("--seed", type=int, default=0, help="of the moments")
    options.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="runs at a time")
    options.add_argument("--keep", type=Path, help="a directory to leave everything in")
    options.add_argument("--check", action="store_true", help="exit 1 when a run differs")
    given = options.parse_args()
    place = given.keep or Path(tempfile.mkdtemp(prefix="killtest-"))
    place.mkdir(parents=True, exist_ok=True)
    try:
        return _test(given, place)
    finally:
        if given.keep is None:
            shutil.rmtree(place, ignore_errors=True)


def _test(given: argparse.Namespace, place: Path) -> int:
    data = place / "pictures"
    pictures(data)
    began = time.perf_counter()
    if launch(words(data, place / "whole", "run"), place / "whole.txt"):
        raise SystemExit((place / "whole.txt").read_text(encoding="utf-8"))
    life = time.perf_counter() - began
    whole = left_by(place / "whole" / "run")
    steps = whole["last.ckpt/step"]
    print(f"uninterrupted: {steps} steps, {life:.1f} s, {len(whole)} things to compare", flush=True)
    life *= 1.0 if given.jobs == 1 else 1.2  # beside another one, a run takes longer
    results: list[Killed] = []
    with ThreadPoolExecutor(given.jobs) as pool:
        runs = [
            pool.submit(killed, number, data, place / str(number), whole, life, given.seed)
            for number in range(given.kills)
        ]
        for number, future in enumerate(runs):
            results.append(future.result())
            result = results[-1]
            if result.different:
                named = ", ".join(result.different[:6])
                print(f"  run {number}, killed at {', '.join(result.kills)}: DIFFERENT in {named}", flush=True)
            if given.keep is None:
                shutil.rmtree(place / str(number), ignore_errors=True)
    equal = sum(not result.different for result in results)
    where = Counter(kill for result in results for kill in result.kills)
    print(f"killed {sum(where.values())} times: {', '.join(f'{name} {count}' for name, count in where.most_common())}")
    print(f"{equal} of {given.kills} runs equal the uninterrupted one")
    unhurt = sum(not result.kills for result in results)
    if unhurt:
        print(f"{unhurt} ended before they could be killed")
    return 1 if given.check and (equal < given.kills or unhurt) else 0


if __name__ == "__main__":
    sys.exit(main())
