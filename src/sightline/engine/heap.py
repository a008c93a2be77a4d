"""The C library's heap while a network trains on the CPU.

A step frees the activations it has made, glibc gives the end of its heap back to the system, and the next step has
every page of it made and cleared anew. Within `kept_heap` what was freed stays with the process until the end of the
block (mallopt(3): M_TRIM_THRESHOLD, M_MMAP_THRESHOLD)."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP = 32 << 20  # what glibc's own, moving threshold may rise to, and the most it takes
_NEVER = -1
_USUAL_TRIM = 2 * _LARGEST_MMAP  # what glibc's own comes to when a tensor of 32 MiB has been freed
_OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES", "LD_PRELOAD")


@contextmanager
def kept_heap() -> Iterator[None]:
    """Keeps the heap for the length of the block, and gives it back after it. Does nothing where the C library is not
    glibc, or where the environment sets it, or another allocator."""
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP)
    library.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        library.mallopt(_TRIM_THRESHOLD, _USUAL_TRIM)
        library.malloc_trim(0)


def _glibc() -> Any:
    if not sys.platform.startswith("linux") or any(os.environ.get(name) for name in _OWN_SETTINGS):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt") else None
