"""What one batch means: forward, loss, backward, update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sightline.types import Batch, StepOutput, Tensors, TrainState


class SupervisedTask:
    """Training on labelled images. `loss(output [B,...], target [B])` gives a scalar, the mean over the batch;
    `outputs` says whether the network answers with "logits" or "probabilities".

    The three steps are the engine's whole contact with the network; nothing in them is read back from the device."""

    def __init__(self, loss: Callable[[Any, Any], Tensor], outputs: str = "logits"):
        self.loss = loss
        self.outputs = outputs

    def train_step(self, state: TrainState, batch: Batch) -> StepOutput:
        """One update of the weights."""
        x, y, _, _ = batch
        output = state.model(x)
        loss = self.loss(output, y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer: Any = state.optimizer
        optimizer.step()
        optimizer.zero_grad()
        return StepOutput(loss.detach(), len(y), output.detach(), y)

    def eval_step(self, state: TrainState, batch: Batch) -> StepOutput:
        """Loss and output of one batch; the trainer has switched gradients off and the model to evaluation."""
        output = state.model(batch.x)
        return StepOutput(self.loss(output, batch.y), len(batch.y), output, batch.y)

    def predict_step(self, state: TrainState, x: Tensors) -> Tensor:
        """Probabilities float32 [B,C]."""
        output: Tensor = state.model(x)
        return output if self.outputs == "probabilities" else output.softmax(1)
