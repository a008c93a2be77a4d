"""Shape inference for networks: layer shapes, parameters and multiply-adds, without changing weights or buffers.

A copy of the network on torch's meta device, where tensors have shapes but no values, runs one batch in evaluation
mode."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from sightline.core.errors import ModelError, first_line, render_setting

_BATCH = 2
_MAX_BATCH, _EVALUATION_BYTES = 256, 256 << 20


@dataclass(frozen=True)
class LayerRow:
    """One call of a layer.

    `input_shape` and `output_shape` are the shapes, batch included, of the first input and the first output tensor;
    empty if there is none. `multiply_adds` are for one image, and 0 where they cannot be counted."""

    name: str
    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The output shape without the batch dimension."""
        return self.output_shape[1:]


@dataclass(frozen=True)
class Trace:
    """A network's leaf layers in execution order, and its totals.

    `output` is the output shape for one image; it is empty if that is a scalar or not a tensor. `answers` is whether
    the output is a tensor. `parameters` counts each shared weight once; `multiply_adds` are for one image."""

    layers: tuple[LayerRow, ...]
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int
    answers: bool = True


def trace(model: nn.Module, shape: tuple[int, ...], fits: Callable[[int], bool] | None = None) -> Trace:
    """Runs images of `shape` (C, H, W) through a shape-only copy of `model` and returns what every layer did.

    `fits(side)` returns whether a square image of that side fits; it is needed if `model` is only a part of a network.
    Raises ModelError naming the layer that rejects its input, what it got, what it needs, and the smallest square image
    of up to 512 pixels that fits, if there is one."""
    try:
        return _run(model, _images(shape))
    except _LayerError as error:
        smallest = _smallest_image(fits or _runs(model, shape[0])) if error.size_matters else None
        message = f" The smallest square image this network takes is {smallest} x {smallest}." if smallest else ""
        image = " x ".join(str(side) for side in shape[1:])
        raise ModelError(
            f"the network does not fit images of {image} with {_channels(shape[0])}: {error}{message}"
        ) from error


def trace_inputs(model: nn.Module, inputs: Tensor | list[Tensor]) -> Trace:
    """Like `trace`, for any batch of inputs; a list of inputs is passed to the network as a single list.

    Raises ModelError naming the layer that rejects its input."""
    try:
        return _run(model, inputs)
    except _LayerError as error:
        if isinstance(inputs, Tensor) and inputs.ndim == 4 and inputs.is_floating_point():
            trace(model, tuple(inputs.shape[1:]))  # its message also names the image size that fits
        sizes = [list(part.shape[1:]) for part in ([inputs] if isinstance(inputs, Tensor) else inputs)]
        raise ModelError(f"the network does not fit inputs of {sizes}: {error}") from error


