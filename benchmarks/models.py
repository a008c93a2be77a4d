"""Checks that the networks of timm and torchvision can be trained by name, and writes a table of the results.

    python benchmarks/models.py [--only PATTERN ...] [--limit 120] [--jobs 2] [--table FILE] [--check]

Tried are the classification networks of torchvision, those of timm with up to 100 million parameters, and the smallest
of each timm family between 100 and 450 million. Each is built for 10 classes at the smallest square image that it
accepts, traced, trained for one SGD step on two images, and evaluated once, as `sightline train model=NAME` does. If
that fails, the network is tried again without Sightline, with the builder of its library and a hand-written step.

Each network has `--limit` seconds in a separate process. The results are:

- `trained`: everything worked
- `refused`: it fails only with Sightline
- `broken`: it fails without Sightline, too
- `large`: it is not tried because of its size
- `memory`: the system killed the process, as the machine has too little memory
- `ended`: the process ended in another way
- `late`: it took longer than the limit

The table, `benchmarks/models.tsv`, is only appended to: networks in it are skipped, so the command can be interrupted
and run again. The last line of a network counts. To try a network again, delete its lines. With --check, exits 1 if
there is a network that is `refused`, `late` or `ended`."""

from __future__ import annotations

import argparse
import fnmatch
import multiprocessing
import signal
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torchvision
from torch import nn

from sightline.config.shorthand import network_node
from sightline.core.errors import SightlineError
from sightline.core.types import Batch, TrainState
from sightline.engine.tasks import SupervisedTask
from sightline.models.param_groups import parameter_groups
from sightline.models.probe import trace
from sightline.models.spec import build_model, check_training_output
from sightline.models.structure import find_head, parameter_depths

TABLE = Path(__file__).with_name("models.tsv")
COLUMNS = ("network", "parameters", "pixels", "result", "seconds", "message")
SMALL, LARGE = 100e6, 450e6
CLASSES = 10
SIDES = (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512)


class Line(NamedTuple):
    """A line of the table; `pixels` is the side of the square image."""

    network: str
    parameters: int
    pixels: int
    result: str
    seconds: float
    message: str = ""

    def __str__(self) -> str:
        message = " ".join(self.message.split())
        return f"{self.network}\t{self.parameters}\t{self.pixels}\t{self.result}\t{self.seconds:.1f}\t{message}"


def read_table(file: Path) -> dict[str, Line]:
    """Reads the results of earlier calls, by network."""
    if not file.is_file():
        return {}
    rows = [line.split("\t") for line in file.read_text().splitlines()[1:]]
    return {row[0]: Line(row[0], int(row[1]), int(row[2]), row[3], float(row[4]), row[5]) for row in rows}


def names() -> list[str]:
    """Returns the names of the networks of both libraries, as `model=` accepts them."""
    torchvision_names = [f"torchvision/{name}" for name in torchvision.models.list_models(module=torchvision.models)]
    return torchvision_names + [f"timm/{name}" for name in timm.list_models()]


def least_of_families(lines: Iterable[Line]) -> list[str]:
    """Returns the smallest network of each timm family among those between `SMALL` and `LARGE` parameters."""
    least: dict[str, tuple[int, str]] = {}
    for line in lines:
        if line.network.startswith("timm/") and SMALL < line.parameters <= LARGE:
            family = timm.model_entrypoint(line.network.partition("/")[2]).__module__
            least[family] = min(least.get(family, (line.parameters, line.network)), (line.parameters, line.network))
    return [name for _, name in sorted(least.values())]


def plain(name: str) -> nn.Module:
    """Builds a network with the builder of its library."""
    library, _, inner = name.partition("/")
    if library == "timm":
        return timm.create_model(inner, num_classes=CLASSES)  # type: ignore[no-any-return]
    arguments = network_node(name)
    return torchvision.models.get_model(  # type: ignore[no-any-return]
        inner, **{key: value for key, value in arguments.items() if key != "_target_"} | {"num_classes": CLASSES}
    )


def sides(name: str, model: nn.Module) -> Iterator[int]:
    """Yields the sides of square images to try, the network's default last."""
    default = 224
    if name.startswith("timm/"):
        config = model.pretrained_cfg
        default = config["input_size"][1]
        if config.get("fixed_input_size"):
            yield default
            return
    yield from (side for side in SIDES if side < default)
    yield default


def shapes_of(name: str) -> nn.Module:
    """Builds a network on the meta device, without memory for its weights, if it can be built there."""
    try:
        with torch.device("meta"):
            return plain(name)
    except Exception:  # its constructor reads values
        return plain(name)


def smallest(name: str, model: nn.Module) -> int:
    """Returns the side of the smallest square image that the network accepts."""
    for side in sides(name, model):
        device = next(model.parameters()).device
        try:
            with torch.no_grad():
                for mode in (False, True):
                    model.train(mode)(torch.zeros(2, 3, side, side, device=device))
        except Exception:  # the network's code may raise anything
            continue
        return side
    return side


