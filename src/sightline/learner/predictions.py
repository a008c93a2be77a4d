"""What a network answers, for one batch or for all of a loader: one tensor, or several in a tuple, list or dict."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import torch
from numpy import ndarray
from torch import Tensor

from sightline.core.errors import join_names
from sightline.engine.nested import map_nested
from sightline.learner.plan import LearnerError


def map_parts(answer: Any, function: Callable[[Any], Any]) -> Any:
    """`function` of each part of an answer, at any depth."""
    return map_nested(answer, function, mappings=True)


def clone_for_autograd(answer: Any) -> Any:
    """A copy that may be used with gradients, as one made in inference mode may not."""
    return map_parts(answer, lambda part: part.clone() if isinstance(part, Tensor) else part)


def on_cpu(answer: Any) -> Any:
    """The tensors and arrays of an answer as tensors on the CPU."""

    def placed(part: Any) -> Any:
        return part.cpu() if isinstance(part, Tensor) else torch.from_numpy(part) if isinstance(part, ndarray) else part

    return map_parts(answer, placed)


def probabilities(answer: Any) -> Any:
    """The softmax over the classes, dimension 1, of every output. Raises LearnerError for an output without classes."""

    def softmax(part: Any) -> Any:
        shape = list(part.shape) if isinstance(part, Tensor) else None
        if shape is None or len(shape) < 2 or shape[1] < 2 or not part.is_floating_point():
            found = f"{str(part.dtype).removeprefix('torch.')} {shape}" if shape is not None else type(part).__name__
            raise LearnerError(
                f"predict: apply_softmax needs outputs [batch, classes] with at least two classes; an output is "
                f"{found}. Leave apply_softmax out, and apply softmax to the outputs that have classes."
            )
        return part.softmax(1)

    return map_parts(answer, softmax)


def squeeze_single(answer: Any) -> Any:
    """Every output without its first dimension where that is 1."""
    return map_parts(answer, lambda part: part.squeeze(0) if isinstance(part, Tensor) else part)


def per_sample(answers: list[Any]) -> list[Any]:
    """The answer to each sample of all batches, of several outputs in the container they came in."""
    return [map_parts(answer, itemgetter(place)) for answer in answers for place in range(_samples(answer))]


def concatenate(answers: list[Any]) -> Any:
    """The answers to all batches as the answer to one batch. Raises LearnerError where they do not fit together."""
    for answer in answers:
        _samples(answer)
    batches = [_parts(answer) for answer in answers]
    first = batches[0]
    for batch in batches:
        if [part.shape[1:] for part in batch] != [part.shape[1:] for part in first]:
            raise LearnerError(
                f"predict: the outputs of one batch are {_shapes(first)}, those of another {_shapes(batch)}. They must "
                f"have the same shape but for the first dimension; predict the batches one by one."
            )
    joined = iter([torch.cat([batch[place] for batch in batches]) for place in range(len(first))])
    return map_parts(answers[0], lambda _: next(joined))


def _samples(answer: Any) -> int:
    """How many samples the answer to a batch of a loader is for. Raises LearnerError where its outputs disagree."""
    parts = _parts(answer)
    for part in parts:
        if not isinstance(part, Tensor):
            raise LearnerError(
                f"predict: an output is a {type(part).__name__}; for a loader it must be a tensor, or a tuple, list or "
                f"dict of tensors."
            )
        if not part.ndim:
            raise LearnerError(
                "predict: an output is a single number without a batch dimension; for a loader it must have one entry "
                "for each sample. Leave out squeeze() in the network, or use squeeze(1)."
            )
    lengths = {len(part) for part in parts}
    if len(lengths) != 1:
        raise LearnerError(
            f"predict: the outputs of a batch are {_shapes(parts) or 'none'}; each must have one entry for each "
            f"sample, along its first dimension. Return the others from another method, or define __predict_func__."
        )
    return lengths.pop()


def _parts(answer: Any) -> list[Any]:
    found: list[Any] = []
    map_parts(answer, found.append)
    return found


def _shapes(parts: list[Any]) -> str:
    return join_names([str(list(part.shape)) for part in parts])
