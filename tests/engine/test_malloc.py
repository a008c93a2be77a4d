"""Memory that a step frees stays with the process while a network trains, and is given back after it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from sightline.engine import malloc as heap

SCRIPT = """
import torch
from sightline.engine.runtime import Runtime

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])

with Runtime("cpu", threads=1).active():
    before = resident()
    for _ in range(3):
        sum(float(part[0]) for part in [torch.ones(1 << 20) for _ in range(32)])  # 128 MiB, then all of it free
    held = resident()
print(held - before, held - resident())
"""
LARGE = """
import resource, torch
from sightline.engine.runtime import Runtime

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

with Runtime("cpu", threads=1).active():
    torch.ones(12 << 20)  # 48 MiB, as the activations of a batch of photographs
    before = faults()
    for _ in range(20):
        torch.ones(12 << 20)
    print(faults() - before)
"""
PAGES = 32768
"""In 128 MiB."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_what_a_step_frees_is_kept_for_the_next_and_given_back_after_the_run() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    kept, given_back = map(int, done.stdout.split())
    assert kept > 0.9 * PAGES
    assert given_back > 0.9 * PAGES


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_large_activations_are_kept_too() -> None:
    """Before, each of them was mapped anew, page by page: 12,288 faults for each of the 20."""
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 3 * 12_288


class Library:
    """A C library that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, int]] = []

    def gnu_get_libc_version(self) -> str:
        return "2.36"

    def mallopt(self, parameter: int, value: int) -> int:
        self.told.append(("mallopt", parameter, value))
        return 1

    def malloc_trim(self, pad: int) -> int:
        self.told.append(("malloc_trim", pad, 0))
        return 1


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()
    monkeypatch.setattr(heap.sys, "platform", "linux")
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda _: made)
    for name in heap._OWN_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    return made


def test_it_is_put_back_whatever_happens(library: Library) -> None:
    def fail() -> None:
        with heap.keep_heap():
            assert library.told == [("mallopt", -3, 32 << 20), ("mallopt", -4, 0), ("mallopt", -1, -1)]
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert library.told[3:] == [("mallopt", -4, 65536), ("mallopt", -1, 64 << 20), ("malloc_trim", 0, 0)]


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_what_the_environment_sets_stays(name: str, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    with heap.keep_heap():
        pass
    assert library.told == []


def test_other_systems_are_left_alone(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap.sys, "platform", "darwin")
    with heap.keep_heap():
        pass
    assert library.told == []
