"""Weights out of a file, put into a network whole or not at all."""

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
"""Where the weights are in the checkpoints of torch's users, best first: an average is what was evaluated."""
_OLD_NAMES = (
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)"), r"\1"),
    (re.compile(r"\bmlp\.linear_1\."), "mlp.0."),
    (re.compile(r"\bmlp\.linear_2\."), "mlp.3."),
)
"""Names in files that torchvision publishes, and what its networks, DenseNet and ViT, call the same tensors today."""
_FEW = 4
_COUNT = "num_batches_tracked"
_SENSIBLE = 100.0
"""How many times weaker or stronger than usual a head may be pulled by its gradient."""
_EVEN = 0.02
"""Answers that differ by no more than this have a cross entropy of ln C within 2 %."""


@dataclass(frozen=True)
class Weights:
    """Tensors by name, what they are called in messages, and what the file says of the network that made them: its name
    as `model=` takes it and, where a run of ours wrote it, its node and the run's `data.preprocess`."""

    tensors: Mapping[str, Tensor]
    source: str
    network: str = ""
    node: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadReport:
    """What became of them: `loaded` of the network's `total` tensors; `new` are the names of the others, which have
    their first random values."""

    source: str
    loaded: int
    total: int
    new: tuple[str, ...]

    def __str__(self) -> str:
        new = f"; new: {join_names(self.new, _FEW)}" if self.new else ""
        return f"weights: {self.loaded} of {self.total} tensors from {self.source}{new}"


