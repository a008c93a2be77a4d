"""Building an optimiser from a class and its arguments."""

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
    """Returns `target(parameters, **arguments)` for the trainable parameters of `model`.

    They form one group in the model's order, or `groups`, each a dict with `params` and further arguments. `key` names
    the optimiser in messages. Raises ConfigError if no parameter is trainable, an argument is wrong, or `target` is not
    a torch optimiser whose `step()` works without a closure."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ConfigError(f"{key}: the network has no trainable parameter.")
    optimizer = locate.call_target(target, [parameters if groups is None else list(groups)], arguments, key=key)
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"{key}._target_: expected a torch.optim.Optimizer, found a {type(optimizer).__name__}.")
    required = [p.name for p in inspect.signature(optimizer.step).parameters.values() if p.default is p.empty]
    if required:  # LBFGS evaluates the loss several times in one step
        raise ConfigError(
            f"{key}._target_: {type(optimizer).__name__}.step() needs '{required[0]}', a function that recomputes the "
            f"loss, which a training step does not provide. Choose another optimiser, or use a custom task."
        )
    return optimizer
