"""Saves a training state in memory, so that a trial training, such as the learning-rate finder, can be undone."""

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.core.types import Loader, TrainState
from sightline.engine.iterable_loader import IterableLoader


class Snapshot:
    """Saves a training state, its task and its loader; `restore` resets them in place, bit for bit.

    This covers: parameters, their gradients and `requires_grad`; buffers; the device and memory format of both; the
    mode and other attributes of every submodule, including compilation; the optimiser and its groups; EMA, scaler,
    schedules and counters; the loader's position; and the random generators of torch, `random` and numpy. Objects keep
    their identity, so existing references to them stay valid.

    Batches already read from a generator cannot be restored. The loader's pixels are not copied and must not be
    changed. Copies of tensors are on the CPU, since a device may be nearly full."""

    def __init__(self, state: TrainState, task: Any = None, train: Any = None):
        self._tensors: list[tuple[Tensor, Tensor, Tensor, Tensor | None, bool]] = []
        self._dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._lists: list[tuple[list[Any], list[Any]]] = []
        self._calls: list[Callable[[], object]] = []
        self._seen: set[int] = set()
        for owner in (state, task, state.scaler, *(schedule.scheduler for schedule in state.schedules)):
            self._attributes(owner)
        # only their attributes, which include the position; the data they load is not copied
        for owner in (train, train.batches if isinstance(train, IterableLoader) else None):
            attributes = vars(owner) if hasattr(owner, "__dict__") else {}
            self._dicts.append((attributes, dict(attributes)))
        position = copy.deepcopy(train.position()) if isinstance(train, Loader) else None
        if position:
            epoch, batch = state.epoch, state.batch
            self._calls.append(lambda: train.seek(epoch, batch, position))
        self._generators()

    @torch.no_grad()
    def restore(self) -> None:
        """Resets everything to the saved values."""
        for live, saved in self._dicts:
            if [*map(id, live)] != [*map(id, saved)]:  # keys were added, removed or reordered
                live.clear()
            live.update(saved)
        for items, saved_items in self._lists:
            items[:] = saved_items
        for tensor, original, value, grad, requires_grad in self._tensors:
            # moved to another device, or converted to another memory format
            if tensor.device != original.device or tensor.stride() != original.stride():
                tensor.data = original
            tensor.copy_(value)
            if tensor.is_leaf:
                tensor.requires_grad_(requires_grad)
                tensor.grad = grad
        for call in self._calls:
            call()

    def _attributes(self, owner: Any) -> None:
        if hasattr(owner, "__dict__"):
            self._follow(vars(owner))

    def _follow(self, value: Any) -> None:
        """Saves containers, networks and optimisers recursively; other objects, such as datasets, are not saved."""
        if not isinstance(value, Tensor | dict | list | tuple | nn.Module | torch.optim.Optimizer | torch.Generator):
            return
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, dict):
            self._dicts.append((value, dict(value)))
            for item in value.values():
                self._follow(item)
        elif isinstance(value, list | tuple):
            if isinstance(value, list):
                self._lists.append((value, list(value)))
            for item in value:
                self._follow(item)
        elif isinstance(value, torch.Generator):
            self._generator(value)
        else:
            self._attributes(value)
            if isinstance(value, nn.Module) and type(value).get_extra_state is not nn.Module.get_extra_state:
                extra = copy.deepcopy(value.get_extra_state())
                self._calls.append(lambda: value.set_extra_state(extra))

    def _tensor(self, tensor: Tensor) -> None:
        repeated = any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
        if repeated or tensor.is_inference():  # torch cannot write into these
            return
        grad = tensor.grad if tensor.is_leaf else None
        if grad is not None:
            self._follow(grad)
        value = tensor.detach().to("cpu", copy=True)
        self._tensors.append((tensor, tensor.data, value, grad, tensor.requires_grad))

    def _generators(self) -> None:
        state, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 the global generator
        self._calls.append(lambda: random.setstate(state))
        self._calls.append(lambda: np.random.set_state(legacy))  # noqa: NPY002
        generators = [torch.default_generator]
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            generators += torch.cuda.default_generators
        if torch.backends.mps.is_available():
            generators.append(torch.mps._get_default_mps_generator())
        for generator in generators:
            self._generator(generator)

    def _generator(self, generator: torch.Generator) -> None:
        state = generator.get_state()
        self._calls.append(lambda: generator.set_state(state))
