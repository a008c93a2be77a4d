"""Saves and loads the weights of a network, and its architecture as data, without pickled code."""

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
    """Writes the state dict, on the CPU, to a file, atomically, or to a stream.

    With `architecture`, `.json` and `.safetensors` files for `load_network` are written beside the file. Raises
    LearnerError for a network that cannot be described as data."""
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
        temporary = temporary_sibling(weights)
        try:
            save_model(model, str(temporary))
            temporary.replace(weights)
        finally:
            temporary.unlink(missing_ok=True)
        description = {"format": FORMAT, "network": node, "weights": weights.name, "sha256": sha256(weights)}
        write_json(path.with_suffix(".json"), description)


def load_weights(model: nn.Module, path: str | Path | IO[bytes]) -> None:
    """Loads all weights of a state dict, a checkpoint or a safetensors file into `model`.

    Raises LearnerError naming what does not fit; then `model` is unchanged."""
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
    """Returns the network that was saved with `save_architecture`, with its weights.

    `path` is any of its files. Only layers of torch.nn are created, unless `allow` has the dotted names of other
    trusted code. Raises ArtifactError if a file is missing or was changed."""
    description, file = _read_description(expand_user(path))
    network, weights = description["network"], file.parent / Path(str(description["weights"])).name
    tensors = read_checked_weights(weights, description["sha256"], "that was saved")
    try:
        model = locate.instantiate(network, key=f"'{file}': network", allow=("torch.nn", *allow))
    except RecursionError as error:
        raise ArtifactError(f"'{file}': the network is nested too deeply.") from error
    if not isinstance(model, nn.Module):
        raise ArtifactError(f"'{file}': expected the description of a network, found a {type(model).__name__}.")
    try:
        load_tensors(model, tensors, whole=True)
    except RuntimeError as error:
        raise ArtifactError(f"'{weights}' does not fit the network of '{file}': {first_line(error)}") from error
    return model


def _node(model: nn.Module) -> dict[str, Any]:
    try:
        return model_to_node(model)
    except SightlineError as error:
        raise LearnerError(
            f"save_architecture: {error} Save only the weights, and create the network in your code before calling "
            f"load_model."
        ) from error


def _read_description(path: Path) -> tuple[dict[str, Any], Path]:
    file = path.with_suffix(".json")
    try:
        description = read_json(file)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"'{file}' cannot be read: {error}. It is written by save_architecture=True. Without it, create the "
            f"network in your code and call load_model."
        ) from error
    if not isinstance(description, dict) or not {"network", "weights", "sha256"} <= set(description):
        raise ArtifactError(f"'{file}' does not describe a network; expected network, weights and sha256.")
    if description.get("format") != FORMAT or not isinstance(description["network"], dict):
        raise ArtifactError(f"'{file}' has format {description.get('format')}; this version reads format {FORMAT}.")
    return description, file
