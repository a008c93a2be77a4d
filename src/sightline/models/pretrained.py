"""Reading weights from files and loading them into networks, all or nothing."""

import argparse
import math
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sightline.core import locate
from sightline.core.errors import ConfigError, arg, did_you_mean, first_line, join_names
from sightline.core.locate import is_below
from sightline.models.probe import trace
from sightline.models.spec import CHANNEL_ARGUMENTS, NUM_CLASSES_ARGUMENTS, network_name, output_for_noise
from sightline.models.structure import find_first_convolution, find_head

_INSIDE = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "model_state_dict", "module", "net")
"""The keys under which checkpoints hold their weights, best first: an EMA is what was evaluated."""
_OLD_NAMES = (
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)"), r"\1"),
    (re.compile(r"\bmlp\.linear_1\."), "mlp.0."),
    (re.compile(r"\bmlp\.linear_2\."), "mlp.3."),
)
"""Names in files that torchvision publishes for DenseNet and ViT, and the current names of the same tensors."""
_MAX_NAMES = 3
_COUNT = "num_batches_tracked"
_MAX_GRADIENT_RATIO = 100.0
"""How many times smaller or larger the gradient norm of a rescaled head may be."""
_EVEN = 0.02
"""Logits that differ by no more than this have a cross entropy of ln C within 2 %."""


@dataclass(frozen=True)
class Weights:
    """Tensors by name, and what their file says about the network they are from.

    `source` names the file in messages. `network` is the network's name as `model=` accepts it, or empty. `node` is its
    config node and `images` the run's `data.preprocess`; both are empty if the file is not from a Sightline run."""

    tensors: Mapping[str, Tensor]
    source: str
    network: str = ""
    node: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadReport:
    """How many of a network's tensors were loaded: `loaded` of `total`.

    `new` are the names of the others, which keep their random initial values."""

    source: str
    loaded: int
    total: int
    new: tuple[str, ...]

    def __str__(self) -> str:
        new = f"; new: {join_names(self.new, _MAX_NAMES)}" if self.new else ""
        return f"weights: {self.loaded} of {self.total} tensors from {self.source}{new}"


def read_weights(path: Path, also: Sequence[Any] = ()) -> Weights:
    """Reads a `.safetensors` file or a checkpoint written by torch; the tensors are on the CPU.

    Loading a checkpoint never runs code (`weights_only=True`); `also` are further classes that it may contain. Raises
    ConfigError if the file is missing, damaged, or contains no weights."""
    if not path.is_file():
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ConfigError(f"{arg.weights}: there is no file or run '{path}'.{did_you_mean(path.name, names)}")
    try:
        if path.suffix == ".safetensors":
            return Weights(load_file(path, device="cpu"), path.name)
        # timm keeps its command line in the checkpoint, as an argparse.Namespace
        with torch.serialization.safe_globals([argparse.Namespace, *also]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{arg.weights}: '{path}' is damaged or not a weights file: {first_line(error)}") from error
    except Exception as error:  # torch raises many types for a damaged file, most with unhelpful messages
        if re.search(r"unsupported (global|class)", str(error), re.IGNORECASE):
            raise ConfigError(
                f"'{path}' contains Python objects besides its weights, and loading these would run code. If you trust "
                f"the file, load it yourself and save only the weights: torch.save(model.state_dict(), FILE).",
                key="weights",
            ) from error
        raise ConfigError(f"{arg.weights}: '{path}' is damaged or not a weights file.") from error
    tensors = _find_state_dict(content)
    if tensors is None:
        found = (
            f"the keys {join_names(map(str, content))}"
            if isinstance(content, Mapping)
            else f"a {type(content).__name__}"
        )
        raise ConfigError(f"{arg.weights}: '{path}': expected tensors by name, found {found}. Save model.state_dict().")
    run = _config_of(content)
    node = run.get("module", {}).get("network", {})
    return Weights(
        tensors,
        path.name,
        network_name(node) if node else _architecture(content),
        node,
        run.get("data", {}).get("preprocess", {}),
    )


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], whole: bool = False) -> None:
    """Loads tensors into a network by name.

    With `whole`, every tensor of the network must be among `tensors`; of tensors that share memory, one is enough.
    Raises RuntimeError for tensors that are missing or do not fit, and what the network's own code raises."""
    state = model.state_dict()  # its metadata has the module versions that some load_state_dict methods require
    if whole:
        network = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        loaded = {value.untyped_storage().data_ptr() for name, value in network.items() if name in tensors}
        missing = [
            name
            for name, value in network.items()
            if name not in tensors and not (value.numel() and value.untyped_storage().data_ptr() in loaded)
        ]
        if missing:
            raise RuntimeError(f"missing tensors {join_names(missing, _MAX_NAMES)}")
    state.update(tensors)
    model.load_state_dict(state)


