"""What `predict` gives: for a tensor and for a loader, of one output and of several, in both generations."""

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
    """Two outputs with names."""

    scores: Tensor
    size: Tensor


class Several(nn.Module):
    """Answers with whatever is made of scores [B,C] and a number for each sample, [B]."""

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
def test_a_tensor_of_one_sample_loses_its_first_dimension_in_the_later_form_alone() -> None:
    """As each was published: `softmax(pred, 0)` over the classes is what the later form was used with."""
    model, learner = tf.StandardModel(network()), tf.StandardLearner(network())
    answer = learner.predict(X[:1])
    assert answer.shape == (CLASSES,)
    assert torch.equal(answer, model.predict(X[:1])[0])
    probabilities = torch.softmax(answer, 0)
    assert probabilities.sum() == pytest.approx(1)
    assert float(probabilities.max()) < 1
    assert model.predict(X[:1]).shape == (1, CLASSES)
    assert learner.predict(X[:2]).shape == model.predict(X[:2]).shape == (2, CLASSES)


@pytest.mark.rows("B20")
@BOTH
def test_softmax_is_over_the_classes_whatever_the_size_of_the_batch(kind: type[tf.BaseModel]) -> None:
    learner = kind(network())
    whole = learner.predict(X, apply_softmax=True)
    assert torch.allclose(whole.sum(1), torch.ones(COUNT))
    assert torch.allclose(learner.predict(X[:1], apply_softmax=True).reshape(-1), whole[0], atol=1e-6)


@pytest.mark.rows("B20")
@pytest.mark.parametrize("size", [1, SIZE, COUNT])
def test_a_loader_gives_one_answer_a_sample_whatever_its_batches(size: int) -> None:
    given = DataLoader(TensorDataset(X, Y), size)
    answers, together = tf.StandardModel(network()).predict(given), tf.StandardLearner(network()).predict(given)
    assert len(answers) == COUNT
    assert {tuple(answer.shape) for answer in answers} == {(CLASSES,)}
    assert torch.allclose(torch.stack(answers), expected()[0], atol=1e-6)
    assert torch.equal(together, torch.stack(answers))


@pytest.mark.rows("B20")
def test_a_loader_of_one_sample_gives_one_answer() -> None:
    one = DataLoader(TensorDataset(X[:1]), SIZE)
    (answer,) = tf.StandardModel(network()).predict(one)
    assert answer.shape == (CLASSES,)
    assert tf.StandardLearner(network()).predict(one).shape == (1, CLASSES)


@BOTH
def test_a_loader_without_a_batch(kind: type[tf.BaseModel]) -> None:
    if kind is tf.StandardModel:
        assert kind(network()).predict(DataLoader(TensorDataset(X[:0]), SIZE)) == []
    else:
        with pytest.raises(DataError, match="gave no batch to predict"):
            kind(network()).predict(DataLoader(TensorDataset(X[:0]), SIZE))


@pytest.mark.rows("B20")
def test_a_regression_gives_one_number_a_sample() -> None:
    column, plain = network(1), nn.Sequential(network(1), nn.Flatten(0))
    assert tf.StandardLearner(column).predict(X[:1]).shape == (1,)
    assert tf.StandardLearner(plain).predict(X[:1]).shape == ()
    assert tf.StandardModel(plain).predict(X[:1]).shape == (1,)
    assert tf.StandardLearner(column).predict(INPUTS).shape == (COUNT, 1)
    assert tf.StandardLearner(plain).predict(INPUTS).shape == (COUNT,)
    assert {answer.shape for answer in tf.StandardModel(plain).predict(INPUTS)} == {()}


