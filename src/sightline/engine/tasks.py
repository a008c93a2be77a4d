"""The task for supervised training: its training, evaluation and prediction steps."""

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
_NO_AUTOCAST = contextlib.nullcontext()
_Part: TypeAlias = "tuple[Tensors, Tensors, Tensors | None, float]"


class EpochStart(Protocol):
    """Prepares the network for an epoch, depending on the epoch number alone. `Freeze` implements it."""

    def apply(self, model: nn.Module, epoch: int) -> None: ...


@dataclass(eq=False, repr=False)
class SupervisedTask(Task):
    """Supervised training on labelled images: forward, loss, backward, update.

    `loss(output [B,...], target [B])` returns a scalar, the mean over the batch. `outputs` says what the network
    returns: "logits", "probabilities" or "values".

    `precision` "bf16" or "fp16" runs the network under torch's autocast (Micikevicius et al., "Mixed Precision
    Training", 2018); the loss is computed in float32. `accumulate` splits a batch into that many equal parts and
    processes them one after another: the memory of one part, the gradients of the full batch. `part_size` is the usual
    size of a part: a smaller batch, such as the last of an epoch, is split into no more parts than it fills at this
    size, and, if `part_size` is above 1, into no parts of a single sample.

    `clip` limits the norm of all gradients together or, with `clip_algorithm` "value", each gradient value. `average`
    maintains `state.ema`, which is then evaluated instead of the model. `mix` is mixup or CutMix. `freeze` sets, for
    each epoch, which layers are not trained. The steps raise DataError for a batch with sample weights.

    Only these steps call the network. They read nothing back from the device, except that a GradScaler checks whether
    a step overflowed."""

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
            raise ValueError(f"precision: expected 'fp32', 'bf16' or 'fp16', found {self.precision!r}.")
        if self.clip_algorithm not in ("norm", "value"):
            raise ValueError(f"clip_algorithm: expected 'norm' or 'value', found {self.clip_algorithm!r}.")
        self._contexts: dict[str, contextlib.AbstractContextManager[Any]] = {}

    def setup(self, state: TrainState) -> None:
        """Creates `state.ema` if `average` is set, and a GradScaler in `state.scaler` for fp16, where missing.

        Raises ModelError if the network cannot be copied."""
        if self.average is not None and state.ema is None:
            state.ema = self.average.start(state.model)
        if self.precision == "fp16" and state.scaler is None:
            state.scaler = torch.amp.GradScaler(next(state.model.parameters()).device.type)

    def begin_epoch(self, state: TrainState) -> None:
        """Freezes and unfreezes layers for the epoch. Called before its first batch, and when one is resumed."""
        if self.freeze is not None:
            self.freeze.apply(state.model, state.epoch)

    def train_step(self, state: TrainState, batch: Batch) -> StepOutput:
        """Updates the weights once. With mixup, the returned target is the one with the larger weight."""
        if batch.weight is not None:
            raise _sample_weights_error()
        optimizer: Any = state.optimizer
        optimizer.zero_grad()  # here and not after the step: gradients from outside the step must not enter it
        x, y, target_b, lam = batch.x, batch.y, None, 1.0
        if self.mix is not None:
            x, target_b, lam = self.mix(x, y, state.step)
        total: Tensor | None = None
        outputs: list[Tensor | None] = []
        for part_x, part_y, part_target_b, weight in self._parts(x, y, target_b):
            with self._autocast(part_x):
                output = state.model(self._in_memory_format(part_x))
            output = self._as_float32(output)
            loss = self.loss(output, part_y)
            if part_target_b is not None:
                loss = lam * loss + (1 - lam) * self.loss(output, part_target_b)
            if weight != 1.0:
                loss = loss * weight
            (loss if state.scaler is None else state.scaler.scale(loss)).backward()
            total = loss.detach() if total is None else total + loss.detach()
            outputs.append(output.detach() if isinstance(output, Tensor) else None)
        self._update(state)
        target = y if target_b is None or lam >= 0.5 else target_b
        return StepOutput(total, len(_first(y)), _concatenated(outputs), target)

    def eval_step(self, state: TrainState, batch: Batch) -> StepOutput:
        """Returns loss and output of one batch. Expects disabled gradients and a model in evaluation mode."""
        if batch.weight is not None:
            raise _sample_weights_error()
        output = self._forward(state, batch.x)
        measured = output if isinstance(output, Tensor) else None
        return StepOutput(self.loss(output, batch.y), len(_first(batch.y)), measured, batch.y)

    def predict_step(self, state: TrainState, x: Tensors) -> Tensor:
        """Returns probabilities float32 [B,C], or the network's values if `outputs` is "values".

        Raises DataError if the network returns more than one tensor."""
        output = self._forward(state, x)
        if not isinstance(output, Tensor):
            raise DataError(
                f"The network returns a {type(output).__name__}, but a prediction is a single tensor. Use a custom "
                f"task whose predict_step selects one."
            )
        return output.softmax(1) if self.outputs == "logits" else output

    def _forward(self, state: TrainState, x: Tensors) -> Any:
        with self._autocast(x):
            output = state.eval_model(self._in_memory_format(x))
        return self._as_float32(output)

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
                raise RuntimeError("state.ema is missing. Call task.setup(state) before the first step.")
            self.average.update(state.ema, state.model, state.step)

    def _parts(self, x: Tensors, y: Tensors, target_b: Tensors | None) -> list[_Part]:
        """Splits the batch into at most `accumulate` parts whose sizes differ by at most one.

        Each part is (images, targets, second targets, share of the batch)."""
        if self.accumulate == 1:
            return [(x, y, target_b, 1.0)]
        total = len(_first(y))
        count = min(self.accumulate, -(-total // self.part_size) if self.part_size else total)
        if self.part_size is not None and self.part_size > 1:
            count = min(count, max(1, total // 2))  # batch normalisation is not defined for one sample
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

    def _in_memory_format(self, x: Tensors) -> Tensors:
        if self.channels_last and isinstance(x, Tensor) and x.ndim == 4:
            return x.contiguous(memory_format=torch.channels_last)
        return x

    def _autocast(self, x: Tensors) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "fp32":
            return _NO_AUTOCAST
        device = _first(x).device.type
        if device not in self._contexts:
            self._contexts[device] = torch.autocast(device, LOW_PRECISION[self.precision])
        return self._contexts[device]

    def _as_float32(self, output: Any) -> Any:
        """Converts every output tensor to float32, in which losses and metrics are computed."""
        return output if self.precision == "fp32" else to_float32(output)


def _sample_weights_error() -> DataError:
    return DataError(
        "The batches contain sample weights, which this task does not use. Let the loader yield (images, labels) only, "
        "or train with a custom task whose train_step uses the weights."
    )


def _concatenated(outputs: list[Tensor | None]) -> Tensor | None:
    """Concatenates the outputs of the parts of a batch; None if the network has several outputs, which no meter
    measures."""
    tensors = [output for output in outputs if output is not None]
    if len(tensors) < len(outputs):
        return None
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _first(value: Tensors) -> Tensor:
    return value[0] if isinstance(value, tuple) else value


def _sliced(value: Tensors, part: slice) -> Tensors:
    return tuple(item[part] for item in value) if isinstance(value, tuple) else value[part]
