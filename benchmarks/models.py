"""Whether the networks of timm and torchvision can be trained by their names: a table with a line for each.

    python benchmarks/models.py [--only PATTERN ...] [--limit 120] [--jobs 2] [--table FILE] [--check]

Each classification network of torchvision, each of timm with fewer than 100 million parameters, and the smallest of
each of timm's families above that and up to 450 million, is built for 10 classes at the smallest square image it
accepts, probed, trained for one step of SGD on two images, and asked once, as `sightline train model=NAME` would. A
network that this refuses is tried once more without Sightline, by timm's or torchvision's own builder and a step
written by hand: `refused` is what only Sightline refuses, `broken` what fails in both.

The table, `benchmarks/models.tsv`, is written line by line and is never started anew: what is in it is skipped, so that
the command goes on where it was ended; the last line of a network counts. To try a network again, delete its lines.
Each has `--limit` seconds, in a process of its own. `large` is what is not tried for its size, `memory` what the system
ended because the machine has too little of it. With --check, exits 1 when a network is refused, is not done within its
time, or ends its process."""

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
    """Of the table; `pixels` is the side of the image."""

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
    """What was tried before, by network."""
    if not file.is_file():
        return {}
    rows = [line.split("\t") for line in file.read_text().splitlines()[1:]]
    return {row[0]: Line(row[0], int(row[1]), int(row[2]), row[3], float(row[4]), row[5]) for row in rows}


def names() -> list[str]:
    """Of the networks of both libraries, as `model=` takes them."""
    ours = [f"torchvision/{name}" for name in torchvision.models.list_models(module=torchvision.models)]
    return ours + [f"timm/{name}" for name in timm.list_models()]


def least_of_families(lines: Iterable[Line]) -> list[str]:
    """Of timm's networks that are too large to try them all, the smallest of each family that is not much too large."""
    least: dict[str, tuple[int, str]] = {}
    for line in lines:
        if line.network.startswith("timm/") and SMALL < line.parameters <= LARGE:
            family = timm.model_entrypoint(line.network.partition("/")[2]).__module__
            least[family] = min(least.get(family, (line.parameters, line.network)), (line.parameters, line.network))
    return [name for _, name in sorted(least.values())]


def plain(name: str) -> nn.Module:
    """The network by its library's own builder."""
    library, _, inner = name.partition("/")
    if library == "timm":
        return timm.create_model(inner, num_classes=CLASSES)  # type: ignore[no-any-return]
    arguments = network_node(name)
    return torchvision.models.get_model(  # type: ignore[no-any-return]
        inner, **{key: value for key, value in arguments.items() if key != "_target_"} | {"num_classes": CLASSES}
    )


def sides(name: str, model: nn.Module) -> Iterator[int]:
    """The sides of square images to try, and last the network's own."""
    own = 224
    if name.startswith("timm/"):
        about = model.pretrained_cfg
        own = about["input_size"][1]
        if about.get("fixed_input_size"):
            yield own
            return
    yield from (side for side in SIDES if side < own)
    yield own


def shapes_of(name: str) -> nn.Module:
    """The network without memory for its weights, where it can be built so."""
    try:
        with torch.device("meta"):
            return plain(name)
    except Exception:  # it looks at its numbers while it is built
        return plain(name)


def smallest(name: str, model: nn.Module) -> int:
    """The side of the smallest square image that the network accepts, by shapes alone."""
    for side in sides(name, model):
        device = next(model.parameters()).device
        try:
            with torch.no_grad():
                for mode in (False, True):
                    model.train(mode)(torch.zeros(2, 3, side, side, device=device))
        except Exception:  # whatever the network's own code raises is about this size
            continue
        return side
    return side


def tried(name: str, side: int) -> int:
    """Everything that training by this name does with the network, once; how many parameters it has."""
    shape = (3, side, side)
    model, spec = build_model(network_node(name), shape, CLASSES)
    check_training_output(model, spec)
    count = trace(model, shape).parameters
    if not find_head(model, shape):
        raise SightlineError("its head is not found")
    arguments = {"lr": 0.01}
    groups = parameter_groups(model, torch.optim.SGD, arguments, depths=parameter_depths(model, shape), layer_decay=0.9)
    state = TrainState(model.train(), torch.optim.SGD(groups, **arguments))
    task = SupervisedTask(nn.CrossEntropyLoss(), spec.outputs)
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    out = task.train_step(state, Batch(images, torch.tensor([0, 1])))
    model.eval()
    with torch.inference_mode():
        answer = task.predict_step(state, images)
    if not bool(out.loss.isfinite()) or tuple(answer.shape) != (2, CLASSES):
        raise SightlineError(f"its loss is {float(out.loss)}, its answer {list(answer.shape)}")
    return count