def read_weights(path: Path, also: Sequence[Any] = ()) -> Weights:
    """The tensors of a `.safetensors` file or of a checkpoint written by torch, on the CPU. Of a checkpoint only plain
    values are read, never code; `also` are further classes of plain values that may be in it.

    Raises ConfigError when the file is missing, damaged, or holds no weights."""
    if not path.is_file():
        there = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ConfigError(f"{arg.weights}: there is no file or run '{path}'.{did_you_mean(path.name, there)}")
    try:
        if path.suffix == ".safetensors":
            return Weights(load_file(path, device="cpu"), path.name)
        # timm keeps its command line in the checkpoint, as an argparse.Namespace
        with torch.serialization.safe_globals([argparse.Namespace, *also]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{arg.weights}: '{path}' is damaged, or no file of weights: {first_line(error)}") from error
    except Exception as error:  # torch raises many kinds for a damaged file, most of which say nothing to a reader
        if re.search(r"unsupported (global|class)", str(error), re.IGNORECASE):
            raise ConfigError(
                f"'{path}' holds Python objects beside its weights, and loading those runs code. Where you trust it, "
                f"load it yourself and save the weights alone: torch.save(model.state_dict(), FILE).",
                key="weights",
            ) from error
        raise ConfigError(f"{arg.weights}: '{path}' is damaged, or no file of weights.") from error
    tensors = _find_state_dict(content)
    if tensors is None:
        found = (
            f"the keys {join_names(map(str, content))}"
            if isinstance(content, Mapping)
            else f"a {type(content).__name__}"
        )
        raise ConfigError(f"{arg.weights}: '{path}' holds no weights by name, but {found}. Save model.state_dict().")
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
    """Puts tensors into a network by their names. With `whole`, all of its tensors must be there, those that share
    their memory once. Raises RuntimeError for what does not fit, and what the network's own code raises."""
    state = model.state_dict()  # and with it the versions of its parts, which some ask for and tensors alone have not
    if whole:
        own = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        kept = {value.untyped_storage().data_ptr() for name, value in own.items() if name in tensors}
        missing = [
            name
            for name, value in own.items()
            if name not in tensors and not (value.numel() and value.untyped_storage().data_ptr() in kept)
        ]
        if missing:
            raise RuntimeError(f"it has no {join_names(missing, _FEW)}")
    state.update(tensors)
    model.load_state_dict(state)


def load_weights_into(
    model: nn.Module,
    weights: Weights,
    shape: tuple[int, ...],
    network: Mapping[str, Any] | None = None,
    by: str = "name",
) -> LoadReport:
    """Puts the weights into `model`, a network for images of `shape` (C, H, W): all of them or, with an error, none.

    Every tensor must be there by name and shape, but for three things: a head for other classes, or none, leaves the
    network's own as it is; a first convolution for other channels is adapted as timm does (summed for one channel, else
    repeated and scaled); a count of batches may be missing, as in the files of old versions of torch. A word that all
    names begin with, such as `module.`, is dropped where the network's do not. `network` is the model's node. With
    `by` "order" the names in the file do not matter: its first tensor is the network's first, and so on.

    Raises ConfigError naming what does not fit, and where nothing at all would be loaded."""
    tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    heads, first = find_head(model, shape), find_first_convolution(model, shape)
    _check_padding(weights, network or {})
    given = _in_order(weights, tensors) if by == "order" else _strip_prefixes(weights.tensors, tensors)
    entry = f"{first}.weight" if first else "weight"
    match = _Match(tensors, given, heads, entry)
    if match.wrong:  # timm's networks can read the forms of their papers' own files, and resize embeddings of positions
        rewrite = getattr(sys.modules.get(type(model).__module__), "checkpoint_filter_fn", None)
        if rewrite is not None:
            match = _match_rewritten(rewrite, given, model, heads, entry) or match
    if match.wrong:
        hint = _hint(weights, network or {})
        if by == "name" and not match.fitting and _fits_in_order(weights.tensors, tensors, heads):
            hint = (
                "All of its tensors have other names, and in their order the shapes of the network's. If it is this "
                f"very network under other names, set {arg.weights_by}=order."
            )
        how = "in order and by shape" if by == "order" else "by name and shape"
        raise ConfigError(
            f"'{weights.source}' does not fit the network: {match.fitting} of its {len(tensors)} tensors are in the "
            f"file {how}. {' '.join(match.wrong)} {hint}",
            key="weights",
        )
    load_tensors(model, match.found)
    new = tuple(name for name in tensors if name not in match.found and is_below(name, heads))
    return LoadReport(weights.source, len(tensors) - len(new), len(tensors), new)


def load_exactly(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Puts the tensors of `source` into the very network that they are of: all or, with an error, none. As in
    `load_weights_into`, a word that all names begin with is dropped, and a count of batches may be missing. Raises
    ConfigError naming what does not fit."""
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    match = _Match(own, _strip_prefixes(tensors, own))
    if match.wrong:
        raise ConfigError(f"{source} is of another network. {' '.join(match.wrong)} Nothing was loaded.", key="weights")
    load_tensors(model, match.found)


def start_at_zero(model: nn.Module, shape: tuple[int, int, int]) -> None:
    """Sets the last layer of the network's head, weights and biases, to zero, so that every class begins with the same
    answer: the first cross entropy is ln C, where random weights over a thousand strong features begin several times as
    high. `shape` (C, H, W) is that of an image.

    Where a layer of zeros answers unevenly, as one that divides by the norm of its weights, or could not be trained, as
    before a ReLU, its weights are made a thousand times smaller instead; where that is no better, they stay."""
    modules = dict(model.named_modules())
    last = _last_of_head(model, shape)
    tied = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if not is_below(name, last)}
    own = [parameter for name in last for parameter in modules[name].parameters()]
    parameters = [parameter for parameter in own if parameter.requires_grad and id(parameter) not in tied]
    before = [parameter.detach().clone() for parameter in parameters]
    usual = _gradient_norm(model, shape, parameters)[1]
    for factor in (0.0, 1e-3, 1.0):
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value * factor)
        answer, pull = _gradient_norm(model, shape, parameters)
        # of NaN nothing is close
        even = torch.allclose(answer, answer[:, :1].expand_as(answer), rtol=0, atol=_EVEN)
        if even and usual / _SENSIBLE < pull < usual * _SENSIBLE:
            return


def _gradient_norm(
    model: nn.Module, shape: tuple[int, int, int], parameters: Sequence[nn.Parameter]
) -> tuple[Tensor, float]:
    """The network's answer to noise, and how strongly it depends on these parameters: the norm of a gradient."""
    others = [p for p in model.parameters() if p.requires_grad and not any(p is own for own in parameters)]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        answer = output_for_noise(model, shape, grad=True)
        if not answer.requires_grad or not parameters:
            return answer.detach(), 0.0
        shares = torch.linspace(-1, 1, answer.shape[1] + 1)[1:].to(answer)  # a softmax has a constant sum
        found = torch.autograd.grad((answer * shares).sum(), list(parameters), allow_unused=True)
    except RuntimeError:  # a backward of the network's own
        return output_for_noise(model, shape), 0.0
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
    return answer.detach(), float(sum(gradient.square().sum() for gradient in found if gradient is not None)) ** 0.5


def _last_of_head(model: nn.Module, shape: tuple[int, int, int]) -> list[str]:
    """The names of the layers whose zeros make the answer zero: those of the head that give a number per class out of
    its features, or alone the layer that scales and shifts what these have given."""
    heads, modules, ran = find_head(model, shape), dict(model.named_modules()), trace(model, shape)
    rows = [row for row in ran.layers if row.parameters and row.name in modules and is_below(row.name, heads)]
    if not rows:  # they are used by their weights alone, or the whole network is one layer
        return list(heads)
    last = rows[-1]
    if all(parameter.ndim <= 1 for parameter in modules[last.name].parameters()):
        return [last.name]
    # two heads side by side take the same features
    return list(
        dict.fromkeys(
            row.name for row in rows if (row.input_shape, row.output_shape) == (last.input_shape, last.output_shape)
        )
    )


class _Match:
    """What of a network's tensors is `found` in a file, and in words what is `wrong`. `heads` may have other shapes in
    the file, and `entry`, the weight of the first convolution, may be for other channels."""

    def __init__(
        self, network: Mapping[str, Tensor], given: Mapping[str, Tensor], heads: Sequence[str] = (), entry: str = ""
    ):
        self.found = {
            name: given[name] for name in network if name in given and given[name].shape == network[name].shape
        }
        self.fitting = len(self.found)
        head = {name for name in network if is_below(name, heads)}
        if not head <= set(self.found):  # a head is taken whole or not at all
            self.found = {name: value for name, value in self.found.items() if name not in head}
        if entry in network and entry in given and entry not in self.found:
            adapted = adapt_channels(given[entry], network[entry].shape)
            self.found |= {entry: adapted} if adapted is not None else {}
        kept = {network[name].data_ptr() for name in self.found}
        missing, other = [], []
        for name, value in network.items():
            tied = name not in given and value.numel() > 0 and value.data_ptr() in kept
            # a head for other classes has another first dimension; another width of what reaches it is no head's affair
            head_fits = name in head and (name not in given or given[name].shape[1:] == value.shape[1:])
            if name in self.found or head_fits or tied or name.endswith(_COUNT):
                continue
            if name in given:
                there, here = (" x ".join(map(str, item.shape)) or "1" for item in (given[name], value))
                other.append(f"{name} ({there} in the file, {here} in the network)")
            else:
                missing.append(name)
        unexpected = [name for name in given if name not in network and not is_below(name, [h for h in heads if h])]
        parts = (("Not in the file", missing), ("Of another shape", other), ("Not in the network", unexpected))
        self.wrong = [f"{title}: {join_names(names, _FEW)}." for title, names in parts if names]
        if not self.found and not self.wrong:
            self.wrong = ["Nothing of it would be loaded: all that the network has is a head, and that is another."]


def adapt_channels(weight: Tensor, shape: Sequence[int]) -> Tensor | None:
    """The weight [O,I,H,W] of a convolution, for the input channels of `shape`; None where more than they differ. For
    one channel they are summed; else repeated in turn and scaled, so that the same picture in every channel gives the
    same answer (timm's rule)."""
    if weight.ndim != 4 or len(shape) != 4 or (weight.shape[0], *weight.shape[2:]) != (shape[0], *shape[2:]):
        return None
    before, after = weight.shape[1], shape[1]
    if after == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    repeated = weight.float().repeat(1, math.ceil(after / before), 1, 1)[:, :after]
    return (repeated * (before / after)).to(weight.dtype)


def _in_order(weights: Weights, network: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the file under the names that the network has in the same places. Raises ConfigError where they
    are fewer or more; a count of batches, which old versions of torch did not write, may be missing."""
    names = list(network)
    if len(names) != len(weights.tensors):
        names = [name for name in names if not name.endswith(_COUNT)]
    if len(names) != len(weights.tensors):
        raise ConfigError(
            f"{arg.weights_by}: '{weights.source}' has {len(weights.tensors)} tensors and the network {len(network)}, "
            f"so they are not the same in order. Load them by name, or name the network that the file was made with as "
            f"model=."
        )
    return dict(zip(names, weights.tensors.values(), strict=True))


def _fits_in_order(given: Mapping[str, Tensor], network: Mapping[str, Tensor], heads: Sequence[str]) -> bool:
    """Whether the tensors have the network's shapes one by one, but for those of the head."""
    return len(given) == len(network) and all(
        value.shape == own.shape or is_below(name, heads)
        for value, (name, own) in zip(given.values(), network.items(), strict=True)
    )


def _check_padding(weights: Weights, network: Mapping[str, Any]) -> None:
    """timm has networks twice, `NAME` with torch's padding and `tf_NAME` with TensorFlow's. Their tensors are the same,
    and with those of the other one answers are worse without an error (by eight points of ImageNet accuracy for
    EfficientNet-Lite0). Raises ConfigError where the file is known to be of the other one."""
    here = network_name(network) if network else ""
    if not here.startswith("timm/"):
        return
    name = here.removeprefix("timm/").partition(".")[0]
    other = name.removeprefix("tf_") if name.startswith("tf_") else f"tf_{name}"
    if other not in sys.modules["timm"].list_models(other):
        return
    stem = Path(weights.source).stem.replace("-", "_").lower()
    made_with = weights.network.partition(".")[0]
    # the names of the first ports of EfficientNet, whose weights come from TensorFlow
    tf = name.startswith("tf_")
    ported = not tf and "_conv_stem.weight" in weights.tensors
    named = not made_with and stem.startswith(f"{other}_") and "_conv_stem.weight" not in weights.tensors
    if named:
        warnings.warn(
            f"{arg.weights}: by its name '{weights.source}' is of timm/{other}, whose tensors are those of timm/{name} "
            f"and whose padding is another. If it is, set model=timm/{other}.",
            UserWarning,
            stacklevel=2,
        )
    if made_with == f"timm/{other}" or ported:
        raise ConfigError(
            f"'{weights.source}' is of timm/{other}, whose tensors are those of timm/{name} and whose padding is "
            f"another: the network would run and be less accurate. Set model=timm/{other}"
            f"{f' {arg.weights_by}=order' if ported else ''}.",
            key="weights",
        )


def _match_rewritten(
    rewrite: Any, given: Mapping[str, Tensor], model: nn.Module, heads: Sequence[str], entry: str
) -> _Match | None:
    network = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    try:
        match = _Match(network, rewrite(dict(given), model), heads, entry)
    except Exception:  # it was written for other files than this one
        return None
    return None if match.wrong else match


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
    tensors.pop("n_averaged", None)  # torch's AveragedModel counts beside the weights
    return {name: value.detach() for name, value in tensors.items()} or None


def _strip_prefixes(given: Mapping[str, Tensor], network: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the words that all names begin with, as long as none is a name of the network, and with today's names for
    old ones."""
    named = dict(given)
    while named and not any(name in network for name in named):
        first = next(iter(named)).partition(".")[0] + "."
        if not all(name.startswith(first) and len(name) > len(first) for name in named):
            return dict(given)
        named = {name[len(first) :]: value for name, value in named.items()}
    return {_current_name(name, network): value for name, value in named.items()}


def _current_name(name: str, network: Mapping[str, Tensor]) -> str:
    if name in network:
        return name
    found = [pattern.sub(new, name) for pattern, new in _OLD_NAMES]
    return next((item for item in found if item in network), name)


def _config_of(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config in a checkpoint of ours; empty in any other."""
    config: Any = content.get("config")
    try:
        network_name(config["module"]["network"])
        return config if isinstance(config["data"]["preprocess"], Mapping) else {}
    except (ConfigError, KeyError, TypeError, AttributeError):
        return {}


def _architecture(content: Mapping[str, Any]) -> str:
    """What a checkpoint of timm says that it was made with; torch's own example writes such a name of torchvision."""
    name = content.get("arch")
    if not isinstance(name, str):
        return ""
    return f"timm/{name}" if {"args", "version"} & set(content) else f"timm/{name} or torchvision/{name}"


def _hint(weights: Weights, network: Mapping[str, Any]) -> str:
    if "layers" in weights.node:
        return f"The file was made with a list of layers: take {arg.network} from its run's config.yaml."
    if weights.node and network and network_name(network) == weights.network:
        differ = _other_arguments(weights.node, network)
        message = f", with {join_names(differ)}" if differ else ""
        return f"The file was made with {weights.network} too{message}."
    if weights.network:
        return f"The file was made with {weights.network}: name that as model=, or give another file."
    stem = re.sub(r"[^a-z0-9]+", "_", weights.source.lower())
    for library in ("timm", "torchvision.models"):
        if library in sys.modules:
            known = [name for name in sys.modules[library].list_models() if stem.startswith(f"{name.lower()}_")]
            if known:
                name = max(known, key=len)
                return f"By its name the file is of {library.partition('.')[0]}/{name}."
    return "Name the network that the file was made with as model=, or give another file."


def _other_arguments(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The arguments that two nodes of one network do not share, in words; not those for which a network is adapted."""
    (_, _, before), (_, _, now) = locate.split_node(there, ""), locate.split_node(here, "")
    adapted = {*NUM_CLASSES_ARGUMENTS, *CHANNEL_ARGUMENTS}
    names = [name for name in {**before, **now} if before.get(name) != now.get(name) and name not in adapted]
    return [
        f"{name}={before.get(name, 'its default')} (here {now.get(name, 'its default')})"
        for name in names
        if "auto" not in (before.get(name), now.get(name))
    ]
