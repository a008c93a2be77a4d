"""ModelSpec: a network as data. A layer list or a dotted target -> nn.Module, shapes checked before any weight is
used."""

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
"""What a network may answer with."""
_NO_DOWNLOAD_VALUES = {
    "pretrained": False,
    "weights": None,
    "weights_backbone": None,
    "checkpoint_path": "",
    "pretrained_cfg": None,
}
"""Arguments of timm and torchvision that fetch weights, and the value that fetches none: a stored model has its own."""


@dataclass(frozen=True)
class ModelSpec:
    """How to make a network. `network` is `{_target_: ..., arguments}`, `{layers: [nodes]}`, or `{object: name}` for
    one that was handed over ready-made and can only be filled with weights again. `shape` is (C, H, W) of its input,
    `outputs` says whether it answers with "logits", with "probabilities", or with "values": one number to predict, so
    that `num_classes`, how many numbers it gives for an image, is 1."""

    network: Mapping[str, Any]
    shape: tuple[int, int, int]
    num_classes: int
    outputs: str = "logits"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_dict` gives back an equal spec."""
        return {
            "network": dict(self.network),
            "shape": list(self.shape),
            "num_classes": self.num_classes,
            "outputs": self.outputs,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSpec:
        """The inverse of `to_dict`."""
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
    """The network a config node describes, for images of `shape` (C, H, W), and the spec to store with its weights.

    Raises ModelError when a layer does not fit or the answer is not one number per class, ConfigError for a target or
    an argument that does not exist. `allow` limits what may be named, see `locate`."""
    key = key or arg.network
    model: nn.Module
    if "layers" in network:
        model, network = _build_sequential(network["layers"], shape, num_classes, f"{key}.layers", allow)
    elif "object" in network:
        raise ModelError(f"{key}: '{network['object']}' was handed over ready-made; pass the same network as model=.")
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
    """Checks that `model` takes images of `shape` and answers with `num_classes` numbers; returns its spec."""
    ran = trace(model, shape)
    answer = ran.output
    if answer != (num_classes,):
        squeezed = ran.answers and not answer
        found = "one number without a dimension of its own" if squeezed else " x ".join(map(str, answer)) or "no tensor"
        if outputs == "values":
            asked, expected = "the labels are numbers", "1 number, [batch, 1]"
        else:
            asked, expected = f"the data has {num_classes} classes", f"{num_classes} numbers"
        advice = "Leave out squeeze() or flatten(0). " if squeezed else ""
        raise ModelError(
            f"{key or arg.network}: the network answers with {found} for each image, {asked}. "
            f"{advice}Its last layer must give {expected}; the value auto stands for that number "
            f"({' or '.join(NUM_CLASSES_ARGUMENTS[:2])} for most networks, out_features for a linear layer)."
        )
    if outputs == "auto":
        outputs = "probabilities" if outputs_probabilities(model, shape) else "logits"
    return ModelSpec(network, shape, num_classes, outputs)


def check_training_output(model: nn.Module, spec: ModelSpec, key: str | None = None) -> None:
    """Raises ModelError where the network answers with something else while it is trained than when it is measured,
    such as the answers of auxiliary heads beside its own. The model itself is not touched."""
    plain: nn.Module = getattr(model, "_orig_mod", model)  # what torch.compile wraps would be compiled once more
    with torch.no_grad(), torch.random.fork_rng():
        try:
            answer = meta_copy(plain).train()(torch.zeros((2, *spec.shape), device="meta"))
        except Exception:  # it looks at its numbers, which are not there; or it fails, and the first step will say how
            return
    if not isinstance(answer, Tensor) or tuple(answer.shape[1:]) != (spec.num_classes,):
        found = " x ".join(map(str, answer.shape[1:])) if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
        raise ModelError(
            f"while it is trained, the network answers with {found}, and not with {spec.num_classes} numbers for each "
            f"image as in evaluation. Switch its auxiliary heads off (aux_logits: false for torchvision's), or pass in "
            f"a task of your own that takes this answer, task=.",
            key=key or "network",
        )


def outputs_probabilities(model: nn.Module, shape: tuple[int, int, int]) -> bool:
    """Whether the network's answers to noise are non-negative and sum to one: it ends in a softmax."""
    answer = output_for_noise(model, shape)
    return bool((answer >= 0).all()) and torch.allclose(answer.sum(1), torch.ones(len(answer)).to(answer), atol=1e-4)


def output_for_noise(model: nn.Module, shape: tuple[int, int, int], grad: bool = False) -> Tensor:
    """The network's output, float32 [N,classes], for four images of noise, or for one where these have more than
    224 x 224 pixels; with a gradient where `grad` asks for it. Runs in evaluation mode and puts every submodule's mode
    back; weights, buffers and torch's random state stay as they were."""
    first = next(model.parameters(), None)
    device = first.device if first is not None else torch.device("cpu")
    count = 4 if shape[1] * shape[2] <= 224 * 224 else 1  # at 1024 x 1024 a ViT takes a minute for four
    noise = torch.randn((count, *shape), generator=torch.Generator().manual_seed(0)).to(device)
    with eval_mode(model), torch.set_grad_enabled(grad), torch.random.fork_rng():
        answer: Tensor = model(noise).float()
    return answer


def library_and_model(network: Mapping[str, Any]) -> tuple[str, str] | None:
    """(library, model) of a node of timm or torchvision; None for any other."""
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
    """What a node's network is called in messages: as `model=` takes it, where that can be."""
    named = library_and_model(network)
    if named is not None:
        return "/".join(named)
    if "layers" in network:
        return "a list of layers"
    return str(network["object"]) if "object" in network else locate.target_name(network.get("_target_", "?"))


def without_downloads(network: Mapping[str, Any]) -> dict[str, Any]:
    """The node, and every node inside it, with each argument that would fetch weights switched off: a stored model is
    filled from its own file."""

    def cleaned(value: Any) -> Any:
        """What stands inside a node, at any depth."""
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
    """The network or layer a node describes, and the node as it is stored: a class given as an object by its name."""
    node = {"_target_": target, **({"_args_": args} if args else {}), **kwargs}
    made = locate.instantiate(node, key=key, allow=allow)
    name = locate.target_name(target)
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{key}._target_: '{name}' made a {type(made).__name__}, not a torch.nn.Module.")
    return made, {**node, "_target_": name}


def _materialize_lazy(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Gives torch's lazy layers their widths, and with them their first weights, by one forward pass."""
    lazy = [name for name, p in (*model.named_parameters(), *model.named_buffers()) if is_lazy(p)]
    if not lazy:
        return
    try:
        with eval_mode(model), torch.no_grad():
            model(torch.zeros((2, *shape)))
    except Exception as error:  # whatever the network's own code raises is about this shape
        image = " x ".join(map(str, shape))
        raise ModelError(
            f"the lazy layer of '{lazy[0]}' cannot be given its width by an image of {image}: {error}"
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
            raise ConfigError(f"{key}.{name}: auto is known for {join_names(known)}; give '{name}' a value.")
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
    """The layers in order, each `auto` filled with what comes out of the layers before it. When those do not fit the
    image, the smallest one that fits is looked for (`search`) with the whole list, not with the part made so far."""

    def fits(side: int) -> bool:
        """Whether the whole list takes a square image of this side."""
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
    written = []
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
                    f"{key}[{i}].{name}: auto is known for in_channels, in_features, num_features, out_features."
                )
        layer, plain = _instantiate(target, args, kwargs, f"{key}[{i}]", allow)
        layers.append(layer)
        written.append(plain)
    return nn.Sequential(*layers), {"layers": written}
