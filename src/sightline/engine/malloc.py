"""Keeps freed memory in the process while a network trains on the CPU (Linux with glibc).

When a step frees its activations, glibc returns the end of the heap to the system, and the next step has to allocate
and clear every page again. Tensors of more than 32 MiB, such as activations of photographs, are not on the heap: glibc
maps and unmaps each of them, and not every version allows a higher threshold. Within `keep_heap` no block is mapped
separately, and freed memory stays in the process until the block ends (mallopt(3): M_MMAP_MAX, M_TRIM_THRESHOLD)."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_LARGEST_MMAP = 32 << 20  # bytes; the upper limit of glibc's dynamic threshold
_USUAL_MAPPED = 65536  # blocks; glibc's default
_NEVER = -1
_USUAL_TRIM = 2 * _LARGEST_MMAP  # glibc's dynamic threshold after a tensor of 32 MiB was freed
_OWN_SETTINGS = (
    *(f"MALLOC_{name}_" for name in ("TRIM_THRESHOLD", "MMAP_THRESHOLD", "MMAP_MAX", "TOP_PAD")),
    *("GLIBC_TUNABLES", "LD_PRELOAD"),
)


@contextmanager
def keep_heap() -> Iterator[None]:
    """Keeps freed memory in the process within the block, and returns it to the system afterwards.

    Does nothing if the C library is not glibc, or if the environment configures malloc or preloads a library."""
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
