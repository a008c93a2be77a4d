"""Helpers for the outputs of a network: a tensor, or a tuple, list or dict of tensors."""

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
    """Applies `function` to each part of an answer, at any depth."""
    return map_nested(answer, function, mappings=True)


def clone_for_autograd(answer: Any) -> Any:
    """Copies tensors that were made in inference mode, so that they can be used with autograd."""
    return map_parts(answer, lambda part: part.clone() if isinstance(part, Tensor) else part)


def on_cpu(answer: Any) -> Any:
    """Moves the tensors of an answer to the CPU; arrays become tensors."""

    def placed(part: Any) -> Any:
        return part.cpu() if isinstance(part, Tensor) else torch.from_numpy(part) if isinstance(part, ndarray) else part

    return map_parts(answer, placed)


def probabilities(answer: Any) -> Any:
    """Applies softmax over the classes, dimension 1, of every output.

    Raises LearnerError for an output that is not floating-point [N, C, ...] with at least two classes."""

    def softmax(part: Any) -> Any:
        shape = list(part.shape) if isinstance(part, Tensor) else None
        if shape is None or len(shape) < 2 or shape[1] < 2 or not part.is_floating_point():
            description = (
                f"{str(part.dtype).removeprefix('torch.')} {shape}" if shape is not None else type(part).__name__
            )
            raise LearnerError(
                f"predict: apply_softmax needs floating-point outputs [batch, classes] with at least two classes; an "
                f"output is {description}. Remove apply_softmax, and apply softmax to the outputs that have classes."
            )
        return part.softmax(1)

    return map_parts(answer, softmax)


def squeeze_single(answer: Any) -> Any:
    """Removes the first dimension of every output if its size is 1."""
    return map_parts(answer, lambda part: part.squeeze(0) if isinstance(part, Tensor) else part)


def per_sample(answers: list[Any]) -> list[Any]:
    """Splits the answers to batches into one entry per sample; several outputs stay in their container."""
    return [map_parts(answer, itemgetter(place)) for answer in answers for place in range(_samples(answer))]


def concatenate(answers: list[Any]) -> Any:
    """Concatenates the answers to all batches. Raises LearnerError if their shapes differ after the first dimension."""
    for answer in answers:
        _samples(answer)
    batches = [_parts(answer) for answer in answers]
    first = batches[0]
    for batch in batches:
        if [part.shape[1:] for part in batch] != [part.shape[1:] for part in first]:
            raise LearnerError(
                f"predict: the outputs of one batch have the shapes {_shapes(first)}, those of another "
                f"{_shapes(batch)}. Only the first dimension may differ; predict the batches one by one."
            )
    joined = iter([torch.cat([batch[place] for batch in batches]) for place in range(len(first))])
    return map_parts(answers[0], lambda _: next(joined))


def _samples(answer: Any) -> int:
    """The number of samples in the answer to a batch. Raises LearnerError if its outputs have different lengths."""
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
                "for each sample. Remove squeeze() from the network, or use squeeze(1)."
            )
    lengths = {len(part) for part in parts}
    if len(lengths) != 1:
        raise LearnerError(
            f"predict: the outputs of a batch are {_shapes(parts) or 'none'}; each must have one entry for each "
            f"sample, along its first dimension. Return the others from another method, or define __predict_func__."
        )
    return lengths.pop()


def _parts(answer: Any) -> list[Any]:
    parts: list[Any] = []
    map_parts(answer, parts.append)
    return parts


def _shapes(parts: list[Any]) -> str:
    return join_names([str(list(part.shape)) for part in parts])
