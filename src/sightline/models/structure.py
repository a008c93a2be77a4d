"""What a network is made of, from the first layer up: its head, and how deep every parameter lies."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from sightline.core import locate
from sightline.core.locate import is_below
from sightline.models.probe import Trace, trace


def find_head(model: nn.Module, shape: tuple[int, ...]) -> tuple[str, ...]:
    """The names of the layers that answer with one number per class, for images of `shape` (C, H, W): nearly always
    one, of a distilled transformer two, none where the network does not have its answer from a layer.

    A timm network says so itself; of another it is the last layer with weights, in the order in which they run,
    provided that its output is one number, or one map, per class. What comes after it and only scales and shifts, such
    as a normalisation, belongs to it."""
    names = {id(module): name for name, module in model.named_modules()}
    classifier = getattr(model, "get_classifier", None)
    if callable(classifier) and any(kind.__module__.startswith("timm.") for kind in type(model).__mro__):
        said: Any = classifier()
        layers = said if isinstance(said, tuple | list) else [said]
        found = [names[id(layer)] for layer in layers if id(layer) in names and any(True for _ in layer.parameters())]
        if found:
            return tuple(found)
    ran, modules = trace(model, shape), dict(model.named_modules())
    found = []
    for row in reversed([row for row in ran.layers if row.parameters]):
        name = row.name if row.name in modules else ""  # the network may be a single layer, which has no name
        found.append(name)
        if any(parameter.ndim > 1 for parameter in modules[name].parameters()):
            width = row.shape[0 if len(row.shape) == 3 else -1] if row.shape else None
            return tuple(dict.fromkeys(reversed(found))) if ran.output and ran.output[-1] == width else ()
    return ()


def find_first_convolution(model: nn.Module, shape: tuple[int, ...]) -> str | None:
    """The name of the first layer with parameters, if it is a convolution over all channels of the picture."""
    first = next((row for row in trace(model, shape).layers if row.parameters), None)
    layer = dict(model.named_modules()).get(first.name) if first is not None else None
    alone = isinstance(layer, nn.Conv2d) and layer.groups == 1
    return first.name if first is not None and alone else None


def parameter_depths(model: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """How deep each parameter lies, by name: 0 for the first block, one more for each block above it, most for the
    head.

    Of a timm network the blocks are those of its own `group_matcher`. Of another they are its children in the order in
    which they run, `Sequential`s and whatever holds more than half of the parameters taken apart; a normalisation
    belongs to the layer before it."""
    names = [name for name, _ in model.named_parameters()]
    heads = find_head(model, shape)
    found = _grouped_by_timm(model) or _by_blocks(model, trace(model, shape))
    levels = sorted({found[name] for name in names if not is_below(name, heads)})
    return {name: len(levels) if is_below(name, heads) else levels.index(found[name]) for name in names}


def _grouped_by_timm(model: nn.Module) -> dict[str, int]:
    matcher: Any = getattr(model, "group_matcher", None)
    if not type(model).__module__.startswith("timm.") or matcher is None:
        return {}
    group_parameters = locate.import_optional("timm.models").group_parameters
    found: dict[str, int] = group_parameters(model, matcher(coarse=False), reverse=True)
    return found


def _by_blocks(model: nn.Module, ran: Trace) -> dict[str, int]:
    blocks = list(_blocks(model, "", _size(model)))
    turns = [[turn for turn, row in enumerate(ran.layers) if is_below(row.name, [name])] for name, _ in blocks]
    if all(turns):  # else a block is used by its weights alone, and registration is what there is to go by
        blocks = [block for _, block in sorted(zip(turns, blocks, strict=True), key=lambda pair: pair[0][0])]
    level, of_block = -1, dict[str, int]()
    for name, block in blocks:
        normalises = all(parameter.ndim <= 1 for parameter in block.parameters())
        level += not (normalises and level >= 0)
        of_block[name] = level
    found = {}
    for name, _ in model.named_parameters():
        parent = name.rpartition(".")[0]
        inside = [depth for block, depth in of_block.items() if is_below(name, [block])]
        # a parameter beside the blocks, such as an embedding of positions, goes with the first block it stands beside
        found[name] = next(iter(inside or [depth for block, depth in of_block.items() if is_below(block, [parent])]), 0)
    return found


def _blocks(module: nn.Module, prefix: str, total: int) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        size = _size(child)
        if not size:
            continue
        apart = isinstance(child, nn.Sequential | nn.ModuleList) or size > total / 2
        if apart and any(True for _ in child.children()):
            yield from _blocks(child, f"{prefix}{name}.", total)
        else:
            yield f"{prefix}{name}", child


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
