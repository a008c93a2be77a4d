"""Building a network from its config node, with shape checks, and `ModelSpec`, which describes it as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sightline.core import locate
from sightline.core.errors import ConfigError, ModelError, arg, join_names
from sightline.core.eval_mode import eval_mode
from sightline.models.probe import meta_copy, trace

NUM_CLASSES_ARGUMENTS = ("num_classes", "n_classes", "classes", "out_features")
CHANNEL_ARGUMENTS = ("in_channels", "in_chans", "channels")
SIZE_ARGUMENTS = ("image_size", "img_size", "input_size")
OUTPUT_KINDS = ("logits", "probabilities", "values")
"""What the output of a network may be; "values" is regression."""
_NO_DOWNLOAD_VALUES = {
    "pretrained": False,
    "weights": None,
    "weights_backbone": None,
    "checkpoint_path": "",
    "pretrained_cfg": None,
}
"""Arguments of timm and torchvision that download weights, and the values that turn the download off."""


@dataclass(frozen=True)
class ModelSpec:
    """The description of a network that is stored with its weights.

    `network` is `{_target_: ..., arguments}`, `{layers: [nodes]}`, or `{object: name}` for a network that was passed in
    as an object and cannot be built from the spec. `shape` is the (C, H, W) of its input, `num_classes` the number of
    outputs per image. `outputs` is "logits", "probabilities", or, for regression, "values" with `num_classes` 1."""

    network: Mapping[str, Any]
    shape: tuple[int, int, int]
    num_classes: int
    outputs: str = "logits"

    def to_dict(self) -> dict[str, Any]:
        """Returns a dict that can be written as JSON; `from_dict` restores an equal spec."""
        return {
            "network": dict(self.network),
            "shape": list(self.shape),
            "num_classes": self.num_classes,
            "outputs": self.outputs,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSpec:
        """Restores a spec from the dict of `to_dict`."""
        return cls(values["network"], tuple(values["shape"]), values["num_classes"], values["outputs"])


def build_model(
    network: Mapping[str, Any],
    shape: tuple[int, int, int],
    num_classes: int,
    *,
    outputs: str = "auto",
    key: str | None = None,
    allow: Sequence[str] | None = None,
) -> tuple[nn.Module, ModelSpec]:
    """Builds the network of a config node for images of `shape` (C, H, W); returns it and its spec.

    `outputs="auto"` detects whether the network outputs logits or probabilities. `key` names the node in messages;
    `allow` limits which targets may be named, see `locate`. Raises ModelError if a layer does not fit or the output is
    not one number per class, ConfigError for a target or an argument that does not exist."""
    key = key or arg.network
    model: nn.Module
    if "layers" in network:
        model, network = _build_sequential(network["layers"], shape, num_classes, f"{key}.layers", allow)
    elif "object" in network:
        raise ModelError(f"{key}: '{network['object']}' was passed in as an object; pass the same network as model=.")
    else:
        target, args, kwargs = locate.split_node(network, key)
        kwargs = _resolve_auto(kwargs, shape, num_classes, key)
        model, network = _instantiate(target, args, kwargs, key, allow)
    _materialize_lazy(model, shape)
    return model, make_model_spec(model, network, shape, num_classes, outputs, key)


def make_model_spec(
    model: nn.Module,
    network: Mapping[str, Any],
    shape: tuple[int, int, int],
    num_classes: int,
    outputs: str = "auto",
    key: str | None = None,
) -> ModelSpec:
    """Checks that `model` maps images of `shape` (C, H, W) to `num_classes` numbers each; returns its spec.

    `outputs="auto"` detects logits or probabilities. Raises ModelError if the network does not fit or outputs another
    shape."""
    ran = trace(model, shape)
    if ran.output != (num_classes,):
        squeezed = ran.answers and not ran.output
        found = f"a tensor of size {' x '.join(map(str, ran.output))}" if ran.output else "no tensor"
        found = "a tensor without a class dimension" if squeezed else found
        if outputs == "values":
            labels, expected = "the labels are numbers", "1 number, [batch, 1]"
        else:
            labels, expected = f"the data has {num_classes} classes", f"{num_classes} numbers"
        advice = "Leave out squeeze() or flatten(0). " if squeezed else ""
        raise ModelError(
            f"{key or arg.network}: the network outputs {found} for each image, but {labels}. "
            f"{advice}Its last layer must output {expected}. The value 'auto' is replaced by that number "
            f"({' or '.join(NUM_CLASSES_ARGUMENTS[:2])} for most networks, out_features for a linear layer)."
        )
    if outputs == "auto":
        outputs = "probabilities" if outputs_probabilities(model, shape) else "logits"
    return ModelSpec(network, shape, num_classes, outputs)


def check_training_output(model: nn.Module, spec: ModelSpec, key: str | None = None) -> None:
    """Raises ModelError if the network outputs another shape in training mode than in evaluation.

    An example is a network whose auxiliary heads return further outputs. The model is not changed. A network that
    cannot run on the meta device is not checked."""
    plain: nn.Module = getattr(model, "_orig_mod", model)  # a wrapper of torch.compile would compile again
    with torch.no_grad(), torch.random.fork_rng():
        try:
            output = meta_copy(plain).train()(torch.zeros((2, *spec.shape), device="meta"))
        except Exception:  # it reads values, which meta tensors lack; or it is broken, and the first step will fail
            return
    if not isinstance(output, Tensor) or tuple(output.shape[1:]) != (spec.num_classes,):
        found = f"a {type(output).__name__}"
        if isinstance(output, Tensor):
            found = f"a tensor of size {' x '.join(map(str, output.shape[1:]))}"
        raise ModelError(
            f"in training mode, the network outputs {found}. Expected {spec.num_classes} numbers for each image, as in "
            f"evaluation. Turn its auxiliary heads off (aux_logits: false for torchvision), or pass a custom task that "
            f"handles this output as task=.",
            key=key or "network",
        )


def outputs_probabilities(model: nn.Module, shape: tuple[int, int, int]) -> bool:
    """Returns whether the network's outputs for noise are non-negative and sum to one, as those of a softmax."""
    output = output_for_noise(model, shape)
    return bool((output >= 0).all()) and torch.allclose(output.sum(1), torch.ones(len(output)).to(output), atol=1e-4)