def by_hand(name: str, side: int) -> None:
    """The same without Sightline."""
    model = plain(name).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    nn.functional.cross_entropy(model(images), torch.tensor([0, 1])).backward()
    optimizer.step()
    with torch.inference_mode():
        if tuple(model.eval()(images).shape) != (2, CLASSES):
            raise ValueError("it answers with another shape")


def measure(name: str, most: float, answer: Connection) -> None:
    """In a process of its own: the line of the network."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    began = time.perf_counter()
    side, count, result, message = 0, 0, "trained", ""
    try:
        model = shapes_of(name)
        count = sum(parameter.numel() for parameter in model.parameters())
        if count > most and name.startswith("timm/"):
            answer.send(Line(name, count, 0, "large", time.perf_counter() - began))
            return
        side = smallest(name, model)
        count = tried(name, side)
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        try:
            by_hand(name, side)
            result = "refused"
        except Exception as own:
            result, message = "broken", f"{type(own).__name__}: {own}"
    answer.send(Line(name, count, side, result, time.perf_counter() - began, message[:300]))


def run(wanted: Iterable[str], most: float, limit: float, jobs: int) -> Iterator[Line]:
    """The lines, as they are ready; "large" for a network of timm with more than `most` parameters."""
    fork = multiprocessing.get_context("fork")  # the libraries are imported once
    left, going = list(reversed(list(wanted))), dict[Any, tuple[str, Any, float]]()
    while left or going:
        while left and len(going) < jobs:
            here, there = fork.Pipe(duplex=False)
            process = fork.Process(target=measure, args=(left[-1], most, there))
            process.start()
            there.close()
            going[here] = (left.pop(), process, time.perf_counter())
        ready = wait(list(going), timeout=1)
        for here, (name, process, began) in list(going.items()):
            took = time.perf_counter() - began
            if here in ready:
                try:
                    line = here.recv()
                except EOFError:
                    process.join()
                    result = "memory" if process.exitcode == -signal.SIGKILL else "ended"  # by the system, not by us
                    line = Line(name, 0, 0, result, took, f"the process ended with {process.exitcode}")
            elif took > limit:
                process.kill()
                line = Line(name, 0, 0, "late", took, f"more than {limit:.0f} s")
            else:
                continue
            process.join()
            del going[here]
            yield line


def main() -> int:
    """Fills the table; 1 when --check finds a network that is refused or was not tried."""
    options = argparse.ArgumentParser(description="Whether the networks of timm and torchvision can be trained.")
    options.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="such as 'timm/cait*'")
    options.add_argument("--limit", type=float, default=120.0, help="seconds for each network")
    options.add_argument("--jobs", type=int, default=2)
    options.add_argument("--table", type=Path, default=TABLE)
    options.add_argument("--check", action="store_true", help="exit 1 when a network is refused or late")
    given = options.parse_args()
    wanted = [name for name in names() if any(fnmatch.fnmatch(name, pattern) for pattern in given.only)]
    done = read_table(given.table)
    left = [name for name in wanted if name not in done]
    print(f"{len(wanted)} networks, {len(left)} of them not tried yet")
    if not given.table.is_file():
        given.table.write_text("\t".join(COLUMNS) + "\n")
    with given.table.open("a") as table:

        def fill(names: Iterable[str], most: float) -> None:
            for line in run(names, most, given.limit, given.jobs):
                done[line.network] = line
                print(line, file=table, flush=True)
                if line.result not in ("trained", "large"):
                    print(line, flush=True)

        fill(left, SMALL)
        chosen = least_of_families(done[name] for name in wanted)
        fill([name for name in chosen if done[name].result == "large"], LARGE)
    found = [done[name] for name in wanted]
    for result in sorted({line.result for line in found}):
        print(f"{result}: {sum(line.result == result for line in found)}")
    return 1 if given.check and any(line.result in ("refused", "late", "ended") for line in found) else 0


if __name__ == "__main__":
    sys.exit(main())
