"""Whether a call of `train` resumes the training in its `model_dir`, or is another training, which is refused."""

from __future__ import annotations

import functools
import os
import random
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)
from torchvision import transforms
from torchvision.datasets import ImageFolder

import sightline.learner as tf
from helpers.learner_problem import CLASSES, COUNT, FEATURES, SIZE, X, Y, loader, network, same, train, with_test_split
from sightline.engine.checkpoint import content as checkpoint
from sightline.engine.checkpoint.file import save_checksummed
from sightline.learner import contents
from sightline.learner.description import Describer
from sightline.learner.identity import TrainingDescription
from sightline.learner.plan import TrainArguments

Make = Callable[[], Any]
DONE = "is already finished"
UNCOMPARED = "Not compared with the training in"


def layers(*middle: nn.Module, out: int = CLASSES) -> nn.Sequential:
    """A network like `network`, with other layers in the middle."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(FEATURES, 16), *middle, nn.Linear(16, out))


class Net(nn.Module):
    """A custom network with a plain function, private and public settings, and a counter."""

    def __init__(self, activation: Any = F.relu, rate: float = 0.1, scale: float = 1.0):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last = nn.Linear(FEATURES, 8), nn.Linear(8, CLASSES)
        self.activation, self._rate = activation, rate
        self.build(scale)
        self.calls = 0
        self.seen: list[int] = []

    def build(self, scale: float) -> None:
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(len(x))
        return self.head(self.activation(self.first(x)))

    def head(self, x: Tensor) -> Tensor:
        return self.last(F.dropout(x, self._rate, self.training)) * self.scale


def net_with(activation: Callable[[Tensor], Tensor]) -> nn.Module:
    """A network whose activation appears only in the code of its forward."""

    class Custom(nn.Module):
        """A class that each call defines again, as in a notebook."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(FEATURES, CLASSES)

        if activation is F.relu:

            def forward(self, x: Tensor) -> Tensor:
                """Returns the logits."""
                return F.relu(self.layer(x))  # the usual way to write it

        elif activation is F.leaky_relu:

            def forward(self, x: Tensor) -> Tensor:
                """The same code with another docstring and without a comment."""
                return F.relu(self.layer(x))

        else:

            def forward(self, x: Tensor) -> Tensor:
                return torch.tanh(self.layer(x))

    return Custom()


def frozen() -> nn.Sequential:
    net = network()
    net[0].weight.requires_grad_(False)
    return net


def tied() -> nn.Sequential:
    first = nn.Linear(FEATURES, FEATURES)
    net = nn.Sequential(first, nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, CLASSES))
    net[1].weight = first.weight
    return net


def untied() -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(FEATURES, FEATURES) for _ in range(2)), nn.Linear(FEATURES, CLASSES))


def call(directory: Path, net: Make = network, options: Make | None = None, epochs: int = 1) -> tf.StandardModel:
    """One call of train with new objects. `options` returns arguments; it gets the optimiser if it has a parameter."""
    learner = tf.StandardModel(net())
    optimizer = torch.optim.SGD([p for p in learner.model.parameters() if p.requires_grad], lr=0.1)
    arguments = {} if options is None else options(optimizer) if options.__code__.co_argcount else options()
    train(learner, directory, epochs, **{"optimizer": optimizer, **arguments})
    return learner


@pytest.mark.rows("B15")
@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        (network, lambda: layers(nn.Tanh()), r"network: layer '1' was ReLU and is now Tanh\. Restore the original"),
        (lambda: layers(nn.Dropout(0.1)), lambda: layers(nn.Dropout(0.2)), "p of layer '1' was 0.1 and is now 0.2"),
        (network, lambda: network().append(nn.Tanh()), "network: layer '3' was missing and is now torch.*Tanh"),
        (network, frozen, r"parameter weight of layer '0' was float32 16 x 6 and is now float32 16 x 6 \(frozen\)"),
        (untied, tied, "parameter weight of layer '1' was float32 6 x 6 and is now the same as '0.weight'"),
        (Net, lambda: Net(torch.tanh), "network: activation was relu and is now tanh"),
        (Net, lambda: Net(rate=0.2), "network: _rate was 0.1 and is now 0.2"),
        (Net, lambda: Net(scale=2.0), "network: scale was 1.0 and is now 2.0"),
        (lambda: net_with(F.relu), lambda: net_with(torch.tanh), "network: the code of Custom.forward is not the same"),
    ],
)  # fmt: skip
def test_another_network_is_refused_with_the_difference(tmp_path: Path, was: Make, now: Make, message: str) -> None:
    call(tmp_path, was)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(tf.LearnerError, match=f"holds another training.*{message}"):
        call(tmp_path, now)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def loss_by(weight: float) -> Callable[..., Tensor]:
    """A loss function with a loss in its closure."""
    inner = nn.CrossEntropyLoss(label_smoothing=weight)
    return lambda outputs, targets: inner(outputs, targets).mean()


@pytest.mark.rows("B15")
@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1), "label_smoothing was 0.0 and is now"),
        (
            nn.CrossEntropyLoss(torch.tensor([1.0, 1, 1])),
            nn.CrossEntropyLoss(torch.tensor([1.0, 1, 2])),
            "loss_fn: the content of buffer weight is not the same",
        ),
        (
            functools.partial(F.cross_entropy, label_smoothing=0.1),
            functools.partial(F.cross_entropy, label_smoothing=0.2),
            "loss_fn: keywords.label_smoothing was 0.1 and is now 0.2",
        ),
        (loss_by(0.1), loss_by(0.2), "loss_fn: inner.label_smoothing was 0.1 and is now 0.2"),
        (
            lambda outputs, targets: F.cross_entropy(outputs, targets) * 1,
            lambda outputs, targets: F.cross_entropy(outputs, targets) * 2,
            "loss_fn: the code of <lambda> is not the same",
        ),
    ],
)  # fmt: skip
def test_another_loss_is_refused_with_the_difference(tmp_path: Path, was: Any, now: Any, message: str) -> None:
    call(tmp_path, options=lambda: {"loss_fn": was})
    with pytest.raises(tf.LearnerError, match=message):
        call(tmp_path, options=lambda: {"loss_fn": now})


