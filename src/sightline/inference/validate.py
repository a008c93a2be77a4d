"""What an exported model may say of itself, looked at before anything is made of it. It may come from anywhere: what it
says decides how much is computed, which code is called, and what is fetched."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sightline.core import locate
from sightline.core.errors import ArtifactError, DataError
from sightline.data.images.preprocess import Preprocess
from sightline.inference.predictor import OutputStep
from sightline.models.spec import OUTPUT_KINDS, ModelSpec, without_downloads

_MOST_NUMBERS = 2**27
"""Of one picture: about 6,600 x 6,600 pixels of colour."""
_PUBLISHERS = ("timm", "torchvision")


class Description(NamedTuple):
    """What is needed to make the model again: `weights_sha256` is that of its file of weights."""

    spec: ModelSpec
    preprocess: Preprocess
    classes: tuple[str, ...]
    weights_sha256: str
    output: OutputStep


def validate_manifest(manifest: Mapping[str, Any], where: Path) -> Description:
    """The description in the file `where`. Raises ArtifactError for one that is not of the form that is written, or
    that contradicts itself."""
    try:
        return _validated(manifest)
    except (KeyError, TypeError, ValueError, OverflowError, DataError) as error:
        reason = f"it has no '{error.args[0]}'" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise ArtifactError(f"'{where}' is damaged: {reason}.") from error


def _validated(manifest: Mapping[str, Any]) -> Description:
    model, pictures = _mapping(manifest["model"], "model"), _mapping(manifest["preprocess"], "preprocess")
    network = _mapping(model["network"], "model.network")
    _check_network(network)
    for name, value in (("num_classes", model["num_classes"]), *((name, pictures[name]) for name in _SIDES)):
        _whole(value, name)
    if not isinstance(model["shape"], list) or not isinstance(model["outputs"], str):
        raise TypeError("model.shape or model.outputs is of another kind than was written")
    for name in ("resize", "interpolation"):
        if not isinstance(pictures[name], str):
            raise TypeError(f"preprocess.{name}: expected a word, found {pictures[name]!r}")
    classes, checksum = manifest["classes"], manifest["weights_sha256"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise TypeError("classes: expected a list of names")
    if not isinstance(checksum, str):
        raise TypeError(f"weights_sha256: expected the SHA-256 of a file, found {checksum!r}")
    spec, preprocess = ModelSpec.from_dict(model), Preprocess.from_dict(dict(pictures))
    counts = (1, 0) if spec.outputs == "values" else (len(classes), len(classes))
    known = spec.outputs in OUTPUT_KINDS and (spec.num_classes, len(classes)) == counts
    if not known or spec.shape != preprocess.shape:
        raise ValueError("its network, classes and preprocessing disagree")
    if preprocess.channels not in (1, 3) or not 0 <= _whole(preprocess.background, "background", 0) <= 255:
        raise ValueError("preprocess: expected 1 or 3 channels and a background of 0 to 255")
    if math.prod(preprocess.shape) > _MOST_NUMBERS:
        raise ValueError(f"pictures of {' x '.join(map(str, preprocess.shape))} are larger than any network takes")
    return Description(spec, preprocess, tuple(classes), checksum, _output(manifest, spec.outputs))


_SIDES = ("height", "width", "channels")


def _output(manifest: Mapping[str, Any], kind: str) -> OutputStep:
    values = _mapping(manifest.get("output", {}), "output")
    temperature, threshold = values.get("temperature", 1.0), values.get("threshold")
    if type(temperature) not in (int, float) or not 0 < temperature < math.inf:
        raise ValueError(f"output.temperature: expected a number above 0, found {temperature!r}")
    if threshold is not None and (type(threshold) not in (int, float) or not 0 <= threshold <= 1):
        raise ValueError(f"output.threshold: expected a number from 0 to 1, found {threshold!r}")
    return OutputStep(kind, float(temperature), threshold)


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}: expected keys and values, found {type(value).__name__}")
    return value


def _whole(value: Any, name: str, least: int = 1) -> int:
    if type(value) is not int or value < least:
        raise TypeError(f"{name}: expected a whole number of at least {least}, found {value!r}")
    return value


def _check_network(network: Mapping[str, Any]) -> None:
    if "layers" not in network:
        return
    layers = network["layers"]
    if not isinstance(layers, list) or not all(isinstance(node, Mapping) for node in layers):
        raise TypeError("model.network.layers: expected a list of layers")


def reject_code(network: Mapping[str, Any], where: Path, allow: Sequence[str]) -> None:
    """Raises an error naming the file `where` for a network that would run other code than that of networks, or fetch
    anything from elsewhere. `allow` is what may be named, see `locate`."""
    if without_downloads(network) != dict(network):
        raise ArtifactError(f"'{where}' asks for weights from elsewhere; it was changed after its export.")
    if any("class" in node for node in _nodes(network)):
        raise ArtifactError(f"'{where}' has a node with 'class'; a stored model has '_target_' alone.")
    for node in _nodes(network):
        target = node.get("_target_")
        if not isinstance(target, str):
            continue
        home = locate.qualified_name(locate.resolve(target, key=f"'{where}': model.network: _target_", allow=allow))
        library = home.partition(".")[0]
        if library in _PUBLISHERS and library != target.partition(".")[0]:  # what follows goes by the written name
            raise ArtifactError(f"'{where}' calls {home} by another name, '{target}'; it was changed after its export.")
    name = next(_remote_names(network), None)
    if name is not None:
        raise ArtifactError(f"'{where}' names the remote model '{name}'; pass the network as model= instead.")


def _nodes(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping at any depth."""
    if isinstance(value, Mapping):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _nodes(item)


def _remote_names(network: Mapping[str, Any]) -> Iterator[str]:
    """Every text with a colon among the arguments of a timm model: a name such as `hf-hub:...` or `local-dir:...`
    fetches code and weights from elsewhere."""
    for node in _nodes(network):
        if str(node.get("_target_")).startswith("timm."):
            yield from (value for value in node.values() if isinstance(value, str) and ":" in value)