def meta_copy(model: nn.Module) -> nn.Module:
    """Returns a copy in evaluation mode with parameters and buffers on the meta device; `model` is not changed."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo).eval()


def batch_that_fits(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Returns the batch size for evaluating `model` on images of `shape` (C, H, W): a power of two from 1 to 256.

    It is the largest for which the images, twice, and the input and output of the layer where these are largest take at
    most 256 MiB in float32."""
    largest = max(
        (math.prod(row.input_shape) + math.prod(row.output_shape) for row in trace(model, shape).layers), default=0
    )
    numbers = largest // _BATCH + 2 * math.prod(shape)
    largest_batch = min(_MAX_BATCH, _EVALUATION_BYTES // (4 * numbers))
    return 1 << max(0, largest_batch.bit_length() - 1)


def summary(model: nn.Module, shape: tuple[int, int, int]) -> str:
    """Returns a text table of layers, output shapes, parameters and multiply-adds for one image, with totals.

    `shape` is (C, H, W). A multiply-add is one multiplication and one addition in a convolution, a linear layer or an
    attention product. Raises ModelError as `trace` does."""
    traced = trace(model, shape)
    rows = [("layer", "type", "output shape", "parameters", "multiply-adds")]
    rows += [
        (row.name, row.kind, " x ".join(map(str, row.shape)), f"{row.parameters:,}", f"{row.multiply_adds:,}")
        for row in traced.layers
    ]
    rows.append(
        ("total", "", " x ".join(map(str, traced.output)), f"{traced.parameters:,}", f"{traced.multiply_adds:,}")
    )
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        "  ".join(
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    rule = "-" * len(lines[0])
    return "\n".join(line.rstrip() for line in (lines[0], rule, *lines[1:-1], rule, lines[-1]))


class _LayerError(Exception):
    def __init__(self, message: str, size_matters: bool):
        super().__init__(message)
        self.size_matters = size_matters


def _images(shape: tuple[int, ...]) -> Tensor:
    return torch.zeros((_BATCH, *shape), device="meta")


def _run(model: nn.Module, inputs: Any) -> Trace:
    try:
        return _observe(meta_copy(model), _zeros(inputs, torch.device("meta")))
    except Exception as error:
        # a network may read values, hold tensors that are not buffers, or have lazy layers: then a real copy is run
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        try:
            with torch.random.fork_rng():
                with contextlib.suppress(_LayerError):
                    return _observe(copy.deepcopy(model).eval(), _zeros(inputs, device))
                return _observe(copy.deepcopy(model).eval(), _zeros(inputs, device), count=False)
        except _LayerError as real:
            raise real from error
        except Exception as real:  # the network's code may raise anything when it is copied
            message = f"it cannot be copied: {type(real).__name__}: {first_line(real)}"
            raise _LayerError(message, size_matters=False) from real


def _zeros(inputs: Any, device: torch.device) -> Any:
    """Zeros with the shapes and dtypes of `inputs`."""
    if isinstance(inputs, Tensor):
        return torch.zeros_like(inputs, device=device)
    return [torch.zeros_like(part, device=device) for part in inputs]


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts floating-point operations by torch's formulas.

    An operation without a formula, or whose formula fails, counts as 0, so that counting never rejects a network.
    torch's `FlopCounterMode` also tracks modules, and fails if a module is passed an expanded parameter."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet not in flop_registry:
            with self:  # a composite operation is counted by its parts
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        output = func(*args, **kwargs)
        if packet in flop_registry:
            with contextlib.suppress(Exception):
                self.total += flop_registry[packet](*args, **kwargs, out_val=output)
        return output


def _observe(probe: nn.Module, inputs: Any, count: bool = True) -> Trace:
    batch = _size(inputs)[0]
    rows: list[LayerRow] = []
    current: list[tuple[str, nn.Module, Any]] = []  # the leaf layers that are running
    counter = _Count()

    def enter(name: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...]) -> None:
            current.append((name, layer, (args, counter.total)))

        return hook

    def leave(name: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            before = current.pop()[2][1]
            kind, cost = type(layer).__name__, (counter.total - before) // 2 // batch
            weights = sum(parameter.numel() for parameter in layer.parameters())
            rows.append(LayerRow(name or kind, kind, _size(args), _size(output), weights, cost))

        return hook

    for name, layer in probe.named_modules():
        if not any(True for _ in layer.children()):
            layer.register_forward_pre_hook(enter(name))
            layer.register_forward_hook(leave(name))
    try:
        with torch.no_grad(), counter if count else contextlib.nullcontext():
            output = probe(inputs)
    except Exception as error:  # the network's code may raise anything
        raise _explain(error, current) from error
    total = counter.total // 2 // batch
    parameters = sum(parameter.numel() for parameter in probe.parameters())
    answers = isinstance(output, Tensor)
    return Trace(tuple(rows), tuple(output.shape[1:]) if answers else (), parameters, total, answers)


def _size(value: Any) -> tuple[int, ...]:
    """The shape of the first tensor in a nested value; empty if there is none."""
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _explain(error: Exception, current: list[tuple[str, nn.Module, Any]]) -> _LayerError:
    if not current:
        return _LayerError(f"its forward() raised {type(error).__name__}: {error}.", size_matters=True)
    name, layer, (args, _) = current[-1]
    got = next((tuple(value.shape) for value in args if isinstance(value, Tensor)), ())
    where = f"layer '{name}', {type(layer).__name__}," if name else f"the layer {type(layer).__name__}"
    needs, size_matters = _unmet_needs(layer, got)
    shape = " x ".join(map(str, got[1:]))
    return _LayerError(f"{where} got {shape or 'no tensor'}{needs or f' and raised: {error}'}.", size_matters)


def _unmet_needs(layer: nn.Module, got: tuple[int, ...]) -> tuple[str, bool]:
    """The part of a message that says what input the layer needs, and whether another image size could help."""
    width = got[1] if len(got) > 1 else 0
    if isinstance(layer, nn.modules.conv._ConvNd) and width != layer.in_channels:
        first = f", or {render_setting('channels', layer.in_channels)}" if {width, layer.in_channels} == {1, 3} else ""
        return (
            f" but needs {_channels(layer.in_channels)}; set in_channels: {width}, or auto in a layer list{first}",
            False,
        )
    if isinstance(layer, nn.modules.batchnorm._BatchNorm) and width != layer.num_features:
        return f" but needs {_channels(layer.num_features)}; set num_features: {width}, or auto in a layer list", False
    if isinstance(layer, nn.Linear) and got and got[-1] != layer.in_features:
        flat = "" if len(got) == 2 else " (flatten the image first, with torch.nn.Flatten)"
        return (
            f" but needs {layer.in_features} features; set in_features: {got[-1]}, or auto in a layer list{flat}",
            True,
        )
    if isinstance(layer, nn.modules.conv._ConvNd) and not isinstance(layer.padding, str):
        least = [
            dilation * (kernel - 1) + 1 - 2 * padding
            for kernel, dilation, padding in zip(layer.kernel_size, layer.dilation, layer.padding, strict=True)
        ]
        if any(side < needed for side, needed in zip(got[2:], least, strict=False)):
            return f" but needs at least {' x '.join(map(str, least))} pixels for its kernel", True
        return "", True
    kernel = getattr(layer, "kernel_size", None)
    if kernel is not None:
        sides = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        if any(side < needed for side, needed in zip(got[2:], sides, strict=False)):
            return f" but needs at least {' x '.join(map(str, sides))} pixels for its kernel", True
    return "", True


def _channels(count: int) -> str:
    return f"{count} channel{'' if count == 1 else 's'}"


def _runs(model: nn.Module, channels: int) -> Callable[[int], bool]:
    def runs(side: int) -> bool:
        try:
            _observe(meta_copy(model), _images((channels, side, side)))
        except Exception:  # includes lazy layers, which have no meta copy
            return False
        return True

    return runs


def _smallest_image(fits: Callable[[int], bool]) -> int | None:
    coarse = next((side for side in (*range(1, 65), *range(72, 513, 8)) if fits(side)), None)
    if coarse is None or coarse <= 64:
        return coarse
    return next(side for side in range(coarse - 7, coarse + 1) if fits(side))
