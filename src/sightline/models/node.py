"""Conversion of an existing network to a config node that builds the same architecture."""

import inspect
from collections import Counter
from typing import Any

from torch import Tensor, nn

from sightline.core import locate
from sightline.core.errors import ConfigError


def model_to_node(model: nn.Module) -> dict[str, Any]:
    """Returns the config node of a network's architecture, without its weights.

    Supports layers of torch.nn in unnamed Sequentials, and importable custom classes that need no arguments. Raises
    ConfigError if the node cannot be made, or would build a network with another repr or other tensor shapes."""
    node = _node(model)
    rebuilt = locate.instantiate(node, key="network")
    if repr(rebuilt) != repr(model) or _shapes(rebuilt) != _shapes(model):
        raise ConfigError(f"rebuilding {type(model).__name__} from its config node gives a different network.")
    return node


def _node(layer: nn.Module) -> dict[str, Any]:
    cls = type(layer)
    name = f"{cls.__module__}.{cls.__qualname__}"
    if isinstance(layer, nn.Sequential) and cls is nn.Sequential:
        if list(layer._modules) != [str(position) for position in range(len(layer))]:
            raise ConfigError("a Sequential with named layers cannot be saved as a config node.")
        return {"_target_": "torch.nn.Sequential", "_args_": [_node(child) for child in layer]}
    if cls.__module__ == "__main__":
        raise ConfigError(f"the class {cls.__qualname__} is defined in __main__ and cannot be imported later.")
    arguments = {}
    if cls.__module__.startswith("torch.nn."):
        for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]:
            value = getattr(layer, parameter.name, parameter.default)
            if parameter.name == "bias":
                value = value is not None and value is not False
            if parameter.name in ("device", "dtype") or parameter.kind is parameter.VAR_KEYWORD:
                continue
            plain = list(value) if isinstance(value, tuple) else value
            if not all(item is None or isinstance(item, bool | int | float | str) for item in _flat(plain)):
                raise ConfigError(f"the argument '{parameter.name}' of {cls.__name__} is not a plain value.")
            if plain != parameter.default:
                arguments[parameter.name] = plain
    return {"_target_": name, **arguments}


def _flat(value: Any) -> list[Any]:
    return [part for item in value for part in _flat(item)] if isinstance(value, list) else [value]


def _shapes(model: nn.Module) -> Counter[tuple[str, tuple[int, ...]]]:
    return Counter(
        (name, tuple(value.shape)) for name, value in model.state_dict().items() if isinstance(value, Tensor)
    )
