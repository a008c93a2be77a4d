"""The learner's metrics: their protocol, their values, and what they refuse to compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sightline.learner as tf
from helpers.learner_problem import X, loader, network, train
from sightline.learner.metrics import is_better, load_metric_state, metric_state
from sightline.learner.plan import direction

SCORES = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [2.0, 3.0, 1.0], [3.0, 1.0, 2.0]])
LABELS = torch.tensor([0, 1, 1, 1])  # first, second, first, last


def value(metric: Any, *batches: tuple[Any, Any]) -> float:
    for predictions, targets in batches:
        metric.update(predictions, targets)
    return metric.getValue()


@pytest.mark.rows("B05")
@pytest.mark.parametrize(("k", "expected"), [(1, 0.5), (2, 0.75), (3, 1.0)])
def test_accuracy_counts_the_right_class_among_the_first(k: int, expected: float) -> None:
    assert value(tf.Accuracy(f"Top {k} Acc ", topK=k), (SCORES, LABELS)) == expected


@pytest.mark.rows("B06")
def test_a_value_is_the_sum_over_the_samples_since_the_reset() -> None:
    metric = tf.Accuracy()
    assert metric.name == "Accuracy"
    assert value(metric, (SCORES[:1], LABELS[:1]), (SCORES[1:], LABELS[1:])) == 0.5  # uneven batches
    metric.add_history()
    metric.reset()
    assert metric.getValue() != metric.getValue()  # nothing yet
    assert value(metric, (SCORES[:1], LABELS[:1])) == 1.0
    assert metric.history == [0.5]


@pytest.mark.rows("B06")
@pytest.mark.parametrize("kind", ["tensor", "one-element tensor", "number"])
def test_a_metric_of_ones_own_gives_the_sum_of_a_batch(kind: str) -> None:
    class Wrong(tf.Metric):
        """How many are wrong."""

        def __compute__(self, prediction: Tensor, label: Tensor) -> Any:
            count = (prediction.argmax(1) != label).sum()
            return {"tensor": count, "one-element tensor": count.float().reshape(1), "number": float(count)}[kind]

    assert value(Wrong("wrong"), (SCORES, LABELS), (SCORES[:1], LABELS[:1])) == 2 / 5


def test_a_metric_without_compute_says_what_is_missing() -> None:
    with pytest.raises(NotImplementedError, match="Metric has no __compute__"):
        tf.Metric("nothing").update(SCORES, LABELS)


@pytest.mark.rows("B05", "B30")
def test_the_errors_of_a_regression_are_means_over_the_samples() -> None:
    predicted, wanted = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 4.0], [3.0, 1.0]])
    assert value(tf.MSE(), (predicted, wanted)) == (4 + 9) / 4
    assert value(tf.MAE(), (predicted, wanted)) == (2 + 3) / 4
    assert value(tf.MSE(name="error"), (predicted[:1], wanted[:1]), (predicted[1:], wanted[1:])) == (4 + 9) / 4


def test_a_column_and_a_row_are_compared_one_by_one_and_never_all_with_all() -> None:
    column, row = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1.0, 2.0, 5.0])
    assert value(tf.MSE(), (column, row)) == pytest.approx(4 / 3)
    with pytest.raises(tf.LearnerError, match=r"predictions are \[3, 1\] and the targets \[2\]"):
        tf.MSE().update(column, row[:2])


@pytest.mark.rows("B30")
def test_the_mean_confidence_is_that_of_the_right_class_where_it_is_among_the_first() -> None:
    probabilities = SCORES.softmax(1)
    right = probabilities.gather(1, LABELS[:, None])[:, 0]
    expected = float(right[0] + right[2]) / 4
    assert value(tf.MeanConfidenceScore(), (SCORES, LABELS)) == pytest.approx(expected)
    assert value(tf.MeanConfidenceScore(apply_softmax=False), (probabilities, LABELS)) == pytest.approx(expected)
    assert value(tf.MeanConfidenceScore(topK=3), (SCORES, LABELS)) == pytest.approx(float(right.mean()))


@pytest.mark.rows("B29")
def test_several_outputs_count_as_so_many_samples() -> None:
    assert value(tf.Accuracy(), ([SCORES, SCORES], (LABELS, LABELS.flip(0)))) == pytest.approx(
        (2 + float((SCORES.argmax(1) == LABELS.flip(0)).sum())) / 8
    )
    assert value(tf.MAE(), ((X, X), [X + 1, X + 3])) == pytest.approx(2, abs=1e-6)


def test_what_cannot_be_compared_is_refused_with_its_sizes() -> None:
    with pytest.raises(tf.LearnerError, match="topK=4, and the network answers with 3 classes"):
        tf.Accuracy(topK=4).update(SCORES, LABELS)
    with pytest.raises(tf.LearnerError, match=r"found \[4, 3\] and \[3\]"):
        tf.Accuracy().update(SCORES, LABELS[:3])


def test_nothing_is_read_back_from_the_device_by_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("read back")

    metrics = [tf.Accuracy(), tf.Accuracy(topK=2), tf.MeanConfidenceScore()]
    with monkeypatch.context() as patched:
        for name in ("item", "tolist", "cpu", "__float__", "__int__", "__bool__"):
            patched.setattr(Tensor, name, refuse)
        for metric in metrics:
            metric.update(SCORES, LABELS)
        tf.MSE().update(SCORES, SCORES + 1)
    assert [metric.getValue() for metric in metrics[:2]] == [0.5, 0.75]


@pytest.mark.rows("BB4")
@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (tf.Accuracy("my loss"), "max"),
        (tf.MSE("anything"), "min"),
        (tf.MAE(), "min"),
        (tf.Metric("Mean Squared Error"), "min"),
        (tf.Metric("validation loss"), "min"),
        (tf.Metric("Dice"), "max"),
    ],
)
def test_the_better_values_of_a_metric(metric: tf.Metric, expected: str) -> None:
    assert direction(metric) == expected
    assert is_better(metric, -5.0, None)
    assert is_better(metric, 1.0, 2.0) is (expected == "min")
    assert not is_better(metric, float("nan"), None)
    assert not is_better(metric, 1.0, 1.0)


@given(cut=st.integers(0, 12), sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5))
@settings(max_examples=30)
def test_a_metric_whose_state_was_saved_goes_on_as_if_nothing_had_been(cut: int, sizes: list[int]) -> None:
    batches = [(torch.randn(size, 3), torch.randint(3, (size,))) for size in sizes]
    whole, first, second = (tf.Accuracy(topK=2) for _ in range(3))
    for number, batch in enumerate(batches):
        whole.update(*batch)
        (first if number < cut else second).update(*batch)
        if number + 1 == cut:
            load_metric_state(second, metric_state(first))
    if cut <= len(batches) and cut:
        assert second.getValue() == whole.getValue()


@pytest.mark.rows("B21", "BB8")
def test_evaluate_begins_anew_builds_no_graph_and_leaves_the_network_as_it_was() -> None:
    net = network().append(torch.nn.BatchNorm1d(3)).append(torch.nn.Dropout(0.5))
    net[3].eval()  # frozen
    before = {name: value.clone() for name, value in net.state_dict().items()}
    graphs = []
    net.register_forward_hook(lambda _module, _args, output: graphs.append(output.requires_grad))
    metric = tf.Accuracy()
    learner = tf.StandardModel(net)
    net.train()
    net[3].eval()
    first = learner.evaluate(loader(), [metric])
    assert first == {"Accuracy": metric.getValue()} == learner.evaluate(loader(), metric)
    assert metric.history == [metric.getValue()] * 2
    assert not any(graphs)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [module.training for module in net] == [True, True, True, False, True]


class Named(tf.Metric):
    """Any metric, by its name alone."""

    def __compute__(self, predictions: Any, targets: Any) -> Any:
        return predictions.sum()


@pytest.mark.rows("BB4")
@pytest.mark.parametrize(
    ("name", "expected"), [("Val RMSE", "min"), ("error rate", "min"), ("Perplexity", "min"), ("Top 5 Acc ", "max")]
)
def test_the_words_of_a_name_tell_which_values_are_better(name: str, expected: str) -> None:
    assert direction(Named(name)) == expected


@pytest.mark.rows("BB4")
def test_a_deciding_metric_of_unknown_direction_is_warned_of_with_the_repair(tmp_path: Path) -> None:
    """As published it is better when higher; that is said once, and not of a metric that decides nothing."""
    told = r"test_metrics: neither Named nor its name 'quality' says .* Set its attribute better to 'min' or 'max'"
    first = {"test_loader": loader(shuffle=False), "test_metrics": [Named("quality"), Named("beauty")]}
    with pytest.warns(UserWarning, match=told) as caught:
        train(tf.StandardModel(network()), tmp_path / "a", 1, **first)
    assert len(caught) == 1
    train(tf.StandardModel(network()), tmp_path / "b", 1, train_metrics=[Named("quality")])
    named = Named("quality")
    named.better = "min"
    train(tf.StandardModel(network()), tmp_path / "c", 1, **(first | {"test_metrics": [named]}))
