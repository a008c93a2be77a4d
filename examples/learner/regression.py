"""How much ink a digit took: a number in place of a class.

python regression.py [--epochs 20]"""

from __future__ import annotations

import argparse

import torch
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

import sightline.learner as tf
from data import Digits


def ink(train: bool) -> TensorDataset:
    """Pictures, and the share of each that is not paper."""
    images = torch.stack([image for image, _ in Digits(train)])
    return TensorDataset(images, images.add(1).mean((2, 3)) / 2)


def main() -> None:
    """Trains with early halving of the learning rate, and saves the network as data."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--epochs", type=int, default=20)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), tf.Flatten(), nn.Linear(4 * 36, 1))
    optimizer = optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    learner = tf.StandardLearner(net)
    learner.train(
        DataLoader(ink(train=True), 64, shuffle=True),
        nn.MSELoss(),
        optimizer,
        [tf.MSE()],
        val_loader=DataLoader(ink(train=False), 256),
        val_metrics=[tf.MAE()],
        num_epochs=options.parse_args().epochs,
        lr_scheduler=optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2),
        model_dir="ink_models",
        clip_grads=(-1, 1),
    )
    learner.save_model("ink.pth", save_architecture=True)
    again = tf.StandardLearner(tf.load_network("ink.pth"))
    print(f"mean error {again.evaluate(DataLoader(ink(train=False), 256), [tf.MAE()])['MAE']:.4f}")


if __name__ == "__main__":
    main()
