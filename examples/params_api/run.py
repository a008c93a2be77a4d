"""Trains a classifier with custom training and test steps.

    python make_data.py
    python run.py [DATA] [LOGS]
    tensorboard --logdir logs

Run the same command again to resume an interrupted training."""

import sys

import torch
import torch.nn.functional as F
from constants import params
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from sightline.params import build_classifier, set_seeds, train


def loss_func(y_pred, y):
    """Returns the loss for logits `y_pred`."""
    return F.cross_entropy(y_pred, y, label_smoothing=0.05)


def train_step(x, y, model, optim, **kwargs):
    """Updates the weights once; returns (loss, metrics) as floats."""
    optim.zero_grad()
    y_pred = model(x)
    loss = loss_func(y_pred, y)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optim.step()
    metrics = kwargs["train_torchmetrics"](y_pred, y)
    return loss.item(), {name: value.item() for name, value in metrics.items()}


def test_step(x, y, model, **kwargs):
    """Evaluates one batch; the metrics are computed at the end of the evaluation."""
    y_pred = model(x)
    kwargs["test_torchmetrics"].update(y_pred, y)
    return loss_func(y_pred, y).item(), None


def metrics():
    """Returns the metrics, named as in TensorBoard."""
    classes = params["n_classes"]
    return MetricCollection({"Accuracy": MulticlassAccuracy(classes), "F1Score": MulticlassF1Score(classes)})


def main(datadir, logdir):
    """Trains, and prints a line when training is finished."""
    set_seeds(params["manual_seed"])
    model = build_classifier(params, outputs="logits").to(params["device"])
    done = train(
        params,
        model,
        train_step,
        test_step,
        datadir,
        logdir,
        train_torchmetrics=metrics().to(params["device"]),
        test_torchmetrics=metrics().to(params["device"]),
    )
    if done:
        print("Training Done.")


if __name__ == "__main__":
    main(*(sys.argv[1:] + ["data", "logs"][len(sys.argv) - 1 :]))
