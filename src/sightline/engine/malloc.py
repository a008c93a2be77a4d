"""The C library's heap while a network trains on the CPU.

A step frees the activations it has made, glibc gives the end of its heap back to the system, and the next step has
every page of it made and cleared anew. Activations of more than 32 MiB, as those of photographs, are no part of the
heap at all: glibc maps each of them from the system and unmaps it, and not in all of its versions can that threshold be
set higher. Within `keep_heap` nothing is mapped, and what was freed stays with the process until the end of the block
(mallopt(3): M_MMAP_MAX, M_TRIM_THRESHOLD)."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_LARGEST_MMAP = 32 << 20  # what glibc's own, moving threshold may rise to
_USUAL_MAPPED = 65536  # blocks
_NEVER = -1
_USUAL_TRIM = 2 * _LARGEST_MMAP  # what glibc's own comes to when a tensor of 32 MiB has been freed
_OWN_SETTINGS = (
    *(f"MALLOC_{name}_" for name in ("TRIM_THRESHOLD", "MMAP_THRESHOLD", "MMAP_MAX", "TOP_PAD")),
    *("GLIBC_TUNABLES", "LD_PRELOAD"),
)


@contextmanager
def keep_heap() -> Iterator[None]:
    """Keeps the heap for the length of the block, and gives it back after it. Does nothing where the C library is not
    glibc, or where the environment sets it, or another allocator."""
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP)
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        library.mallopt(_MMAP_MAX, _USUAL_MAPPED)
        library.mallopt(_TRIM_THRESHOLD, _USUAL_TRIM)
        library.malloc_trim(0)


def _glibc() -> Any:
    if not sys.platform.startswith("linux") or any(os.environ.get(name) for name in _OWN_SETTINGS):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt") else None