@BOTH
def test_arrays_and_dicts_are_batches(kind: type[tf.BaseModel]) -> None:
    class Named(nn.Module):
        """Takes a dict."""

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
    answers = tf.StandardModel(Several(make)).predict(INPUTS)
    assert len(answers) == COUNT
    for answer, *row in zip(answers, scores, size, strict=True):
        parts = list(flat(answer))
        assert type(answer) is type(make(*row))
        assert torch.allclose(parts[0], row[0], atol=1e-6)
        assert torch.allclose(parts[1], row[1], atol=1e-6)
    learner = tf.StandardLearner(Several(make))
    together = learner.predict(INPUTS)
    assert type(together) is type(make(scores, size))
    for found, whole in zip(flat(together), (scores, size), strict=True):
        assert torch.allclose(found, whole, atol=1e-6)
    assert [tuple(part.shape) for part in flat(learner.predict(X[:1]))] == [(CLASSES,), ()]
    assert [tuple(part.shape) for part in flat(learner.predict(X[:2]))] == [(2, CLASSES), (2,)]
    for part in flat(learner.predict(X[:2])):
        (part * torch.ones((), requires_grad=True)).sum().backward()  # no inference tensor


def flat(answer: Any) -> Iterator[Tensor]:
    if isinstance(answer, Tensor):
        yield answer
    else:
        for part in answer.values() if isinstance(answer, dict) else answer:
            yield from flat(part)


@pytest.mark.rows("B29")
@BOTH
def test_softmax_is_of_every_output_or_refused(kind: type[tf.BaseModel]) -> None:
    learner = kind(Several(lambda scores, size: (scores, scores * 2)))
    for part in learner.predict(X, apply_softmax=True):
        assert torch.allclose(part.sum(1), torch.ones(COUNT))
    for make, told in (
        (lambda scores, size: (scores, size), r"an output is float32 \[60\]"),
        (lambda scores, size: size.unsqueeze(1), r"an output is float32 \[60, 1\]"),
        (lambda scores, size: scores.argmax(1, keepdim=True).expand(-1, 2), r"an output is int64 \[60, 2\]"),
    ):
        with pytest.raises(tf.LearnerError, match=f"apply_softmax needs outputs .*{told}"):
            kind(Several(make)).predict(X, apply_softmax=True)


@pytest.mark.rows("B29")
@BOTH
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda scores, size: (scores, size[:2]), r"outputs of a batch are \[8, 3\], \[2\]; each must have one entry"),
        (lambda scores, size: (scores, size.mean()), "a single number without a batch dimension"),
        (lambda scores, size: size.mean(), "a single number without a batch dimension"),
        (lambda scores, size: (scores, "text"), "an output is a str; for a loader it must be a tensor"),
        (lambda scores, size: (), "the outputs of a batch are none"),
    ],
)
def test_outputs_that_are_not_one_for_each_sample_are_refused(kind: type[tf.BaseModel], make: Any, told: str) -> None:
    with pytest.raises(tf.LearnerError, match=told):
        kind(Several(make)).predict(INPUTS)


def test_answers_that_do_not_fit_together_are_refused_in_the_later_form_alone() -> None:
    lengths = iter(range(2, 2 + 2 * BATCHES))

    def growing(scores: Tensor, size: Tensor) -> Tensor:
        return size.unsqueeze(1).expand(-1, next(lengths))

    assert len(tf.StandardModel(Several(growing)).predict(INPUTS)) == COUNT
    with pytest.raises(tf.LearnerError, match=r"outputs of one batch are \[8, 10\], those of another \[8, 11\]"):
        tf.StandardLearner(Several(growing)).predict(INPUTS)


@pytest.mark.rows("B29")
@BOTH
def test_several_inputs_are_one_batch(kind: type[tf.BaseModel]) -> None:
    class Two(nn.Module):
        """Two inputs, two outputs."""

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
    answers = learner.predict(iter(batches))
    if kind is tf.StandardLearner:
        assert torch.allclose(answers[1], second, atol=1e-6)
    else:
        assert len(answers) == COUNT
        assert torch.allclose(answers[-1][1], second[-1], atol=1e-6)


def test_a_step_of_ones_own_may_answer_with_arrays() -> None:
    class Arrays(tf.StandardLearner):
        """As NumPy."""

        def __predict_func__(self, inputs: Any) -> Any:
            return super().__predict_func__(inputs).numpy(), np.arange(len(inputs))

    scores, places = Arrays(network()).predict(loader(shuffle=False))
    assert torch.allclose(scores, expected()[0], atol=1e-6)
    assert len(places) == COUNT
