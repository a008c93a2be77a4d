"""Settings that keep the arithmetic and change the speed: memory format, threads, compilation. Which is fastest depends
on the network and the machine, so a few steps of each are timed."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sightline.core.types import Batch, TrainState
from sightline.engine.tasks import SupervisedTask

_ROUNDS = (3, 7)  # at least, at most
_BUDGET = 10.0  # seconds
_GAIN = 0.97  # what is no faster than this does not leave the ordinary setting
_WORTH_COMPILING = 300.0  # seconds of run left


@dataclass(frozen=True)
class Setting:
    """`threads` None is torch's own number, or a device where the processor's threads do not matter."""

    channels_last: bool = False
    threads: int | None = None
    compile: bool = False

    def __str__(self) -> str:
        words = ["channels last" if self.channels_last else "channels first"]
        if self.threads is not None:
            words.append(f"{self.threads} thread{'s' if self.threads != 1 else ''}")
        return ", ".join([*words, *(["compiled"] if self.compile else [])])


@dataclass(frozen=True)
class TuneResult:
    """What was chosen, the median seconds of a step of every setting that was timed, and the choice in words."""

    setting: Setting
    seconds: dict[Setting, float]
    summary: str


def tune_settings(
    model: nn.Module,
    loss: Callable[[Any, Any], torch.Tensor],
    batch: Batch,
    *,
    precision: str = "fp32",
    channels_last: bool | str = "auto",
    threads: int | str | None = "auto",
    compile: bool | str = "auto",  # noqa: A002 torch's own word
    steps: int = 1000,
) -> TuneResult:
    """Times forward and backward passes of copies of `model` on one batch, and chooses for each setting that is "auto";
    the others are as given. `steps` is the length of the run, which decides whether compiling can pay. The model, its
    buffers and torch's random state stay as they are."""
    device = batch.y[0].device if isinstance(batch.y, tuple) else batch.y.device
    plain = Setting(channels_last is True, None if threads == "auto" else threads, compile is True)  # type: ignore[arg-type]
    formats = [False, True] if channels_last == "auto" and _has_images(model) else [channels_last is True]
    counts = _thread_counts() if threads == "auto" and device.type == "cpu" else [plain.threads]
    settings = [Setting(form, count, plain.compile) for form in formats for count in counts]
    seconds = _timed(model, loss, batch, precision, settings)
    ordinary = settings[len(counts) - 1]  # the last count is torch's own
    best = min(seconds, key=seconds.__getitem__)
    if seconds[best] > _GAIN * seconds[ordinary]:
        best = ordinary
    reasons = [f"{best}: {_duration(seconds[best])} a step"]
    reasons += [f"{_duration(seconds[ordinary])} with {ordinary}"] if best != ordinary else []
    if compile == "auto":
        best, words = _compiled(model, loss, batch, precision, best, seconds, steps)
        reasons.append(words)
    return TuneResult(best, seconds, "; ".join(reasons))


def _compiled(
    model: nn.Module,
    loss: Callable[[Any, Any], torch.Tensor],
    batch: Batch,
    precision: str,
    best: Setting,
    seconds: dict[Setting, float],
    steps: int,
) -> tuple[Setting, str]:
    left = seconds[best] * steps
    if left < _WORTH_COMPILING:
        return best, f"not compiled, the run is too short for it (about {_duration(left)})"
    compiled = Setting(best.channels_last, best.threads, True)
    began = time.perf_counter()
    try:
        seconds |= _timed(model, loss, batch, precision, [compiled])
    except Exception as error:  # a missing C++ compiler, a network it cannot follow: training goes on without it
        first = next(iter(str(error).splitlines()), "")
        return best, f"not compiled, torch.compile fails here: {type(error).__name__}: {first}"
    took = time.perf_counter() - began
    if took + seconds[compiled] * steps < _GAIN * left:
        return compiled, f"compiled: {_duration(seconds[compiled])} a step, after {_duration(took)} of compiling"
    return best, f"not compiled: {_duration(seconds[compiled])} a step would not repay {_duration(took)} of compiling"


def _timed(
    model: nn.Module, loss: Callable[[Any, Any], torch.Tensor], batch: Batch, precision: str, settings: list[Setting]
) -> dict[Setting, float]:
    """The median step of each; the rounds are interleaved, so that a busy machine is busy for all."""
    # with nothing to choose, only how long the run will take is asked
    rounds = (2, 3) if len(settings) == 1 and not settings[0].compile else _ROUNDS
    found: dict[Setting, list[float]] = {setting: [] for setting in settings}
    with _process_state_restored():
        # the number of threads is no property of a copy
        made = {(setting.channels_last, setting.compile): setting for setting in settings}
        copies = {kind: _step(model, loss, batch, precision, setting) for kind, setting in made.items()}
        steps = {setting: copies[setting.channels_last, setting.compile] for setting in settings}
        began = time.perf_counter()
        for number in range(rounds[1] + 1):
            if number > rounds[0] and time.perf_counter() - began > _BUDGET:
                break
            for setting, step in steps.items():
                if setting.threads is not None:
                    torch.set_num_threads(setting.threads)
                start = time.perf_counter()
                step()
                if number:  # the first is a warm-up
                    found[setting].append(time.perf_counter() - start)
    return {setting: statistics.median(times) for setting, times in found.items()}


def _step(
    model: nn.Module, loss: Callable[[Any, Any], torch.Tensor], batch: Batch, precision: str, setting: Setting
) -> Callable[[], None]:
    own = copy.deepcopy(model).train()
    if setting.channels_last:
        own.to(memory_format=torch.channels_last)
    if setting.compile:
        own.compile()
    state = TrainState(own, torch.optim.SGD(own.parameters(), lr=0.0))
    task = SupervisedTask(loss, precision=precision, channels_last=setting.channels_last)
    device = next(own.parameters()).device

    def step() -> None:
        task.train_step(state, batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()

    return step


def _thread_counts() -> list[int]:
    """1, 2, 4 … and torch's own number, which is the last."""
    own = torch.get_num_threads()
    return [*(1 << i for i in range(own.bit_length()) if 1 << i < own), own]


def _has_images(model: nn.Module) -> bool:
    return any(parameter.ndim == 4 for parameter in model.parameters())


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


@contextmanager
def _process_state_restored() -> Iterator[None]:
    """Threads and random state as they were."""
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(threads)
