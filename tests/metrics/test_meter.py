"""`Meter`: exact metrics that do not depend on batches and flushes."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    classification_report,
    f1_score,
    mean_absolute_error,
    mean_squared_error,
    precision_score,
    r2_score,
    recall_score,
    top_k_accuracy_score,
)
from torch import Tensor

from sightline.core.types import StepOutput
from sightline.metrics.direction import metric_mode
from sightline.metrics.meter import CLASSIFICATION_METRICS, REGRESSION_METRICS, Meter, metric_names
from sightline.metrics.scores import class_metric_names, scores_by_class


@st.composite
def steps(draw: st.DrawFn) -> list[StepOutput]:
    classes = draw(st.integers(2, 6))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    outs = []
    for size in draw(st.lists(st.integers(1, 12), min_size=1, max_size=6)):
        output = torch.from_numpy(random.standard_normal((size, classes)).astype(np.float32))
        target = torch.from_numpy(random.integers(0, draw(st.integers(1, classes)), size))
        outs.append(StepOutput(torch.tensor(random.uniform(0, 5)), size, output, target))
    return outs


@st.composite
def values(draw: st.DrawFn) -> list[StepOutput]:
    """Steps of a regression with one to three values per sample, some far from zero."""
    width, middle = draw(st.integers(1, 3)), draw(st.sampled_from([0.0, 1e4]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    outs = []
    for size in draw(st.lists(st.integers(1, 12), min_size=1, max_size=6)):
        target = torch.from_numpy((middle + random.standard_normal((size, width))).astype(np.float32))
        output = target + torch.from_numpy(random.standard_normal((size, width)).astype(np.float32))
        outs.append(StepOutput(torch.tensor(random.uniform(0, 5)), size, output, target))
    return outs


def measured(outs: list[StepOutput], flush_after: set[int] | None = None, **options: object) -> Meter:
    meter = Meter(**options)  # type: ignore[arg-type]
    for i, out in enumerate(outs):
        meter.update(out)
        if i in (flush_after or ()):
            meter.flush()
    return meter


def joined(outs: list[StepOutput]) -> tuple[np.ndarray, np.ndarray]:
    predicted = torch.cat([out.output.argmax(1) for out in outs])
    return torch.cat([out.target for out in outs]).numpy(), predicted.numpy()


@settings(max_examples=80)
@given(outs=steps())
def test_every_metric_equals_that_of_scikit_learn(outs: list[StepOutput]) -> None:
    target, predicted = joined(outs)
    metrics = measured(outs).compute()
    assert tuple(metrics) == CLASSIFICATION_METRICS
    losses = np.concatenate([[out.loss.item()] * out.n for out in outs])
    expected = {
        "loss": losses.mean(),
        "accuracy": accuracy_score(target, predicted),
        "precision": precision_score(target, predicted, average="macro", zero_division=0),
        "recall": recall_score(target, predicted, average="macro", zero_division=0),
        "f1": f1_score(target, predicted, average="macro", zero_division=0),
    }
    assert metrics == pytest.approx(expected, rel=1e-12)


@settings(max_examples=40)
@given(outs=steps(), flushes=st.sets(st.integers(0, 6)))
def test_metrics_do_not_depend_on_flushes(outs: list[StepOutput], flushes: set[int]) -> None:
    assert measured(outs, flushes).compute() == measured(outs).compute()


@settings(max_examples=40)
@given(outs=steps(), cut=st.integers(0, 6))
def test_a_restored_meter_continues(outs: list[StepOutput], cut: int) -> None:
    first = measured(outs[:cut])
    state = json.loads(json.dumps(first.state_dict()))
    other = Meter()
    other.load_state_dict(state)
    for out in outs[cut:]:
        first.update(out)
        other.update(out)
    assert other.compute() == first.compute() == measured(outs).compute()


def test_a_saved_state_does_not_change_with_the_meter() -> None:
    out = StepOutput(torch.tensor(1.0), 2, torch.eye(2), torch.tensor([0, 0]), {"mine": 1.0})
    meter = measured([out])
    state = meter.state_dict()
    before = copy.deepcopy(state)
    meter.update(out)
    meter.compute()
    assert state == before


def test_compute_can_be_called_twice_and_a_new_meter_is_empty() -> None:
    out = StepOutput(torch.tensor(1.5), 4, torch.eye(4), torch.tensor([0, 1, 2, 2]))
    meter = measured([out, out])
    assert meter.compute() == meter.compute() == measured([out]).compute()
    assert meter.compute()["accuracy"] == 0.75
    assert Meter().compute() == {}


def test_flush_returns_the_losses_since_the_last_one_in_order() -> None:
    meter = Meter()
    for loss in (3.0, 1.0, 2.0):
        meter.update(StepOutput(torch.tensor(loss), 1))
    assert meter.flush() == [3.0, 1.0, 2.0]
    assert meter.flush() == []
    meter.update(StepOutput(torch.tensor(5.0), 1))
    assert meter.flush() == [5.0]
    assert meter.compute() == {"loss": 2.75}


def test_the_mean_loss_is_over_samples_and_not_over_batches() -> None:
    meter = measured([StepOutput(torch.tensor(1.0), 9), StepOutput(torch.tensor(11.0), 1)])
    assert meter.compute() == {"loss": 2.0}


def test_no_tensor_is_kept_after_a_flush() -> None:
    weight = torch.ones(2, requires_grad=True)
    loss = (weight * 2).sum()
    meter = measured([StepOutput(loss.detach(), 1, torch.eye(2)[:1], torch.tensor([0]))])
    meter.flush()
    assert not any(isinstance(value, Tensor) for value in vars(meter).values())


def test_custom_metrics_of_a_step_are_averaged_over_samples() -> None:
    meter = measured(
        [
            StepOutput(torch.tensor(1.0), 3, metrics={"mine": 1.0}),
            StepOutput(torch.tensor(1.0), 1, metrics={"mine": 5.0}),
        ]
    )
    assert meter.compute() == {"loss": 1.0, "mine": 2.0}


@pytest.mark.parametrize(
    ("output", "target"),
    [
        (torch.zeros(3, 1), torch.zeros(3)),  # would broadcast
        (torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int64)),
        (torch.zeros(3, 2, 4, 4), torch.zeros(3, 4, 4, dtype=torch.int64)),
        (torch.zeros(3, 2), (torch.zeros(3), torch.zeros(3))),
        (None, None),
    ],
)
def test_outputs_that_are_neither_scores_nor_values_are_ignored(output: Tensor | None, target: object) -> None:
    out = StepOutput(torch.tensor(2.0), 3, output, target)  # type: ignore[arg-type]
    assert measured([out, out]).compute() == {"loss": 2.0}


def test_soft_labels_are_not_regression_targets_if_the_classes_are_known() -> None:
    soft = StepOutput(torch.tensor(2.0), 3, torch.zeros(3, 2), torch.full((3, 2), 0.5))
    assert measured([soft], classes=("cat", "dog")).compute() == {"loss": 2.0}
    assert "mse" in measured([soft]).compute()


def test_a_class_never_seen_nor_predicted_is_left_out_of_the_averages() -> None:
    out = StepOutput(torch.tensor(0.0), 2, torch.eye(5)[:2], torch.tensor([0, 1]))
    assert measured([out]).compute() == {"loss": 0.0, "accuracy": 1.0, "precision": 1.0, "recall": 1.0, "f1": 1.0}


def test_per_class_by_hand() -> None:
    rows = scores_by_class(np.array([[2, 0, 0], [3, 1, 0], [2, 2, 0]]))  # right, predicted, actual
    assert rows[0] == {"precision": 2 / 3, "recall": 1.0, "f1": 0.8, "samples": 2, "predicted": 3}
    assert rows[1] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "samples": 2, "predicted": 1}
    assert rows[2] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "samples": 0, "predicted": 0}


@settings(max_examples=60)
@given(outs=steps(), ks=st.sets(st.integers(1, 6), min_size=1), flushes=st.sets(st.integers(0, 6)))
def test_top_k_equals_that_of_scikit_learn_with_any_flushes(
    outs: list[StepOutput], ks: set[int], flushes: set[int]
) -> None:
    classes = outs[0].output.shape[1]
    ks = {min(k, classes) for k in ks}
    target, scores = (torch.cat([getattr(out, key) for out in outs]).numpy() for key in ("target", "output"))
    metrics = measured(outs, flushes, top_k=sorted(ks)).compute()
    assert metrics["accuracy"] == metrics.get("top1", metrics["accuracy"])
    for k in ks:
        if classes > 2 and k < classes:  # scikit-learn warns about the other cases
            assert metrics[f"top{k}"] == top_k_accuracy_score(target, scores, k=k, labels=range(classes))
        if k == classes:
            assert metrics[f"top{k}"] == 1.0
    assert metrics == measured(outs, top_k=sorted(ks)).compute()


def test_equal_scores_for_every_class_give_chance_accuracy() -> None:
    outs = [StepOutput(torch.tensor(1.0), 10, torch.zeros(10, 10), torch.arange(10))] * 3
    metrics = measured(outs, top_k=[1, 3]).compute()
    assert (metrics["top1"], metrics["top3"]) == (0.1, 0.3)


@settings(max_examples=40)
@given(outs=steps(), ks=st.sets(st.integers(1, 6), min_size=1))
def test_of_equal_scores_the_lower_index_comes_first(outs: list[StepOutput], ks: set[int]) -> None:
    outs = [out._replace(output=out.output.round()) for out in outs]  # many are equal
    metrics = measured(outs, top_k=[1, *ks]).compute()
    assert metrics["top1"] == metrics["accuracy"]
    scores, target = (torch.cat([getattr(out, key) for out in outs]) for key in ("output", "target"))
    order = scores.sort(dim=1, descending=True, stable=True).indices
    for k in ks:
        assert metrics[f"top{k}"] == (order[:, :k] == target[:, None]).any(1).double().mean().item()


@settings(max_examples=40)
@given(outs=steps(), size=st.integers(1, 30))
def test_metrics_do_not_depend_on_batches(outs: list[StepOutput], size: int) -> None:
    output, target = torch.cat([out.output for out in outs]), torch.cat([out.target for out in outs])
    pairs = zip(output.split(size), target.split(size), strict=True)
    again = [StepOutput(None, len(part), part, labels) for part, labels in pairs]
    options: dict[str, object] = {"top_k": [1, 2], "by_class": True}
    expected = measured(outs, **options).compute()
    del expected["loss"]
    assert measured(again, **options).compute() == expected


@settings(max_examples=40)
@given(outs=steps())
def test_the_metrics_of_single_classes_equal_those_of_scikit_learn(outs: list[StepOutput]) -> None:
    target, predicted = joined(outs)
    names = [f"class {i}" for i in range(outs[0].output.shape[1])]
    metrics = measured(outs, classes=names, by_class=True).compute()
    labels = range(len(names))
    report = classification_report(
        target, predicted, labels=labels, target_names=names, output_dict=True, zero_division=0
    )
    assert list(metrics) == [*CLASSIFICATION_METRICS, *class_metric_names(names)]
    for name in names:
        for key, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert metrics[f"{key}/{name}"] == pytest.approx(report[name][theirs], rel=1e-12)


@settings(max_examples=60)
@given(outs=values(), flushes=st.sets(st.integers(0, 6)), size=st.integers(1, 30))
def test_the_errors_of_a_regression_equal_those_of_scikit_learn(
    outs: list[StepOutput], flushes: set[int], size: int
) -> None:
    output, target = (torch.cat([getattr(out, key) for out in outs]).double() for key in ("output", "target"))
    metrics = measured(outs, flushes).compute()
    assert tuple(metrics) == REGRESSION_METRICS
    assert metrics["mse"] == pytest.approx(mean_squared_error(target, output), rel=1e-10)
    assert metrics["mae"] == pytest.approx(mean_absolute_error(target, output), rel=1e-10)
    if len(target) > 1:
        assert metrics["r2"] == pytest.approx(r2_score(target, output), rel=1e-8, abs=1e-8)
    assert metrics == measured(outs).compute()
    pairs = zip(output.float().split(size), target.float().split(size), strict=True)
    again = measured([StepOutput(None, len(part), part, labels) for part, labels in pairs]).compute()
    assert again == pytest.approx({key: metrics[key] for key in REGRESSION_METRICS[1:]}, rel=1e-8, abs=1e-8)


def test_r2_of_targets_that_are_all_the_same() -> None:
    target = torch.full((4, 1), 0.1)
    right, wrong = StepOutput(None, 4, target, target), StepOutput(None, 4, target + 1, target)
    assert measured([right, right]).compute() == {"mse": 0.0, "mae": 0.0, "r2": 1.0}
    assert measured([right, wrong]).compute()["r2"] == 0.0


def test_a_regression_output_may_be_overwritten_after_the_update() -> None:
    output = torch.ones(2, 1)
    meter = measured([StepOutput(None, 2, output, torch.ones(2, 1))])
    output.fill_(7)
    assert meter.compute()["mae"] == 0.0


@settings(max_examples=30)
@given(outs=st.one_of(steps(), values()), cut=st.integers(0, 6))
def test_a_restored_meter_with_top_k_continues(outs: list[StepOutput], cut: int) -> None:
    first = measured(outs[:cut], top_k=[2])
    other = Meter(top_k=[2])
    other.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for out in outs[cut:]:
        other.update(out)
    assert other.compute() == measured(outs, top_k=[2]).compute()


def test_a_meter_saved_by_the_first_version_continues() -> None:
    old = {"loss_sum": 3.0, "loss_n": 2, "mark": [0.0, 0], "n": 2, "counts": [[1, 0], [2, 0], [1, 1]], "sums": {}}
    meter = Meter()
    meter.load_state_dict(old)
    meter.update(StepOutput(torch.tensor(1.5), 2, torch.eye(2), torch.tensor([0, 1])))
    assert meter.compute()["accuracy"] == 0.75
    assert meter.compute()["loss"] == 1.5


def test_the_names_a_monitor_can_have() -> None:
    assert metric_names(["val"]) == [f"{split}_{name}" for split in ("train", "val") for name in CLASSIFICATION_METRICS]
    assert metric_names(["val"], ["loss"], ["recall/cat"]) == ["train_loss", "val_loss", "val_recall/cat"]


@pytest.mark.parametrize(
    ("monitor", "better"),
    [
        ("val_loss", "min"),
        ("train_loss", "min"),
        ("val_accuracy", "max"),
        ("val_f1", "max"),
        ("val_nll", "min"),
        ("val_mae", "min"),
        ("val_r2", "max"),
        ("val_top5", "max"),
        ("val_recall/loss", "max"),
        ("val_recall/read_error", "max"),
        ("recall/read_error", "max"),
        ("val_mse/0", "min"),
        ("mse/0", "min"),
        ("val_rmse", "min"),
        ("val_mape", "min"),
        ("val_error_rate", "min"),
        ("error_rate", "min"),
        ("val_top5_error", "min"),
        ("val_perplexity", "min"),
        ("val_brier_score", "min"),
        ("val_calibration_error", "min"),
        ("val_ece", "min"),
        ("val_hamming_distance", "min"),
        ("val_cross_entropy", "min"),
        ("val_log_loss", "min"),
        ("val_negative_log_likelihood", "min"),
        ("val_MeanSquaredError", "min"),
        ("val_f1_loss", "min"),
        ("val_log_likelihood", "max"),
        ("val_neg_mean_squared_error", None),
        ("val_negative_error", None),
        ("val_negative_recall", "max"),
        ("neg_precision", "max"),
        ("val_fpr_at_95_tpr", "min"),
        ("fpr@95tpr", "min"),
        ("val_error_at_95_recall", "min"),
        ("val_tpr_at_fpr", "max"),
        ("val_precision@5", "max"),
        ("one_minus_auc", None),
        ("val_IoU", "max"),
        ("val_mIoU", "max"),
        ("val_loss2", "min"),
        ("val_accuracy1", "max"),
        ("ROCAUC", "max"),
        ("val_brier_skill_score", "max"),
        ("val_balanced_accuracy", "max"),
        ("val_MulticlassF1Score", "max"),
        ("val_MulticlassAUROC", "max"),
        ("val_auroc_macro", "max"),
        ("val_cohen_kappa", "max"),
        ("val_explained_variance", "max"),
        ("val_score", "max"),
        ("top_1_acc", "max"),
        ("val_acc5", "max"),
        ("val_quality", None),
        ("val_seconds", None),
        ("val_entropy", None),
        ("val_variance", None),
        ("val_accuracy_gap", None),
        ("val_loss_ratio", None),
        ("val_calibration", None),
        ("val_negative_predictive_value", None),
        ("", None),
    ],
)
def test_the_better_direction_is_known_from_the_name(monitor: str, better: str | None) -> None:
    assert metric_mode(monitor) == better


def test_the_direction_of_a_metric_object_is_used() -> None:
    assert metric_mode("val_calibration", {"calibration": "min"}) == "min"
