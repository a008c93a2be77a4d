"""Chooses the fastest of the settings that do not change the arithmetic: memory format, CPU threads, compilation.

The fastest setting depends on the network and the machine, so a few steps of each are timed."""

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

_ROUNDS = (3, 7)  # timed steps per setting: minimum, maximum
_BUDGET = 10.0  # seconds after which only the minimum number of rounds is timed
_GAIN = 0.97  # another setting is chosen only below this fraction of the default's time
_WORTH_COMPILING = 300.0  # seconds; compilation is not tried for shorter runs


@dataclass(frozen=True)
class Setting:
    """A combination of speed settings. `threads` None keeps torch's number of CPU threads."""

    channels_last: bool = False
    threads: int | None = None
    compile: bool = False

    def __str__(self) -> str:
        parts = ["channels last" if self.channels_last else "channels first"]
        if self.threads is not None:
            parts.append(f"{self.threads} thread{'s' if self.threads != 1 else ''}")
        return ", ".join([*parts, *(["compiled"] if self.compile else [])])


@dataclass(frozen=True)
class TuneResult:
    """The result of `tune_settings`: the chosen setting, the median seconds per step of each, and a summary text."""

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
    compile: bool | str = "auto",  # noqa: A002 the name in torch
    steps: int = 1000,
) -> TuneResult:
    """Times training steps of copies of `model` on one batch, and chooses the fastest value of each "auto" setting.

    Settings with another value are kept. `steps` is the number of steps of the run, which decides whether compilation
    is worth its time. The model, its buffers and torch's random state are not changed."""
    device = batch.y[0].device if isinstance(batch.y, tuple) else batch.y.device
    plain = Setting(channels_last is True, None if threads == "auto" else threads, compile is True)  # type: ignore[arg-type]
    formats = [False, True] if channels_last == "auto" and _has_images(model) else [channels_last is True]
    counts = _thread_counts() if threads == "auto" and device.type == "cpu" else [plain.threads]
    settings = [Setting(last, count, plain.compile) for last in formats for count in counts]
    seconds = _timed(model, loss, batch, precision, settings)
    default = settings[len(counts) - 1]  # the last count is torch's default
    best = min(seconds, key=seconds.__getitem__)
    if seconds[best] > _GAIN * seconds[default]:
        best = default
    reasons = [f"{best}: {_duration(seconds[best])} per step"]
    reasons += [f"{_duration(seconds[default])} with {default}"] if best != default else []
    if compile == "auto":
        best, reason = _compiled(model, loss, batch, precision, best, seconds, steps)
        reasons.append(reason)
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
    remaining = seconds[best] * steps
    if remaining < _WORTH_COMPILING:
        return best, f"not compiled, because the run is too short (about {_duration(remaining)})"
    compiled = Setting(best.channels_last, best.threads, True)
    started = time.perf_counter()
    try:
        seconds |= _timed(model, loss, batch, precision, [compiled])
    except Exception as error:  # such as a missing C++ compiler; training continues without compilation
        first = next(iter(str(error).splitlines()), "")
        return best, f"not compiled, because torch.compile failed: {type(error).__name__}: {first}"
    compile_time, step = time.perf_counter() - started, _duration(seconds[compiled])
    if compile_time + seconds[compiled] * steps < _GAIN * remaining:
        return compiled, f"compiled: {step} per step, after {_duration(compile_time)} of compiling"
    return best, f"not compiled: {step} per step does not justify {_duration(compile_time)} of compiling"


def _timed(
    model: nn.Module, loss: Callable[[Any, Any], torch.Tensor], batch: Batch, precision: str, settings: list[Setting]
) -> dict[Setting, float]:
    """Returns the median seconds per step of each setting.

    The rounds are interleaved, so that other load on the machine affects all settings equally."""
    # a single setting that is not compiled is timed only to estimate the length of the run
    rounds = (2, 3) if len(settings) == 1 and not settings[0].compile else _ROUNDS
    durations: dict[Setting, list[float]] = {setting: [] for setting in settings}
    with _process_state_restored():
        # settings that differ only in the number of threads share a copy of the model
        kinds = {(setting.channels_last, setting.compile): setting for setting in settings}
        copies = {kind: _step(model, loss, batch, precision, setting) for kind, setting in kinds.items()}
        steps = {setting: copies[setting.channels_last, setting.compile] for setting in settings}
        started = time.perf_counter()
        for number in range(rounds[1] + 1):
            if number > rounds[0] and time.perf_counter() - started > _BUDGET:
                break
            for setting, step in steps.items():
                if setting.threads is not None:
                    torch.set_num_threads(setting.threads)
                start = time.perf_counter()
                step()
                if number:  # round 0 is a warm-up
                    durations[setting].append(time.perf_counter() - start)
    return {setting: statistics.median(times) for setting, times in durations.items()}


def _step(
    model: nn.Module, loss: Callable[[Any, Any], torch.Tensor], batch: Batch, precision: str, setting: Setting
) -> Callable[[], None]:
    tuned = copy.deepcopy(model).train()
    if setting.channels_last:
        tuned.to(memory_format=torch.channels_last)
    if setting.compile:
        tuned.compile()
    state = TrainState(tuned, torch.optim.SGD(tuned.parameters(), lr=0.0))
    task = SupervisedTask(loss, precision=precision, channels_last=setting.channels_last)
    device = next(tuned.parameters()).device

    def step() -> None:
        task.train_step(state, batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()

    return step


def _thread_counts() -> list[int]:
    """Returns 1, 2, 4 … below torch's number of threads, then torch's number."""
    default = torch.get_num_threads()
    return [*(1 << i for i in range(default.bit_length()) if 1 << i < default), default]


def _has_images(model: nn.Module) -> bool:
    return any(parameter.ndim == 4 for parameter in model.parameters())


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


@contextmanager
def _process_state_restored() -> Iterator[None]:
    """Restores torch's number of threads and random state after the block."""
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(threads)
