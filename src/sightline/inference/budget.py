"""A limit on the memory that building a network from an artifact may take.

A manifest can name layers of any size. Without a limit, a layer of a million by a million would exhaust the memory
before the weights are found not to fit."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_META = torch.device("meta")
_EXTRA_BYTES = 256 * 2**20
"""Allowed beside the weights, for position tables, masks, and temporary tensors of a constructor."""
_EXTRA_TENSORS = 10_000
_MAX_META_ELEMENTS = 2**30
"""Largest number of elements of a meta tensor; networks are traced with meta tensors before they run."""


class MemoryBudgetError(BaseException):
    """The budget is exceeded.

    It derives from BaseException, so that a network's code or a wrapper does not catch it and continue."""


@contextmanager
def memory_budget(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """A context manager that limits how much memory and how many tensors the block may allocate in this thread.

    The limits are 8 times the bytes of `tensors` plus 256 MiB, and 100 times their number plus 10,000. Raises
    MemoryBudgetError before more is allocated."""
    size = sum(tensor.nbytes for tensor in tensors.values())
    with _Budget(8 * size + _EXTRA_BYTES, 100 * len(tensors) + _EXTRA_TENSORS):
        yield


class _Budget(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Intercepts every torch operation of its thread and counts down the bytes and tensors that may be allocated."""

    def __init__(self, bytes_left: int, tensors_left: int):
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes_left = bytes_left
        self.tensors_left = tensors_left

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs the operation if the budget suffices for the tensors it allocates."""
        options = dict(kwargs or {})
        if not any(isinstance(value, Tensor) for value in _flatten([*args, *options.values()])):
            planned = _planned_tensor(func, args, options)
            if planned is not None:
                self._spend(0 if options.get("device") == _META else planned.nbytes)
        result = func(*args, **options)
        for tensor in _flatten([result]):
            if not isinstance(tensor, Tensor):
                continue
            if tensor.is_meta and tensor.numel() > _MAX_META_ELEMENTS:
                raise MemoryBudgetError(f"a tensor of {tensor.numel():,} elements")
            if func is torch.ops.aten.clone.default:  # copy.deepcopy of a layer clones its tensors
                self._spend(0 if tensor.is_meta else tensor.nbytes)
        return result

    def _spend(self, size: int) -> None:
        self.bytes_left -= size
        self.tensors_left -= 1
        if self.bytes_left < 0 or self.tensors_left < 0:
            raise MemoryBudgetError("too much memory" if self.bytes_left < 0 else "too many tensors")


def _planned_tensor(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Returns the tensor that a factory function would allocate, as a meta tensor; None if it is not known."""
    schema = getattr(func, "_schema", None)
    if schema is None or not any(argument.name == "device" for argument in schema.arguments):
        return None
    try:
        tensor = func(*args, **{**kwargs, "device": _META})
    except Exception:  # no meta kernel, or a shape that depends on data
        return None
    return tensor if isinstance(tensor, Tensor) else None


def _flatten(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flatten(value)
        else:
            yield value
