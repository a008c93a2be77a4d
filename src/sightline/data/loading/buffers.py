"""A pool of memory for batches, which is reused when no tensor refers to it any more."""

import math
import sys
import threading
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor


class BufferPool:
    """Reusable CPU tensors of one shape and dtype.

    Allocating a batch of megabytes for every step costs as much in page faults as in copying. It also fragments memory,
    so that a long run uses more and more of it."""

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike):
        self._shape, self._dtype = shape, dtype
        self._arrays: list[NDArray[Any]] = []
        self._lock = threading.Lock()

    def take(self, count: int) -> Tensor:
        """Returns a tensor [count, *shape] with arbitrary content. Its memory is reused only after the last tensor that
        shares it is deleted, so a batch may be kept for any time."""
        with self._lock:
            # all tensors that share the memory of an array hold one reference to it
            free = [at for at in range(len(self._arrays)) if _refcount(self._arrays, at) == _UNSHARED_REFCOUNT]
            for at in free:
                if len(self._arrays[at]) >= count:
                    return torch.from_numpy(self._arrays[at])[:count]
            array = _empty_aligned((count, *self._shape), self._dtype)
            if free:  # too small: replaced, since most batches have the larger size
                self._arrays[free[0]] = array
            elif len(self._arrays) < _MAX_ARRAYS:
                self._arrays.append(array)
            return torch.from_numpy(array)


def _empty_aligned(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Returns an array whose memory starts at a multiple of 64 bytes, as torch's does. Without this alignment libraries
    may sum in another order, and the same batch would result in another step."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 63, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def _refcount(arrays: list[NDArray[Any]], position: int) -> int:
    return sys.getrefcount(arrays[position])


_UNSHARED_REFCOUNT = _refcount([np.empty(0)], 0)
_MAX_ARRAYS = 16
