"""`eval_every`: which epochs are evaluated."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from sightline.core.types import Batch, TrainState
from sightline.engine.tasks import SupervisedTask
from sightline.engine.trainer import Callback, Trainer


def evaluated_epochs(
    every: int | Callable[[int], bool], epochs: int = 7, callbacks: tuple[Callback, ...] = ()
) -> list[int]:
    model = nn.Linear(2, 3)
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1))
    batches = [Batch(torch.randn(3, 2), torch.tensor([0, 1, 2]))]
    Trainer(
        SupervisedTask(nn.CrossEntropyLoss()), state, batches, {"val": batches}, max_epochs=epochs, eval_every=every,
        callbacks=callbacks,
    ).fit()  # fmt: skip
    return [int(record["epoch"]) for record in state.history if "val_loss" in record]


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (3, [2, 5, 6]),
        (9, [6]),
        (lambda epoch: epoch % 3 == 0, [0, 3, 6]),
        (lambda epoch: epoch < 2, [0, 1, 6]),
        (lambda epoch: None, [6]),
    ],
)
def test_eval_every_is_a_number_or_a_function_and_the_last_epoch_is_evaluated(
    every: int | Callable[[int], bool], expected: list[int]
) -> None:
    assert evaluated_epochs(every) == expected


def test_the_last_epoch_is_evaluated_when_a_callback_stops_training() -> None:
    class Enough(Callback):
        def on_epoch_start(self, trainer: Trainer) -> None:
            trainer.should_stop = trainer.state.epoch == 3

    assert evaluated_epochs(lambda epoch: epoch == 1, callbacks=(Enough(),)) == [1, 3]


@pytest.mark.parametrize("every", [0, -2])
def test_an_interval_below_1_is_refused(every: int) -> None:
    with pytest.raises(
        ValueError, match=f"eval_every: expected an integer >= 1 or a function of the epoch, found {every}"
    ):
        evaluated_epochs(every)
