"""A table of a network's layers: input and output sizes, parameters and multiply-adds."""

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.core.eval_mode import eval_mode
from sightline.learner.plan import LearnerError
from sightline.models.probe import trace_inputs


def inputs_of(sizes: Any, types: Any) -> list[Tensor] | Tensor:
    """Returns zeros with a batch dimension of 1 for an input size; for a list of sizes, a list of tensors.

    `types` are torch dtypes or legacy tensor types such as `torch.FloatTensor`, one for all inputs or one for each."""
    if isinstance(sizes, list) and sizes and isinstance(sizes[0], list | tuple):
        each = types if isinstance(types, list | tuple) else [types] * len(sizes)
        if len(each) != len(sizes):
            raise LearnerError(f"input_types: expected {len(sizes)}, one for each input, found {len(each)}.")
        return [_zeros(size, kind) for size, kind in zip(sizes, each, strict=True)]
    return _zeros(sizes, types)


def _zeros(size: Any, kind: Any) -> Tensor:
    dtype = kind if isinstance(kind, torch.dtype) else getattr(kind, "dtype", None)
    if not isinstance(dtype, torch.dtype):
        raise LearnerError(f"input_types: expected a dtype such as torch.float32, found {kind!r}.")
    if not isinstance(size, list | tuple) or not all(isinstance(side, int) and side > 0 for side in size):
        raise LearnerError(f"input_sizes: expected the size of one input, such as (1, 28, 28), found {size!r}.")
    return torch.zeros((1, *size), dtype=dtype)


def layer_table(
    model: nn.Module, inputs: list[Tensor] | Tensor, width: int = 26, tensorboard_log: str | Path | None = None
) -> str:
    """Returns the table as text, with columns of at least `width` characters.

    The table is made without running or changing the model. With `tensorboard_log`, the graph is also written to that
    directory. Raises ModelError naming the layer that does not fit."""
    trace = trace_inputs(model, inputs)
    seen: Counter[str] = Counter()
    rows: list[tuple[str, ...]] = [("Name", "Input Size", "Output Size", "Parameters", "Multiply Adds")]
    for row in trace.layers:
        seen[row.kind] += 1
        costs = f"{row.parameters:,}", f"{row.multiply_adds:,}"
        rows.append((f"{row.kind}_{seen[row.kind]}", str([*row.input_shape]), str([*row.output_shape]), *costs))
    widths = [max(width, *(len(row[i]) + 2 for row in rows)) for i in range(len(rows[0]))]
    lines = ["".join(cell.ljust(wide) for cell, wide in zip(row, widths, strict=True)).rstrip() for row in rows]
    rule = "-" * sum(widths)
    if tensorboard_log is not None:
        _write_graph(model, inputs, Path(tensorboard_log))
    return "\n".join(
        (
            "Model Summary",
            lines[0],
            rule,
            *lines[1:],
            rule,
            f"Total Parameters: {trace.parameters:,}",
            f"Total Multiply Adds: {sum(row.multiply_adds for row in trace.layers):,}",
            "Number of Layers",
            "   ".join(f"{kind} : {count} layers" for kind, count in seen.items()),
        )
    )


def _write_graph(model: nn.Module, inputs: Any, directory: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with eval_mode(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of torch's tracer
        with SummaryWriter(str(directory)) as writer:
            on_device = [part.to(device) for part in ([inputs] if isinstance(inputs, Tensor) else inputs)]
            writer.add_graph(model, (on_device[0] if isinstance(inputs, Tensor) else on_device,))