class ImageArrays(Dataset[Any]):
    """Pixels in memory, with transforms."""

    def __init__(self, *steps: Any, count: int = 12):
        self.pixels = (np.arange(count * 64) % 251).astype(np.uint8).reshape(count, 8, 8, 1)
        self.transform = transforms.Compose([transforms.ToTensor(), *steps])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.pixels[index]).flatten()[:FEATURES], index % CLASSES


def image_loader(*steps: Any) -> Make:
    return lambda: {"train_loader": DataLoader(ImageArrays(*steps), 4)}


def batches(factor: float = 1) -> list[Any]:
    return [(X[i : i + SIZE] * factor, Y[i : i + SIZE]) for i in range(0, COUNT, SIZE)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data(**options: Any) -> Make:
    return lambda: {"train_loader": loader(**options)}


def loader_of(dataset: Any, **options: Any) -> Make:
    return lambda: {"train_loader": DataLoader(dataset, **{"batch_size": 4, **options})}


PAIRS = TensorDataset(X, Y)
NORMALIZE = transforms.Normalize


@pytest.mark.rows("B15")
@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        (data(), data(batch_size=16), "train_loader: batch_size was 8 and is now 16"),
        (data(), data(shuffle=False), "train_loader: sampler was RandomSampler and is now SequentialSampler"),
        (data(), data(drop_last=True), "train_loader: drop_last was False and is now True"),
        (data(), data(x=X + 1), r"train_loader: the content of dataset\.tensors\[0\] is not the same"),
        (data(), data(x=X[:50], y=Y[:50]), r"dataset\.tensors\[0\] was float32 60 x 6 and is now float32 50 x 6"),
        (data(generator=seeded(1)), data(generator=seeded(2)), "generator.initial_seed was 1 and is now 2"),
        (data(), lambda: {"train_loader": batches()}, "train_loader was DataLoader and is now list"),
        (
            lambda: {"train_loader": batches()},
            lambda: {"train_loader": batches(2)},
            "the content of train_loader is not",
        ),
        (
            loader_of(Subset(PAIRS, range(20))),
            loader_of(Subset(PAIRS, range(20, 40))),
            r"dataset\.indices was range\(0, 20\) and is",
        ),
        (
            loader_of(Subset(PAIRS, [*range(20)])),
            loader_of(Subset(PAIRS, [*range(1, 21)])),
            r"the content of dataset\.indices is",
        ),
        (loader_of(ConcatDataset([PAIRS])), loader_of(ConcatDataset([PAIRS, PAIRS])), r"dataset\.\w+ was"),
        (
            image_loader(NORMALIZE(0.5, 0.5)),
            image_loader(NORMALIZE(0.1, 0.5)),
            r"dataset\.transform\.transforms\[1\]\.mean",
        ),
        (
            image_loader(),
            image_loader(NORMALIZE(0.1, 0.5)),
            "transforms was a list of length 1 and is now a list of length 2",
        ),
        (
            image_loader(transforms.Lambda(lambda x: x * 2)),
            image_loader(transforms.Lambda(lambda x: x * 3)),
            "train_loader: the code of <lambda> is not the same",
        ),
        (
            loader_of(PAIRS, sampler=RandomSampler(PAIRS, num_samples=30)),
            loader_of(PAIRS, sampler=RandomSampler(PAIRS, num_samples=40)),
            "sampler.num_samples was 30 and is now 40",
        ),
        (
            with_test_split,
            lambda: with_test_split(test_loader=loader(X[:30], Y[:30], shuffle=False)),
            r"test_loader: dataset\.tensors\[0\] was",
        ),
        (
            lambda: with_test_split(test_metrics=[tf.Accuracy()]),
            lambda: with_test_split(test_metrics=[tf.Accuracy(topK=2)]),
            "test_metrics: Accuracy.topK was 1 and is now 2",
        ),
    ],
)
def test_other_data_is_refused_with_the_difference(tmp_path: Path, was: Make, now: Make, message: str) -> None:
    call(tmp_path, options=was)
    with pytest.raises(tf.LearnerError, match=message):
        call(tmp_path, options=now)


def decay(rate: float) -> Callable[[int], float]:
    return lambda epoch: 0.1 * rate**epoch


