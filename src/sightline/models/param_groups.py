"""Parameter groups: layer-wise learning rates, overrides by name, and which parameters have weight decay."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from sightline.core.errors import ConfigError, arg, did_you_mean, join_names
from sightline.core.locate import match_layers


def parameter_groups(
    model: nn.Module,
    target: Any,
    arguments: Mapping[str, Any],
    *,
    depths: Mapping[str, int] | None = None,
    layer_decay: float = 1.0,
    head_lr: float | None = None,
    overrides: Sequence[Mapping[str, Any]] = (),
    decay_1d: bool = True,
) -> list[dict[str, Any]]:
    """Returns the trainable parameters of `model` in groups for the optimiser `target(groups, **arguments)`.

    Each group has a readable `name`; the groups nearest to the head come first. With `depths` (see
    `structure.parameter_depths`), the learning rate is multiplied by `layer_decay` for each block below the head (Clark
    et al., "ELECTRA", 2020), and `head_lr`, if set, is the learning rate of the head. Each of `overrides` is
    `{match: pattern, ...arguments}`; the first that matches a parameter applies, and its values take precedence. With
    `decay_1d=False`, biases and 1-D parameters get `weight_decay` 0 (He et al., "Bag of Tricks", 2019).

    Raises ConfigError for a pattern that matches nothing and for an argument that the optimiser does not have."""
    names = [name for name, _ in model.named_parameters()]
    chosen: dict[str, int] = {}
    for position, override in enumerate(overrides):
        key = f"{arg.param_groups}[{position}]"
        _check_arguments(target, [name for name in override if name != "match"], key)
        for name in match_layers(override["match"], names, key=f"{key}.match"):
            chosen.setdefault(name, position)
    if not decay_1d:
        _check_arguments(target, ["weight_decay"], arg.decay_1d)
    if head_lr is not None:
        _check_arguments(target, ["lr"], arg.head_lr)
    top = max(depths.values(), default=0) if depths else 0
    groups: dict[tuple[int, int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = depths[name] if depths else 0
        no_decay = not decay_1d and (parameter.ndim <= 1 or name.endswith(".bias"))
        position = chosen.get(name, -1)
        kind = (top - depth, position, no_decay)
        if kind not in groups:
            overridden = (
                {item: value for item, value in overrides[position].items() if item != "match"}
                if name in chosen
                else {}
            )
            computed: dict[str, Any] = {}
            if depths:
                computed["lr"] = _rate(target, arguments) * layer_decay ** (top - depth)
                if head_lr is not None and depth == top:
                    computed["lr"] = head_lr
            if no_decay:
                computed["weight_decay"] = 0.0
            labels = [overrides[position]["match"]] if name in chosen else []
            labels += [f"block {depth} of {top}" if depth < top else "head"] if depths else []
            labels += ["no decay"] if no_decay else []
            groups[kind] = {"name": ", ".join(labels) or "rest", "params": [], **computed, **overridden}
        groups[kind]["params"].append(parameter)
    return [groups[kind] for kind in sorted(groups, key=lambda kind: kind[0])]


def _rate(target: Any, arguments: Mapping[str, Any]) -> float:
    rate = arguments.get("lr")
    if rate is None:
        parameter = inspect.signature(target).parameters.get("lr")
        rate = parameter.default if parameter is not None else None
    if not isinstance(rate, int | float):
        raise ConfigError(
            f"{arg.layer_decay}, {arg.head_lr}: the optimiser has no learning rate to scale. Set {arg.lr}."
        )
    return float(rate)


def _check_arguments(target: Any, names: Sequence[str], key: str) -> None:
    """Raises ConfigError for an unknown optimiser argument, which torch accepts in a group and then ignores."""
    parameters = inspect.signature(target).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    valid = [name for name in parameters if name not in ("self", "params")]
    for name in names:
        if name not in valid:
            owner = getattr(target, "__name__", str(target))
            raise ConfigError(
                f"{key}: the optimiser {owner} has no argument '{name}'.{did_you_mean(name, valid)} It takes: "
                f"{join_names(valid)}."
            )
