"""`predict` for a tensor and for a loader, with one output and with several, in both generations of the learner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sightline.learner as tf
from helpers.learner_problem import CLASSES, COUNT, FEATURES, SIZE, X, Y, loader, network
from sightline.core.errors import DataError

BOTH = pytest.mark.parametrize("kind", [tf.StandardModel, tf.StandardLearner])
INPUTS = DataLoader(TensorDataset(X), SIZE)
BATCHES = -(-COUNT // SIZE)


class Pair(NamedTuple):
    """A named tuple of two outputs."""

    scores: Tensor
    size: Tensor


class Several(nn.Module):
    """Returns what `make` makes of scores [B,C] and a number for each sample, [B]."""

    def __init__(self, make: Any):
        super().__init__()
        self.body, self.make = network(), make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.body(x), x.sum(1))


def expected() -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return network()(X), X.sum(1)


# --- one output


@pytest.mark.rows("B20")
def test_only_the_later_learner_drops_the_batch_dimension_of_a_single_sample() -> None:
    """As published: users of the later form call `softmax(pred, 0)` over the classes."""
    model, learner = tf.StandardModel(network()), tf.StandardLearner(network())
    output = learner.predict(X[:1])
    assert output.shape == (CLASSES,)
    assert torch.equal(output, model.predict(X[:1])[0])
    probabilities = torch.softmax(output, 0)
    assert probabilities.sum() == pytest.approx(1)
    assert float(probabilities.max()) < 1
    assert model.predict(X[:1]).shape == (1, CLASSES)
    assert learner.predict(X[:2]).shape == model.predict(X[:2]).shape == (2, CLASSES)


@pytest.mark.rows("B20")
@BOTH
def test_softmax_is_over_the_classes_for_any_batch_size(kind: type[tf.BaseModel]) -> None:
    learner = kind(network())
    probabilities = learner.predict(X, apply_softmax=True)
    assert torch.allclose(probabilities.sum(1), torch.ones(COUNT))
    assert torch.allclose(learner.predict(X[:1], apply_softmax=True).reshape(-1), probabilities[0], atol=1e-6)


@pytest.mark.rows("B20")
@pytest.mark.parametrize("size", [1, SIZE, COUNT])
def test_a_loader_gives_one_output_per_sample_for_any_batch_size(size: int) -> None:
    batches = DataLoader(TensorDataset(X, Y), size)
    outputs, stacked = tf.StandardModel(network()).predict(batches), tf.StandardLearner(network()).predict(batches)
    assert len(outputs) == COUNT
    assert {tuple(output.shape) for output in outputs} == {(CLASSES,)}
    assert torch.allclose(torch.stack(outputs), expected()[0], atol=1e-6)
    assert torch.equal(stacked, torch.stack(outputs))


@pytest.mark.rows("B20")
def test_a_loader_of_one_sample_gives_one_output() -> None:
    one = DataLoader(TensorDataset(X[:1]), SIZE)
    (output,) = tf.StandardModel(network()).predict(one)
    assert output.shape == (CLASSES,)
    assert tf.StandardLearner(network()).predict(one).shape == (1, CLASSES)


@BOTH
def test_an_empty_loader(kind: type[tf.BaseModel]) -> None:
    if kind is tf.StandardModel:
        assert kind(network()).predict(DataLoader(TensorDataset(X[:0]), SIZE)) == []
    else:
        with pytest.raises(DataError, match="the loader is empty"):
            kind(network()).predict(DataLoader(TensorDataset(X[:0]), SIZE))


@pytest.mark.rows("B20")
def test_a_regression_gives_one_number_per_sample() -> None:
    column, plain = network(1), nn.Sequential(network(1), nn.Flatten(0))
    assert tf.StandardLearner(column).predict(X[:1]).shape == (1,)
    assert tf.StandardLearner(plain).predict(X[:1]).shape == ()
    assert tf.StandardModel(plain).predict(X[:1]).shape == (1,)
    assert tf.StandardLearner(column).predict(INPUTS).shape == (COUNT, 1)
    assert tf.StandardLearner(plain).predict(INPUTS).shape == (COUNT,)
    assert {output.shape for output in tf.StandardModel(plain).predict(INPUTS)} == {()}


@BOTH
def test_batches_may_be_arrays_or_dicts(kind: type[tf.BaseModel]) -> None:
    class Named(nn.Module):
        """A network that takes a dict."""

        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: Any) -> Tensor:
            return self.body(x["x"])

    assert torch.allclose(kind(network()).predict(X.numpy()), expected()[0], atol=1e-6)
    assert torch.allclose(kind(Named()).predict({"x": X}), expected()[0], atol=1e-6)


# --- several outputs


@pytest.mark.rows("B29")
@pytest.mark.parametrize(
    "make",
    [
        lambda scores, size: (scores, size),
        lambda scores, size: [scores, size],
        Pair,
        lambda scores, size: {"scores": scores, "size": size},
        lambda scores, size: (scores, {"size": [size]}),
    ],
)
def test_several_outputs_stay_together_for_each_sample(make: Any) -> None:
    scores, size = expected()
    outputs = tf.StandardModel(Several(make)).predict(INPUTS)
    assert len(outputs) == COUNT
    for output, *row in zip(outputs, scores, size, strict=True):
        parts = list(flat(output))
        assert type(output) is type(make(*row))
        assert torch.allclose(parts[0], row[0], atol=1e-6)
        assert torch.allclose(parts[1], row[1], atol=1e-6)
    learner = tf.StandardLearner(Several(make))
    stacked = learner.predict(INPUTS)
    assert type(stacked) is type(make(scores, size))
    for actual, full in zip(flat(stacked), (scores, size), strict=True):
        assert torch.allclose(actual, full, atol=1e-6)
    assert [tuple(part.shape) for part in flat(learner.predict(X[:1]))] == [(CLASSES,), ()]
    assert [tuple(part.shape) for part in flat(learner.predict(X[:2]))] == [(2, CLASSES), (2,)]
    for part in flat(learner.predict(X[:2])):
        (part * torch.ones((), requires_grad=True)).sum().backward()  # not an inference tensor


def flat(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    else:
        for part in output.values() if isinstance(output, dict) else output:
            yield from flat(part)


@pytest.mark.rows("B29")
@BOTH
def test_softmax_applies_to_every_output_or_is_refused(kind: type[tf.BaseModel]) -> None:
    learner = kind(Several(lambda scores, size: (scores, scores * 2)))
    for part in learner.predict(X, apply_softmax=True):
        assert torch.allclose(part.sum(1), torch.ones(COUNT))
    for make, message in (
        (lambda scores, size: (scores, size), r"an output is float32 \[60\]"),
        (lambda scores, size: size.unsqueeze(1), r"an output is float32 \[60, 1\]"),
        (lambda scores, size: scores.argmax(1, keepdim=True).expand(-1, 2), r"an output is int64 \[60, 2\]"),
    ):
        with pytest.raises(tf.LearnerError, match=f"apply_softmax needs floating-point outputs .*{message}"):
            kind(Several(make)).predict(X, apply_softmax=True)


@pytest.mark.rows("B29")
@BOTH
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda scores, size: (scores, size[:2]), r"outputs of a batch are \[8, 3\], \[2\]; each must have one entry"),
        (lambda scores, size: (scores, size.mean()), "a single number without a batch dimension"),
        (lambda scores, size: size.mean(), "a single number without a batch dimension"),
        (lambda scores, size: (scores, "text"), "an output is a str; for a loader it must be a tensor"),
        (lambda scores, size: (), "the outputs of a batch are none"),
    ],
)
def test_outputs_without_one_entry_per_sample_are_refused(kind: type[tf.BaseModel], make: Any, message: str) -> None:
    with pytest.raises(tf.LearnerError, match=message):
        kind(Several(make)).predict(INPUTS)


def test_only_the_later_learner_refuses_outputs_of_different_shapes() -> None:
    lengths = iter(range(2, 2 + 2 * BATCHES))

    def growing(scores: Tensor, size: Tensor) -> Tensor:
        return size.unsqueeze(1).expand(-1, next(lengths))

    assert len(tf.StandardModel(Several(growing)).predict(INPUTS)) == COUNT
    message = r"outputs of one batch have the shapes \[8, 10\], those of another \[8, 11\]"
    with pytest.raises(tf.LearnerError, match=message):
        tf.StandardLearner(Several(growing)).predict(INPUTS)


@pytest.mark.rows("B29")
@BOTH
def test_several_inputs_are_one_batch(kind: type[tf.BaseModel]) -> None:
    class Two(nn.Module):
        """A network with two inputs and two outputs."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(FEATURES, CLASSES)

        def forward(self, inputs: Any) -> Any:
            return [self.layer(part) for part in inputs]

    learner = kind(Two())
    first, second = learner.predict([X, -X])
    assert first.shape == second.shape == (COUNT, CLASSES)
    shape = (CLASSES,) if kind is tf.StandardLearner else (1, CLASSES)
    assert [part.shape for part in learner.predict((X[:1], X[:1]))] == [shape, shape]
    batches = [((X[i : i + SIZE], -X[i : i + SIZE]), Y[i : i + SIZE]) for i in range(0, COUNT, SIZE)]
    outputs = learner.predict(iter(batches))
    if kind is tf.StandardLearner:
        assert torch.allclose(outputs[1], second, atol=1e-6)
    else:
        assert len(outputs) == COUNT
        assert torch.allclose(outputs[-1][1], second[-1], atol=1e-6)


def test_a_custom_step_may_return_arrays() -> None:
    class Arrays(tf.StandardLearner):
        """Returns NumPy arrays."""

        def __predict_func__(self, inputs: Any) -> Any:
            return super().__predict_func__(inputs).numpy(), np.arange(len(inputs))

    scores, positions = Arrays(network()).predict(loader(shuffle=False))
    assert torch.allclose(scores, expected()[0], atol=1e-6)
    assert len(positions) == COUNT