def schedule(make: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    return lambda optimizer: {"lr_scheduler": make(optimizer)}


def epoch_schedule(function: Any, **options: Any) -> Make:
    return lambda: {"lr_schedule": function, **options}


def sequential(gamma: float) -> Callable[[Any], Any]:
    def make(optimizer: Any) -> Any:
        steps = [lr_scheduler.StepLR(optimizer, 1, gamma), lr_scheduler.StepLR(optimizer, 2)]
        return lr_scheduler.SequentialLR(optimizer, steps, [3])

    return make


@pytest.mark.rows("B15")
@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        (
            schedule(lambda o: lr_scheduler.StepLR(o, 1, 0.5)),
            schedule(lambda o: lr_scheduler.StepLR(o, 1, 0.4)),
            "lr_scheduler: gamma was 0.5 and is now 0.4",
        ),
        (schedule(sequential(0.5)), schedule(sequential(0.4)), r"_schedulers\[0\]\.gamma was 0.5 and is now 0.4"),
        (
            schedule(lambda o: lr_scheduler.LambdaLR(o, decay(0.5))),
            schedule(lambda o: lr_scheduler.LambdaLR(o, decay(0.4))),
            r"lr_lambdas\[0\]\.rate was 0.5 and is now 0.4",
        ),
        (
            schedule(lambda o: lr_scheduler.OneCycleLR(o, 0.1, 5)),
            schedule(lambda o: lr_scheduler.OneCycleLR(o, 0.1, 5, final_div_factor=3)),
            "lr_scheduler: .*min_lr was",
        ),
        (epoch_schedule(decay(0.5)), epoch_schedule(decay(0.4)), "lr_schedule: function.rate was 0.5 and is now 0.4"),
        (
            epoch_schedule(lambda epoch: 0.1),
            epoch_schedule(lambda epoch: 0.2),
            "lr_schedule: the code of <lambda> is not the same",
        ),
        (
            epoch_schedule(decay(0.5)),
            epoch_schedule(decay(0.5), lr_schedule_late=True),
            "lr_schedule: late was False and is now True",
        ),
        (
            epoch_schedule({0: 0.1}.__getitem__),
            epoch_schedule({0: 0.2}.__getitem__),
            "lr_schedule: function.object.0 was 0.1 and is now 0.2",
        ),
        (dict, epoch_schedule(decay(0.5)), "lr_schedule was None and is now <lambda>"),
        (epoch_schedule(decay(0.5)), dict, "lr_schedule was <lambda> and is now None"),
    ],
)
def test_another_schedule_is_refused_with_the_difference(tmp_path: Path, was: Any, now: Any, message: str) -> None:
    call(tmp_path, options=None if was is dict else was)
    with pytest.raises(tf.LearnerError, match=message):
        call(tmp_path, options=None if now is dict else now)


def test_a_schedule_may_be_added_for_later_epochs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(tmp_path)
    call(tmp_path, options=epoch_schedule(decay(0.5)), epochs=2)
    assert "lr_schedule (there was none up to epoch 1)" in capsys.readouterr().out
    call(tmp_path, options=epoch_schedule(decay(0.5)), epochs=3)
    assert UNCOMPARED not in capsys.readouterr().out
    with pytest.raises(tf.LearnerError, match=r"lr_schedule: function.rate was 0.5 and is now 0.4"):
        call(tmp_path, options=epoch_schedule(decay(0.4)), epochs=4)


def test_a_schedule_with_a_fixed_end_cannot_be_extended(tmp_path: Path) -> None:
    call(tmp_path, options=schedule(lambda o: lr_scheduler.CosineAnnealingLR(o, 1)))
    with pytest.raises(Exception, match="CosineAnnealingLR of T_max 1, which cannot be changed to 2 by resuming"):
        call(tmp_path, options=schedule(lambda o: lr_scheduler.CosineAnnealingLR(o, 2)), epochs=2)


def test_parameters_in_other_groups_are_another_training(tmp_path: Path) -> None:
    def grouped(*indices: int) -> Callable[..., None]:
        net = network()
        parameters = [*net.parameters()]
        groups = [{"params": [parameters[index] for index in indices]}]
        return lambda: train(tf.StandardModel(net), tmp_path, 1, optimizer=torch.optim.SGD(groups, lr=0.1))

    grouped(0, 1, 2, 3)()
    with pytest.raises(tf.LearnerError, match=r"optimizer: groups\[0\]\.count was 4 and is now 2"):
        grouped(2, 3)()
    with pytest.raises(tf.LearnerError, match=r"groups\[0\]\.parameters was 0\.weight, 0\.bias.* and is now"):
        grouped(2, 3, 0, 1)()


class Weighted(tf.StandardModel):
    """A learner with a custom step, a setting, a counter and an object without a value."""

    def __init__(self, net: nn.Module, weight: float):
        super().__init__(net)
        self.weight, self.steps, self.note = weight, 0, object()

    def __train_func__(self, data: Any, optimizer: Any, loss_fn: Any, train_metrics: Any, running_loss: Any,
                       epoch: int, batch_num: int) -> None:  # fmt: skip
        self.steps += 1
        optimizer.zero_grad()
        loss = loss_fn(self.model(data[0]), data[1]) * self.weight
        loss.backward()
        optimizer.step()
        running_loss.add_(loss.detach() * len(data[1]))


class Rewritten(Weighted):
    """The same step with a doubled weight."""

    def __train_func__(self, data: Any, optimizer: Any, loss_fn: Any, train_metrics: Any, running_loss: Any,
                       epoch: int, batch_num: int) -> None:  # fmt: skip
        super().__train_func__(
            data, optimizer, lambda *pair: 2 * loss_fn(*pair), train_metrics, running_loss, epoch, batch_num
        )


def test_another_step_is_refused(tmp_path: Path) -> None:
    learner = Weighted(network(), 1.0)
    train(learner, tmp_path, 1)
    train(learner, tmp_path, 2)  # its counter has changed
    with pytest.raises(tf.LearnerError, match=r"steps: train.weight was 1.0 and is now 2.0"):
        train(Weighted(network(), 2.0), tmp_path, 2)
    with pytest.raises(tf.LearnerError, match=r"steps: the code of Rewritten.__train_func__"):
        train(Rewritten(network(), 1.0), tmp_path, 2)
    with pytest.raises(tf.LearnerError, match=r"steps: train was __train_func__ and is now"):
        train(tf.StandardModel(network()), tmp_path, 2)


def test_an_input_hook_is_part_of_the_training(tmp_path: Path) -> None:
    call(tmp_path)
    learner = tf.StandardModel(network())
    learner.add_input_hook(lambda x: x * 2)
    with pytest.raises(tf.LearnerError, match="input_hooks was"):
        train(learner, tmp_path, 1)


