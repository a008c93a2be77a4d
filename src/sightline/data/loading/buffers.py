"""Memory for batches that is used again as soon as nobody looks at it any more."""

import math
import sys
import threading
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor


class BufferPool:
    """Tensors of one shape and type, on the CPU. A batch of megabytes that is allocated anew for every step costs as
    much in page faults as in copying, and leaves holes that make a long run grow."""

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike):
        self._shape, self._dtype = shape, dtype
        self._arrays: list[NDArray[Any]] = []
        self._lock = threading.Lock()

    def take(self, count: int) -> Tensor:
        """A tensor [count, *shape] with any content. Its memory comes back when the last tensor that shares it is gone,
        so a batch may be kept for as long as one likes."""
        with self._lock:
            # a tensor over an array, and all that share its memory, hold one reference to it
            free = [at for at in range(len(self._arrays)) if _refcount(self._arrays, at) == _UNSHARED_REFCOUNT]
            for at in free:
                if len(self._arrays[at]) >= count:
                    return torch.from_numpy(self._arrays[at])[:count]
            array = _empty_aligned((count, *self._shape), self._dtype)
            if free:  # too small; batches of the usual size come more often
                self._arrays[free[0]] = array
            elif len(self._arrays) < _MAX_ARRAYS:
                self._arrays.append(array)
            return torch.from_numpy(array)


def _empty_aligned(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Memory that begins at a multiple of 64 bytes, as torch's own does: libraries may add up in another order where it
    does not, and the same batch would make another step."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    whole = np.empty(size + 63, np.uint8)
    begin = -whole.ctypes.data % 64
    return whole[begin : begin + size].view(dtype).reshape(shape)


def _refcount(arrays: list[NDArray[Any]], position: int) -> int:
    return sys.getrefcount(arrays[position])


_UNSHARED_REFCOUNT = _refcount([np.empty(0)], 0)
_MAX_ARRAYS = 16