def output_for_noise(model: nn.Module, shape: tuple[int, int, int], grad: bool = False) -> Tensor:
    """Returns the network's output, float32 [N,classes], for fixed random images of `shape` (C, H, W).

    N is 4, or 1 for images of more than 224 x 224 pixels. `grad` records gradients. The network runs in evaluation
    mode, and each submodule's mode is restored. Weights, buffers and torch's random state do not change."""
    first = next(model.parameters(), None)
    device = first.device if first is not None else torch.device("cpu")
    count = 4 if shape[1] * shape[2] <= 224 * 224 else 1  # at 1024 x 1024 a ViT takes a minute for four
    noise = torch.randn((count, *shape), generator=torch.Generator().manual_seed(0)).to(device)
    with eval_mode(model), torch.set_grad_enabled(grad), torch.random.fork_rng():
        output: Tensor = model(noise).float()
    return output


def library_and_model(network: Mapping[str, Any]) -> tuple[str, str] | None:
    """Returns (library, model name) for a config node of timm or torchvision, else None."""
    if "layers" in network or "object" in network:
        return None
    target, args, kwargs = locate.split_node(network, arg.network)
    name = locate.target_name(target)
    library, last = name.partition(".")[0], name.rpartition(".")[2]
    if library == "timm" or (library == "torchvision" and name.startswith("torchvision.models.")):
        if last in ("create_model", "get_model"):
            named = kwargs.get("model_name", kwargs.get("name", args[0] if args else None))
            return (library, named) if isinstance(named, str) else None
        return library, last
    return None


def network_name(network: Mapping[str, Any]) -> str:
    """Returns the name of a node's network for messages, in the form that `model=` accepts where there is one."""
    named = library_and_model(network)
    if named is not None:
        return "/".join(named)
    if "layers" in network:
        return "a list of layers"
    return str(network["object"]) if "object" in network else locate.target_name(network.get("_target_", "?"))


