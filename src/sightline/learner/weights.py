"""A network's weights in a file, and what they belong to as data: no pickled code, neither way."""

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from sightline.core import locate
from sightline.core.errors import ArtifactError, ConfigError, SightlineError, argument_names, first_line
from sightline.core.files import atomic_write, expand_user, read_json, sha256, temporary_sibling, write_json
from sightline.inference.artifact import read_checked_weights
from sightline.learner.plan import LearnerError
from sightline.models.node import model_to_node
from sightline.models.pretrained import load_exactly, load_tensors, read_weights

FORMAT = 1


def save_weights(model: nn.Module, path: str | Path | IO[bytes], architecture: bool = False) -> None:
    """Writes the state dict, on the CPU, to `path`, atomically; with `architecture`, `.json` and `.safetensors` files
    beside it from which `load_network` makes the network."""
    state = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in model.state_dict().items()}
    if not isinstance(path, str | Path):
        torch.save(state, path)
        return
    path = expand_user(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    node = _node(model) if architecture else None
    with atomic_write(path) as file:
        torch.save(state, file)
    if node is not None:
        weights = path.with_suffix(".safetensors")
        aside = temporary_sibling(weights)
        try:
            save_model(model, str(aside))
            aside.replace(weights)
        finally:
            aside.unlink(missing_ok=True)
        about = {"format": FORMAT, "network": node, "weights": weights.name, "sha256": sha256(weights)}
        write_json(path.with_suffix(".json"), about)


def load_weights(model: nn.Module, path: str | Path | IO[bytes]) -> None:
    """Puts the weights of a state dict, a checkpoint or a safetensors file into `model`, all or none. Raises
    LearnerError naming what does not fit."""
    try:
        with argument_names({"weights": "load_model"}):
            if isinstance(path, str | Path):
                load_exactly(model, read_weights(expand_user(path)).tensors, f"'{path}'")
            else:
                tensors = torch.load(path, map_location="cpu", weights_only=True)
                load_exactly(model, tensors, "the stream")
    except ConfigError as error:
        raise LearnerError(str(error)) from error


def load_network(path: str | Path, allow: Sequence[str] = ()) -> nn.Module:
    """The network that was saved with `save_architecture`, with its weights; `path` is that of any of its files. Only
    layers of torch.nn are made, unless `allow` names other code that is trusted, by its dotted name. Raises
    ArtifactError when a file is missing or not what was written."""
    about, where = _described_at(expand_user(path))
    network, weights = about["network"], where.parent / Path(str(about["weights"])).name
    tensors = read_checked_weights(weights, about["sha256"], "that was saved")
    try:
        model = locate.instantiate(network, key=f"'{where}': network", allow=("torch.nn", *allow))
    except RecursionError as error:
        raise ArtifactError(f"'{where}': the network is nested too deeply.") from error
    if not isinstance(model, nn.Module):
        raise ArtifactError(f"'{where}' describes a {type(model).__name__}, no network.")
    try:
        load_tensors(model, tensors, whole=True)
    except RuntimeError as error:
        raise ArtifactError(f"'{weights}' does not fit the network of '{where}': {first_line(error)}") from error
    return model


def _node(model: nn.Module) -> dict[str, Any]:
    try:
        return model_to_node(model)
    except SightlineError as error:
        raise LearnerError(
            f"save_architecture: {error} Save the weights alone, and make the network by your own code before "
            f"load_model."
        ) from error


def _described_at(path: Path) -> tuple[dict[str, Any], Path]:
    where = path.with_suffix(".json")
    try:
        about = read_json(where)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"'{where}' cannot be read: {error}. It is written by save_architecture=True; without it, make the network "
            f"by your own code and call load_model."
        ) from error
    if not isinstance(about, dict) or not {"network", "weights", "sha256"} <= set(about):
        raise ArtifactError(f"'{where}' does not describe a network.")
    if about.get("format") != FORMAT or not isinstance(about["network"], dict):
        raise ArtifactError(f"'{where}' is of format {about.get('format')}; this version reads format {FORMAT}.")
    return about, where
