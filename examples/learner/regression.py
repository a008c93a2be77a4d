"""Trains a regression: the amount of ink in an image of a digit.

python regression.py [--epochs 20]"""

from __future__ import annotations

import argparse

import torch
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

import sightline.learner as tf
from data import Digits


def ink(train: bool) -> TensorDataset:
    """Returns a dataset of images and their mean brightness from 0 to 1, float32 [N,1], the amount of ink."""
    images = torch.stack([image for image, _ in Digits(train)])
    return TensorDataset(images, images.add(1).mean((2, 3)) / 2)


def main() -> None:
    """Trains with a learning rate that is halved on plateaus, saves network and architecture, and loads them again."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--epochs", type=int, default=20, help="default: %(default)s")
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
    loaded = tf.StandardLearner(tf.load_network("ink.pth"))
    print(f"mean error {loaded.evaluate(DataLoader(ink(train=False), 256), [tf.MAE()])['MAE']:.4f}")


if __name__ == "__main__":
    main()
