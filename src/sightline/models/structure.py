"""The structure of a network: its head, its first convolution, and the depth of every parameter."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from sightline.core import locate
from sightline.core.locate import is_below
from sightline.models.probe import Trace, trace


def find_head(model: nn.Module, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Returns the names of the layers that output one number per class, for images of `shape` (C, H, W).

    This is nearly always one layer; a distilled transformer has two. The result is empty if the output does not come
    from a layer, and contains "" if the network is a single layer. A timm network names its classifier; for any other
    network the head is the last layer with weights in execution order, if its output is one number or one map per
    class. Layers after it that only scale and shift, such as a normalisation, belong to the head."""
    names = {id(module): name for name, module in model.named_modules()}
    classifier = getattr(model, "get_classifier", None)
    if callable(classifier) and any(kind.__module__.startswith("timm.") for kind in type(model).__mro__):
        heads: Any = classifier()
        layers = heads if isinstance(heads, tuple | list) else [heads]
        head = [names[id(layer)] for layer in layers if id(layer) in names and any(True for _ in layer.parameters())]
        if head:
            return tuple(head)
    ran, modules = trace(model, shape), dict(model.named_modules())
    head = []
    for row in reversed([row for row in ran.layers if row.parameters]):
        name = row.name if row.name in modules else ""  # the network may be a single layer, which has no name
        head.append(name)
        if any(parameter.ndim > 1 for parameter in modules[name].parameters()):
            width = row.shape[0 if len(row.shape) == 3 else -1] if row.shape else None
            return tuple(dict.fromkeys(reversed(head))) if ran.output and ran.output[-1] == width else ()
    return ()


def find_first_convolution(model: nn.Module, shape: tuple[int, ...]) -> str | None:
    """Returns the name of the first layer with parameters if it is an ungrouped 2-D convolution, else None."""
    first = next((row for row in trace(model, shape).layers if row.parameters), None)
    layer = dict(model.named_modules()).get(first.name) if first is not None else None
    ungrouped = isinstance(layer, nn.Conv2d) and layer.groups == 1
    return first.name if first is not None and ungrouped else None


def parameter_depths(model: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """Returns the depth of each parameter by name: 0 in the first block, one more per block, highest in the head.

    The blocks of a timm network are defined by its `group_matcher`. The blocks of any other network are its children in
    execution order; `Sequential`s, `ModuleList`s and children with more than half of the parameters are split into
    their own children. A normalisation belongs to the block before it."""
    names = [name for name, _ in model.named_parameters()]
    heads = find_head(model, shape)
    depths = _grouped_by_timm(model) or _by_blocks(model, trace(model, shape))
    levels = sorted({depths[name] for name in names if not is_below(name, heads)})
    return {name: len(levels) if is_below(name, heads) else levels.index(depths[name]) for name in names}


def _grouped_by_timm(model: nn.Module) -> dict[str, int]:
    matcher: Any = getattr(model, "group_matcher", None)
    if not type(model).__module__.startswith("timm.") or matcher is None:
        return {}
    group_parameters = locate.import_optional("timm.models").group_parameters
    depths: dict[str, int] = group_parameters(model, matcher(coarse=False), reverse=True)
    return depths


def _by_blocks(model: nn.Module, ran: Trace) -> dict[str, int]:
    blocks = list(_blocks(model, "", _size(model)))
    calls = [[call for call, row in enumerate(ran.layers) if is_below(row.name, [name])] for name, _ in blocks]
    if all(calls):  # else the forward of some block is never called, and the order of registration is kept
        blocks = [block for _, block in sorted(zip(calls, blocks, strict=True), key=lambda pair: pair[0][0])]
    level, of_block = -1, dict[str, int]()
    for name, block in blocks:
        normalises = all(parameter.ndim <= 1 for parameter in block.parameters())
        level += not (normalises and level >= 0)
        of_block[name] = level
    depths = {}
    for name, _ in model.named_parameters():
        parent = name.rpartition(".")[0]
        inside = [depth for block, depth in of_block.items() if is_below(name, [block])]
        # a parameter outside the blocks, such as a position embedding, counts with the first block of its parent
        beside = [depth for block, depth in of_block.items() if is_below(block, [parent])]
        depths[name] = next(iter(inside or beside), 0)
    return depths


def _blocks(module: nn.Module, prefix: str, total: int) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        size = _size(child)
        if not size:
            continue
        split = isinstance(child, nn.Sequential | nn.ModuleList) or size > total / 2
        if split and any(True for _ in child.children()):
            yield from _blocks(child, f"{prefix}{name}.", total)
        else:
            yield f"{prefix}{name}", child


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
