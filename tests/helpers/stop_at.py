"""A callback that interrupts training, as Ctrl-C or a signal does."""

from __future__ import annotations

from sightline.core.types import StepOutput
from sightline.engine.trainer import Callback, Trainer


class StopAt(Callback):
    """Interrupts training after a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, trainer: Trainer, output: StepOutput) -> None:
        if trainer.state.step == self.step:
            trainer.interrupt()
