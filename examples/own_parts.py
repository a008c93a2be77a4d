"""Trains with custom parts, fully typed: a data source, a network, a training step, a callback and a recorder.

Run it with `python examples/own_parts.py`; it takes a few seconds."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import sightline
from sightline import Batch, Callback, StepOutput, Trainer, TrainState
from sightline.core.types import Recorder, Task, Tensors
from sightline.data.records import DataInfo, Sample

CLASSES = ("dark", "light")


class Shades:
    """A data source: random grey images of 8 x 8 pixels, dark or light, in the splits train and val."""

    info = DataInfo("shades", CLASSES)

    def __init__(self, count: int, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        labels = random.integers(0, 2, count)
        images = (random.integers(0, 128, (count, 8, 8)) + 128 * labels[:, None, None]).astype(np.uint8)
        samples = [Sample(f"{row}", images[row], int(labels[row])) for row in range(count)]
        self.splits: Mapping[str, Sequence[Sample]] = {"train": samples[: count // 2], "val": samples[count // 2 :]}


class Small(nn.Module):
    """A network: float32 [B,1,8,8] to logits [B,2]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, len(CLASSES)))

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits."""
        logits: Tensor = self.layers(images)
        return logits


class SmoothStep(Task):
    """A task: cross entropy with label smoothing in training, without it in evaluation."""

    def train_step(self, state: TrainState, batch: Batch) -> StepOutput:
        """Updates the weights once."""
        assert state.optimizer is not None
        state.optimizer.zero_grad()
        logits, labels = self._forward(state.model, batch)
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
        loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
        state.optimizer.step()
        return StepOutput(loss.detach(), len(labels), logits.detach(), labels)

    def eval_step(self, state: TrainState, batch: Batch) -> StepOutput:
        """Returns loss and logits of a batch; called without gradients."""
        logits, labels = self._forward(state.eval_model, batch)
        return StepOutput(nn.functional.cross_entropy(logits, labels), len(labels), logits, labels)

    def predict_step(self, state: TrainState, x: Tensors) -> Tensor:
        """Returns probabilities [B,2]."""
        logits: Tensor = state.eval_model(x)
        return logits.softmax(1)

    def _forward(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        assert isinstance(batch.y, Tensor)
        return model(batch.x), batch.y


class StopWhenGood(Callback):
    """A callback: stops training at a validation accuracy of 0.99."""

    def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        """Requests a stop; `record` has the metrics of the epoch."""
        trainer.should_stop = record["val_accuracy"] >= 0.99


class MemoryRecorder(Recorder):
    """A recorder: stores every log point in memory."""

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Stores the values of a log point; `step` is the number of updates so far."""
        self.points.append((step, dict(values)))


def main(directory: Path) -> sightline.FitResult:
    """Trains in a directory, and predicts two images with the exported model."""
    recorder = MemoryRecorder()
    config = {
        "data": {"batch_size": 32, "augment": {"shift": 0}},
        "trainer": {"max_epochs": 20, "progress": False, "device": "cpu"},
        "run": {"dir": str(directory), "name": "shades"},
    }
    torch.manual_seed(0)
    model = Small()
    result = sightline.fit(
        config, source=Shades(400), model=model, task=SmoothStep(), callbacks=[StopWhenGood()], recorder=recorder
    )
    assert result.run is not None
    predictor: sightline.Predictor = sightline.load(result.run, model=model)
    dark, light = predictor.predict([np.full((8, 8), shade, np.uint8) for shade in (40, 215)])
    assert isinstance(dark, sightline.Prediction)  # a regression returns sightline.Value
    assert isinstance(light, sightline.Prediction)
    print(f"{result.epochs} epochs, {len(recorder.points)} log points; answers: {dark.label}, {light.label}")
    return result


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place))
