"""Validation of the manifest of an exported model, before any object is built from it.

The manifest may come from an untrusted source. Its content decides how much is computed, which code is called, and what
is downloaded."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sightline.core import locate
from sightline.core.errors import ArtifactError, DataError, reason
from sightline.data.images.preprocess import Preprocess
from sightline.inference.predictor import OutputStep
from sightline.models.spec import OUTPUT_KINDS, ModelSpec, without_downloads

_MAX_IMAGE_VALUES = 2**27
"""Largest number of values of one image: about 6,600 x 6,600 pixels in colour."""
_PUBLISHERS = ("timm", "torchvision")


class Description(NamedTuple):
    """The validated content of a manifest; `weights_sha256` is the expected SHA-256 of the weights file."""

    spec: ModelSpec
    preprocess: Preprocess
    classes: tuple[str, ...]
    weights_sha256: str
    output: OutputStep


def validate_manifest(manifest: Mapping[str, Any], where: Path) -> Description:
    """Returns the validated content of `manifest`, read from the file `where`.

    Raises ArtifactError if a key is missing, a value is invalid, or values contradict each other."""
    try:
        return _validate(manifest)
    except (KeyError, TypeError, ValueError, OverflowError, DataError) as error:
        raise ArtifactError(f"'{where}' is damaged: {reason(error)}.") from error


def _validate(manifest: Mapping[str, Any]) -> Description:
    model, settings = _mapping(manifest["model"], "model"), _mapping(manifest["preprocess"], "preprocess")
    network = _mapping(model["network"], "model.network")
    _check_network(network)
    for name, value in (("num_classes", model["num_classes"]), *((name, settings[name]) for name in _SIDES)):
        _integer(value, name)
    if not isinstance(model["shape"], list) or not isinstance(model["outputs"], str):
        raise TypeError("expected a list as model.shape and a string as model.outputs")
    for name in ("resize", "interpolation"):
        if not isinstance(settings[name], str):
            raise TypeError(f"preprocess.{name}: expected a string, found {settings[name]!r}")
    classes, checksum = manifest["classes"], manifest["weights_sha256"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise TypeError("classes: expected a list of strings")
    if not isinstance(checksum, str):
        raise TypeError(f"weights_sha256: expected a SHA-256 as a string, found {checksum!r}")
    spec, preprocess = ModelSpec.from_dict(model), Preprocess.from_dict(dict(settings))
    counts = (1, 0) if spec.outputs == "values" else (len(classes), len(classes))
    consistent = spec.outputs in OUTPUT_KINDS and (spec.num_classes, len(classes)) == counts
    if not consistent or spec.shape != preprocess.shape:
        raise ValueError("its network, classes and preprocessing do not match")
    if preprocess.channels not in (1, 3) or not 0 <= _integer(preprocess.background, "background", 0) <= 255:
        raise ValueError("preprocess: expected 1 or 3 channels and a background in [0, 255]")
    if math.prod(preprocess.shape) > _MAX_IMAGE_VALUES:
        size = " x ".join(map(str, preprocess.shape))
        raise ValueError(f"preprocess: images of {size} exceed the limit of {_MAX_IMAGE_VALUES:,} values")
    return Description(spec, preprocess, tuple(classes), checksum, _output(manifest, spec.outputs))


_SIDES = ("height", "width", "channels")


def _output(manifest: Mapping[str, Any], kind: str) -> OutputStep:
    values = _mapping(manifest.get("output", {}), "output")
    temperature, threshold = values.get("temperature", 1.0), values.get("threshold")
    if type(temperature) not in (int, float) or not 0 < temperature < math.inf:
        raise ValueError(f"output.temperature: expected a number > 0, found {temperature!r}")
    if threshold is not None and (type(threshold) not in (int, float) or not 0 <= threshold <= 1):
        raise ValueError(f"output.threshold: expected a number in [0, 1], found {threshold!r}")
    return OutputStep(kind, float(temperature), threshold)


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}: expected a mapping, found {type(value).__name__}")
    return value


def _integer(value: Any, name: str, minimum: int = 1) -> int:
    if type(value) is not int or value < minimum:
        raise TypeError(f"{name}: expected an integer >= {minimum}, found {value!r}")
    return value


def _check_network(network: Mapping[str, Any]) -> None:
    if "layers" not in network:
        return
    layers = network["layers"]
    if not isinstance(layers, list) or not all(isinstance(node, Mapping) for node in layers):
        raise TypeError("model.network.layers: expected a list of mappings")


def reject_code(network: Mapping[str, Any], where: Path, allow: Sequence[str]) -> None:
    """Raises an error that names the file `where` if building the network would run untrusted code or download files.

    `allow` lists the dotted names and prefixes that may be used, see `sightline.core.locate`. The error is a
    ConfigError or MissingExtraError if a target is not allowed or cannot be imported, otherwise an ArtifactError."""
    if without_downloads(network) != dict(network):
        raise ArtifactError(f"'{where}' requests a download of weights; it was changed after its export.")
    if any("class" in node for node in _nodes(network)):
        raise ArtifactError(f"'{where}' has a node with 'class'; a stored model may only use '_target_'.")
    for node in _nodes(network):
        target = node.get("_target_")
        if not isinstance(target, str):
            continue
        name = locate.qualified_name(locate.resolve(target, key=f"'{where}': model.network: _target_", allow=allow))
        library = name.partition(".")[0]
        # the checks for downloads look at the written name
        if library in _PUBLISHERS and library != target.partition(".")[0]:
            raise ArtifactError(
                f"'{where}' refers to {name} by another name, '{target}'; it was changed after its export."
            )
    remote = next(_remote_names(network), None)
    if remote is not None:
        raise ArtifactError(f"'{where}' names the remote model '{remote}'. Pass the network itself as model= instead.")


def _nodes(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yields every mapping in `value`, at any depth."""
    if isinstance(value, Mapping):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _nodes(item)


def _remote_names(network: Mapping[str, Any]) -> Iterator[str]:
    """Yields every string with a colon among the arguments of timm models.

    Names such as `hf-hub:...` or `local-dir:...` load code and weights from outside the artifact."""
    for node in _nodes(network):
        if str(node.get("_target_")).startswith("timm."):
            yield from (value for value in node.values() if isinstance(value, str) and ":" in value)
