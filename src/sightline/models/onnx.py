"""Export of a network to ONNX."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.core import locate
from sightline.core.errors import ModelError, first_line
from sightline.core.files import expand_user, temporary_sibling


def write_onnx(model: nn.Module, inputs: list[Tensor] | Tensor, path: str | Path, options: Mapping[str, Any]) -> None:
    """Writes a network in evaluation mode to an ONNX file, atomically; the network itself is not changed.

    The batch dimension is dynamic. `options` are passed to `torch.onnx.export` and override the defaults. Raises
    MissingExtraError if onnx or onnxscript is not installed, ModelError if torch cannot export the network."""
    for package in ("onnx", "onnxscript"):
        locate.import_optional(package)
    path = expand_user(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    exported = copy.deepcopy(model).cpu().eval()
    temporary = temporary_sibling(path)
    settings: dict[str, Any] = {"dynamo": True, "external_data": False, "verbose": False, **options}
    if settings["dynamo"] and "dynamic_shapes" not in settings:
        dynamic = {0: torch.export.Dim.DYNAMIC}
        settings["dynamic_shapes"] = (dynamic if isinstance(inputs, Tensor) else [dynamic] * len(inputs),)
    # the exporter may treat a batch dimension of 1 as a constant
    doubled = (
        inputs.repeat(2, *[1] * (inputs.ndim - 1))
        if isinstance(inputs, Tensor)
        else [part.repeat(2, *[1] * (part.ndim - 1)) for part in inputs]
    )
    try:
        torch.onnx.export(exported, (doubled,), str(temporary), **settings)
        temporary.replace(path)
    except Exception as error:  # the exporter raises many types
        raise ModelError(
            f"the network cannot be exported to ONNX: {type(error).__name__}: {first_line(error)}"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
