"""The dict's list of layers -> a classifier."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from sightline.core.errors import ConfigError, ModelError, argument_names, did_you_mean
from sightline.models.spec import build_model
from sightline.params.settings import NAMES, with_defaults

_OUTPUTS = ("probabilities", "logits")
_WIDTHS = ("in_channels", "num_features")


def build_classifier(params: Mapping[str, Any], outputs: str = "probabilities") -> nn.Module:
    """`params['net_arch']`, then Flatten and a linear layer of `params['n_classes']`, whose input is worked out from
    `image_height`, `image_width` and `is_image_color`; and a softmax, unless `outputs` is "logits", which is what cross
    entropy takes. `in_channels` and `num_features` may be "auto". float32 [B,C,H,W] -> [B,n_classes].

    Raises ModelError for a layer that does not fit: which one, what it gets and needs, the repair, and the smallest
    square image the network takes. Working this out changes no weight and no buffer."""
    settings = with_defaults(params)
    if outputs not in _OUTPUTS:
        raise ConfigError(
            f"outputs: expected {' or '.join(_OUTPUTS)}, found {outputs!r}.{did_you_mean(outputs, _OUTPUTS)}"
        )
    shape = (3 if settings["is_image_color"] else 1, settings["image_height"], settings["image_width"])
    layers, classes = settings["net_arch"], settings["n_classes"]
    if not isinstance(layers, Sequence) or not all(isinstance(layer, Mapping) for layer in layers):
        raise ConfigError("params['net_arch']: expected a list of dicts, each with 'class' and 'kwargs'.")
    with argument_names(NAMES):
        try:
            return _built(layers, shape, classes, outputs)
        except ModelError as error:
            raise ModelError(f"params['net_arch']: {error}{_repaired(layers, shape, classes)}") from error


def _built(layers: Sequence[Mapping[str, Any]], shape: tuple[int, int, int], classes: int, outputs: str) -> nn.Module:
    head: list[Mapping[str, Any]] = [
        {"class": nn.Flatten},
        {"class": nn.Linear, "kwargs": {"in_features": "auto", "out_features": classes}},
        *([{"class": nn.Softmax, "kwargs": {"dim": -1}}] if outputs == "probabilities" else []),
    ]
    return build_model({"layers": [*layers, *head]}, shape, classes, outputs=outputs, key="net_arch")[0]


def _repaired(layers: Sequence[Mapping[str, Any]], shape: tuple[int, int, int], classes: int) -> str:
    """What is still wrong when every layer takes the width that comes to it; nothing where no width was the trouble."""
    wide = [
        {**layer, "kwargs": {name: "auto" if name in _WIDTHS else given for name, given in kwargs.items()}}
        for layer, kwargs in ((layer, dict(layer.get("kwargs") or {})) for layer in layers)
    ]
    if wide == [dict(layer) for layer in layers]:
        return ""
    try:
        _built(wide, shape, classes, "logits")
    except ModelError as error:
        reason = str(error)
        return f" With 'auto' for {' and '.join(_WIDTHS)} in every layer, {reason[0].lower()}{reason[1:]}"
    return f" With 'auto' for {' and '.join(_WIDTHS)} in every layer it fits."
