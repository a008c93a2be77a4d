"""An exponential moving average of the weights, evaluated and exported in their place."""

import copy
from collections.abc import Iterable
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from sightline.core.errors import ModelError


class ModelEMA:
    """After every step, average = decay * average + (1 - decay) * weight (Polyak and Juditsky, 1992, with exponential
    weights), for parameters and the floating-point buffers; whole numbers, such as a batch count, are copied.

    The network may replace its tensors and modules between two steps (`self.buffer = value` in its forward), add some,
    remove some, or hold one under several names: the average follows. A tensor that is new, or has another shape or
    type, begins with the network's value; one that was replaced by another of its shape is averaged as before.

    `torch.optim.swa_utils.AveragedModel` does not serve: it pairs tensors by their position and drops what one side has
    more (`strict=False`), so that a tensor that is added, removed or replaced by the network is averaged with another
    one or not at all; it averages whole-number buffers where it averages buffers; its count `n_averaged` is a tensor on
    the device that every update reads back; and it keeps the network under `module.`, so checkpoints written so far
    would not fit.

    `warmup` bounds the decay by (1 + step) / (10 + step), with `step` the updates before this one, as TensorFlow's
    `ExponentialMovingAverage` does with `num_updates`: an average of few steps does not remember the first weights."""

    def __init__(self, decay: float, warmup: bool = True):
        if not 0 < decay < 1:
            raise ValueError(f"decay must be between 0 and 1, not {decay}")
        self.decay = decay
        self.warmup = warmup
        self._modules: tuple[list[nn.Module], list[nn.Module]] = ([], [])
        self._parts: tuple[list[Any], list[Any]] = ([], [])
        self._averaged: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._copied: tuple[list[Tensor], list[Tensor]] = ([], [])

    @staticmethod
    def start(model: nn.Module) -> nn.Module:
        """The average of no steps: a copy of the model, in evaluation mode and without gradients. Raises ModelError
        when it cannot be copied."""
        try:
            return copy.deepcopy(model).eval().requires_grad_(False)
        except Exception as error:  # a lock, a generator or an open file is not copied
            raise ModelError(
                f"this network cannot be copied: {type(error).__name__}: {error}. Leave the average out, or give the "
                f"network a __deepcopy__."
            ) from error

    @torch.no_grad()
    def update(self, average: nn.Module, model: nn.Module, step: int) -> None:
        """Moves `average` towards `model`; nothing is read back from the device."""
        if not self._is_current(average, model):
            self._pair(average, model)
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        if self._averaged[0]:
            torch._foreach_lerp_(*self._averaged, 1 - decay)
        for old, new in zip(*self._copied, strict=True):
            old.copy_(new)

    def _is_current(self, average: nn.Module, model: nn.Module) -> bool:
        """Whether both networks consist of the very tensors and modules that were paired. A state dict of some hundred
        tensors costs more than averaging them; this comparison does not."""
        for root, modules, parts in zip((average, model), self._modules, self._parts, strict=True):
            if not modules or modules[0] is not root:
                return False
            found = _parts(modules)
            if len(found) != len(parts) or not all(map(is_, found, parts)):
                return False
        return True

    def _pair(self, average: nn.Module, model: nn.Module) -> None:
        _match_modules(average, model)
        modules = dict(model.named_modules(remove_duplicate=False))
        own = dict(average.named_modules(remove_duplicate=False))
        partners: dict[Any, Tensor] = {}  # by the place in memory of the network's tensor, the average of it
        taken: dict[Any, Any] = {}  # by the place in memory of an average, the network's tensor it is of
        pairs: list[tuple[Tensor, Tensor]] = []
        for name, module in modules.items():
            for kind in ("_parameters", "_buffers"):
                mine, theirs = getattr(own[name], kind), getattr(module, kind)
                for key in [key for key in mine if key not in theirs]:
                    del mine[key]
                for key, new in theirs.items():
                    if new is None:
                        mine[key] = None
                        continue
                    place = _place(new)
                    if place not in partners:
                        old = mine.get(key)
                        usable = old is not None and _fits(old, new) and taken.get(_place(old), place) == place
                        partners[place] = old if usable else _copy(new)
                        taken[_place(partners[place])] = place
                        pairs.append((partners[place], new))
                    mine[key] = partners[place]
            own[name]._non_persistent_buffers_set = set(module._non_persistent_buffers_set)
        real = [pair for pair in pairs if pair[0].is_floating_point() or pair[0].is_complex()]
        whole = [pair for pair in pairs if not (pair[0].is_floating_point() or pair[0].is_complex())]
        self._averaged = ([old for old, _ in real], [new for _, new in real])
        self._copied = ([old for old, _ in whole], [new for _, new in whole])
        self._modules = (list(average.modules()), list(model.modules()))
        self._parts = (_parts(self._modules[0]), _parts(self._modules[1]))


def _parts(modules: Iterable[nn.Module]) -> list[Any]:
    """Parameters, buffers and children of modules, in order."""
    found: list[Any] = []
    for module in modules:
        found += module._parameters.values()
        found += module._buffers.values()
        found += module._modules.values()
    return found


def _match_modules(average: nn.Module, model: nn.Module) -> None:
    """Gives the average the network's modules: copies of those it lacks, and none that the network has not. Where a
    hook of the network computes a weight since then, as in pruning, the average gets the hook."""
    hooks = average._forward_pre_hooks, model._forward_pre_hooks
    if average._parameters.keys() != model._parameters.keys() and len(hooks[0]) != len(hooks[1]):
        average._forward_pre_hooks = copy.copy(model._forward_pre_hooks)
    for name in [name for name in average._modules if name not in model._modules]:
        del average._modules[name]
    for name, child in model._modules.items():
        mine = average._modules.get(name)
        if child is None:
            average._modules[name] = None
        elif mine is None or type(mine) is not type(child):
            average._modules[name] = ModelEMA.start(child)
        else:
            _match_modules(mine, child)


def _fits(old: Tensor, new: Tensor) -> bool:
    return old.shape == new.shape and old.dtype == new.dtype and old.device == new.device


def _copy(tensor: Tensor) -> Tensor:
    made = tensor.detach().clone()
    return nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made


def _place(tensor: Tensor) -> Any:
    """Equal for tensors that are the same numbers in memory, under whatever names."""
    if not tensor.numel() or tensor.is_sparse:
        return id(tensor)
    return (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