def load_weights_into(
    model: nn.Module,
    weights: Weights,
    shape: tuple[int, ...],
    network: Mapping[str, Any] | None = None,
    by: str = "name",
) -> LoadReport:
    """Loads weights into `model`, a network for images of `shape` (C, H, W): all of them or, with an error, none.

    Every tensor must match by name and shape, with three exceptions: if the head is missing or for other classes, the
    network keeps its own; a first convolution for other channels is adapted as in timm (summed for one channel, else
    repeated and scaled); `num_batches_tracked` may be missing, as in files of old versions of torch. A prefix that all
    names share, such as `module.`, is removed if the network does not have it. `network` is the model's node. With
    `by="order"` names are ignored: the first tensor of the file is the network's first, and so on.

    Raises ConfigError naming what does not match, also if no tensor at all would be loaded."""
    tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    heads, first = find_head(model, shape), find_first_convolution(model, shape)
    _check_padding(weights, network or {})
    stored = _in_order(weights, tensors) if by == "order" else _strip_prefixes(weights.tensors, tensors)
    entry = f"{first}.weight" if first else "weight"
    match = _Match(tensors, stored, heads, entry)
    if match.problems:  # timm's networks can read the original files of their papers, and resize position embeddings
        rewrite = getattr(sys.modules.get(type(model).__module__), "checkpoint_filter_fn", None)
        if rewrite is not None:
            match = _match_rewritten(rewrite, stored, model, heads, entry) or match
    if match.problems:
        hint = _hint(weights, network or {})
        if by == "name" and not match.fitting and _fits_in_order(weights.tensors, tensors, heads):
            hint = (
                "All of its tensors have other names, but in their order the shapes match. If the file is from the "
                f"same network under other names, set {arg.weights_by}=order."
            )
        how = "in order and by shape" if by == "order" else "by name and shape"
        raise ConfigError(
            f"'{weights.source}' does not fit the network: {match.fitting} of its {len(tensors)} tensors are in the "
            f"file {how}. {' '.join(match.problems)} {hint}",
            key="weights",
        )
    load_tensors(model, match.tensors)
    new = tuple(name for name in tensors if name not in match.tensors and is_below(name, heads))
    return LoadReport(weights.source, len(tensors) - len(new), len(tensors), new)


