"""Memory that a step frees stays with the process while a network trains, and is given back after it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")

SCRIPT = """
import torch
from sightline.engine.runtime import Runtime

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])

def kept():
    before = resident()
    for _ in range(3):
        sum(float(part[0]) for part in [torch.ones(1 << 20) for _ in range(32)])  # 128 MiB, then all of it free
    return resident() - before

runtime = Runtime("cpu", threads=1)
without = kept()
with runtime.active():
    within, held = kept(), resident()
print(without, within, held - resident())
"""
PAGES = 32768
"""In 128 MiB."""


def measured(**environment: str) -> list[int]:
    """Pages that are kept after a step without a run, and within one; pages that are given back at its end."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return [int(word) for word in done.stdout.split()]


def test_what_a_step_frees_is_kept_for_the_next_and_given_back_after_the_run() -> None:
    without, within, given_back = measured()
    assert without < PAGES / 2
    assert within > 0.9 * PAGES
    assert given_back > 0.9 * PAGES


def test_what_the_environment_sets_stays() -> None:
    _, within, _ = measured(MALLOC_TRIM_THRESHOLD_="1000000", MALLOC_MMAP_THRESHOLD_="1000000")
    assert within < PAGES / 2
