"""An exponential moving average (EMA) of the weights, which is evaluated and exported instead of them."""

import copy
from collections.abc import Iterable
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from sightline.core.errors import ModelError


class ModelEMA:
    """Maintains an exponential moving average of the parameters and floating-point buffers of a network.

    After every step, average = decay * average + (1 - decay) * weight (Polyak and Juditsky, 1992, with exponential
    weights). Other tensors, such as an integer batch count, are copied. `warmup` limits the decay to
    (1 + step) / (10 + step), where `step` is the number of earlier updates, as in TensorFlow's
    `ExponentialMovingAverage` with `num_updates`: an average of few steps then depends little on the initial weights.

    The network may replace its tensors and modules between two steps (`self.buffer = value` in its forward), add or
    remove some, or have one under several names: the average follows. A tensor that is new, or has another shape, dtype
    or device, starts with the network's value; one that was replaced by another of its shape is averaged as before.

    `torch.optim.swa_utils.AveragedModel` is not used, for four reasons. It pairs tensors by position and ignores
    surplus ones (`strict=False`), so a tensor that the network adds, removes or replaces is averaged with the wrong one
    or not at all. With buffers, it also averages integer buffers. Its count `n_averaged` is a tensor on the device that
    every update reads back. It stores the network under `module.`, which existing checkpoints do not."""

    def __init__(self, decay: float, warmup: bool = True):
        if not 0 < decay < 1:
            raise ValueError(f"decay: expected a number in (0, 1), found {decay}.")
        self.decay = decay
        self.warmup = warmup
        self._modules: tuple[list[nn.Module], list[nn.Module]] = ([], [])
        self._parts: tuple[list[Any], list[Any]] = ([], [])
        self._averaged: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._copied: tuple[list[Tensor], list[Tensor]] = ([], [])

    @staticmethod
    def start(model: nn.Module) -> nn.Module:
        """Returns the initial average: a copy of the model, in evaluation mode and without gradients.

        Raises ModelError if the model cannot be copied."""
        try:
            return copy.deepcopy(model).eval().requires_grad_(False)
        except Exception as error:  # such as for a lock, a generator or an open file
            raise ModelError(
                f"the network cannot be copied: {type(error).__name__}: {error}. Disable the EMA, or define "
                f"__deepcopy__ in the network."
            ) from error

    @torch.no_grad()
    def update(self, average: nn.Module, model: nn.Module, step: int) -> None:
        """Updates `average` in place; `step` counts the earlier updates. Nothing is read back from the device."""
        if not self._is_current(average, model):
            self._pair(average, model)
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        if self._averaged[0]:
            torch._foreach_lerp_(*self._averaged, 1 - decay)
        for old, new in zip(*self._copied, strict=True):
            old.copy_(new)

    def _is_current(self, average: nn.Module, model: nn.Module) -> bool:
        """Returns whether both networks still consist of the tensors and modules that were paired.

        Compares identities, since building a state dict of some hundred tensors costs more than averaging them."""
        for root, modules, parts in zip((average, model), self._modules, self._parts, strict=True):
            if not modules or modules[0] is not root:
                return False
            current = _parts(modules)
            if len(current) != len(parts) or not all(map(is_, current, parts)):
                return False
        return True

    def _pair(self, average: nn.Module, model: nn.Module) -> None:
        _match_modules(average, model)
        modules = dict(model.named_modules(remove_duplicate=False))
        average_modules = dict(average.named_modules(remove_duplicate=False))
        averages: dict[Any, Tensor] = {}  # memory key of a network tensor -> its average
        sources: dict[Any, Any] = {}  # memory key of an average -> memory key of its network tensor
        pairs: list[tuple[Tensor, Tensor]] = []
        for name, module in modules.items():
            for kind in ("_parameters", "_buffers"):
                target, source = getattr(average_modules[name], kind), getattr(module, kind)
                for key in [key for key in target if key not in source]:
                    del target[key]
                for key, new in source.items():
                    if new is None:
                        target[key] = None
                        continue
                    memory = _memory_key(new)
                    if memory not in averages:
                        old = target.get(key)
                        usable = old is not None and _fits(old, new) and sources.get(_memory_key(old), memory) == memory
                        averages[memory] = old if usable else _copy(new)
                        sources[_memory_key(averages[memory])] = memory
                        pairs.append((averages[memory], new))
                    target[key] = averages[memory]
            average_modules[name]._non_persistent_buffers_set = set(module._non_persistent_buffers_set)
        floating = [pair for pair in pairs if pair[0].is_floating_point() or pair[0].is_complex()]
        integral = [pair for pair in pairs if not (pair[0].is_floating_point() or pair[0].is_complex())]
        self._averaged = ([old for old, _ in floating], [new for _, new in floating])
        self._copied = ([old for old, _ in integral], [new for _, new in integral])
        self._modules = (list(average.modules()), list(model.modules()))
        self._parts = (_parts(self._modules[0]), _parts(self._modules[1]))


def _parts(modules: Iterable[nn.Module]) -> list[Any]:
    """Returns the parameters, buffers and children of modules, in order."""
    parts: list[Any] = []
    for module in modules:
        parts += module._parameters.values()
        parts += module._buffers.values()
        parts += module._modules.values()
    return parts


def _match_modules(average: nn.Module, model: nn.Module) -> None:
    """Copies modules that the average lacks, and deletes those that the network does not have.

    If a hook of the network now computes a weight, as in pruning, the average gets the hook as well."""
    hooks = average._forward_pre_hooks, model._forward_pre_hooks
    if average._parameters.keys() != model._parameters.keys() and len(hooks[0]) != len(hooks[1]):
        average._forward_pre_hooks = copy.copy(model._forward_pre_hooks)
    for name in [name for name in average._modules if name not in model._modules]:
        del average._modules[name]
    for name, child in model._modules.items():
        target = average._modules.get(name)
        if child is None:
            average._modules[name] = None
        elif target is None or type(target) is not type(child):
            average._modules[name] = ModelEMA.start(child)
        else:
            _match_modules(target, child)


def _fits(old: Tensor, new: Tensor) -> bool:
    return old.shape == new.shape and old.dtype == new.dtype and old.device == new.device


def _copy(tensor: Tensor) -> Tensor:
    copied = tensor.detach().clone()
    return nn.Parameter(copied, requires_grad=False) if isinstance(tensor, nn.Parameter) else copied


def _memory_key(tensor: Tensor) -> Any:
    """Returns a key that is equal for tensors that share the same memory, even under different names."""
    if not tensor.numel() or tensor.is_sparse:
        return id(tensor)
    return (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
