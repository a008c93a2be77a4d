"""A state as it is now, to come back to. For what trains and must leave no trace, such as the learning-rate finder."""

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
    """Remembers a state, its task and its loader; `restore` puts every bit of them back, in place.

    That is: parameters, their gradients and whether they are trained; buffers; where both are and their memory format;
    every submodule's mode and further attributes, compilation among them; the optimiser with its groups; average,
    scaler, schedules and counters; the loader's place; and the generators of torch, `random` and numpy. Objects stay
    the same objects, so whoever holds one sees it as it was.

    Not remembered is what nobody can take back: batches read from a generator. A loader's pixels, which are not
    copied, must not be changed. Copies of tensors are on the CPU, since a device may be nearly full."""

    def __init__(self, state: TrainState, task: Any = None, train: Any = None):
        self._tensors: list[tuple[Tensor, Tensor, Tensor, Tensor | None, bool]] = []
        self._dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._lists: list[tuple[list[Any], list[Any]]] = []
        self._calls: list[Callable[[], object]] = []
        self._seen: set[int] = set()
        for owner in (state, task, state.scaler, *(schedule.scheduler for schedule in state.schedules)):
            self._attributes(owner)
        # their place is here; what they load from is not followed
        for owner in (train, train.batches if isinstance(train, IterableLoader) else None):
            own = vars(owner) if hasattr(owner, "__dict__") else {}
            self._dicts.append((own, dict(own)))
        position = copy.deepcopy(train.position()) if isinstance(train, Loader) else None
        if position:
            epoch, batch = state.epoch, state.batch
            self._calls.append(lambda: train.seek(epoch, batch, position))
        self._generators()

    @torch.no_grad()
    def restore(self) -> None:
        """Puts everything back."""
        for live, saved in self._dicts:
            if [*map(id, live)] != [*map(id, saved)]:  # else the keys are the same, in the same order
                live.clear()
            live.update(saved)
        for items, kept in self._lists:
            items[:] = kept
        for tensor, place, value, grad, trained in self._tensors:
            if tensor.device != place.device or tensor.stride() != place.stride():  # it was moved or arranged anew
                tensor.data = place
            tensor.copy_(value)
            if tensor.is_leaf:
                tensor.requires_grad_(trained)
                tensor.grad = grad
        for call in self._calls:
            call()

    def _attributes(self, owner: Any) -> None:
        if hasattr(owner, "__dict__"):
            self._follow(vars(owner))

    def _follow(self, value: Any) -> None:
        """Into containers, networks and optimisers; other objects are whoever's they are, such as a data set."""
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
        if repeated or tensor.is_inference():  # torch writes into neither
            return
        grad = tensor.grad if tensor.is_leaf else None
        if grad is not None:
            self._follow(grad)
        value = tensor.detach().to("cpu", copy=True)
        self._tensors.append((tensor, tensor.data, value, grad, tensor.requires_grad))

    def _generators(self) -> None:
        state, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 the generator that others draw from
        self._calls.append(lambda: random.setstate(state))
        self._calls.append(lambda: np.random.set_state(legacy))  # noqa: NPY002
        found = [torch.default_generator]
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            found += torch.cuda.default_generators
        if torch.backends.mps.is_available():
            found.append(torch.mps._get_default_mps_generator())
        for generator in found:
            self._generator(generator)

    def _generator(self, generator: torch.Generator) -> None:
        state = generator.get_state()
        self._calls.append(lambda: generator.set_state(state))
