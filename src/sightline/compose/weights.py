"""The keys that say what a network starts from -> its weights, and the pictures that these were trained with; the part
of the composition root that is about what was trained before."""

import importlib.util
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from sightline.config.schema import DataConfig, ModuleConfig, PreprocessConfig, TrainConfig, _check
from sightline.core import locate
from sightline.core.errors import ArtifactError, ConfigError
from sightline.core.files import expand_user, sha256
from sightline.data.cache.dataset import PackedDataset
from sightline.data.images.preprocess import Preprocess
from sightline.engine.checkpoint.content import numpy_globals
from sightline.inference.manifest import MANIFEST, WEIGHTS, read_manifest
from sightline.models.pretrained import LoadReport, Weights, load_weights_into, read_weights, start_at_zero
from sightline.models.published import LITE, build_published, expected_preprocess
from sightline.models.spec import ModelSpec, build_model, network_name, without_downloads
from sightline.runs.directory import Run

KEY = "module.weights"
_KEYS = ("size", "channels", "mean", "std", "interpolation", "resize", "crop_pct")
_WHERE = (
    *("source", "root", "dataset", "csv", "images", "image_column", "label_column", "split_column", "group_column"),
    *("classes", "val", "test", "on_bad"),
)
"""Keys of `data` that say which images are trained on."""
_PHOTOGRAPH = 64
"""Pixels of the shorter side from which an image is taken for a photograph."""
_LUMA = (0.299, 0.587, 0.114)
"""How gray is made of red, green and blue, see `Preprocess`."""


def resolve_preprocess_keys(config: TrainConfig) -> PreprocessConfig:
    """The keys of `data.preprocess`, each that is `auto` as the weights that the network starts from expect it: as the
    stored model says, or the publisher of the network. Without weights, and where neither says anything, they stay as
    they are.

    Raises ConfigError when there are no such weights, before an hour of decoding."""
    module, own = config.module, config.data.preprocess
    given = asdict(own)
    if not module.pretrained and module.weights is None:
        return own
    place = None if module.weights is None else _place(module.weights)
    if "auto" not in given.values():
        return own
    expected = None if place is None else _of_run(place)
    if expected is None:
        expected = expected_preprocess(module.network)
    if given["resize"] not in ("auto", expected.get("resize")):  # cut for another shape than the user's own choice
        expected = {name: value for name, value in expected.items() if name != "crop_pct"}
    filled = given | {name: value for name, value in expected.items() if given[name] == "auto"}
    for name in ("mean", "std"):
        values = filled[name]
        known = values != "auto" and filled["channels"] != "auto"
        if given[name] == "auto" and known and len(values) not in (1, filled["channels"]):
            gray = filled["channels"] == 1 and len(values) == len(_LUMA)
            filled[name] = [sum(share * value for share, value in zip(_LUMA, values, strict=True))] if gray else "auto"
    wanted = replace(own, **filled)
    _check(replace(config, data=replace(config.data, preprocess=wanted)))
    return wanted


def suggest_finetuning(config: TrainConfig, data: PackedDataset) -> None:
    """Prints the command that starts from weights, where photographs are to be trained on from nothing."""
    module, stats = config.module, data.stats
    begins = module.pretrained or module.weights is not None or not _begins_at_random(module)
    if begins or not config.trainer.progress or stats is None or not data.classes or data.shape[1] != 3:
        return
    sizes = stats.sizes if data.rows is None else stats.sizes[data.rows]
    if config.data.root is None or int(np.median(sizes.min(1))) < _PHOTOGRAPH:
        return
    height, width = (int(side) for side in np.median(sizes, axis=0))
    first = "pip install 'sightline[lite]' && " if importlib.util.find_spec(LITE) is None else ""
    usual = DataConfig()
    own = [
        f"data.{key}={getattr(config.data, key)}" for key in _WHERE if getattr(config.data, key) != getattr(usual, key)
    ]
    print(
        f"note: these are colour images of about {width} x {height} pixels. A network that has seen millions of "
        f"photographs needs far fewer of yours than one with random weights:\n"
        f"  {first}sightline train experiment=finetune {shlex.join(own)}",
        file=sys.stderr,
    )


