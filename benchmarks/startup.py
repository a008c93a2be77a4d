"""What starting costs: `sightline --help` and a config error as whole processes, the package beside `import torch`.

    python benchmarks/startup.py [--runs 7] [--check]

Prints a table of medians; the runs are interleaved, so that a busy machine is busy for all of them. With --check,
exits 1 when `sightline --help` takes more than 0.4 s or the package with all its public names adds more than 0.3 s."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

IMPORT = "import time, {first}; start = time.perf_counter(); {then}; print(time.perf_counter() - start)"
ALL_NAMES = "import sightline; [getattr(sightline, name) for name in sightline.__all__]"
HELP, ADDED = 0.4, 0.3


def process(*words: str) -> float:
    """Seconds a whole process takes."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], capture_output=True, check=False)
    return time.perf_counter() - start


def inside(code: str) -> float:
    """The number a fresh interpreter prints."""
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def main() -> int:
    """Measures, prints, and with --check judges."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=7)
    options.add_argument("--check", action="store_true")
    found = options.parse_args()
    measures = {
        "python -c pass": lambda: process("-c", "pass"),
        "sightline --help": lambda: process("-m", "sightline", "--help"),
        "sightline train, a wrong key": lambda: process("-m", "sightline", "train", "trainer.max_epoch=1"),
        "import torch": lambda: inside(IMPORT.format(first="sys", then="import torch")),
        "import sightline, after torch": lambda: inside(IMPORT.format(first="torch", then="import sightline")),
        "every public name, after torch": lambda: inside(IMPORT.format(first="torch", then=ALL_NAMES)),
    }
    for measure in measures.values():
        measure()  # the first of each reads files from the disk
    times: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(found.runs):
        for name, measure in measures.items():
            times[name].append(measure())
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        print(f"{name:<32} {medians[name]:7.3f} s   ({min(values):.3f} to {max(values):.3f})")
    missed = [
        f"{name}: {medians[name]:.3f} s, more than {limit} s"
        for name, limit in (("sightline --help", HELP), ("every public name, after torch", ADDED))
        if medians[name] > limit
    ]
    for line in missed:
        print(line)
    return 1 if found.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
