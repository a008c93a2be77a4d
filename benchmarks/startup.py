"""Measures start-up time: `sightline --help`, a config error, and importing the package after torch.

    python benchmarks/startup.py [--runs 7] [--check]

Prints the median, minimum and maximum over interleaved runs. With --check, exits 1 if `sightline --help` takes more
than 0.4 s, or importing the package with all its public names takes more than 0.3 s after torch."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

IMPORT = "import time, {first}; start = time.perf_counter(); {then}; print(time.perf_counter() - start)"
ALL_NAMES = "import sightline; [getattr(sightline, name) for name in sightline.__all__]"
HELP, ADDED = 0.4, 0.3


def process(*arguments: str) -> float:
    """Returns the seconds that a Python process takes from start to end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    return time.perf_counter() - start


def inside(code: str) -> float:
    """Runs code in a new interpreter; returns the number that it prints."""
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def main() -> int:
    """Runs the benchmark and prints the table; returns the exit code."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=7, help="runs of each measurement; default: %(default)s")
    options.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    arguments = options.parse_args()
    measures = {
        "python -c pass": lambda: process("-c", "pass"),
        "sightline --help": lambda: process("-m", "sightline", "--help"),
        "sightline train, a wrong key": lambda: process("-m", "sightline", "train", "trainer.max_epoch=1"),
        "import torch": lambda: inside(IMPORT.format(first="sys", then="import torch")),
        "import sightline, after torch": lambda: inside(IMPORT.format(first="torch", then="import sightline")),
        "every public name, after torch": lambda: inside(IMPORT.format(first="torch", then=ALL_NAMES)),
    }
    for measure in measures.values():
        measure()  # the first call reads files from disk and is not counted
    times: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(arguments.runs):
        for name, measure in measures.items():
            times[name].append(measure())
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        print(f"{name:<32} {medians[name]:7.3f} s   ({min(values):.3f} to {max(values):.3f})")
    missed = [
        f"missed: {name}: {medians[name]:.3f} s, the limit is {limit} s"
        for name, limit in (("sightline --help", HELP), ("every public name, after torch", ADDED))
        if medians[name] > limit
    ]
    for line in missed:
        print(line)
    return 1 if arguments.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
