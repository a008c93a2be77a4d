"""During training the process keeps the memory that a step frees; after training it returns the memory."""

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
"""The number of pages in 128 MiB."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept_between_steps_and_returned_after_the_run() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    kept, returned = map(int, done.stdout.split())
    assert kept > 0.9 * PAGES
    assert returned > 0.9 * PAGES


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_the_memory_of_large_activations_is_kept() -> None:
    """Earlier versions mapped each of the 20 tensors again, with 12,288 page faults each."""
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 3 * 12_288


class Library:
    """A C library that records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []

    def gnu_get_libc_version(self) -> str:
        return "2.36"

    def mallopt(self, parameter: int, value: int) -> int:
        self.calls.append(("mallopt", parameter, value))
        return 1

    def malloc_trim(self, pad: int) -> int:
        self.calls.append(("malloc_trim", pad, 0))
        return 1


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    fake = Library()
    monkeypatch.setattr(heap.sys, "platform", "linux")
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda _: fake)
    for name in heap._OWN_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    return fake


def test_the_settings_are_restored_after_an_exception(library: Library) -> None:
    def fail() -> None:
        with heap.keep_heap():
            assert library.calls == [("mallopt", -3, 32 << 20), ("mallopt", -4, 0), ("mallopt", -1, -1)]
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert library.calls[3:] == [("mallopt", -4, 65536), ("mallopt", -1, 64 << 20), ("malloc_trim", 0, 0)]


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_settings_of_the_environment_are_not_changed(
    name: str, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    with heap.keep_heap():
        pass
    assert library.calls == []


def test_other_systems_are_not_changed(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap.sys, "platform", "darwin")
    with heap.keep_heap():
        pass
    assert library.calls == []
