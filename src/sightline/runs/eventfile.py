"""TensorBoard's file, written by whoever logs. `SummaryWriter` hands every point to a thread, which takes four times as
long and the interpreter's lock from the step at any moment; where there is a point for every step, that shows."""

import itertools
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from sightline.core.files import errors_name_path

_NUMBERS = itertools.count()
_PATIENCE = 10.0
_TOGETHER = 256  # many points in one go take half as long as one after each step


class EventFile:
    """Curves of scalars by tag. The file is begun at the first point. With `purge_step`, TensorBoard forgets what
    earlier files of the directory have of that step and all after it. A reader beside the run sees points that are ten
    seconds old; `flush`, which another thread may call, brings all that there are to the disk."""

    def __init__(self, directory: Path, purge_step: int | None = None):
        self._directory = directory
        self._purge_step = purge_step
        self._file: IO[bytes] | None = None
        self._records: Any = None
        self._pending: deque[tuple[float, int, Mapping[str, float]]] = deque()
        self._lock = threading.Lock()
        self._written = time.time()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """One point of each curve."""
        now = time.time()
        if self._records is None:
            self._begin(now)
        self._pending.append((now, step, values))
        if len(self._pending) >= _TOGETHER or now - self._written > _PATIENCE:
            self._write_pending()

    def _begin(self, now: float) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{now:.0f}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS):04}"
        self._directory.mkdir(parents=True, exist_ok=True)
        self._event = Event
        self._file = (self._directory / name).open("xb")
        self._records = RecordWriter(self._file)
        self._write(Event(wall_time=now, file_version="brain.Event:2"))
        if self._purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=now, step=self._purge_step, session_log=start))

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())

    def _write_pending(self) -> None:
        with self._lock:
            if self._records is None or self._file is None:
                return
            self._written = time.time()
            with errors_name_path(Path(self._file.name)):
                while self._pending:
                    when, step, values = self._pending.popleft()
                    scalars = [{"tag": tag, "simple_value": value} for tag, value in values.items()]
                    self._write(self._event(wall_time=when, step=step, summary={"value": scalars}))
                self._records.flush()

    def flush(self) -> None:
        """Brings what was logged to the disk, so that it outlives a power cut as the checkpoint does."""
        self._write_pending()
        if self._file is not None:
            os.fsync(self._file.fileno())  # without the lock: a step must not wait for the disk

    def close(self) -> None:
        """Writes what is still in memory, and closes the file."""
        self._write_pending()
        if self._records is not None:
            self._records.close()
            self._file = self._records = None
