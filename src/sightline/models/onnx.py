"""A network as ONNX."""

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
    """Writes a copy of the network in evaluation mode, whole or not at all, for batches of any size unless `options`,
    those of `torch.onnx.export`, say otherwise. Raises ModelError when torch cannot."""
    for package in ("onnx", "onnxscript"):
        locate.import_optional(package)
    path = expand_user(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = copy.deepcopy(model).cpu().eval()
    aside = temporary_sibling(path)
    settings: dict[str, Any] = {"dynamo": True, "external_data": False, "verbose": False, **options}
    if settings["dynamo"] and "dynamic_shapes" not in settings:
        free = {0: torch.export.Dim.DYNAMIC}
        settings["dynamic_shapes"] = (free if isinstance(inputs, Tensor) else [free] * len(inputs),)
    # an exporter may take a dimension of 1 for a constant
    several = (
        inputs.repeat(2, *[1] * (inputs.ndim - 1))
        if isinstance(inputs, Tensor)
        else [part.repeat(2, *[1] * (part.ndim - 1)) for part in inputs]
    )
    try:
        torch.onnx.export(plain, (several,), str(aside), **settings)
        aside.replace(path)
    except Exception as error:  # the exporter raises many kinds
        raise ModelError(
            f"the network cannot be written as ONNX: {type(error).__name__}: {first_line(error)}"
        ) from error
    finally:
        aside.unlink(missing_ok=True)
