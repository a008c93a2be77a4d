"""What one batch means: forward, loss, backward, update."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from sightline.core.errors import DataError
from sightline.core.types import Batch, StepOutput, Task, Tensors, TrainState
from sightline.engine.ema import ModelEMA
from sightline.engine.mixup import MixupCutMix
from sightline.engine.nested import to_float32

LOW_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}
_NOTHING = contextlib.nullcontext()
_Part: TypeAlias = "tuple[Tensors, Tensors, Tensors | None, float]"


class EpochStart(Protocol):
    """Sets the network up for an epoch, as a function of the epoch alone; what `Freeze` is."""

    def apply(self, model: nn.Module, epoch: int) -> None: ...


@dataclass(eq=False, repr=False)
class SupervisedTask(Task):
    """Training on labelled images. `loss(output [B,...], target [B])` gives a scalar, the mean over the batch;
    `outputs` says whether the network answers with "logits", "probabilities" or "values".

    `precision` "bf16" or "fp16" runs the network under torch's autocast (Micikevicius et al., "Mixed Precision
    Training", 2018); the loss is float32. `accumulate` goes through a batch in so many equal parts, one after the
    other: the memory of a part, the gradients of the whole. With `part_size`, a batch that is smaller than usual, as
    the last of an epoch, goes in no more parts of so many samples than it fills, and in none of one sample, unless that
    is its size. `clip` limits the norm of all gradients together, or, with `clip_algorithm` "value", each of them.
    `average` keeps `state.ema`, which is then what is evaluated. `mix` is mixup or CutMix. `freeze` says, epoch by
    epoch, what is not trained. A batch with weights of samples is refused with a DataError.

    The steps are the engine's whole contact with the network; nothing in them is read back from the device, but by a
    GradScaler, which must know whether a step overflowed."""

    loss: Callable[[Any, Any], Tensor]
    outputs: str = "logits"
    _: KW_ONLY
    precision: str = "fp32"
    channels_last: bool = False
    accumulate: int = 1
    part_size: int | None = None
    clip: float | None = None
    clip_algorithm: str = "norm"
    average: ModelEMA | None = None
    mix: MixupCutMix | None = None
    freeze: EpochStart | None = None

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", *LOW_PRECISION):
            raise ValueError(f"precision must be 'fp32', 'bf16' or 'fp16', not {self.precision!r}")
        if self.clip_algorithm not in ("norm", "value"):
            raise ValueError(f"clip_algorithm must be 'norm' or 'value', not {self.clip_algorithm!r}")
        self._contexts: dict[str, contextlib.AbstractContextManager[Any]] = {}

    def setup(self, state: TrainState) -> None:
        """Makes `state.ema` for an average, and a GradScaler in `state.scaler` for fp16. Raises ModelError for a
        network that cannot be copied."""
        if self.average is not None and state.ema is None:
            state.ema = self.average.start(state.model)
        if self.precision == "fp16" and state.scaler is None:
            state.scaler = torch.amp.GradScaler(next(state.model.parameters()).device.type)

    def begin_epoch(self, state: TrainState) -> None:
        """Freezes and unfreezes what the epoch asks for; called before its first batch, and when one is resumed."""
        if self.freeze is not None:
            self.freeze.apply(state.model, state.epoch)

    def train_step(self, state: TrainState, batch: Batch) -> StepOutput:
        """One update of the weights. With mixup, the metrics count the target with the larger share."""
        if batch.weight is not None:
            raise _weights_of_samples()
        optimizer: Any = state.optimizer
        optimizer.zero_grad()  # here and not after the step: gradients from outside the step must not enter it
        x, y, target_b, lam = batch.x, batch.y, None, 1.0
        if self.mix is not None:
            x, target_b, lam = self.mix(x, y, state.step)
        total: Tensor | None = None
        outputs: list[Tensor | None] = []
        for part_x, part_y, part_partner, weight in self._parts(x, y, target_b):
            with self._autocast(part_x):
                output = state.model(self._arranged(part_x))
            output = self._full(output)
            loss = self.loss(output, part_y)
            if part_partner is not None:
                loss = lam * loss + (1 - lam) * self.loss(output, part_partner)
            if weight != 1.0:
                loss = loss * weight
            (loss if state.scaler is None else state.scaler.scale(loss)).backward()
            total = loss.detach() if total is None else total + loss.detach()
            outputs.append(output.detach() if isinstance(output, Tensor) else None)
        self._update(state)
        target = y if target_b is None or lam >= 0.5 else target_b
        return StepOutput(total, len(_first(y)), _joined(outputs), target)

    def eval_step(self, state: TrainState, batch: Batch) -> StepOutput:
        """Loss and output of one batch; the trainer has switched gradients off and the model to evaluation."""
        if batch.weight is not None:
            raise _weights_of_samples()
        output = self._forward(state, batch.x)
        measured = output if isinstance(output, Tensor) else None
        return StepOutput(self.loss(output, batch.y), len(_first(batch.y)), measured, batch.y)

    def predict_step(self, state: TrainState, x: Tensors) -> Tensor:
        """Probabilities float32 [B,C], or the values of a network that answers with values."""
        output = self._forward(state, x)
        if not isinstance(output, Tensor):
            raise DataError(
                f"the network answers with a {type(output).__name__}, and a prediction is one tensor. Use a task with "
                f"a predict_step of its own, which chooses one."
            )
        return output.softmax(1) if self.outputs == "logits" else output

    def _forward(self, state: TrainState, x: Tensors) -> Any:
        with self._autocast(x):
            output = state.eval_model(self._arranged(x))
        return self._full(output)

    def _update(self, state: TrainState) -> None:
        optimizer: Any = state.optimizer
        scaler = state.scaler
        if self.clip is not None:
            if scaler is not None:
                scaler.unscale_(optimizer)
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            if self.clip_algorithm == "norm":
                nn.utils.clip_grad_norm_(parameters, self.clip)
            else:
                nn.utils.clip_grad_value_(parameters, self.clip)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        if self.average is not None:
            if state.ema is None:
                raise RuntimeError("there is no average of the weights to update: call task.setup(state) first")
            self.average.update(state.ema, state.model, state.step)

    def _parts(self, x: Tensors, y: Tensors, target_b: Tensors | None) -> list[_Part]:
        """The batch in `accumulate` parts that differ in size by one at most; no more than there are samples, or than
        they fill of `part_size`. Of each: images, targets, second targets, and its share of the batch."""
        if self.accumulate == 1:
            return [(x, y, target_b, 1.0)]
        total = len(_first(y))
        count = min(self.accumulate, -(-total // self.part_size) if self.part_size else total)
        if self.part_size is not None and self.part_size > 1:
            count = min(count, max(1, total // 2))  # normalisation over a part of one is not defined
        cuts = [slice(i * total // count, (i + 1) * total // count) for i in range(max(1, count))]
        return [
            (
                _sliced(x, cut),
                _sliced(y, cut),
                None if target_b is None else _sliced(target_b, cut),
                (cut.stop - cut.start) / total,
            )
            for cut in cuts
        ]

    def _arranged(self, x: Tensors) -> Tensors:
        if self.channels_last and isinstance(x, Tensor) and x.ndim == 4:
            return x.contiguous(memory_format=torch.channels_last)
        return x

    def _autocast(self, x: Tensors) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "fp32":
            return _NOTHING
        device = _first(x).device.type
        if device not in self._contexts:
            self._contexts[device] = torch.autocast(device, LOW_PRECISION[self.precision])
        return self._contexts[device]

    def _full(self, output: Any) -> Any:
        """float32, in which losses and metrics are computed; each tensor where there are several outputs."""
        return output if self.precision == "fp32" else to_float32(output)


def _weights_of_samples() -> DataError:
    return DataError(
        "the batches carry weights of samples, which this task does not use; let the loader give (images, labels) "
        "alone, or train with a task of your own whose step takes them."
    )


def _joined(outputs: list[Tensor | None]) -> Tensor | None:
    """The outputs of the parts of a batch as one tensor; None where the network has several outputs, which no meter
    measures."""
    found = [output for output in outputs if output is not None]
    if len(found) < len(outputs):
        return None
    return found[0] if len(found) == 1 else torch.cat(found)


def _first(value: Tensors) -> Tensor:
    return value[0] if isinstance(value, tuple) else value


def _sliced(value: Tensors, part: slice) -> Tensors:
    return tuple(item[part] for item in value) if isinstance(value, tuple) else value[part]