def train_once(name: str, side: int) -> int:
    """Does once what training by name does with a network; returns its number of parameters."""
    shape = (3, side, side)
    model, spec = build_model(network_node(name), shape, CLASSES)
    check_training_output(model, spec)
    count = trace(model, shape).parameters
    if not find_head(model, shape):
        raise SightlineError("find_head finds no head")
    arguments = {"lr": 0.01}
    groups = parameter_groups(model, torch.optim.SGD, arguments, depths=parameter_depths(model, shape), layer_decay=0.9)
    state = TrainState(model.train(), torch.optim.SGD(groups, **arguments))
    task = SupervisedTask(nn.CrossEntropyLoss(), spec.outputs)
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    out = task.train_step(state, Batch(images, torch.tensor([0, 1])))
    model.eval()
    with torch.inference_mode():
        output = task.predict_step(state, images)
    if not bool(out.loss.isfinite()) or tuple(output.shape) != (2, CLASSES):
        raise SightlineError(f"the loss is {float(out.loss)}, the output a tensor {list(output.shape)}")
    return count


def by_hand(name: str, side: int) -> None:
    """Does the same without Sightline."""
    model = plain(name).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    nn.functional.cross_entropy(model(images), torch.tensor([0, 1])).backward()
    optimizer.step()
    with torch.inference_mode():
        if tuple(model.eval()(images).shape) != (2, CLASSES):
            raise ValueError(f"the output is not a tensor {[2, CLASSES]}")


def measure(name: str, most: float, answer: Connection) -> None:
    """Tries a network and sends its line; runs in a worker process.

    A network of timm with more than `most` parameters is not tried."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    side, count, result, message = 0, 0, "trained", ""
    try:
        model = shapes_of(name)
        count = sum(parameter.numel() for parameter in model.parameters())
        if count > most and name.startswith("timm/"):
            answer.send(Line(name, count, 0, "large", time.perf_counter() - start))
            return
        side = smallest(name, model)
        count = train_once(name, side)
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        try:
            by_hand(name, side)
            result = "refused"
        except Exception as own_error:
            result, message = "broken", f"{type(own_error).__name__}: {own_error}"
    answer.send(Line(name, count, side, result, time.perf_counter() - start, message[:300]))


def run(wanted: Iterable[str], most: float, limit: float, jobs: int) -> Iterator[Line]:
    """Tries networks in worker processes and yields their lines as they finish; `most` is as in `measure`."""
    fork = multiprocessing.get_context("fork")  # the libraries are imported once
    remaining, running = list(reversed(list(wanted))), dict[Any, tuple[str, Any, float]]()
    while remaining or running:
        while remaining and len(running) < jobs:
            receiver, sender = fork.Pipe(duplex=False)
            process = fork.Process(target=measure, args=(remaining[-1], most, sender))
            process.start()
            sender.close()
            running[receiver] = (remaining.pop(), process, time.perf_counter())
        ready = wait(list(running), timeout=1)
        for receiver, (name, process, start) in list(running.items()):
            seconds = time.perf_counter() - start
            if receiver in ready:
                try:
                    line = receiver.recv()
                except EOFError:
                    process.join()
                    result = "memory" if process.exitcode == -signal.SIGKILL else "ended"  # killed by the system
                    message = f"the process ended with exit code {process.exitcode}"
                    line = Line(name, 0, 0, result, seconds, message)
            elif seconds > limit:
                process.kill()
                line = Line(name, 0, 0, "late", seconds, f"took more than {limit:.0f} s")
            else:
                continue
            process.join()
            del running[receiver]
            yield line


def main() -> int:
    """Appends the missing networks to the table and prints a summary; returns the exit code."""
    options = argparse.ArgumentParser(
        description="Checks that the networks of timm and torchvision can be trained by name."
    )
    options.add_argument(
        "--only", nargs="+", default=["*"], metavar="PATTERN", help="networks to try, such as 'timm/cait*'"
    )
    options.add_argument("--limit", type=float, default=120.0, help="seconds for each network; default: %(default)s")
    options.add_argument("--jobs", type=int, default=2, help="networks in parallel; default: %(default)s")
    options.add_argument("--table", type=Path, default=TABLE, help="table to append to; default: %(default)s")
    options.add_argument("--check", action="store_true", help="exit 1 when a network is refused, late or ended")
    arguments = options.parse_args()
    wanted = [name for name in names() if any(fnmatch.fnmatch(name, pattern) for pattern in arguments.only)]
    done = read_table(arguments.table)
    remaining = [name for name in wanted if name not in done]
    print(f"{len(wanted)} networks, {len(remaining)} of them not tried yet")
    if not arguments.table.is_file():
        arguments.table.write_text("\t".join(COLUMNS) + "\n")
    with arguments.table.open("a") as table:

        def fill(names: Iterable[str], most: float) -> None:
            for line in run(names, most, arguments.limit, arguments.jobs):
                done[line.network] = line
                print(line, file=table, flush=True)
                if line.result not in ("trained", "large"):
                    print(line, flush=True)

        fill(remaining, SMALL)
        chosen = least_of_families(done[name] for name in wanted)
        fill([name for name in chosen if done[name].result == "large"], LARGE)
    lines = [done[name] for name in wanted]
    for result in sorted({line.result for line in lines}):
        print(f"{result}: {sum(line.result == result for line in lines)}")
    return 1 if arguments.check and any(line.result in ("refused", "late", "ended") for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