class Penalised(tf.StandardModel):
    """A learner whose loss is a method."""

    def __init__(self, net: nn.Module, weight: float):
        super().__init__(net)
        self.weight = weight

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        warm = min(1, self.iterations / 10)
        return F.cross_entropy(outputs, targets) + warm * self.weight * self.model[0].weight.square().sum()


def test_a_loss_that_is_a_method_is_compared_with_the_attributes_it_reads(tmp_path: Path) -> None:
    learner = Penalised(network(), 0.1)
    train(learner, tmp_path, 1, loss_fn=learner.loss)
    train(learner, tmp_path, 2, loss_fn=learner.loss)
    other = Penalised(network(), 0.2)
    with pytest.raises(tf.LearnerError, match=r"loss_fn: weight was 0.1 and is now 0.2"):
        train(other, tmp_path, 3, loss_fn=other.loss)


# --- settings that are easily missed


def sgd(**options: Any) -> Make:
    return lambda net: torch.optim.SGD(net.parameters(), lr=0.1, **options)


def adam(beta: float) -> Make:
    return lambda net: torch.optim.Adam(net.parameters(), betas=(beta, 0.99))


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        (sgd(), sgd(momentum=0.9), r"optimizer: groups\[0\]\.momentum was 0 and is now 0.9"),
        (adam(0.9), adam(0.8), r"optimizer: groups\[0\]\.betas was \[0.9, 0.99\] and is now \[0.8, 0.99\]"),
    ],
)
def test_another_momentum_is_refused(tmp_path: Path, was: Make, now: Make, message: str) -> None:
    def once(optimizer: Make) -> None:
        learner = tf.StandardModel(network())
        train(learner, tmp_path, 1, optimizer=optimizer(learner.model))

    once(was)
    once(was)
    with pytest.raises(tf.LearnerError, match=message):
        once(now)


@pytest.mark.parametrize("cycled", [False, True])
def test_a_momentum_that_training_changes_is_not_compared(tmp_path: Path, cycled: bool) -> None:
    def twice(epochs: int) -> None:
        learner = tf.StandardModel(network())
        optimizer = torch.optim.SGD(learner.model.parameters(), lr=0.1, momentum=0.5)
        options = {"lr_scheduler": lr_scheduler.OneCycleLR(optimizer, 0.1, 5)} if cycled else {}
        if not cycled:
            learner.add_on_epoch_end(lambda epoch, _: optimizer.param_groups[0].update(momentum=0.5 + 0.1 * epoch))
        train(learner, tmp_path, epochs, optimizer=optimizer, **options)
        train(learner, tmp_path, epochs + 1, optimizer=optimizer, **options)

    twice(1)
    twice(3)


class Scaled(Dataset[Any]):
    """A dataset with the scale of its samples as a class attribute."""

    scale = 2.0
    shown = 1

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return X[index] * self.scale, Y[index]


class Dropping(nn.Module):
    """A network with the dropout rate as a class attribute."""

    _rate = 0.2
    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return F.dropout(self.layer(x), self._rate, self.training)


class Smoothed(nn.Module):
    """A loss with the label smoothing as a class attribute."""

    alpha = 0.1

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, label_smoothing=self.alpha)


class Doubled(Weighted):
    """A learner with the weight of the loss as a class attribute."""

    factor = 1.0

    def __train_func__(self, data: Any, optimizer: Any, loss_fn: Any, train_metrics: Any, running_loss: Any,
                       epoch: int, batch_num: int) -> None:  # fmt: skip
        super().__train_func__(
            data, optimizer, lambda *pair: loss_fn(*pair) * self.factor, train_metrics, running_loss, epoch, batch_num
        )


@pytest.mark.parametrize(
    ("owner", "name", "message"),
    [
        (Scaled, "scale", "train_loader: dataset.scale was 2.0 and is now 0.5"),
        (Dropping, "_rate", "network: _rate was 0.2 and is now 0.5"),
        (Smoothed, "alpha", "loss_fn: alpha was 0.1 and is now 0.5"),
        (Doubled, "factor", "steps: train.factor was 1.0 and is now 0.5"),
    ],
)
def test_a_class_attribute_is_compared_if_code_reads_it(
    tmp_path: Path, owner: type, name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def once() -> None:
        learner = Doubled(Dropping(), 1.0)
        train(learner, tmp_path, 1, train_loader=DataLoader(Scaled(), SIZE), loss_fn=Smoothed())

    once()
    monkeypatch.setattr(Scaled, "shown", 2)  # no code reads it
    once()
    monkeypatch.setattr(owner, name, 0.5)
    with pytest.raises(tf.LearnerError, match=message):
        once()


def in_batches(size: int, kind: Any = RandomSampler) -> Make:
    return lambda: {"train_loader": DataLoader(PAIRS, batch_sampler=BatchSampler(kind(PAIRS), size, False))}


def decorated(factor: float, times: float = 1) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        if times == 1:

            @functools.wraps(function)
            def changed(*args: Any) -> Any:
                return function(*args) * factor

        else:

            @functools.wraps(function)
            def changed(*args: Any) -> Any:
                return function(*args) * factor * 2

        return changed

    return decorate


def decorated_loss(*options: float) -> Make:
    return lambda: {"loss_fn": decorated(*options)(lambda *pair: F.cross_entropy(*pair) * 1)}


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        (in_batches(16), in_batches(8), "train_loader: batch_sampler.batch_size was 16 and is now 8"),
        (in_batches(8), in_batches(8, SequentialSampler), "batch_sampler.sampler was RandomSampler and is now Seq"),
        (decorated_loss(1), decorated_loss(2), "loss_fn: factor was 1 and is now 2"),
        (decorated_loss(1), decorated_loss(1, 2), "loss_fn: the code of <lambda> is not the same"),
    ],
)
def test_batch_samplers_and_decorators_are_compared(tmp_path: Path, was: Make, now: Make, message: str) -> None:
    call(tmp_path, options=was)
    call(tmp_path, options=was)
    with pytest.raises(tf.LearnerError, match=message):
        call(tmp_path, options=now)


