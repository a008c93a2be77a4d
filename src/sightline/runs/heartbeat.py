"""A file that says how a run is doing, for who watches from outside."""

import json
import operator
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sightline.core.errors import first_line
from sightline.core.files import replace_non_finite
from sightline.engine.trainer import Callback, Trainer
from sightline.runs.alive import HEARTBEAT

_RECENT = 6  # the rate is that of so many beats
_PATIENCE = 5.0
_FIELDS = (
    *("state", "time", "pid", "host", "epoch", "max_epochs", "batch", "batches", "step", "loss"),
    *("images_per_second", "eta_seconds", "last_step", "error"),
)


class Heartbeat(Callback):
    """Keeps `heartbeat.json` in the directory `run`: written when training begins, every `seconds` by a thread that
    looks at the trainer's counters, and at the end. A step does nothing for it, and nothing is read back from the
    device. A reader never sees a part of it; a write that fails, as on a full disk, is left out.

    `state` is `training`, `evaluating`, `finished`, `interrupted` or `failed`, then with an `error`. `epoch` counts
    those that are done, `batch` what is done of the one at hand, `step` the updates of the run. What is not known yet
    is null. A run is not finished when training is: what comes then is done within `measuring`."""

    def __init__(self, run: Path, seconds: float = 10.0):
        self.path = run / HEARTBEAT
        self.seconds = seconds
        self._trainer: Trainer | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._state = "training"
        self._batches: int | None = None
        self._moved: str | None = None
        self._rate: float | None = None
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RECENT + 1)

    def on_fit_start(self, trainer: Trainer) -> None:
        """The first beat."""
        self._trainer = trainer
        self._started, self._first_step = time.monotonic(), trainer.state.step
        self._seen, self._moved = trainer.state.step, None
        self._recent.clear()
        self._rate = None
        self._begin("training")

    def on_epoch_start(self, trainer: Trainer) -> None:
        """Notes the epoch's length."""
        self._batches = operator.length_hint(trainer.train) or None

    def on_fit_end(self, trainer: Trainer) -> None:
        """The last beat of training."""
        self._end("interrupted" if trainer.interrupted else "evaluating")

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """The last beat of a run that failed."""
        self.failed(error)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """For what comes after training: beats as `evaluating` during the block, and then says how it ended."""
        self._begin("evaluating")
        try:
            yield
        except BaseException as error:
            self.failed(error)
            raise
        self._end("finished")

    def failed(self, error: BaseException) -> None:
        """The last beat: what ended the run. Ctrl-C and the like interrupt it."""
        if isinstance(error, KeyboardInterrupt):
            self._end("interrupted")
        else:
            self._end("failed", f"{type(error).__name__}: {first_line(error)}")

    def _begin(self, state: str) -> None:
        self._halt()
        self._state = state
        self._write()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, args=(self._stop,), name="heartbeat", daemon=True)
        self._thread.start()

    def _end(self, state: str, error: str | None = None) -> None:
        self._halt()
        if self._trainer is not None and self._is_training(self._trainer):
            self._measure(self._trainer)
        self._state = state
        self._write(error)

    def _halt(self) -> None:
        """Ends the thread, so that nobody else writes."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_PATIENCE)  # a disk that hangs is not waited for
            self._thread = None

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(self.seconds):
            self._write()

    def _write(self, error: str | None = None) -> None:
        # one name beside it: only one of us writes at a time, and what a kill leaves is written over
        aside = self.path.with_name(f".{self.path.name}.part")
        try:
            text = json.dumps(
                replace_non_finite(self._content(error)), indent=2, allow_nan=False
            )  # ASCII, whatever an error says
            aside.write_text(text + "\n", encoding="ascii")
            aside.replace(self.path)  # not synced to disk: it is no record
        except (OSError, TypeError, ValueError):  # the disk is full, or a counter of somebody's own is no number
            with suppress(OSError):
                aside.unlink(missing_ok=True)

    def _content(self, error: str | None) -> dict[str, Any]:
        said = dict.fromkeys(_FIELDS) | {"state": self._state, "time": _now(), "pid": os.getpid(), "error": error}
        said["host"] = socket.gethostname()
        trainer = self._trainer
        if trainer is None:  # it ended before it began
            return said
        state = trainer.state
        if self._is_training(trainer):
            self._measure(trainer)
        else:  # it leaves the rate as it was
            self._recent.clear()
            said["state"] = "evaluating" if self._state == "training" else self._state
        if state.step != self._seen:
            self._seen, self._moved = state.step, said["time"]
        return said | {
            "epoch": state.epoch,
            "max_epochs": trainer.max_epochs,
            "batch": state.batch,
            "batches": self._batches,
            "step": state.step,
            "loss": trainer.last_log.get("loss", trainer.last_log.get("train_loss")),
            "images_per_second": self._rate,
            "eta_seconds": self._left(trainer),
            "last_step": self._moved,
        }

    def _is_training(self, trainer: Trainer) -> bool:
        return self._state == "training" and trainer.phase in ("", "training")

    def _measure(self, trainer: Trainer) -> None:
        """The rate over the last beats."""
        now, samples = time.monotonic(), trainer.samples
        self._recent.append((now, samples))
        then, before = self._recent[0]
        if now > then:
            self._rate = round((samples - before) / (now - then), 1)

    def _left(self, trainer: Trainer) -> float | None:
        """Seconds to the end of training, at the pace of this process so far."""
        if self._state != "training":
            return None if self._state in ("interrupted", "failed") else 0.0
        state = trainer.state
        done = state.step - self._first_step
        if not self._batches or not done:
            return None
        epochs = state.epoch + 1 if trainer.should_stop else trainer.max_epochs
        left = max(0, (epochs - state.epoch) * self._batches - state.batch)
        return round((time.monotonic() - self._started) / done * left, 1)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
