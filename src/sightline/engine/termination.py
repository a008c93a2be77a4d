"""Distinguishes SIGTERM from Ctrl-C. Must not import torch: the command line uses it before torch is loaded."""

import signal
import time


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM. A KeyboardInterrupt, so code that handles Ctrl-C also handles SIGTERM."""


class SignalDeduplicator:
    """Detects signals that are delivered twice, in contrast to signals that are sent again by an impatient user.

    timeout(1), among others, signals the process and then its process group, so the process receives each signal twice.
    Two deliveries less than `window` seconds apart count as duplicates."""

    window = 0.25

    def __init__(self) -> None:
        self._last: dict[int, float] = {}

    def is_duplicate(self, number: int) -> bool:
        """Returns whether this signal was also delivered less than `window` seconds ago. Safe in a signal handler."""
        now = time.monotonic()
        same = now - self._last.get(number, -self.window) < self.window
        self._last[number] = now
        return same


def signal_number(error: KeyboardInterrupt) -> int:
    """Returns the number of the signal that raised `error`: SIGTERM or SIGINT."""
    return signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT


def exit_code(number: int | None) -> int:
    """Returns the exit code of a process ended by signal `number`; None counts as SIGINT."""
    return 128 + (signal.SIGINT if number is None else number)
