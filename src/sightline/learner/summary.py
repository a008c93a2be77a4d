"""A network's layers as a table: what goes in, what comes out, what it costs."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sightline.errors import ModelError, first_line
from sightline.learner.plan import LearnerError
from sightline.models.probe import meta_copy, trace
from sightline.modes import evaluating


class Layer(NamedTuple):
    """One call of a layer; sizes are those of a batch of one."""

    name: str
    input_size: list[int]
    output_size: list[int]
    parameters: int
    multiply_adds: int


def inputs_of(sizes: Any, types: Any) -> list[Tensor] | Tensor:
    """A batch of one input of zeros for each size; a list where there are several. `types` are torch's dtypes, or its
    old tensor types such as `torch.FloatTensor`."""
    if isinstance(sizes, list) and sizes and isinstance(sizes[0], list | tuple):
        each = types if isinstance(types, list | tuple) else [types] * len(sizes)
        if len(each) != len(sizes):
            raise LearnerError(f"input_types: {len(each)} for {len(sizes)} inputs; give one for each.")
        return [_zeros(size, kind) for size, kind in zip(sizes, each, strict=True)]
    return _zeros(sizes, types)


def _zeros(size: Any, kind: Any) -> Tensor:
    dtype = kind if isinstance(kind, torch.dtype) else getattr(kind, "dtype", None)
    if not isinstance(dtype, torch.dtype):
        raise LearnerError(f"input_types: expected a type such as torch.float32, found {kind!r}.")
    if not isinstance(size, list | tuple) or not all(isinstance(side, int) and side > 0 for side in size):
        raise LearnerError(f"input_sizes: expected the size of one input, such as (1, 28, 28), found {size!r}.")
    return torch.zeros((1, *size), dtype=dtype)


def layer_table(
    model: nn.Module, inputs: list[Tensor] | Tensor, width: int = 26, tensorboard_log: str | Path | None = None
) -> str:
    """The table as text, `width` characters to a column; with `tensorboard_log`, the graph is written there too. The
    model itself does not run, and is not touched. Raises ModelError naming the layer that does not fit."""
    layers, parameters = layers_of(model, inputs)
    heads = ("Name", "Input Size", "Output Size", "Parameters", "Multiply Adds")
    rows = [
        (row.name, str(row.input_size), str(row.output_size), f"{row.parameters:,}", f"{row.multiply_adds:,}")
        for row in layers
    ]
    widths = [max(width, *(len(row[i]) + 2 for row in (heads, *rows))) for i in range(len(heads))]
    lines = ["".join(cell.ljust(wide) for cell, wide in zip(row, widths, strict=True)).rstrip() for row in rows]
    head = "".join(cell.ljust(wide) for cell, wide in zip(heads, widths, strict=True)).rstrip()
    rule = "-" * sum(widths)
    counts = Counter(row.name.rpartition("_")[0] for row in layers)
    if tensorboard_log is not None:
        _write_graph(model, inputs, Path(tensorboard_log))
    return "\n".join(
        (
            "Model Summary",
            head,
            rule,
            *lines,
            rule,
            f"Total Parameters: {parameters:,}",
            f"Total Multiply Adds: {sum(row.multiply_adds for row in layers):,}",
            "Number of Layers",
            "   ".join(f"{kind} : {count} layers" for kind, count in counts.items()),
        )
    )


def layers_of(model: nn.Module, inputs: list[Tensor] | Tensor) -> tuple[list[Layer], int]:
    """Every layer that has no layers inside, in the order they ran, and the number of parameters, a shared one counted
    once."""
    try:
        return _observed(meta_copy(model), _on(inputs, torch.device("meta")))
    except Exception:  # a network may look at its numbers, or keep tensors that are no buffers: then a real copy tells
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        try:
            with torch.random.fork_rng():
                return _observed(copy.deepcopy(model).eval(), _on(inputs, device))
        except Exception as error:
            if isinstance(inputs, Tensor) and inputs.ndim == 4 and inputs.is_floating_point():
                trace(model, tuple(inputs.shape[1:]))  # which says what does not fit, and what would
            sizes = [list(part.shape[1:]) for part in ([inputs] if isinstance(inputs, Tensor) else inputs)]
            raise ModelError(
                f"the network does not run on inputs of {sizes}: {type(error).__name__}: {first_line(error)}"
            ) from error


def _observed(probe: nn.Module, inputs: Any) -> tuple[list[Layer], int]:
    from torch.utils.flop_counter import FlopCounterMode

    rows: list[Layer] = []
    entered: list[int] = []
    seen: Counter[str] = Counter()
    counter = FlopCounterMode(display=False)

    def enter(_layer: nn.Module, _args: Any) -> None:
        entered.append(counter.get_total_flops())

    def leave(layer: nn.Module, args: Any, output: Any) -> None:
        kind = type(layer).__name__
        seen[kind] += 1
        flops = counter.get_total_flops() - entered.pop()
        count = sum(parameter.numel() for parameter in layer.parameters())
        rows.append(Layer(f"{kind}_{seen[kind]}", _size(args), _size(output), count, flops // 2))

    for layer in probe.modules():
        if not any(True for _ in layer.children()):
            layer.register_forward_pre_hook(enter)
            layer.register_forward_hook(leave)
    with torch.no_grad(), counter:
        probe(inputs)
    return rows, sum(parameter.numel() for parameter in probe.parameters())


def _size(value: Any) -> list[int]:
    """Of the first tensor in it."""
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return list(value.shape) if isinstance(value, Tensor) else []


def _on(inputs: Any, device: torch.device) -> Any:
    return inputs.to(device) if isinstance(inputs, Tensor) else [part.to(device) for part in inputs]


def _write_graph(model: nn.Module, inputs: Any, directory: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with evaluating(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, about itself
        with SummaryWriter(str(directory)) as writer:
            writer.add_graph(model, (_on(inputs, device),))