def wrapped(factor: float, times: float = 1, rate: float = 0.5) -> nn.Module:
    class Wrapped(nn.Module):
        """Its forward has a decorator, and reads a cached property."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self._rate = nn.Linear(FEATURES, CLASSES), rate

        if factor < 5:

            @functools.cached_property
            def shift(self) -> Tensor:
                return torch.ones(CLASSES)

        else:

            @functools.cached_property
            def shift(self) -> Tensor:
                return torch.zeros(CLASSES)

        @decorated(min(factor, 2), times)
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(self.layer(x) + self.shift, self._rate)

    return Wrapped()


def buffered(value: float, counts: float = 0) -> nn.Module:
    class Buffered(nn.Module):
        """A network with two non-persistent buffers."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(FEATURES, CLASSES)
            self.register_buffer("mean", torch.full((FEATURES,), value), persistent=False)
            self.register_buffer("count", torch.tensor(counts), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return self.layer(x - self.mean)

    return Buffered()


def hooked(hook: Any, before: bool = False) -> nn.Module:
    net = network()
    (net[1].register_forward_pre_hook if before else net[1].register_forward_hook)(hook)
    return net


class Adjustable(nn.Module):
    """A network with a setter that training does not call, and one that its forward calls."""

    def __init__(self, strength: float):
        super().__init__()
        self.layer, self.strength = nn.Linear(FEATURES, CLASSES), strength

    def set_strength(self, strength: float) -> None:
        self.strength = strength

    def note(self, count: int) -> None:
        self.last = count

    def forward(self, x: Tensor) -> Tensor:
        self.note(len(x))
        return self.layer(x) * self.strength


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        (lambda: wrapped(1), lambda: wrapped(2), "network: factor was 1 and is now 2"),
        (lambda: wrapped(1), lambda: wrapped(1, 2), "the code of the decorator of Wrapped.forward is not the same"),
        (lambda: wrapped(1), lambda: wrapped(1, rate=0.4), "network: _rate was 0.5 and is now 0.4"),
        (lambda: wrapped(2), lambda: wrapped(6), "network: the code of Wrapped.shift is not the same"),
        (lambda: buffered(0.0), lambda: buffered(1.0), "network: the content of buffer mean is not the same"),
        (
            lambda: hooked(lambda module, inputs, output: output * 1),
            lambda: hooked(lambda module, inputs, output: output * 2),
            "network: the code of <lambda> is not the same",
        ),
        (
            lambda: hooked(lambda module, inputs: (inputs[0] * 1,), True),
            lambda: hooked(lambda module, inputs: (inputs[0] * 2,), True),
            "network: the code of <lambda> is not the same",
        ),
        (lambda: Adjustable(1.0), lambda: Adjustable(2.0), "network: strength was 1.0 and is now 2.0"),
    ],
)
def test_everything_that_a_network_computes_with_is_compared(
    tmp_path: Path, was: Make, now: Make, message: str
) -> None:
    learner = call(tmp_path, was)
    train(learner, tmp_path, 2)
    call(tmp_path, was, epochs=3)
    with pytest.raises(tf.LearnerError, match=message):
        call(tmp_path, now, epochs=3)


TABLE = torch.ones(CLASSES, 1)
SEEN: dict[Any, int] = {}


def loss_by_table(outputs: Tensor, targets: Tensor) -> Tensor:
    weights = torch.empty(len(targets), 1)
    weights[:] = TABLE[targets]
    SEEN["batches"] = SEEN[len(targets)] = SEEN.get("batches", 0) + 1
    SEEN["batches"] += 1
    return (F.cross_entropy(outputs, targets, reduction="none") * weights.squeeze(1)).mean()


def test_a_global_that_is_read_is_compared_and_one_that_is_written_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(tmp_path, options=lambda: {"loss_fn": loss_by_table})
    call(tmp_path, options=lambda: {"loss_fn": loss_by_table})
    monkeypatch.setitem(globals(), "TABLE", torch.full((CLASSES, 1), 2.0))
    with pytest.raises(tf.LearnerError, match="loss_fn: the content of TABLE is not the same"):
        call(tmp_path, options=lambda: {"loss_fn": loss_by_table})


class Noise:
    """A transform whose strength a setter can change."""

    def __init__(self, strength: float):
        self.strength = strength
        self.device, self.where = "cpu", "cpu"
        self.run_id = self.key = "0" * 32

    def set_strength(self, strength: float) -> None:
        self.strength = strength

    def __call__(self, x: Tensor) -> Tensor:
        return (x + self.strength).to(self.where)


def test_an_attribute_that_only_a_setter_assigns_is_compared(tmp_path: Path) -> None:
    call(tmp_path, options=image_loader(Noise(0.1)))
    with pytest.raises(tf.LearnerError, match=r"transforms\[1\]\.strength was 0.1 and is now 0.2"):
        call(tmp_path, options=image_loader(Noise(0.2)))


def test_the_device_and_random_identifiers_as_strings_are_not_compared(tmp_path: Path) -> None:
    def once(device: str, key: Any) -> None:
        noise = Noise(0.1)
        noise.where, noise.run_id, noise.key = device, key.hex, str(key)
        loss = functools.partial(on_device, options={"device": device})
        call(tmp_path, options=lambda: {**image_loader(noise)(), "loss_fn": loss})

    def on_device(outputs: Tensor, targets: Tensor, options: Any) -> Tensor:
        return F.cross_entropy(outputs.to(options["device"]), targets)

    once("cpu", uuid.uuid4())
    once("cpu:0", uuid.uuid4())


