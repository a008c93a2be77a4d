"""Expands the short keys of a config, such as `model=timm/resnet18 pretrained=true weights=FILE`, to keys of `module`.

Also sets the default loss, which depends on `data.target`."""

from collections.abc import Mapping
from typing import Any

from sightline.config.typed import NAMING
from sightline.core.errors import ConfigError, did_you_mean

_SMALL = "sightline.models.networks"
_LIBRARIES = ("timm", "torchvision")
_WITHOUT_AUXILIARY_HEADS = {
    name: {"aux_logits": False, "init_weights": True, "num_classes": "auto"} for name in ("googlenet", "inception_v3")
}
"""Arguments of the torchvision networks that have auxiliary heads with outputs in training only."""
_NUMBER_LOSS = {"_target_": "torch.nn.MSELoss"}
"""The default loss with `data.target=number`; the one in the schema is for classes."""


def expand(values: Any) -> Any:
    """Returns the config with its short keys expanded, ready to be checked against the schema.

    Values of a wrong type are not changed; the schema check reports them. Raises ConfigError if `model` is not the name
    of a network, or if `module.network` describes a network too."""
    if not isinstance(values, Mapping) or not isinstance(values.get("module", {}), Mapping):
        return values
    values, module = dict(values), dict(values.get("module", {}))
    for name, kind in (("pretrained", bool), ("weights", str)):
        value = values.get(name)
        if isinstance(value, kind) or (kind is str and hasattr(value, "__fspath__")):
            module[name], values[name] = value, None
    if isinstance(values.get("model"), str):
        network = module.get("network", {})
        arguments = network if isinstance(network, Mapping) else {}
        if NAMING & set(arguments):
            raise ConfigError(
                f"model: '{values['model']}' names a network, but module.network describes another one. Set only one "
                f"of the two."
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
    """Returns the node of `timm/NAME`, `torchvision/NAME` or a dotted class. Raises ConfigError for any other name."""
    library, slash, inner = name.partition("/")
    if not slash and "." in name:
        return {"_target_": name}
    if not slash or not inner or library not in _LIBRARIES:
        hint = f" Did you mean 'timm/{name}' or 'torchvision/{name}'?"
        if slash:
            hint = did_you_mean(library, _LIBRARIES).replace("'?", f"/{inner}'?") if inner else ""
        raise ConfigError(
            f"model: '{name}' is not the name of a network.{hint} Expected timm/NAME, torchvision/NAME or a dotted "
            f"class such as '{_SMALL}.SmallCNN'."
        )
    if library == "timm":
        return {"_target_": "timm.create_model", "model_name": inner, "num_classes": "auto", "in_chans": "auto"}
    return {"_target_": f"torchvision.models.{inner}", **_WITHOUT_AUXILIARY_HEADS.get(inner, {"num_classes": "auto"})}