def without_downloads(network: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of the node in which timm and torchvision download no weights, nested nodes included."""

    def cleaned(value: Any) -> Any:
        if isinstance(value, Mapping):
            return without_downloads(value)
        return [cleaned(item) for item in value] if isinstance(value, list) else value

    fetches = str(network.get("_target_")).partition(".")[0] in ("timm", "torchvision")
    return {
        name: _NO_DOWNLOAD_VALUES[name] if fetches and name in _NO_DOWNLOAD_VALUES else cleaned(value)
        for name, value in network.items()
    }


def _instantiate(
    target: Any, args: list[Any], kwargs: dict[str, Any], key: str, allow: Sequence[str] | None
) -> tuple[nn.Module, dict[str, Any]]:
    """Builds the network or layer of a node; returns it and the node to store, in which a class is named."""
    node = {"_target_": target, **({"_args_": args} if args else {}), **kwargs}
    module = locate.instantiate(node, key=key, allow=allow)
    name = locate.target_name(target)
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{key}._target_: '{name}' made a {type(module).__name__}, not a torch.nn.Module.")
    return module, {**node, "_target_": name}


def _materialize_lazy(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Initialises torch's lazy layers by a forward pass, which sets their widths."""
    lazy = [name for name, p in (*model.named_parameters(), *model.named_buffers()) if is_lazy(p)]
    if not lazy:
        return
    try:
        with eval_mode(model), torch.no_grad():
            model(torch.zeros((2, *shape)))
    except Exception as error:  # the network's code may raise anything
        image = " x ".join(map(str, shape))
        raise ModelError(
            f"the lazy layer of '{lazy[0]}' cannot infer its width from an image of {image}: {error}"
        ) from error


def _resolve_auto(
    network: Mapping[str, Any], shape: tuple[int, int, int], num_classes: int, key: str
) -> dict[str, Any]:
    channels, height, width = shape
    size = height if height == width else [height, width]
    known: dict[str, int | list[int]] = dict.fromkeys(NUM_CLASSES_ARGUMENTS, num_classes)
    known |= dict.fromkeys(CHANNEL_ARGUMENTS, channels) | dict.fromkeys(SIZE_ARGUMENTS, size)
    filled = {}
    for name, value in network.items():
        if value == "auto" and name not in known:
            raise ConfigError(f"{key}.{name}: auto is supported only for {join_names(known)}. Set '{name}' to a value.")
        filled[name] = known[name] if value == "auto" else value
    return filled


def _build_sequential(
    nodes: Sequence[Mapping[str, Any]],
    shape: tuple[int, ...],
    num_classes: int,
    key: str,
    allow: Sequence[str] | None,
    search: bool = True,
) -> tuple[nn.Sequential, dict[str, Any]]:
    """Builds a Sequential from layer nodes; each `auto` becomes the output size of the layers before it.

    If a layer does not fit, the message names the smallest image that fits; `search` tries it on the complete list."""

    def fits(side: int) -> bool:
        if not search:
            return False
        try:
            with torch.device("meta"):
                model, _ = _build_sequential(nodes, (shape[0], side, side), num_classes, key, allow, search=False)
            trace(model, (shape[0], side, side), lambda _: False)
        except (ModelError, ConfigError):
            return False
        return True

    layers: list[nn.Module] = []
    stored = []
    for i, node in enumerate(nodes):
        target, args, kwargs = locate.split_node(node, f"{key}[{i}]")
        auto = [name for name, value in kwargs.items() if value == "auto"]
        inferred = [name for name in auto if name != "out_features"]
        before = trace(nn.Sequential(*layers), shape, fits).output if inferred and layers else shape
        for name in auto:
            if name == "out_features":
                kwargs[name] = num_classes
            elif name in ("in_channels", "num_features"):
                kwargs[name] = before[0]
            elif name in ("in_features", "normalized_shape"):
                kwargs[name] = before[-1]
            else:
                raise ConfigError(
                    f"{key}[{i}].{name}: auto is supported only for in_channels, in_features, num_features, "
                    f"normalized_shape, out_features. Set '{name}' to a value."
                )
        layer, stored_node = _instantiate(target, args, kwargs, f"{key}[{i}]", allow)
        layers.append(layer)
        stored.append(stored_node)
    return nn.Sequential(*layers), {"layers": stored}
