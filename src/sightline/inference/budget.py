"""How much memory a network may take that an artifact describes: numbers in a description cost nothing, and a layer of
a million by a million would end the process before its weights could be found not to fit."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_META = torch.device("meta")
_SPARE = 256 * 2**20
"""Bytes beside the weights: tables of positions, masks, and what a constructor throws away."""
_MOST_TENSORS = 10_000
_MOST_NUMBERS = 2**30
"""In one tensor that only has a shape, as those have with which a network is tried before it runs."""


class MemoryBudgetError(BaseException):
    """The budget is spent. No `Exception`, so that no network's code, and none that wraps it, goes on after it."""


@contextmanager
def memory_budget(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """While the block makes a network for `tensors`: memory for some times as much as they take, and for some times as
    many of them. Raises MemoryBudgetError before more is taken."""
    held = sum(tensor.nbytes for tensor in tensors.values())
    with _Budget(8 * held + _SPARE, 100 * len(tensors) + _MOST_TENSORS):
        yield


class _Budget(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation of torch in its thread."""

    def __init__(self, left: int, tensors: int):
        super().__init__()  # type: ignore[no-untyped-call]
        self.left = left
        self.tensors = tensors

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The operation, where there is room for what it makes."""
        given = dict(kwargs or {})
        if not any(isinstance(value, Tensor) for value in _flat([*args, *given.values()])):
            planned = _planned(func, args, given)
            if planned is not None:
                self._take(0 if given.get("device") == _META else planned.nbytes)
        result = func(*args, **given)
        for tensor in _flat([result]):
            if not isinstance(tensor, Tensor):
                continue
            if tensor.is_meta and tensor.numel() > _MOST_NUMBERS:
                raise MemoryBudgetError(f"a tensor of {tensor.numel():,} numbers")
            if func is torch.ops.aten.clone.default:  # how a layer is copied
                self._take(0 if tensor.is_meta else tensor.nbytes)
        return result

    def _take(self, size: int) -> None:
        self.left -= size
        self.tensors -= 1
        if self.left < 0 or self.tensors < 0:
            raise MemoryBudgetError("more memory" if self.left < 0 else "more tensors")


def _planned(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The shape of what an operation would make from nothing, without making it; None where it cannot be told."""
    schema = getattr(func, "_schema", None)
    if schema is None or not any(argument.name == "device" for argument in schema.arguments):
        return None
    try:
        found = func(*args, **{**kwargs, "device": _META})
    except Exception:  # it knows no shapes without numbers
        return None
    return found if isinstance(found, Tensor) else None


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value