def load_exactly(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Loads tensors into the same network that they were saved from: all of them or, with an error, none.

    As in `load_weights_into`, a prefix that all names share is removed, and `num_batches_tracked` may be missing.
    `source` names the tensors in messages. Raises ConfigError naming what does not match."""
    network = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    match = _Match(network, _strip_prefixes(tensors, network))
    if match.problems:
        raise ConfigError(
            f"{source} does not fit the network. {' '.join(match.problems)} Nothing was loaded.", key="weights"
        )
    load_tensors(model, match.tensors)


def start_at_zero(model: nn.Module, shape: tuple[int, int, int]) -> None:
    """Sets the weights and biases of the head's last layer to zero, so that all classes start with equal outputs.

    The first cross entropy is then ln C; with random weights over a thousand strong features it is several times as
    high. `shape` is the (C, H, W) of an image. Some layers output unequal values when they are zero (a layer that
    divides by its weight norm) or cannot be trained from zero (a layer before a ReLU): their weights are divided by
    1000 instead. If that does not help either, they are not changed."""
    modules = dict(model.named_modules())
    last = _last_of_head(model, shape)
    tied = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if not is_below(name, last)}
    candidates = [parameter for name in last for parameter in modules[name].parameters()]
    parameters = [parameter for parameter in candidates if parameter.requires_grad and id(parameter) not in tied]
    before = [parameter.detach().clone() for parameter in parameters]
    usual = _gradient_norm(model, shape, parameters)[1]
    for factor in (0.0, 1e-3, 1.0):
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value * factor)
        output, norm = _gradient_norm(model, shape, parameters)
        even = torch.allclose(output, output[:, :1].expand_as(output), rtol=0, atol=_EVEN)  # False for NaN
        if even and usual / _MAX_GRADIENT_RATIO < norm < usual * _MAX_GRADIENT_RATIO:
            return


def _gradient_norm(
    model: nn.Module, shape: tuple[int, int, int], parameters: Sequence[nn.Parameter]
) -> tuple[Tensor, float]:
    """The network's output for noise, and the norm of a gradient of it with respect to `parameters`."""
    others = [p for p in model.parameters() if p.requires_grad and not any(p is one for one in parameters)]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        output = output_for_noise(model, shape, grad=True)
        if not output.requires_grad or not parameters:
            return output.detach(), 0.0
        # unequal factors, because the outputs of a softmax have a constant sum
        factors = torch.linspace(-1, 1, output.shape[1] + 1)[1:].to(output)
        gradients = torch.autograd.grad((output * factors).sum(), list(parameters), allow_unused=True)
    except RuntimeError:  # from a custom backward of the network
        return output_for_noise(model, shape), 0.0
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
    return output.detach(), float(sum(item.square().sum() for item in gradients if item is not None)) ** 0.5


def _last_of_head(model: nn.Module, shape: tuple[int, int, int]) -> list[str]:
    """The names of the layers that must be zero for the output to be zero.

    These are the layers of the head that output one number per class, or only the layer that scales and shifts their
    output."""
    heads, modules, ran = find_head(model, shape), dict(model.named_modules()), trace(model, shape)
    rows = [row for row in ran.layers if row.parameters and row.name in modules and is_below(row.name, heads)]
    if not rows:  # the head's forward is never called, or the network is a single layer
        return list(heads)
    last = rows[-1]
    if all(parameter.ndim <= 1 for parameter in modules[last.name].parameters()):
        return [last.name]
    # parallel heads have the same input and output shapes
    return list(
        dict.fromkeys(
            row.name for row in rows if (row.input_shape, row.output_shape) == (last.input_shape, last.output_shape)
        )
    )


class _Match:
    """Matches the tensors of a network with those of a file: the `tensors` to load, and `problems` as sentences.

    `fitting` is how many tensors have the same name and shape. `heads` may have other shapes in the file, and `entry`,
    the weight of the first convolution, may be for other channels."""

    def __init__(
        self, network: Mapping[str, Tensor], stored: Mapping[str, Tensor], heads: Sequence[str] = (), entry: str = ""
    ):
        self.tensors = {
            name: stored[name] for name in network if name in stored and stored[name].shape == network[name].shape
        }
        self.fitting = len(self.tensors)
        head = {name for name in network if is_below(name, heads)}
        if not head <= set(self.tensors):  # a head is never loaded in part
            self.tensors = {name: value for name, value in self.tensors.items() if name not in head}
        if entry in network and entry in stored and entry not in self.tensors:
            adapted = adapt_channels(stored[entry], network[entry].shape)
            self.tensors |= {entry: adapted} if adapted is not None else {}
        loaded = {network[name].data_ptr() for name in self.tensors}
        missing, reshaped = [], []
        for name, value in network.items():
            tied = name not in stored and value.numel() > 0 and value.data_ptr() in loaded
            # other classes change only the first dimension of a head; a difference in its input width is an error
            head_fits = name in head and (name not in stored or stored[name].shape[1:] == value.shape[1:])
            if name in self.tensors or head_fits or tied or name.endswith(_COUNT):
                continue
            if name in stored:
                in_file, in_network = (" x ".join(map(str, item.shape)) or "1" for item in (stored[name], value))
                reshaped.append(f"{name} ({in_file} in the file, {in_network} in the network)")
            else:
                missing.append(name)
        unexpected = [name for name in stored if name not in network and not is_below(name, [h for h in heads if h])]
        parts = (("Not in the file", missing), ("Different shape", reshaped), ("Not in the network", unexpected))
        self.problems = [f"{title}: {join_names(names, _MAX_NAMES)}." for title, names in parts if names]
        if not self.tensors and not self.problems:
            self.problems = ["No tensor would be loaded: the network is only a head, and it differs in the file."]


def adapt_channels(weight: Tensor, shape: Sequence[int]) -> Tensor | None:
    """Adapts a convolution's weight [O,I,H,W] to the number of input channels in `shape`, as timm does.

    For one channel the input channels are summed. Otherwise they are repeated cyclically and scaled, so that the same
    image in every channel gives the same output. Returns None if any other dimension differs."""
    if weight.ndim != 4 or len(shape) != 4 or (weight.shape[0], *weight.shape[2:]) != (shape[0], *shape[2:]):
        return None
    before, after = weight.shape[1], shape[1]
    if after == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    repeated = weight.float().repeat(1, math.ceil(after / before), 1, 1)[:, :after]
    return (repeated * (before / after)).to(weight.dtype)


def _in_order(weights: Weights, network: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the tensors of the file to the network's names at the same positions.

    Raises ConfigError if their numbers differ; `num_batches_tracked`, which old versions of torch did not write, may be
    missing."""
    names = list(network)
    if len(names) != len(weights.tensors):
        names = [name for name in names if not name.endswith(_COUNT)]
    if len(names) != len(weights.tensors):
        raise ConfigError(
            f"{arg.weights_by}: '{weights.source}' has {len(weights.tensors)} tensors and the network {len(network)}, "
            f"so they cannot be matched in order. Load them by name, or set model= to the network of the file."
        )
    return dict(zip(names, weights.tensors.values(), strict=True))


def _fits_in_order(stored: Mapping[str, Tensor], network: Mapping[str, Tensor], heads: Sequence[str]) -> bool:
    """Whether the tensors have the network's shapes in order, except in the head."""
    return len(stored) == len(network) and all(
        value.shape == expected.shape or is_below(name, heads)
        for value, (name, expected) in zip(stored.values(), network.items(), strict=True)
    )


def _check_padding(weights: Weights, network: Mapping[str, Any]) -> None:
    """Raises ConfigError if the weights are known to be for the same timm network with the other padding.

    timm has some networks twice: `NAME` with torch's padding and `tf_NAME` with TensorFlow's. Their tensors have the
    same shapes, so the wrong weights load without an error but cost accuracy: eight points on ImageNet for
    EfficientNet-Lite0. If only the file name suggests it, a UserWarning is emitted."""
    model = network_name(network) if network else ""
    if not model.startswith("timm/"):
        return
    name = model.removeprefix("timm/").partition(".")[0]
    other = name.removeprefix("tf_") if name.startswith("tf_") else f"tf_{name}"
    if other not in sys.modules["timm"].list_models(other):
        return
    stem = Path(weights.source).stem.replace("-", "_").lower()
    made_with = weights.network.partition(".")[0]
    # tensor names of the first ports of EfficientNet, whose weights come from TensorFlow
    tf = name.startswith("tf_")
    ported = not tf and "_conv_stem.weight" in weights.tensors
    named = not made_with and stem.startswith(f"{other}_") and "_conv_stem.weight" not in weights.tensors
    if named:
        warnings.warn(
            f"{arg.weights}: the name of '{weights.source}' suggests timm/{other}, which has the same tensor shapes as "
            f"timm/{name} but a different padding. If it is from that network, set model=timm/{other}.",
            UserWarning,
            stacklevel=2,
        )
    if made_with == f"timm/{other}" or ported:
        raise ConfigError(
            f"'{weights.source}' is from timm/{other}, which has the same tensor shapes as timm/{name} but a different "
            f"padding: the network would run, but less accurately. Set model=timm/{other}"
            f"{f' {arg.weights_by}=order' if ported else ''}.",
            key="weights",
        )


def _match_rewritten(
    rewrite: Any, stored: Mapping[str, Tensor], model: nn.Module, heads: Sequence[str], entry: str
) -> _Match | None:
    network = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    try:
        match = _Match(network, rewrite(dict(stored), model), heads, entry)
    except Exception:  # `rewrite` was written for other files
        return None
    return None if match.problems else match


def _find_state_dict(content: Any) -> dict[str, Tensor] | None:
    """The state dict in a checkpoint, at any depth; None when there is none."""
    if not isinstance(content, Mapping):
        return None
    for name in _INSIDE:
        if isinstance(content.get(name), Mapping):
            found = _find_state_dict(content[name])
            if found is not None:
                return found
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    tensors.pop("n_averaged", None)  # a counter that torch's AveragedModel adds
    return {name: value.detach() for name, value in tensors.items()} or None


def _strip_prefixes(stored: Mapping[str, Tensor], network: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Removes prefixes that all names share, until some name is in the network, and replaces old names of torchvision.

    If there is no such prefix, the names are returned unchanged."""
    named = dict(stored)
    while named and not any(name in network for name in named):
        first = next(iter(named)).partition(".")[0] + "."
        if not all(name.startswith(first) and len(name) > len(first) for name in named):
            return dict(stored)
        named = {name[len(first) :]: value for name, value in named.items()}
    return {_current_name(name, network): value for name, value in named.items()}


def _current_name(name: str, network: Mapping[str, Tensor]) -> str:
    if name in network:
        return name
    renamed = [pattern.sub(new, name) for pattern, new in _OLD_NAMES]
    return next((item for item in renamed if item in network), name)


def _config_of(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config in a checkpoint of Sightline; empty for any other checkpoint."""
    config: Any = content.get("config")
    try:
        network_name(config["module"]["network"])
        return config if isinstance(config["data"]["preprocess"], Mapping) else {}
    except (ConfigError, KeyError, TypeError, AttributeError):
        return {}


def _architecture(content: Mapping[str, Any]) -> str:
    """The network that a checkpoint names under `arch`, which timm writes, and torch's ImageNet example."""
    name = content.get("arch")
    if not isinstance(name, str):
        return ""
    return f"timm/{name}" if {"args", "version"} & set(content) else f"timm/{name} or torchvision/{name}"


def _hint(weights: Weights, network: Mapping[str, Any]) -> str:
    if "layers" in weights.node:
        return f"The file is from a run with a list of layers: copy {arg.network} from the config.yaml of that run."
    if weights.node and network and network_name(network) == weights.network:
        differ = _other_arguments(weights.node, network)
        return f"The file is from {weights.network} too{f', but with {join_names(differ)}' if differ else ''}."
    if weights.network:
        return f"The file is from {weights.network}: set model= to that network, or use another file."
    stem = re.sub(r"[^a-z0-9]+", "_", weights.source.lower())
    for library in ("timm", "torchvision.models"):
        if library in sys.modules:
            known = [name for name in sys.modules[library].list_models() if stem.startswith(f"{name.lower()}_")]
            if known:
                name = max(known, key=len)
                return f"The file name suggests {library.partition('.')[0]}/{name}."
    return "Set model= to the network of the file, or use another file."


def _other_arguments(stored: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """The arguments in which two nodes of one network differ, as text; classes and channels may differ."""
    (_, _, before), (_, _, now) = locate.split_node(stored, ""), locate.split_node(current, "")
    adapted = {*NUM_CLASSES_ARGUMENTS, *CHANNEL_ARGUMENTS}
    names = [name for name in {**before, **now} if before.get(name) != now.get(name) and name not in adapted]
    return [
        f"{name}={before.get(name, 'its default')} (here {now.get(name, 'its default')})"
        for name in names
        if "auto" not in (before.get(name), now.get(name))
    ]
