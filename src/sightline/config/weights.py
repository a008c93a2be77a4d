"""The keys that say what a network starts from -> its weights, and the pictures that these were trained with; the part
of the composition root that is about what was trained before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from sightline.config.schema import ModuleConfig, TrainConfig
from sightline.data.preprocess import Preprocess
from sightline.engine.checkpoint import numpy_values
from sightline.errors import ArtifactError, ConfigError
from sightline.files import expanded, sha256
from sightline.models.pretrained import KEY, Loaded, Weights, load_into, read_weights
from sightline.models.published import build_published, expected_pictures
from sightline.models.spec import ModelSpec, build_model
from sightline.runs.directory import Run
from sightline.runs.manifest import MANIFEST, WEIGHTS, read_manifest

_LUMA = (0.299, 0.587, 0.114)
"""How gray is made of red, green and blue, see `Preprocess`."""


def with_expected_pictures(config: TrainConfig) -> TrainConfig:
    """The config with every `data.preprocess` key that is `auto` as the weights it starts from expect it: as the stored
    model says, or the publisher of the network. Without weights, and where neither says anything, it stays as it is.

    Raises ConfigError when there are no such weights: better told now than after an hour of decoding."""
    module, given = config.module, asdict(config.data.preprocess)
    if not module.pretrained and module.weights is None:
        return config
    if "auto" not in given.values():  # a run that is resumed needs its weights no more
        return config
    place = None if module.weights is None else _place(module.weights)
    artifact = None if place is None else _artifact(place)
    expected = expected_pictures(module.network) if artifact is None else _of_artifact(artifact)
    filled = given | {name: value for name, value in expected.items() if given[name] == "auto"}
    for name in ("mean", "std"):
        values = filled[name]
        if given[name] == "auto" and values != "auto" and len(values) not in (1, filled["channels"]):
            gray = filled["channels"] == 1 and len(values) == len(_LUMA)
            filled[name] = [sum(share * value for share, value in zip(_LUMA, values, strict=True))] if gray else "auto"
    return replace(config, data=replace(config.data, preprocess=replace(config.data.preprocess, **filled)))


def build_from_weights(
    module: ModuleConfig, shape: tuple[int, int, int], num_classes: int, outputs: str
) -> tuple[nn.Module, ModelSpec, Loaded | None]:
    """The network of the config for images of `shape` (C, H, W), with the weights it starts from, its spec, and what
    was loaded; None where it starts from none. `outputs` is as in `build_model`.

    Raises ConfigError for weights that are missing, damaged, or of another network."""
    if module.pretrained:
        return build_published(module.network, shape, num_classes, outputs=outputs)
    model, spec = build_model(module.network, shape, num_classes, outputs=outputs)
    if module.weights is None:
        return model, spec, None
    return model, spec, load_into(model, _read(_place(module.weights)), shape)


def _place(weights: str) -> Path:
    path = expanded(weights)
    if path.is_dir():
        _file(path)
    elif not path.is_file():
        read_weights(path)  # which says so
    return path


def _artifact(path: Path) -> Path | None:
    """The folder of the exported model that a path stands for, or None."""
    if path.is_file():
        return path.parent if path.name == WEIGHTS and (path.parent / MANIFEST).is_file() else None
    places = (path, Run(path).exported)
    return next((place for place in places if (place / MANIFEST).is_file()), None)


def _file(path: Path) -> Path:
    """The file of weights in a run's directory or an exported folder: the exported ones, else the best, else the last
    checkpoint's."""
    artifact, run = _artifact(path), Run(path)
    places: Sequence[Path] = (run.best, run.last) if artifact is None else (artifact / WEIGHTS,)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ConfigError(
            f"{KEY}: the directory '{path}' is no run with a checkpoint and no exported model. Name a run, its "
            f"'{run.exported.name}' folder, or a file of weights."
        )
    return found


def _read(path: Path) -> Weights:
    artifact = _artifact(path)
    file = _file(path) if path.is_dir() else path
    weights = read_weights(file, numpy_values())
    if artifact is not None:
        manifest = _manifest(artifact)
        if sha256(file) != manifest.get("weights_sha256"):
            raise ConfigError(f"{KEY}: '{file}' is not the file the model was exported with: its SHA-256 differs.")
        node = manifest.get("model", {}).get("network", {})
        weights = replace(weights, network=str(node.get("model_name") or node.get("_target_") or "a list of layers"))
    return replace(weights, source=str(path)) if path.is_dir() else weights


def _manifest(artifact: Path) -> Mapping[str, Any]:
    try:
        return read_manifest(artifact)
    except ArtifactError as error:
        raise ConfigError(f"{KEY}: {error}") from error


def _of_artifact(artifact: Path) -> dict[str, Any]:
    try:
        found = Preprocess.from_dict(dict(_manifest(artifact)["preprocess"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{KEY}: '{artifact / MANIFEST}' is damaged: {error}.") from error
    told = {name: list(getattr(found, name)) for name in ("mean", "std")}
    return told | {
        "size": [found.height, found.width],
        "channels": found.channels,
        "interpolation": found.interpolation,
    }
