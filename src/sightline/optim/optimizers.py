"""Optimisers from a class and its arguments."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from sightline.core import locate
from sightline.core.errors import ConfigError


def build_optimizer(
    target: Any,
    arguments: Mapping[str, Any],
    model: nn.Module,
    key: str,
    groups: Sequence[Mapping[str, Any]] | None = None,
) -> Optimizer:
    """`target(parameters, **arguments)` over every parameter of `model` that is trained: all in one group, in the
    model's order, or in `groups`, each with its `params` and further arguments. `key` is for messages."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ConfigError(f"{key}: the network has no parameter to train.")
    optimizer = locate.call_target(target, [parameters if groups is None else list(groups)], arguments, key=key)
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"{key}._target_: made a {type(optimizer).__name__}, not a torch.optim.Optimizer.")
    needed = [p.name for p in inspect.signature(optimizer.step).parameters.values() if p.default is p.empty]
    if needed:  # LBFGS evaluates the loss several times in one step
        raise ConfigError(
            f"{key}._target_: {type(optimizer).__name__}.step() needs '{needed[0]}', a function that computes the loss "
            f"again, which a step on one batch does not have. Choose another optimiser, or train with your own task."
        )
    return optimizer
