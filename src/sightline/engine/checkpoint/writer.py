"""Writes checkpoints during training: when, how many are kept, and the thread that writes the files."""

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
from sightline.core.log import logger
from sightline.core.types import StepOutput
from sightline.engine.checkpoint.content import checkpoint_content, content_bytes, read_checkpoint
from sightline.engine.checkpoint.file import save_checksummed
from sightline.engine.iterable_loader import loader_class_name
from sightline.engine.trainer import Callback, Trainer, not_measured

_MARGIN = 1 << 20  # bytes; more than a file contains besides its tensors


@dataclass(eq=False)
class Checkpointer(Callback):
    """Writes the checkpoint files `last` and `best` during training, in a background thread.

    `last` is written before the first step, after every epoch and when the run is interrupted; `best` is written when
    `monitor` improves. `better` is "min" or "max"; on a tie the earlier checkpoint is kept.

    Within an epoch, `last` is also written every `every_steps` steps, every `every_minutes` minutes, and on
    `Trainer.request_checkpoint`, after which `requested` is called. The `keep` newest files are kept: `last`, before it
    `last-1`, and so on. With `keep_every`, one in that many epochs is kept permanently, as `epoch-0010`. `save_first`
    writes a checkpoint before the first step even if one exists. `about` is stored in every file. `flush` is called
    before a file is written, so that logs are not older than it.

    A step only waits until the state is copied. The thread writes one file at a time; a checkpoint that becomes due
    meanwhile is written at the next step after that. A file is written under another name, synced to disk and renamed,
    and the previous one exists until then. If the loader cannot start within an epoch, checkpoints are written only at
    the end of an epoch; with `warn`, a UserWarning reports this at the start.

    Raises RunFailedError, and keeps the existing files, if the disk has no room for a checkpoint, and
    NonFiniteLossError, without writing, if a weight has become NaN or infinite."""

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
            raise ValueError(f"better: expected 'min' or 'max', found {self.better!r}.")
        self.about = dict(self.about)
        self.saved_step: int | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    def on_fit_start(self, trainer: Trainer) -> None:
        """Writes a first checkpoint, so that a run can be resumed even if its first epoch fails."""
        # values that are not finite before the first step, such as a mask of -inf, are intended
        self._intended = {name for name, value in trainer.state.model.state_dict().items() if not _finite(value)}
        self._within_epochs = trainer.loader_position() is not None
        if self.warn and not self._within_epochs:
            warnings.warn(
                f"{loader_class_name(trainer.train)} cannot start in the middle of an epoch, so this run resumes at "
                f"the start of the interrupted epoch. To resume at the interrupted batch, use a loader with state_dict "
                f"and load_state_dict, such as torchdata's StatefulDataLoader.",
                UserWarning,
                stacklevel=4,
            )
        self._due = self._next_time()
        self.saved_step = trainer.state.step if self.last.exists() else None
        for path in stale_temporaries(self.last.parent, f"*{self.last.suffix}"):
            path.unlink()
        self._resolve_best(trainer.state.best)
        if self.saved_step is None or self.save_first:
            self._save(trainer)
            self._wait()
            self._check_readable()

    def on_step_end(self, trainer: Trainer, output: StepOutput) -> None:
        """Writes a checkpoint if one is due."""
        if (self.every_steps and trainer.state.step % self.every_steps == 0) or time.monotonic() >= self._due:
            if self._writing is not None and not self._writing.done():
                self._due = 0.0  # due at the next step at which the thread is free
            elif self._within_epochs:
                trainer.check_losses()
                self._save(trainer)
            else:
                self._due = math.inf
        if self._writing is not None and self._writing.done():
            self._wait()  # raises a write error now, not at the end of the epoch

    def on_checkpoint(self, trainer: Trainer) -> None:
        """Writes the requested checkpoint, waits for it and calls `requested`."""
        if self._can_save(trainer):
            trainer.check_losses()
            self._save(trainer)
            self._wait()
        if self.requested is not None:
            self.requested()

    def on_eval_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        """Raises ConfigError if the monitor was measured before and is missing now."""
        if self.monitor not in record and any(self.monitor in before for before in trainer.state.history):
            raise not_measured("monitor", self.monitor, record, "the best checkpoint would never be replaced")

    def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        """Writes `best` if the monitor improved, and then `last`, which refers to it."""
        state = trainer.state
        value = record.get(self.monitor)
        better = False
        if value is not None and math.isfinite(value):
            sign = 1 if self.better == "max" else -1
            better = state.best is None or sign * value > sign * state.best
            state.best = value if better else state.best
        self._save(trainer, better, state.epoch if self.keep_every and state.epoch % self.keep_every == 0 else None)

    def on_fit_end(self, trainer: Trainer) -> None:
        """Writes a checkpoint if the run was interrupted; otherwise its last epoch has written one."""
        if trainer.interrupted and self._can_save(trainer):
            self._save(trainer)
        self._end()

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """Waits for the thread and ignores its errors, so that the original error is reported."""
        with suppress(Exception):
            self._end()

    def _can_save(self, trainer: Trainer) -> bool:
        return self._within_epochs or not trainer.state.batch

    def _save(self, trainer: Trainer, best: bool = False, epoch: int | None = None) -> None:
        """Copies the state and passes it to the thread, after waiting for the previous write."""
        state = trainer.state
        weights = [*state.model.state_dict().items(), *(state.ema.state_dict().items() if state.ema else ())]
        for name, value in weights:
            if name not in self._intended and not _finite(value):
                raise NonFiniteLossError(
                    f"'{name}' contains NaN or infinite values after step {state.step}. The last good checkpoint was "
                    f"not replaced. Try a lower learning rate."
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
        """Waits for the current write and raises its error."""
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
        """Writes the files of a checkpoint. Runs in the thread."""
        step, size = content["step"], content_bytes(content)
        # the first checkpoint requires room for all files that will be kept
        files = (1 + best) if self.saved_step is not None else self.keep + 2
        try:
            if self.flush is not None:
                self.flush()
            self.last.parent.mkdir(parents=True, exist_ok=True)
            check_room(self.last.parent, files * size, f"the checkpoint of step {step}", self.saved_step)
            if best:
                if self.best.exists():  # kept until `last` refers to the new one
                    _link(self.best, older(self.best, 1))
                save_checksummed(self.best, {**content, "kind": "best"})
            save_checksummed(self.last, content, self._shift)
            older(self.best, 1).unlink(missing_ok=True)
            if epoch is not None:
                _link(self.last, self.last.with_name(f"epoch-{epoch:04}{self.last.suffix}"))
        except OSError as error:
            raise RunFailedError(
                f"The checkpoint of step {step} could not be written to '{self.last.parent}': {first_line(error)}. "
                f"{_disk_advice(self.saved_step)}"
            ) from error
        self.saved_step = step
        logger.debug("wrote the checkpoint of step %d to '%s'", step, self.last)

    def _resolve_best(self, value: float | None) -> None:
        """Restores the `best` that `last` refers to, if the process was killed between writing the two."""
        before = older(self.best, 1)
        if not before.exists():
            return
        with suppress(ArtifactError):
            if value is not None and read_checkpoint(before)["best"] == value:
                before.replace(self.best)
        before.unlink(missing_ok=True)

    def _check_readable(self) -> None:
        """Warns before the first step if the checkpoint cannot be read again."""
        try:
            read_checkpoint(self.last)
        except ArtifactError as error:
            warnings.warn(
                f"This run cannot be resumed, because its checkpoint contains more than tensors and plain values. "
                f"{first_line(error)}",
                UserWarning,
                stacklevel=4,
            )

    def _shift(self) -> None:
        """Shifts `last` to `last-1` and so on, before a new `last`. The newest valid file exists at every moment."""
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
    """Returns the name of the file that was `last` the given number of checkpoints ago."""
    return last.with_stem(f"{last.stem}-{back}") if back else last


def kept(last: Path) -> list[Path]:
    """Returns the existing files among `last`, `last-1` and so on, newest first."""
    numbered = []
    for path in last.parent.glob(f"{last.stem}-*{last.suffix}"):
        number = path.stem[len(last.stem) + 1 :]
        if number.isdecimal():
            numbered.append((int(number), path))
    return [*([last] if last.exists() else []), *(path for _, path in sorted(numbered))]


def check_room(directory: Path, size: int, what: str, saved_step: int | None) -> None:
    """Raises RunFailedError if the disk of `directory` has less than `size` bytes, plus a margin, free.

    `what` names the file in the message; `saved_step` is the step of the newest checkpoint, None if there is none."""
    free = shutil.disk_usage(directory).free
    if free < size + _MARGIN:
        raise RunFailedError(
            f"The disk is full: {what} needs {_mib(size + _MARGIN)}, but the disk of '{directory}' has only "
            f"{_mib(free)} free. {_disk_advice(saved_step)}"
        )


def _disk_advice(step: int | None) -> str:
    if step is None:
        return f"Nothing was trained yet. Free disk space, or set another directory with {arg.directory}."
    return f"The checkpoint of step {step} is valid. Free disk space and resume from it."


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


def _link(source: Path, target: Path) -> None:
    """Makes `target` a hard link to `source`, or a copy where hard links are not supported."""
    temporary = temporary_sibling(target)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copy2(source, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)  # still exists if both already were the same file


def _finite(value: object) -> bool:
    if isinstance(value, Tensor) and value.is_floating_point():
        return bool(value.isfinite().all())
    return True
