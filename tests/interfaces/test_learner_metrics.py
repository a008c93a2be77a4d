"""The metrics of the learner: their protocol, their values, and the inputs that they refuse."""

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
def test_a_custom_metric_returns_the_sum_over_a_batch(kind: str) -> None:
    class Wrong(tf.Metric):
        """Counts wrong predictions."""

        def __compute__(self, prediction: Tensor, label: Tensor) -> Any:
            count = (prediction.argmax(1) != label).sum()
            return {"tensor": count, "one-element tensor": count.float().reshape(1), "number": float(count)}[kind]

    assert value(Wrong("wrong"), (SCORES, LABELS), (SCORES[:1], LABELS[:1])) == 2 / 5


def test_a_metric_without_compute_says_what_is_missing() -> None:
    with pytest.raises(NotImplementedError, match="Metric has no __compute__"):
        tf.Metric("nothing").update(SCORES, LABELS)


@pytest.mark.rows("B05", "B30")
def test_regression_errors_are_means_over_the_samples() -> None:
    predicted, targets = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 4.0], [3.0, 1.0]])
    assert value(tf.MSE(), (predicted, targets)) == (4 + 9) / 4
    assert value(tf.MAE(), (predicted, targets)) == (2 + 3) / 4
    assert value(tf.MSE(name="error"), (predicted[:1], targets[:1]), (predicted[1:], targets[1:])) == (4 + 9) / 4


def test_a_column_and_a_row_are_compared_elementwise_without_broadcasting() -> None:
    column, row = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1.0, 2.0, 5.0])
    assert value(tf.MSE(), (column, row)) == pytest.approx(4 / 3)
    with pytest.raises(tf.LearnerError, match=r"predictions are \[3, 1\] and the targets \[2\]"):
        tf.MSE().update(column, row[:2])


@pytest.mark.rows("B30")
def test_the_mean_confidence_counts_the_right_class_if_it_is_in_the_top_k() -> None:
    probabilities = SCORES.softmax(1)
    right = probabilities.gather(1, LABELS[:, None])[:, 0]
    expected = float(right[0] + right[2]) / 4
    assert value(tf.MeanConfidenceScore(), (SCORES, LABELS)) == pytest.approx(expected)
    assert value(tf.MeanConfidenceScore(apply_softmax=False), (probabilities, LABELS)) == pytest.approx(expected)
    assert value(tf.MeanConfidenceScore(topK=3), (SCORES, LABELS)) == pytest.approx(float(right.mean()))


@pytest.mark.rows("B29")
def test_each_of_several_outputs_counts_as_a_sample() -> None:
    assert value(tf.Accuracy(), ([SCORES, SCORES], (LABELS, LABELS.flip(0)))) == pytest.approx(
        (2 + float((SCORES.argmax(1) == LABELS.flip(0)).sum())) / 8
    )
    assert value(tf.MAE(), ((X, X), [X + 1, X + 3])) == pytest.approx(2, abs=1e-6)


def test_shapes_that_do_not_match_are_refused() -> None:
    with pytest.raises(tf.LearnerError, match="topK=4 is out of range; the network has 3 classes"):
        tf.Accuracy(topK=4).update(SCORES, LABELS)
    with pytest.raises(tf.LearnerError, match=r"found \[4, 3\] and \[3\]"):
        tf.Accuracy().update(SCORES, LABELS[:3])


def test_an_update_does_not_read_back_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_the_direction_of_a_metric(metric: tf.Metric, expected: str) -> None:
    assert direction(metric) == expected
    assert is_better(metric, -5.0, None)
    assert is_better(metric, 1.0, 2.0) is (expected == "min")
    assert not is_better(metric, float("nan"), None)
    assert not is_better(metric, 1.0, 1.0)


@given(cut=st.integers(0, 12), sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5))
@settings(max_examples=30)
def test_a_metric_continues_from_its_saved_state(cut: int, sizes: list[int]) -> None:
    batches = [(torch.randn(size, 3), torch.randint(3, (size,))) for size in sizes]
    uninterrupted, first, second = (tf.Accuracy(topK=2) for _ in range(3))
    for number, batch in enumerate(batches):
        uninterrupted.update(*batch)
        (first if number < cut else second).update(*batch)
        if number + 1 == cut:
            load_metric_state(second, metric_state(first))
    if cut <= len(batches) and cut:
        assert second.getValue() == uninterrupted.getValue()


@pytest.mark.rows("B21", "BB8")
def test_evaluate_resets_metrics_builds_no_graph_and_does_not_change_the_network() -> None:
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
    """A metric whose direction follows only from its name."""

    def __compute__(self, predictions: Any, targets: Any) -> Any:
        return predictions.sum()


@pytest.mark.rows("BB4")
@pytest.mark.parametrize(
    ("name", "expected"), [("Val RMSE", "min"), ("error rate", "min"), ("Perplexity", "min"), ("Top 5 Acc ", "max")]
)
def test_the_words_of_a_name_determine_the_direction(name: str, expected: str) -> None:
    assert direction(Named(name)) == expected


@pytest.mark.rows("BB4")
def test_a_metric_of_unknown_direction_that_selects_models_warns_with_the_fix(tmp_path: Path) -> None:
    """As published, higher is assumed to be better. It warns once, and not for a metric that selects nothing."""
    message = r"test_metrics: neither Named nor its name 'quality' says .* Set its attribute better to 'min' or 'max'"
    test_split = {"test_loader": loader(shuffle=False), "test_metrics": [Named("quality"), Named("beauty")]}
    with pytest.warns(UserWarning, match=message) as caught:
        train(tf.StandardModel(network()), tmp_path / "a", 1, **test_split)
    assert len(caught) == 1
    train(tf.StandardModel(network()), tmp_path / "b", 1, train_metrics=[Named("quality")])
    named = Named("quality")
    named.better = "min"
    train(tf.StandardModel(network()), tmp_path / "c", 1, **(test_split | {"test_metrics": [named]}))
