"""The words that stand for more: `model=timm/resnet18 pretrained=true weights=FILE` -> the keys of `module`; and the
default that depends on another key."""

from collections.abc import Mapping
from typing import Any

from sightline.config.typed import NAMING
from sightline.core.errors import ConfigError, did_you_mean

_SMALL = "sightline.models.networks"
_LIBRARIES = ("timm", "torchvision")
_WITHOUT_AUXILIARY_HEADS = {
    name: {"aux_logits": False, "init_weights": True, "num_classes": "auto"} for name in ("googlenet", "inception_v3")
}
"""What torchvision's networks are built with whose further heads answer in training alone."""
_NUMBER_LOSS = {"_target_": "torch.nn.MSELoss"}
"""With `data.target=number`, the loss that stands in the place of the schema's, which is for classes."""


def expand(values: Any) -> Any:
    """The config with its short words spelt out, ready to be checked; what is no mapping, or of a wrong type, is left
    to that check. Raises ConfigError for a network that is named in no form, or twice."""
    if not isinstance(values, Mapping) or not isinstance(values.get("module", {}), Mapping):
        return values
    values, module = dict(values), dict(values.get("module", {}))
    for name, kind in (("pretrained", bool), ("weights", str)):
        given = values.get(name)
        if isinstance(given, kind) or (kind is str and hasattr(given, "__fspath__")):
            module[name], values[name] = given, None
    if isinstance(values.get("model"), str):
        network = module.get("network", {})
        arguments = network if isinstance(network, Mapping) else {}
        if NAMING & set(arguments):
            raise ConfigError(
                f"model: '{values['model']}' names the network, and module.network describes another; leave one of the "
                f"two out."
            )
        module["network"] = {**network_node(values["model"]), **arguments}
        values["model"] = None
    data = values.get("data")
    if isinstance(data, Mapping) and data.get("target") == "number":
        loss = module.get("loss", {})
        if isinstance(loss, Mapping) and not {"_target_", "class"} & set(loss):
            module["loss"] = {**_NUMBER_LOSS, **loss}
    return {**values, "module": module} if module else values


def network_node(name: str) -> dict[str, Any]:
    """The node of `timm/NAME`, `torchvision/NAME` or a dotted class."""
    library, slash, inner = name.partition("/")
    if not slash and "." in name:
        return {"_target_": name}
    if not slash or not inner or library not in _LIBRARIES:
        hint = did_you_mean(library, _LIBRARIES) if slash else f" Did you mean 'timm/{name}' or 'torchvision/{name}'?"
        raise ConfigError(
            f"model: '{name}' names no network.{hint} Expected timm/NAME, torchvision/NAME or a dotted class such as "
            f"'{_SMALL}.SmallCNN'."
        )
    if library == "timm":
        return {"_target_": "timm.create_model", "model_name": inner, "num_classes": "auto", "in_chans": "auto"}
    return {"_target_": f"torchvision.models.{inner}", **_WITHOUT_AUXILIARY_HEADS.get(inner, {"num_classes": "auto"})}
