"""Trains a perceptron to recognise handwritten digits.

python digits.py [--mnist DIRECTORY] [--epochs 5]"""

from __future__ import annotations

import argparse

import torch
from torch import nn, optim
from torch.utils.data import DataLoader
from torchvision.datasets import MNIST

import sightline.learner as tf
from data import TO_TENSOR, Digits


def lr_schedule(epoch: int) -> float:
    """Returns the learning rate of an epoch: 0.01, multiplied by 0.3 after every second epoch."""
    return 0.01 * 0.3 ** (epoch // 2)


def main() -> None:
    """Trains the network and predicts one image."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--mnist", metavar="DIRECTORY", help="train on MNIST, downloaded to DIRECTORY")
    options.add_argument("--epochs", type=int, default=5, help="default: %(default)s")
    arguments = options.parse_args()
    if arguments.mnist is None:
        side, train_set, test_set = 8, Digits(train=True, shifted=True), Digits(train=False)
    else:
        side = 28
        train_set, test_set = (MNIST(arguments.mnist, train, TO_TENSOR, download=True) for train in (True, False))
    train_loader = DataLoader(train_set, batch_size=64, shuffle=True, num_workers=2)
    test_loader = DataLoader(test_set, batch_size=64, num_workers=2)

    torch.manual_seed(0)
    net = nn.Sequential(
        tf.Flatten(), nn.Linear(side * side, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)
    )
    model = tf.StandardModel(net)
    print(model.summary((1, side, side)))
    model.train(
        train_loader,
        nn.CrossEntropyLoss(),
        optim.Adam(net.parameters()),
        [tf.Accuracy()],
        test_loader,
        [tf.Accuracy("Top 1 Acc"), tf.Accuracy("Top 2 Acc", topK=2)],
        num_epochs=arguments.epochs,
        lr_schedule=lr_schedule,
        model_dir="digits_models",
        save_logs="logs.txt",
        display_metrics=False,
    )
    image, label = test_set[0]
    probabilities = model.predict(image[None], apply_softmax=True)[0]
    print(f"a {label}, read as {int(probabilities.argmax())} with {float(probabilities.max()):.0%}")


if __name__ == "__main__":  # the loaders' worker processes import this file
    main()
