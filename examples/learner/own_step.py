"""Trains with a custom training step: knowledge distillation from a large network to a small one.

python own_step.py [--epochs 4]"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader

import sightline.learner as tf
from data import Digits


class Distilled(tf.StandardModel):
    """A StandardModel whose training step learns from the labels and from the outputs of a teacher network."""

    def __init__(self, model: nn.Module, teacher: nn.Module):
        super().__init__(model)
        self.teacher = teacher.eval()

    def __train_func__(
        self,
        data: Any,
        optimizer: Any,
        loss_fn: Any,
        train_metrics: Any,
        running_loss: Tensor,
        epoch: int,
        batch_num: int,
    ) -> None:
        images, labels = (part.to(self.device) for part in data)
        with torch.no_grad():
            teacher_probabilities = self.teacher(images).softmax(1)
        optimizer.zero_grad()
        outputs = self.model(images)
        loss = 0.5 * loss_fn(outputs, labels) + 0.5 * loss_fn(outputs, teacher_probabilities)
        loss.backward()
        optimizer.step()
        running_loss.add_(loss.cpu() * len(labels))
        for metric in train_metrics:
            metric.update(outputs, labels)


def network(width: int) -> nn.Sequential:
    """Returns a perceptron with one hidden layer."""
    return nn.Sequential(tf.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def main() -> None:
    """Trains the teacher, then the pupil."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--epochs", type=int, default=4, help="default: %(default)s")
    epochs = options.parse_args().epochs
    loaders = DataLoader(Digits(shifted=True), 64, shuffle=True), DataLoader(Digits(train=False), 64)
    torch.manual_seed(0)
    large, small = network(200), network(12)
    for name, model in (("teacher", tf.StandardModel(large)), ("pupil", Distilled(small, large))):
        model.add_on_epoch_end(lambda epoch, data, name=name: print(f"{name}: {data['test_Accuracy']:.3f}"))
        model.train(
            loaders[0],
            nn.CrossEntropyLoss(),
            optim.Adam(model.model.parameters(), lr=0.01),
            [tf.Accuracy()],
            loaders[1],
            [tf.Accuracy()],
            num_epochs=epochs,
            model_dir=f"{name}_models",
            display_metrics=False,
            save_metrics=False,
        )


if __name__ == "__main__":
    main()