def test_data_that_a_callback_changes_resumes_with_the_same_objects(tmp_path: Path) -> None:
    erasing, scales = transforms.RandomErasing(0.1), torch.ones(2)
    learner = tf.StandardModel(network())

    def stronger(epoch: int, _: Any) -> None:
        erasing.p += 0.1
        scales[0] += 1

    learner.add_on_epoch_end(stronger)
    options = {**scaled_image_loader(erasing, scales), "optimizer": torch.optim.SGD(learner.model.parameters(), lr=0.1)}
    train(learner, tmp_path, 1, **options)
    train(learner, tmp_path, 3, **options)
    assert erasing.p == pytest.approx(0.4)
    call(tmp_path, options=lambda: scaled_image_loader(transforms.RandomErasing(0.1), torch.ones(2)), epochs=3)
    with pytest.raises(tf.LearnerError, match=r"transforms\[1\]\.scale was"):
        call(
            tmp_path,
            options=lambda: scaled_image_loader(transforms.RandomErasing(0.1, (0.1, 0.2)), torch.ones(2)),
            epochs=3,
        )


def scaled_image_loader(transform: Any, scales: Tensor) -> dict[str, Any]:
    arguments = image_loader(transform)()
    arguments["train_loader"].dataset.scales = scales
    return arguments


KEYS = """
import sys
from sightline.learner.description import Describer
many = {frozenset((f"a{i}", f"b{i}", ("c", i))): i for i in range(100)}
few = dict([*many.items()][:5])
print(Describer().value([many, few, {*many}]))
"""


def test_keys_that_are_sets_have_one_order_in_every_process() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", KEYS],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "123"
    }
    assert len(outputs) == 1


class LongContainers(Dataset[Any]):
    """A dataset with long containers and arrays, which the loss also reads."""

    def __init__(self) -> None:
        self.names = {f"name {i}": i for i in range(5000)}
        self.numbers = [float(i) for i in range(5000)]
        self.arrays = [np.full(3, i) for i in range(5000)]
        self.table = X + 1

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return X[index], Y[index]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        assert self.names
        assert self.numbers
        assert self.arrays
        return F.cross_entropy(outputs, targets) * self.table.mean()


def test_long_containers_and_large_arrays_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sightline.learner.fitting.TrainingDescription", functools.partial(TrainingDescription, large=500)
    )
    fed: list[int] = []
    feed, array = contents.Contents._feed, contents.Contents._feed_array

    def record(self: Any, total: Any, value: Any) -> None:
        if isinstance(value, dict | list):
            fed.append(id(value))
        feed(self, total, value)

    def record_array(self: Any, total: Any, value: Any) -> str:
        if value.shape == X.shape:
            fed.append(id(value))
        return array(self, total, value)

    monkeypatch.setattr(contents.Contents, "_feed", record)
    monkeypatch.setattr(contents.Contents, "_feed_array", record_array)
    dataset = LongContainers()
    call(tmp_path, options=lambda: {"train_loader": DataLoader(dataset, SIZE), "loss_fn": dataset.loss}, epochs=3)
    for value in (dataset.names, dataset.numbers, dataset.arrays, dataset.table):
        assert fed.count(id(value)) == 1


def test_a_loss_with_a_sparse_tensor_trains(tmp_path: Path) -> None:
    ones = torch.eye(CLASSES).to_sparse()
    call(tmp_path, options=lambda: {"loss_fn": lambda outputs, targets: F.cross_entropy(outputs @ ones, targets)})


# --- what is not another training


@pytest.mark.rows("B15")
def test_a_directory_without_a_step_starts_over_with_any_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """This happens after a failure in the first batch, once it is fixed."""
    with pytest.raises(RuntimeError):
        call(tmp_path / "a", options=lambda: {"train_loader": [(X[:, :2], Y)]})
    learner = tf.StandardModel(layers(nn.Tanh()))
    adam = torch.optim.Adam(learner.model.parameters())
    train(learner, tmp_path / "a", 1, seed=9, optimizer=adam)
    assert "holds a training without any steps. It starts over" in capsys.readouterr().out
    fresh = tf.StandardModel(layers(nn.Tanh()))
    train(fresh, tmp_path / "b", 1, seed=9, optimizer=torch.optim.Adam(fresh.model.parameters()))
    assert same(learner.model.state_dict(), fresh.model.state_dict())
    with pytest.raises(tf.LearnerError, match="optimizer was Adam and is now SGD"):
        call(tmp_path / "a")


