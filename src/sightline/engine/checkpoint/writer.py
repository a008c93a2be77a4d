"""When checkpoints are written, which of them are kept, and the thread that writes them."""

import itertools
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sightline.core.errors import (
    ArtifactError,
    NonFiniteLossError,
    RunFailedError,
    adopt_argument_names,
    arg,
    current_argument_names,
    first_line,
)
from sightline.core.files import stale_temporaries, temporary_sibling
from sightline.core.types import StepOutput
from sightline.engine.checkpoint.content import checkpoint_content, content_bytes, read_checkpoint
from sightline.engine.checkpoint.file import save_checksummed
from sightline.engine.iterable_loader import loader_class_name
from sightline.engine.trainer import Callback, Trainer, not_measured

_MORE = 1 << 20  # what a file has beside its tensors, in bytes, with something to spare


@dataclass(eq=False)
class Checkpointer(Callback):
    """Writes the file `last` before the first step, after every epoch and when interrupted, and the file `best` when
    `monitor` is better than ever. `better` is "min" or "max"; on a tie the earlier one stays.

    Within an epoch, `last` is written every `every_steps` steps and every `every_minutes` minutes, and when the trainer
    was asked to (`Trainer.request_checkpoint`), after which `requested` is called. The `keep` newest stay: `last`, then
    `last-1` before it, and so on; with `keep_every`, that of every so many epochs stays for good, as `epoch-0010`.
    `save_first` writes one before the first step even where there is one. `about` goes into every file, and `flush` is
    called before one is written, so that logs are no older than it.

    A step waits for a copy of the state alone; a thread writes it, one file at a time, and a checkpoint that is due
    while it is busy comes as soon as it is free. A file is written aside, synced to disk and renamed, and the one
    before it is there until then. A model with a weight that has become NaN or infinite is never written, so the last
    good checkpoint stays. Where the loader cannot begin in mid-epoch, as some from elsewhere, only whole epochs are
    checkpoints; with `warn`, a warning says so at the start.

    Raises RunFailedError, and leaves what is there, when the disk has no room for a checkpoint."""

    last: Path
    best: Path
    monitor: str
    better: str
    every_steps: int | None = None
    _: KW_ONLY
    every_minutes: float | None = None
    keep: int = 2
    keep_every: int | None = None
    about: dict[str, Any] = field(default_factory=dict)
    flush: Callable[[], None] | None = None
    requested: Callable[[], None] | None = None
    save_first: bool = False
    warn: bool = True

    def __post_init__(self) -> None:
        if self.better not in ("min", "max"):
            raise ValueError(f"better must be 'min' or 'max', not {self.better!r}")
        self.about = dict(self.about)
        self.saved_step: int | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    def on_fit_start(self, trainer: Trainer) -> None:
        """Saves a run's beginning, so that there is something to resume from whatever the first epoch meets."""
        # a mask of -inf is no accident: what is not finite before the first step may stay so
        self._meant = {name for name, value in trainer.state.model.state_dict().items() if not _finite(value)}
        self._within_epochs = trainer.loader_position() is not None
        if self.warn and not self._within_epochs:
            warnings.warn(
                f"{loader_class_name(trainer.train)} cannot begin in the middle of an epoch, so this run is resumed at "
                f"the "
                f"beginning of the epoch it was in. A loader with state_dict and load_state_dict, such as torchdata's "
                f"StatefulDataLoader, is resumed at its batch.",
                UserWarning,
                stacklevel=4,
            )
        self._due = self._next_time()
        self.saved_step = trainer.state.step if self.last.exists() else None
        for left in stale_temporaries(self.last.parent, f"*{self.last.suffix}"):
            left.unlink()
        self._settle_best(trainer.state.best)
        if self.saved_step is None or self.save_first:
            self._save(trainer)
            self._wait()
            self._check_readable()

    def on_step_end(self, trainer: Trainer, output: StepOutput) -> None:
        """Saves when it is time to."""
        if (self.every_steps and trainer.state.step % self.every_steps == 0) or time.monotonic() >= self._due:
            if self._writing is not None and not self._writing.done():
                self._due = 0.0  # at the next step that finds the thread free
            elif self._within_epochs:
                trainer.check_losses()
                self._save(trainer)
            else:
                self._due = math.inf
        if self._writing is not None and self._writing.done():
            self._wait()  # what went wrong is told now, not at the end of the epoch

    def on_checkpoint(self, trainer: Trainer) -> None:
        """Saves, and returns when it is done."""
        if self._can_save(trainer):
            trainer.check_losses()
            self._save(trainer)
            self._wait()
        if self.requested is not None:
            self.requested()

    def on_eval_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        """Raises ConfigError when the monitor was measured once and is not any more."""
        if self.monitor not in record and any(self.monitor in before for before in trainer.state.history):
            raise not_measured("monitor", self.monitor, record, "the best checkpoint would stay the one of then")

    def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        """Saves; `best` first, so that `last` knows of it."""
        state = trainer.state
        value = record.get(self.monitor)
        better = False
        if value is not None and math.isfinite(value):
            sign = 1 if self.better == "max" else -1
            better = state.best is None or sign * value > sign * state.best
            state.best = value if better else state.best
        self._save(trainer, better, state.epoch if self.keep_every and state.epoch % self.keep_every == 0 else None)

    def on_fit_end(self, trainer: Trainer) -> None:
        """Saves where the run was interrupted; a run that reached its end has been saved by its last epoch."""
        if trainer.interrupted and self._can_save(trainer):
            self._save(trainer)
        self._end()

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """Lets the thread finish; what ended the run is what is told."""
        with suppress(Exception):
            self._end()

    def _can_save(self, trainer: Trainer) -> bool:
        return self._within_epochs or not trainer.state.batch

    def _save(self, trainer: Trainer, best: bool = False, epoch: int | None = None) -> None:
        """Copies the state and hands it to the thread, when that has written the one before."""
        state = trainer.state
        weights = [*state.model.state_dict().items(), *(state.ema.state_dict().items() if state.ema else ())]
        for name, value in weights:
            if name not in self._meant and not _finite(value):
                raise NonFiniteLossError(
                    f"'{name}' holds NaN or infinite values after step {state.step}, so no checkpoint was "
                    f"written over the last good one. Try a lower learning rate."
                )
        state.loader = dict(trainer.loader_position() or {})
        self._wait()
        content = checkpoint_content(state, "last", self.about)
        self._due = self._next_time()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(
                1,
                thread_name_prefix="checkpoint",
                initializer=adopt_argument_names,
                initargs=(current_argument_names(),),
            )
        self._writing = self._thread.submit(self._write, content, best, epoch)

    def _next_time(self) -> float:
        return math.inf if self.every_minutes is None else time.monotonic() + 60 * self.every_minutes

    def _wait(self) -> None:
        """For the file that is being written; raises what went wrong with it."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _end(self) -> None:
        try:
            self._wait()
        finally:
            if self._thread is not None:
                self._thread.shutdown()
                self._thread = None

    def _write(self, content: Mapping[str, Any], best: bool, epoch: int | None) -> None:
        """In the thread."""
        step, size = content["step"], content_bytes(content)
        # the first one asks for all that will be kept
        files = (1 + best) if self.saved_step is not None else self.keep + 2
        try:
            if self.flush is not None:
                self.flush()
            self.last.parent.mkdir(parents=True, exist_ok=True)
            check_room(self.last.parent, files * size, f"the checkpoint of step {step}", self.saved_step)
            if best:
                if self.best.exists():  # until `last` knows of the new one
                    _link(self.best, older(self.best, 1))
                save_checksummed(self.best, {**content, "kind": "best"})
            save_checksummed(self.last, content, self._shift)
            older(self.best, 1).unlink(missing_ok=True)
            if epoch is not None:
                _link(self.last, self.last.with_name(f"epoch-{epoch:04}{self.last.suffix}"))
        except OSError as error:
            raise RunFailedError(
                f"the checkpoint of step {step} could not be written to '{self.last.parent}': {first_line(error)}. "
                f"{_whole(self.saved_step)}"
            ) from error
        self.saved_step = step

    def _settle_best(self, value: float | None) -> None:
        """After a kill between the writing of `best` and of the `last` that knows of it: which of the two it is."""
        before = older(self.best, 1)
        if not before.exists():
            return
        with suppress(ArtifactError):
            if value is not None and read_checkpoint(before)["best"] == value:
                before.replace(self.best)
        before.unlink(missing_ok=True)

    def _check_readable(self) -> None:
        """Before the first step: that there will be something to resume from, whatever keeps its state in it."""
        try:
            read_checkpoint(self.last)
        except ArtifactError as error:
            warnings.warn(
                f"this run cannot be resumed: what it keeps in its checkpoint is more than tensors and plain values. "
                f"{first_line(error)}",
                UserWarning,
                stacklevel=4,
            )

    def _shift(self) -> None:
        """Makes room for a new `last`: each one steps back by one. At every instant the newest whole one is there."""
        names = [older(self.last, back) for back in range(self.keep)]
        for newer, name in reversed([*itertools.pairwise(names[1:])]):
            if newer.exists():
                newer.replace(name)
        if self.keep > 1 and self.last.exists():
            _link(self.last, names[1])
        for path in kept(self.last):
            if path not in names:
                path.unlink()


def older(last: Path, back: int) -> Path:
    """The file that was `last` so many checkpoints ago."""
    return last.with_stem(f"{last.stem}-{back}") if back else last


def kept(last: Path) -> list[Path]:
    """`last` and those before it that are there, newest first."""
    numbered = []
    for path in last.parent.glob(f"{last.stem}-*{last.suffix}"):
        number = path.stem[len(last.stem) + 1 :]
        if number.isdecimal():
            numbered.append((int(number), path))
    return [*([last] if last.exists() else []), *(path for _, path in sorted(numbered))]


def check_room(directory: Path, size: int, what: str, saved_step: int | None) -> None:
    """Raises RunFailedError when the disk of `directory` has no room for so many bytes more."""
    free = shutil.disk_usage(directory).free
    if free < size + _MORE:
        raise RunFailedError(
            f"the disk is full: {what} would take {_mib(size + _MORE)}, and {_mib(free)} are free where '{directory}' "
            f"is. {_whole(saved_step)}"
        )


def _whole(step: int | None) -> str:
    if step is None:
        return f"Nothing was trained yet; make room, or choose another place with {arg.directory}."
    return f"The checkpoint of step {step} is whole: make room, and resume from it."


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


def _link(source: Path, target: Path) -> None:
    """`target` becomes another name of the file `source`, or a copy where there are no such links."""
    aside = temporary_sibling(target)
    try:
        try:
            os.link(source, aside)
        except OSError:
            shutil.copy2(source, aside)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)  # still there where both were the same file already


def _finite(value: object) -> bool:
    if isinstance(value, Tensor) and value.is_floating_point():
        return bool(value.isfinite().all())
    return True
