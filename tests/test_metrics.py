"""The meter: exact counts, however they come in."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score
from torch import Tensor

from sightline.metrics import CLASSIFICATION, Meter, better_when, metric_names, per_class
from sightline.types import StepOutput


@st.composite
def steps(draw: st.DrawFn) -> list[StepOutput]:
    classes = draw(st.integers(2, 6))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    made = []
    for size in draw(st.lists(st.integers(1, 12), min_size=1, max_size=6)):
        output = torch.from_numpy(random.standard_normal((size, classes)).astype(np.float32))
        target = torch.from_numpy(random.integers(0, draw(st.integers(1, classes)), size))
        made.append(StepOutput(torch.tensor(random.uniform(0, 5)), size, output, target))
    return made


def measured(outs: list[StepOutput], flush_after: set[int] | None = None) -> Meter:
    meter = Meter()
    for i, out in enumerate(outs):
        meter.update(out)
        if i in (flush_after or ()):
            meter.flush()
    return meter


def joined(outs: list[StepOutput]) -> tuple[np.ndarray, np.ndarray]:
    predicted = torch.cat([out.output.argmax(1) for out in outs])
    return torch.cat([out.target for out in outs]).numpy(), predicted.numpy()


@settings(deadline=None, max_examples=80)
@given(outs=steps())
def test_every_metric_is_scikit_learns(outs: list[StepOutput]) -> None:
    target, predicted = joined(outs)
    found = measured(outs).compute()
    assert tuple(found) == CLASSIFICATION
    losses = np.concatenate([[out.loss.item()] * out.n for out in outs])
    expected = {
        "loss": losses.mean(),
        "accuracy": accuracy_score(target, predicted),
        "precision": precision_score(target, predicted, average="macro", zero_division=0),
        "recall": recall_score(target, predicted, average="macro", zero_division=0),
        "f1": f1_score(target, predicted, average="macro", zero_division=0),
    }
    assert found == pytest.approx(expected, rel=1e-12)


@settings(deadline=None, max_examples=40)
@given(outs=steps(), flushes=st.sets(st.integers(0, 6)))
def test_when_it_is_flushed_does_not_matter(outs: list[StepOutput], flushes: set[int]) -> None:
    assert measured(outs, flushes).compute() == measured(outs).compute()


@settings(deadline=None, max_examples=40)
@given(outs=steps(), cut=st.integers(0, 6))
def test_a_saved_meter_goes_on_where_it_was(outs: list[StepOutput], cut: int) -> None:
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


def test_looking_twice_gives_the_same_and_a_new_meter_starts_from_nothing() -> None:
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


def test_nothing_is_kept_of_the_graph() -> None:
    weight = torch.ones(2, requires_grad=True)
    loss = (weight * 2).sum()
    meter = measured([StepOutput(loss.detach(), 1, torch.eye(2)[:1], torch.tensor([0]))])
    meter.flush()
    assert not any(isinstance(value, Tensor) for value in vars(meter).values())


def test_a_steps_own_metrics_are_averaged_over_samples() -> None:
    meter = measured(
        [
            StepOutput(torch.tensor(1.0), 3, metrics={"mine": 1.0}),
            StepOutput(torch.tensor(1.0), 1, metrics={"mine": 5.0}),
        ]
    )
    assert meter.compute() == {"loss": 1.0, "mine": 2.0}


def test_outputs_that_are_no_scores_of_classes_are_left_alone() -> None:
    regression = StepOutput(torch.tensor(2.0), 3, torch.zeros(3, 1), torch.zeros(3, 1))
    assert measured([regression]).compute() == {"loss": 2.0}


def test_a_class_never_seen_nor_predicted_is_left_out_of_the_averages() -> None:
    out = StepOutput(torch.tensor(0.0), 2, torch.eye(5)[:2], torch.tensor([0, 1]))
    assert measured([out]).compute() == {"loss": 0.0, "accuracy": 1.0, "precision": 1.0, "recall": 1.0, "f1": 1.0}


def test_per_class_by_hand() -> None:
    rows = per_class(np.array([[2, 0, 0], [3, 1, 0], [2, 2, 0]]))  # right, predicted, actual
    assert rows[0] == {"precision": 2 / 3, "recall": 1.0, "f1": 0.8, "samples": 2, "predicted": 3}
    assert rows[1] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "samples": 2, "predicted": 1}
    assert rows[2] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "samples": 0, "predicted": 0}


def test_the_names_a_monitor_can_have() -> None:
    assert metric_names(["val"]) == [f"{split}_{name}" for split in ("train", "val") for name in CLASSIFICATION]


@pytest.mark.parametrize(
    ("monitor", "better"),
    [("val_loss", "min"), ("train_loss", "min"), ("val_accuracy", "max"), ("val_f1", "max"), ("val_nll", "min")],
)
def test_which_direction_is_better_is_known_from_the_name(monitor: str, better: str) -> None:
    assert better_when(monitor) == better
