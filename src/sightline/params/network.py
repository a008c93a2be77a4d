"""Builds a classifier from the dict's list of layers."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from sightline.core.errors import ConfigError, ModelError, argument_names, did_you_mean
from sightline.models.spec import build_model
from sightline.params.settings import NAMES, with_defaults

_OUTPUTS = ("probabilities", "logits")
_WIDTHS = ("in_channels", "num_features")


def build_classifier(params: Mapping[str, Any], outputs: str = "probabilities") -> nn.Module:
    """Builds `params['net_arch']` with Flatten, a linear layer and a softmax appended.

    The linear layer has `params['n_classes']` outputs; its input size follows from `image_height`, `image_width` and
    `is_image_color`. With `outputs="logits"`, which cross entropy needs, there is no softmax. `in_channels` and
    `num_features` may be "auto". The network maps float32 [N, C, H, W] to [N, n_classes].

    Raises ModelError for a layer that does not fit, with what it gets and needs, the fix, and the smallest square image
    that the network accepts. Computing the sizes changes no weights or buffers."""
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
            return _build(layers, shape, classes, outputs)
        except ModelError as error:
            advice = _fit_with_auto(layers, shape, classes, str(error))
            raise ModelError(f"params['net_arch']: {error}{advice}") from error


def _build(layers: Sequence[Mapping[str, Any]], shape: tuple[int, int, int], classes: int, outputs: str) -> nn.Module:
    head: list[Mapping[str, Any]] = [
        {"class": nn.Flatten},
        {"class": nn.Linear, "kwargs": {"in_features": "auto", "out_features": classes}},
        *([{"class": nn.Softmax, "kwargs": {"dim": -1}}] if outputs == "probabilities" else []),
    ]
    return build_model({"layers": [*layers, *head]}, shape, classes, outputs=outputs, key="net_arch")[0]


def _fit_with_auto(layers: Sequence[Mapping[str, Any]], shape: tuple[int, int, int], classes: int, problem: str) -> str:
    """A sentence on whether the network fits with 'auto' widths in every layer; empty if no layer sets a width, or if
    the problem is the same with them."""
    automatic = [
        {**layer, "kwargs": {name: "auto" if name in _WIDTHS else value for name, value in kwargs.items()}}
        for layer, kwargs in ((layer, dict(layer.get("kwargs") or {})) for layer in layers)
    ]
    if automatic == [dict(layer) for layer in layers]:
        return ""
    try:
        _build(automatic, shape, classes, "logits")
    except ModelError as error:
        if str(error) == problem:
            return ""
        reason = str(error).partition(": ")[2] or str(error)
        return f" With auto, {reason}"
    return f" With 'auto' for {' and '.join(_WIDTHS)} in every layer it fits."