@pytest.mark.parametrize(
    ("was", "now"),
    [
        (data(), data(num_workers=1)),
        (dict, lambda: {"save_model_interval": 2, "save_logs": "logs.txt", "tensorboard_log": "curves"}),
        (image_loader(transforms.Lambda(lambda x: x * 2)), image_loader(transforms.Lambda(lambda x: x * 2))),
        (loader_of(PAIRS, batch_sampler=BatchSampler(SequentialSampler(PAIRS), 4, True), batch_size=1),) * 2,
    ],
)
def test_what_does_not_change_the_result_is_not_compared(
    tmp_path: Path, was: Any, now: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call(tmp_path, options=None if was is dict else was)
    call(tmp_path, options=now)
    output = capsys.readouterr().out
    assert DONE in output
    assert UNCOMPARED not in output


def test_comments_and_docstrings_of_a_forward_may_change(tmp_path: Path) -> None:
    call(tmp_path, lambda: net_with(F.relu))
    call(tmp_path, lambda: net_with(F.leaky_relu), epochs=2)


@pytest.mark.parametrize("half", [False, True])
def test_a_network_with_counters_resumes_with_the_same_objects(tmp_path: Path, half: bool) -> None:
    """It does so even if its counters have changed since the last checkpoint."""
    learner = tf.StandardModel(Net())
    if half:
        learner.half()
    optimizer = torch.optim.SGD(learner.model.parameters(), lr=0.1)
    train(learner, tmp_path, 1, optimizer=optimizer, clip_grads=(-1, 1))
    learner.predict(X)
    assert learner.model.calls > 8
    train(learner, tmp_path, 2, optimizer=optimizer, clip_grads=(-1, 1))
    other = tf.StandardModel(Net())
    if half:
        other.half()
    train(other, tmp_path, 3, clip_grads=(-1, 1))
    assert other.get_train_history()["epoch"] == [1, 2, 3]


def test_changes_by_a_callback_during_training_are_not_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def learner(rate: float = 0.5) -> tf.StandardModel:
        created = tf.StandardModel(layers(nn.Dropout(rate)))
        created.model[0].weight.requires_grad_(False)

        def lower(epoch: int, _: Any) -> None:
            created.model[1].p = 0.4 / epoch
            created.model[0].weight.requires_grad_(True)

        created.add_on_epoch_end(lower)
        return created

    reused = learner()
    train(reused, tmp_path, 1)
    train(reused, tmp_path, 2)
    train(learner(), tmp_path, 3)
    assert UNCOMPARED not in capsys.readouterr().out
    train(learner(0.3), tmp_path, 4)
    output = capsys.readouterr().out
    assert output.count(UNCOMPARED) == 1
    assert "network: p of layer '1' was 0.5 and is now 0.3 (training changes it)" in output
    assert "weight" not in output


def test_an_interrupted_training_resumes_in_mid_epoch_with_the_same_objects(tmp_path: Path) -> None:
    learner = tf.StandardModel(Net())
    optimizer = torch.optim.Adam(learner.model.parameters())
    arguments = {"optimizer": optimizer, "train_loader": batches(), "lr_schedule": decay(0.9)}
    ends = [True]

    def end(epoch: int, batch: int, _: Any) -> None:
        if (epoch, batch) == (2, 3) and ends:
            ends.clear()
            os.kill(os.getpid(), signal.SIGINT)

    learner.add_on_batch_end(end)
    with pytest.raises(KeyboardInterrupt):
        train(learner, tmp_path / "a", 3, **arguments)
    train(learner, tmp_path / "a", 3, **arguments)
    uninterrupted = tf.StandardModel(Net())
    train(
        uninterrupted,
        tmp_path / "b",
        3,
        **{**arguments, "optimizer": torch.optim.Adam(uninterrupted.model.parameters())},
    )
    assert same(learner.model.state_dict(), uninterrupted.model.state_dict())


def test_counters_are_not_compared_after_an_error_in_mid_epoch(tmp_path: Path) -> None:
    """No checkpoint was written after they changed."""
    learner = tf.StandardModel(Net())
    fails = [True]

    def fail(epoch: int, batch: int, _: Any) -> None:
        if fails:
            fails.clear()
            raise RuntimeError("once")

    learner.add_on_batch_end(fail)
    with pytest.raises(RuntimeError, match="once"):
        train(learner, tmp_path, 1)
    assert learner.model.calls == 1
    train(learner, tmp_path, 1)


SCRIPT = """
import sys, time
from functools import partial
from pathlib import Path
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
import sightline.learner as tf

started = time.time()
NAMES = {"a", "b", "c", "dd", "eee"}

def main():
    scale = 2.0

    def doubled(x):
        return x * scale

    class Data(Dataset):
        def __init__(self):
            self.names = NAMES
            self.made = time.time()
            self.x = torch.arange(240.0).view(40, 6) / 240
            self.transform = transforms.Compose([transforms.Lambda(doubled), transforms.Lambda(lambda x: x + 0)])
            self.cache = {}
        def __len__(self):
            return 40
        def __getitem__(self, index):
            self.cache[index] = index
            return self.transform(self.x[index]), index % 3 if "a" in {"a", "b", "c"} else 0

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)
            self.register_forward_hook(lambda *_: None)
            self.act = lambda x: torch.tanh(x)
            self.kinds = frozenset(NAMES)
        def forward(self, x):
            if x.shape[1] in {6, 7}:
                return self.act(self.layer(x))

    net = Net()
    inner = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    learner = tf.StandardModel(net)
    learner.add_on_epoch_end(lambda epoch, data: print(time.time() - started))
    learner.train(
        DataLoader(Data(), 8, shuffle=True, num_workers=int(sys.argv[2]), collate_fn=None),
        lambda output, target: inner(output, target) + 0 * sum(p.sum() for p in net.parameters()),
        optimizer, [tf.Accuracy()], num_epochs=int(sys.argv[3]), model_dir=sys.argv[1],
        lr_schedule=partial(lambda epoch, base: base / (epoch + 1), base=0.1),
        batch_log=False, display_metrics=False, save_metrics=False)

if __name__ == "__main__":
    main()
"""


def test_the_same_script_is_the_same_training_in_every_process(tmp_path: Path) -> None:
    """The order of sets, memory addresses, and whether the script is a file do not matter."""
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    outputs = []
    for seed, start, workers, epochs in (("1", [file], 0, 1), ("2", ["-c", SCRIPT], 1, 2)):
        done = subprocess.run(
            [sys.executable, *start, tmp_path / "models", str(workers), str(epochs)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert "Resuming from" in outputs[1]
    assert not any(UNCOMPARED in output for output in outputs)
    content = checkpoint.read_checkpoint(tmp_path / "models" / "checkpoints" / "last.ckpt")
    assert "0x" not in content["config"]["identity"]


# --- what cannot be compared


class Stream(IterableDataset[Any]):
    """A dataset whose samples cannot be read in advance."""

    def __iter__(self) -> Any:
        yield from zip(X, Y, strict=True)


def test_data_that_cannot_be_compared_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(tmp_path, options=loader_of(Stream()))
    assert UNCOMPARED not in capsys.readouterr().out
    call(tmp_path, options=loader_of(Stream()), epochs=2)
    output = capsys.readouterr().out
    assert output.count(UNCOMPARED) == 1
    assert "train_loader: the samples of Stream, which are not in memory" in output
    with pytest.raises(tf.LearnerError, match=r"train_loader: batch_size was 4 and is now 5"):
        call(tmp_path, options=loader_of(Stream(), batch_size=5), epochs=2)


def test_a_checkpoint_of_an_earlier_version_resumes_and_reports_what_is_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(tmp_path)
    for path in (tmp_path / "checkpoints").glob("*.ckpt"):
        content = checkpoint.read_checkpoint(path)
        content["config"] = {k: v for k, v in content["config"].items() if k not in ("identity", "changed")}
        save_checksummed(path, content)
    call(tmp_path, epochs=2)
    assert capsys.readouterr().out.count(UNCOMPARED) == 1
    with pytest.raises(tf.LearnerError, match="layer '1' was ReLU and is now Tanh"):  # the resumed run has recorded it
        call(tmp_path, lambda: layers(nn.Tanh()), epochs=2)


def test_code_is_not_compared_across_versions_of_python(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call(tmp_path, lambda: net_with(F.relu))
    monkeypatch.setattr("sightline.learner.identity.python_version", lambda: "cpython 3.99.0")
    call(tmp_path, lambda: net_with(torch.tanh))
    assert f"(cpython {'.'.join(map(str, sys.version_info[:3]))} then, cpython 3.99.0 now)" in capsys.readouterr().out


# --- how data is read


def folder(root: Path, larger: bool = False) -> Any:
    for name in "ab":
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(3):
            Image.new("RGB", (8, 8 + i + larger)).save(root / name / f"{i}.png")
    return ImageFolder(str(root), transforms.ToTensor())


def described(loader: Any) -> Any:
    return Describer().loader(loader)


def test_an_image_folder_is_compared_by_names_labels_and_sizes_and_not_by_path(tmp_path: Path) -> None:
    original, moved, changed = (folder(tmp_path / name, name == "c") for name in "abc")
    assert described(DataLoader(original)) == described(DataLoader(moved)) != described(DataLoader(changed))
    (tmp_path / "b" / "a" / "0.png").rename(tmp_path / "b" / "b" / "9.png")
    assert described(DataLoader(original)) != described(DataLoader(folder(tmp_path / "b")))


@pytest.mark.parametrize("kind", ["tensor", "array", "bfloat16", "slice", "objects"])
def test_every_value_of_an_array_is_compared_and_its_memory_layout_is_not(kind: str) -> None:
    def make(value: float) -> Any:
        tensor = torch.zeros(7, 5)
        tensor[6, 4] = value
        if kind == "array":
            return np.asfortranarray(tensor.numpy())
        if kind == "objects":
            return np.array([[str(item) for item in row] for row in tensor.tolist()], dtype=object)
        return tensor.bfloat16() if kind == "bfloat16" else tensor.t().contiguous().t() if kind == "slice" else tensor

    assert Describer().value(make(1)) == Describer().value(make(1)) != Describer().value(make(2))
    if kind in ("tensor", "slice"):
        assert Describer().value(make(1)) == Describer().value(make(1).contiguous())


def test_only_a_sample_of_a_very_large_array_is_compared_and_that_is_reported() -> None:
    sampling = contents.Sampling(full=1000, sampled=400, chunk=100)
    for value in (torch.arange(4000), torch.arange(4000).view(40, 100).t(), np.arange(4000)):
        describer = Describer(sampling=sampling)
        description = describer.loader([value])
        assert "a sample of it was compared" in " ".join(describer.unknown) or "entries" in description["content"]
        assert Describer(sampling=sampling).value(value).partition(":")[0].endswith("sample")
    describer = Describer(sampling=sampling)
    describer.loader(DataLoader(TensorDataset(torch.arange(4000))))
    assert len(describer.unknown) == 1


class Odd:
    """An object whose attributes and repr raise errors."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __repr__(self) -> str:
        raise RuntimeError


def test_an_identity_draws_no_random_numbers_reads_no_batch_and_accepts_any_object(tmp_path: Path) -> None:
    class Untouched(Dataset[Any]):
        """A dataset that fails if a sample is read."""

        def __init__(self) -> None:
            self.odd, self.itself = Odd(), self

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Any:
            raise AssertionError

    net = network()
    learner = tf.StandardModel(net)
    generator = seeded(4)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate(), generator.get_state()  # noqa: NPY002
    plan = TrainArguments(
        DataLoader(Untouched(), 2, shuffle=True, generator=generator),
        lambda outputs, targets: Odd(),
        torch.optim.SGD(net.parameters(), 0.1),
        [],
        lr_schedule=lambda epoch: pytest.fail("it was called"),
    )
    saved = TrainingDescription(learner, plan).saved()
    assert "Untouched" in saved["identity"]
    after = torch.get_rng_state(), np.random.get_state()[1], random.getstate(), generator.get_state()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert (before[1] == after[1]).all()
    assert before[2] == after[2]
    assert torch.equal(before[3], after[3])
