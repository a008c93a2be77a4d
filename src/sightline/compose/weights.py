"""Loads the weights that a network starts from, and the preprocessing that these weights were trained with."""

import importlib.util
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from sightline.checks.dataset import PHOTOGRAPH_SIDE
from sightline.config.schema import DataConfig, ModuleConfig, PreprocessConfig, TrainConfig, _check
from sightline.core import locate
from sightline.core.errors import ArtifactError, ConfigError
from sightline.core.files import expand_user, sha256
from sightline.core.log import logger
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
"""Keys of `data.preprocess` that weights can determine."""
_WHERE = (
    *("source", "root", "dataset", "csv", "images", "image_column", "label_column", "split_column", "group_column"),
    *("classes", "val", "test", "on_bad"),
)
"""Keys of `data` that determine which images are used for training."""
_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a gray pixel, see `Preprocess`."""


def resolve_preprocess_keys(config: TrainConfig) -> PreprocessConfig:
    """Returns `data.preprocess` with its `auto` keys set to what the initial weights expect.

    The values come from the exported model or checkpoint that `module.weights` names, or else from the publisher of the
    network. Keys that neither defines, and all keys without initial weights, are unchanged. Raises ConfigError if the
    weights do not exist, so that this is known before the images are decoded."""
    module, configured = config.module, config.data.preprocess
    keys = asdict(configured)
    if not module.pretrained and module.weights is None:
        return configured
    path = None if module.weights is None else _weights_path(module.weights)
    if "auto" not in keys.values():
        return configured
    expected = None if path is None else _preprocess_of_run(path)
    if expected is None:
        expected = expected_preprocess(module.network)
    if keys["resize"] not in ("auto", expected.get("resize")):  # the crop of the weights belongs to their resize mode
        expected = {name: value for name, value in expected.items() if name != "crop_pct"}
    filled = keys | {name: value for name, value in expected.items() if keys[name] == "auto"}
    for name in ("mean", "std"):
        values = filled[name]
        known = values != "auto" and filled["channels"] != "auto"
        if keys[name] == "auto" and known and len(values) not in (1, filled["channels"]):
            gray = filled["channels"] == 1 and len(values) == len(_LUMA)
            filled[name] = [sum(luma * value for luma, value in zip(_LUMA, values, strict=True))] if gray else "auto"
    wanted = replace(configured, **filled)
    _check(replace(config, data=replace(config.data, preprocess=wanted)))
    return wanted


def suggest_finetuning(config: TrainConfig, data: PackedDataset) -> None:
    """Logs the command for fine-tuning if a network with random weights is to be trained on photographs."""
    module, stats = config.module, data.stats
    has_weights = module.pretrained or module.weights is not None or not _starts_random(module)
    if has_weights or not config.trainer.progress or stats is None or not data.classes or data.shape[1] != 3:
        return
    sizes = stats.sizes if data.rows is None else stats.sizes[data.rows]
    if config.data.root is None or int(np.median(sizes.min(1))) < PHOTOGRAPH_SIDE:
        return
    height, width = (int(side) for side in np.median(sizes, axis=0))
    install = "pip install 'sightline[lite]' && " if importlib.util.find_spec(LITE) is None else ""
    defaults = DataConfig()
    overrides = [
        f"data.{key}={getattr(config.data, key)}"
        for key in _WHERE
        if getattr(config.data, key) != getattr(defaults, key)
    ]
    logger.info(
        f"note: these are colour images of about {width} x {height} pixels. A network that was pretrained on millions "
        f"of photographs needs far fewer training images than one with random weights:\n"
        f"  {install}sightline train experiment=finetune {shlex.join(overrides)}"
    )


def build_from_weights(
    module: ModuleConfig, shape: tuple[int, int, int], num_classes: int, outputs: str
) -> tuple[nn.Module, ModelSpec, LoadReport | None]:
    """Builds the config's network with its initial weights, and returns (network, spec, report of the loaded weights).

    `shape` is the (C, H, W) of an image, and `outputs` is as in `build_model`. The report is None if the network starts
    with random weights. A new head is initialised with zeros. Raises ConfigError for weights that are missing, damaged
    or from another network, and if layers would be frozen with random weights."""
    _check_freeze(module)
    if module.pretrained:
        model, spec, loaded = build_published(module.network, shape, num_classes, outputs=outputs)
    else:
        model, spec = build_model(module.network, shape, num_classes, outputs=outputs)
        if module.weights is None:
            return model, spec, None
        weights = _read(_weights_path(module.weights))
        loaded = load_weights_into(model, weights, shape, spec.network, module.weights_by)
    if loaded.new:
        start_at_zero(model, shape)
    return model, spec, loaded


def _starts_random(module: ModuleConfig) -> bool:
    """Returns whether the network is known to have random weights. A custom network may load weights itself."""
    network = module.network
    root = "torch" if "layers" in network else locate.target_name(locate.split_node(network, KEY)[0]).partition(".")[0]
    return root in ("torch", "torchvision", "timm", "sightline") and without_downloads(network) == dict(network)


def _check_freeze(module: ModuleConfig) -> None:
    """Raises ConfigError if layers or statistics with random values would be frozen."""
    if module.pretrained or module.weights is not None or not _starts_random(module):
        return
    if module.freeze_statistics:
        raise ConfigError(
            "module.freeze_statistics: without initial weights, batch normalisation has no statistics to keep. Set "
            "pretrained=true or weights=FILE, or set module.freeze_statistics=false."
        )
    if module.freeze_epochs:
        raise ConfigError(
            f"module.freeze_epochs: the first {module.freeze_epochs} epochs would train the head on frozen random "
            f"weights. Set pretrained=true or weights=FILE, or set module.freeze_epochs=0."
        )


def _weights_path(weights: str) -> Path:
    """Returns the path that `module.weights` names. Raises ConfigError if there are no weights."""
    path = expand_user(weights)
    if path.is_dir():
        _weights_file(path)
    elif not path.is_file():
        read_weights(path)  # raises ConfigError
    return path


def _artifact(path: Path) -> Path | None:
    """Returns the directory of the exported model that a weights file, run or directory belongs to, or None."""
    if path.is_file():
        return path.parent if path.name == WEIGHTS and (path.parent / MANIFEST).is_file() else None
    candidates = (path, Run(path).exported)
    return next((directory for directory in candidates if (directory / MANIFEST).is_file()), None)


def _weights_file(path: Path) -> Path:
    """Returns the weights file of a run or exported model: the exported one, else `best.ckpt`, else `last.ckpt`."""
    artifact, run = _artifact(path), Run(path)
    candidates: Sequence[Path] = (run.best, run.last) if artifact is None else (artifact / WEIGHTS,)
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise ConfigError(
            f"{KEY}: the directory '{path}' is neither a run with a checkpoint nor an exported model. Name a run, its "
            f"'{run.exported.name}' folder, or a weights file."
        )
    return file


def _read(path: Path) -> Weights:
    artifact = _artifact(path)
    file = _weights_file(path) if path.is_dir() else path
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


def _preprocess_of_run(path: Path) -> dict[str, Any] | None:
    """Returns the known `data.preprocess` keys of the Sightline run that the weights at `path` are from.

    Returns None for weights of another origin."""
    artifact = _artifact(path)
    if artifact is None and path.is_file():
        run = Run(path.parent.parent)  # a checkpoint is in the run's checkpoint directory
        artifact = _artifact(run.path) if path.parent == run.checkpoints else None
    if artifact is not None:
        return _preprocess_of_artifact(artifact)
    file = _weights_file(path) if path.is_dir() else path
    saved = {} if file.suffix == ".safetensors" else read_weights(file, numpy_globals()).images
    if not saved:
        return None
    known = {name: saved[name] for name in _KEYS if saved.get(name, "auto") != "auto"}
    try:
        TrainConfig.from_dict({"data": {"preprocess": known}})
    except ConfigError as error:
        raise ConfigError(f"{KEY}: the config in '{file}' is damaged: {error}") from error
    return known


def _preprocess_of_artifact(artifact: Path) -> dict[str, Any]:
    try:
        preprocess = Preprocess.from_dict(dict(_manifest(artifact)["preprocess"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{KEY}: '{artifact / MANIFEST}' is damaged: {error}.") from error
    statistics = {name: list(getattr(preprocess, name)) for name in ("mean", "std")}
    return statistics | {
        "size": [preprocess.height, preprocess.width],
        "channels": preprocess.channels,
        "interpolation": preprocess.interpolation,
        "resize": preprocess.resize,
        "crop_pct": preprocess.crop_pct,
    }
