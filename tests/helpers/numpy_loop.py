"""A NumPy training loop in a session: softmax regression with momentum on the embedded digits, with its own generator
for order and noise. As a script it trains in the directory of its first argument; tests also import it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from sightline.core.identity import Identity
from sightline.core.types import FitResult
from sightline.data.sources.digits import load_digits
from sightline.engine.driver import LoopHooks
from sightline.runs.directory import Run
from sightline.runs.recorders import JsonlRecorder
from sightline.session import CheckpointPolicy, Interface, ResumePolicy, Session

INTERFACE = Interface(
    name="numpy",
    again="the same command",
    advice="Choose another directory.",
    without_checkpoint="Choose another directory.",
    traces=("weights.npy",),
)


class Regression:
    """The weights, their momentum, and the generator: everything that the next epoch depends on."""

    def __init__(self) -> None:
        self.weights = np.zeros((65, 10))
        self.momentum = np.zeros_like(self.weights)
        self.generator = np.random.default_rng(0)

    def save(self, path: Path) -> None:
        path.mkdir()
        np.savez(path / "arrays.npz", weights=self.weights, momentum=self.momentum)
        (path / "generator.json").write_text(json.dumps(self.generator.bit_generator.state), encoding="ascii")

    def load(self, path: Path) -> None:
        with np.load(path / "arrays.npz") as arrays:
            self.weights, self.momentum = arrays["weights"], arrays["momentum"]
        self.generator.bit_generator.state = json.loads((path / "generator.json").read_text(encoding="ascii"))

    def step(self, x: np.ndarray, y: np.ndarray) -> float:
        logits = x @ self.weights
        logits -= logits.max(1, keepdims=True)
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        loss = float(-np.log(probabilities[np.arange(len(y)), y]).mean())
        probabilities[np.arange(len(y)), y] -= 1
        self.momentum = 0.9 * self.momentum + x.T @ probabilities / len(y)
        self.weights -= 0.1 * self.momentum
        return loss


def fit(
    directory: Path, epochs: int, pause: float = 0.0, session: Session | None = None, rate: float = 0.1
) -> tuple[FitResult, Regression]:
    """Trains in `directory`, or resumes there."""
    images, labels = load_digits()
    x = np.concatenate([images.reshape(len(images), -1) / 16.0, np.ones((len(images), 1))], 1)
    model = Regression()

    def loop(hooks: LoopHooks) -> None:
        step, epoch = hooks.position
        for _ in range(epoch, epochs):
            losses = []
            for rows in np.array_split(model.generator.permutation(len(x)), 12):
                noisy = x[rows] + model.generator.normal(0, 0.05, x[rows].shape)
                losses.append(model.step(noisy, labels[rows]))
                step += 1
                hooks.log(step, {"loss": losses[-1]})
                time.sleep(pause)
                if hooks.should_stop:
                    return
            accuracy = float((np.argmax(x @ model.weights, 1) == labels).mean())
            hooks.epoch_end({"train_loss": float(np.mean(losses)), "train_accuracy": accuracy})
            if hooks.should_stop:
                return

    policy = ResumePolicy(finished="return")
    with session or Session(Run(directory), INTERFACE, policy) as opened:
        config = {"rate": rate, "rows": len(x)}
        if opened.saved is not None:
            opened.check(Identity(config), opened.saved.config)
        result = opened.drive(
            loop,
            model,
            max_epochs=epochs,
            config=config,
            checkpoints=CheckpointPolicy("train_accuracy", warn=False),
            recorders=[JsonlRecorder()],
        )
    return result, model


if __name__ == "__main__":
    result, trained = fit(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
    if result.interrupted:
        sys.exit(130)
    np.save(Path(sys.argv[1]) / "final.npy", trained.weights)
