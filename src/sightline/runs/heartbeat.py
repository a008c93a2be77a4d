"""The heartbeat of a run: a small JSON file with its progress, for other processes that monitor it."""

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

_RATE_WRITES = 6  # images_per_second is averaged over the last six writes
_JOIN_SECONDS = 5.0
_FIELDS = (
    *("state", "time", "pid", "host", "epoch", "max_epochs", "batch", "batches", "step", "loss"),
    *("images_per_second", "eta_seconds", "last_step", "error"),
)


class Heartbeat(Callback):
    """A callback that keeps `heartbeat.json` in the directory `run` up to date.

    The file is written when training starts, then every `seconds` seconds by a thread that reads the trainer's
    counters, and at the end. This adds no work to a step and reads nothing back from the device. Writes are atomic; a
    write that fails, for example on a full disk, is skipped.

    `state` is `training`, `evaluating`, `finished`, `interrupted`, or `failed` with an `error`. `epoch` counts complete
    epochs, `batch` the complete batches of the current epoch, `step` the updates of the run. Values that are not known
    yet are null. A run is not `finished` when training ends: the evaluation after it runs within `measuring`."""

    def __init__(self, run: Path, seconds: float = 10.0):
        self.path = run / HEARTBEAT
        self.seconds = seconds
        self._trainer: Trainer | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._state = "training"
        self._batches: int | None = None
        self._last_step_time: str | None = None
        self._rate: float | None = None
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RATE_WRITES + 1)

    def on_fit_start(self, trainer: Trainer) -> None:
        """Resets the rate, writes the first heartbeat and starts the thread."""
        self._trainer = trainer
        self._started, self._first_step = time.monotonic(), trainer.state.step
        self._seen_step, self._last_step_time = trainer.state.step, None
        self._recent.clear()
        self._rate = None
        self._start("training")

    def on_epoch_start(self, trainer: Trainer) -> None:
        """Reads the number of batches of the epoch, if the loader knows it."""
        self._batches = operator.length_hint(trainer.train) or None

    def on_fit_end(self, trainer: Trainer) -> None:
        """Stops the thread and writes `interrupted` or, since the evaluation follows, `evaluating`."""
        self._finish("interrupted" if trainer.interrupted else "evaluating")

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """Writes that the run failed or was interrupted, see `failed`."""
        self.failed(error)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """A context manager for the evaluation after training: writes `evaluating`, then how the block ended."""
        self._start("evaluating")
        try:
            yield
        except BaseException as error:
            self.failed(error)
            raise
        self._finish("finished")

    def failed(self, error: BaseException) -> None:
        """Stops the thread and writes `interrupted` for a KeyboardInterrupt, otherwise `failed` with the error."""
        if isinstance(error, KeyboardInterrupt):
            self._finish("interrupted")
        else:
            self._finish("failed", f"{type(error).__name__}: {first_line(error)}")

    def _start(self, state: str) -> None:
        self._stop_thread()
        self._state = state
        self._write()
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._write_periodically, args=(self._stop,), name="heartbeat", daemon=True
        )
        self._thread.start()

    def _finish(self, state: str, error: str | None = None) -> None:
        self._stop_thread()
        if self._trainer is not None and self._is_training(self._trainer):
            self._update_rate(self._trainer)
        self._state = state
        self._write(error)

    def _stop_thread(self) -> None:
        """Stops the thread, so that only the caller writes the file."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_JOIN_SECONDS)  # a disk may hang
            self._thread = None

    def _write_periodically(self, stop: threading.Event) -> None:
        while not stop.wait(self.seconds):
            self._write()

    def _write(self, error: str | None = None) -> None:
        # A fixed name is safe: there is one writer at a time, and a file left by a killed process is overwritten.
        temporary = self.path.with_name(f".{self.path.name}.part")
        try:
            text = json.dumps(replace_non_finite(self._content(error)), indent=2, allow_nan=False)  # always ASCII
            temporary.write_text(text + "\n", encoding="ascii")
            temporary.replace(self.path)  # without a sync to disk, which a status file does not need
        except (OSError, TypeError, ValueError):  # the disk is full, or a custom counter is not a number
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _content(self, error: str | None) -> dict[str, Any]:
        content = dict.fromkeys(_FIELDS) | {"state": self._state, "time": _now(), "pid": os.getpid(), "error": error}
        content["host"] = socket.gethostname()
        trainer = self._trainer
        if trainer is None:  # training has not started
            return content
        state = trainer.state
        if self._is_training(trainer):
            self._update_rate(trainer)
        else:  # keeps the last rate
            self._recent.clear()
            content["state"] = "evaluating" if self._state == "training" else self._state
        if state.step != self._seen_step:
            self._seen_step, self._last_step_time = state.step, content["time"]
        return content | {
            "epoch": state.epoch,
            "max_epochs": trainer.max_epochs,
            "batch": state.batch,
            "batches": self._batches,
            "step": state.step,
            "loss": trainer.last_log.get("loss", trainer.last_log.get("train_loss")),
            "images_per_second": self._rate,
            "eta_seconds": self._eta_seconds(trainer),
            "last_step": self._last_step_time,
        }

    def _is_training(self, trainer: Trainer) -> bool:
        return self._state == "training" and trainer.phase in ("", "training")

    def _update_rate(self, trainer: Trainer) -> None:
        """Sets the rate to images per second over the last writes."""
        now, samples = time.monotonic(), trainer.samples
        self._recent.append((now, samples))
        first_time, first_samples = self._recent[0]
        if now > first_time:
            self._rate = round((samples - first_samples) / (now - first_time), 1)

    def _eta_seconds(self, trainer: Trainer) -> float | None:
        """Returns the seconds to the end of training at the average speed of this process, or None if unknown."""
        if self._state != "training":
            return None if self._state in ("interrupted", "failed") else 0.0
        state = trainer.state
        steps = state.step - self._first_step
        if not self._batches or not steps:
            return None
        epochs = state.epoch + 1 if trainer.should_stop else trainer.max_epochs
        remaining = max(0, (epochs - state.epoch) * self._batches - state.batch)
        return round((time.monotonic() - self._started) / steps * remaining, 1)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