def build_from_weights(
    module: ModuleConfig, shape: tuple[int, int, int], num_classes: int, outputs: str
) -> tuple[nn.Module, ModelSpec, LoadReport | None]:
    """The network of the config for images of `shape` (C, H, W), with the weights it starts from, its spec, and what
    was loaded; None where it starts from none. A head that is new starts at zero. `outputs` is as in `build_model`.

    Raises ConfigError for weights that are missing, damaged, or of another network, and where a head would be trained
    on random weights."""
    _check_freeze(module)
    if module.pretrained:
        model, spec, loaded = build_published(module.network, shape, num_classes, outputs=outputs)
    else:
        model, spec = build_model(module.network, shape, num_classes, outputs=outputs)
        if module.weights is None:
            return model, spec, None
        loaded = load_weights_into(model, _read(_place(module.weights)), shape, spec.network, module.weights_by)
    if loaded.new:
        start_at_zero(model, shape)
    return model, spec, loaded


def _begins_at_random(module: ModuleConfig) -> bool:
    """Whether the network is known to bring no weights of its own, as one of somebody's own code may."""
    network = module.network
    root = "torch" if "layers" in network else locate.target_name(locate.split_node(network, KEY)[0]).partition(".")[0]
    return root in ("torch", "torchvision", "timm", "sightline") and without_downloads(network) == dict(network)


def _check_freeze(module: ModuleConfig) -> None:
    """Raises ConfigError where what is frozen would be random."""
    if module.pretrained or module.weights is not None or not _begins_at_random(module):
        return
    if module.freeze_statistics:
        raise ConfigError(
            "module.freeze_statistics: without weights to start from, batch normalisation has no statistics worth "
            "keeping. Say what the network starts from, pretrained=true or weights=FILE, or set "
            "module.freeze_statistics=false."
        )
    if module.freeze_epochs:
        raise ConfigError(
            f"module.freeze_epochs: the first {module.freeze_epochs} epochs would train the head on top of random "
            f"weights, which are frozen. Say what the network starts from, pretrained=true or weights=FILE, or set "
            f"module.freeze_epochs=0."
        )


def _place(weights: str) -> Path:
    path = expand_user(weights)
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
    weights = read_weights(file, numpy_globals())
    if artifact is not None:
        manifest = _manifest(artifact)
        if sha256(file) != manifest.get("weights_sha256"):
            raise ConfigError(f"{KEY}: '{file}' is not the file the model was exported with: its SHA-256 differs.")
        node = manifest.get("model", {}).get("network", {})
        weights = replace(weights, network=network_name(node), node=node)
    return replace(weights, source=str(path)) if path.is_dir() else weights


def _manifest(artifact: Path) -> Mapping[str, Any]:
    try:
        return read_manifest(artifact)
    except ArtifactError as error:
        raise ConfigError(f"{KEY}: {error}") from error


def _of_run(place: Path) -> dict[str, Any] | None:
    """The keys of `data.preprocess` that a run of ours was trained with, as far as they are known; None for weights of
    another origin."""
    artifact = _artifact(place)
    if artifact is None and place.is_file():
        run = Run(place.parent.parent)  # a checkpoint has the pictures of its run
        artifact = _artifact(run.path) if place.parent == run.checkpoints else None
    if artifact is not None:
        return _of_artifact(artifact)
    file = _file(place) if place.is_dir() else place
    pictures = {} if file.suffix == ".safetensors" else read_weights(file, numpy_globals()).images
    if not pictures:
        return None
    known = {name: pictures[name] for name in _KEYS if pictures.get(name, "auto") != "auto"}
    try:
        TrainConfig.from_dict({"data": {"preprocess": known}})
    except ConfigError as error:
        raise ConfigError(f"{KEY}: the config in '{file}' is damaged: {error}") from error
    return known


def _of_artifact(artifact: Path) -> dict[str, Any]:
    try:
        found = Preprocess.from_dict(dict(_manifest(artifact)["preprocess"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{KEY}: '{artifact / MANIFEST}' is damaged: {error}.") from error
    message = {name: list(getattr(found, name)) for name in ("mean", "std")}
    return message | {
        "size": [found.height, found.width],
        "channels": found.channels,
        "interpolation": found.interpolation,
        "resize": found.resize,
        "crop_pct": found.crop_pct,
    }
