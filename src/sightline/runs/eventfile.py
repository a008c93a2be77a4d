"""A writer for TensorBoard event files that runs in the caller's thread.

`SummaryWriter` passes every point to a thread. This takes four times as long, and the thread may take the interpreter
lock during a step, which is noticeable with one point per step."""

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

_FILE_NUMBERS = itertools.count()
_MAX_DELAY_SECONDS = 10.0
_MAX_PENDING = 256  # writing many points together takes half as long as writing each after its step


class EventFile:
    """An event file of scalars by tag in `directory`, created at the first point.

    With `purge_step`, TensorBoard discards what earlier files of the directory have for that step and all later ones.
    Points are buffered: `add` writes them once there are 256 of them or the last write is over ten seconds ago.
    `flush`, which another thread may call, syncs all of them to disk."""

    def __init__(self, directory: Path, purge_step: int | None = None):
        self._directory = directory
        self._purge_step = purge_step
        self._file: IO[bytes] | None = None
        self._records: Any = None
        self._pending: deque[tuple[float, int, Mapping[str, float]]] = deque()
        self._lock = threading.Lock()
        self._written = time.time()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one point to the curve of each tag in `values`."""
        now = time.time()
        if self._records is None:
            self._create(now)
        self._pending.append((now, step, values))
        if len(self._pending) >= _MAX_PENDING or now - self._written > _MAX_DELAY_SECONDS:
            self._write_pending()

    def _create(self, now: float) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{now:.0f}.{socket.gethostname()}.{os.getpid()}.{next(_FILE_NUMBERS):04}"
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
                    wall_time, step, values = self._pending.popleft()
                    scalars = [{"tag": tag, "simple_value": value} for tag, value in values.items()]
                    self._write(self._event(wall_time=wall_time, step=step, summary={"value": scalars}))
                self._records.flush()

    def flush(self) -> None:
        """Writes pending points and syncs the file to disk, so that they survive a power failure."""
        self._write_pending()
        if self._file is not None:
            os.fsync(self._file.fileno())  # without the lock: a step must not wait for the disk

    def close(self) -> None:
        """Writes pending points and closes the file."""
        self._write_pending()
        if self._records is not None:
            self._records.close()
            self._file = self._records = None
