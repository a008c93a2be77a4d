"""SIGTERM told apart from Ctrl-C. Without torch: the command line knows of it before torch is there."""

import signal
import time


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where Ctrl-C raises KeyboardInterrupt: what is made ready for the one is ready for the other."""


class SignalDeduplicator:
    """Tells a signal that is sent again, because somebody is impatient, from one that is only delivered twice.
    timeout(1), among others, sends to the process and then to its group, so a process gets each signal twice. `window`
    is how many seconds apart the two may be."""

    window = 0.25

    def __init__(self) -> None:
        self._last: dict[int, float] = {}

    def is_duplicate(self, number: int) -> bool:
        """Whether this signal came a moment ago as well. Safe in a signal handler."""
        now = time.monotonic()
        same = now - self._last.get(number, -self.window) < self.window
        self._last[number] = now
        return same


def signal_number(error: KeyboardInterrupt) -> int:
    """The number of the signal that raised it."""
    return signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT


def exit_code(number: int | None) -> int:
    """What a process exits with that a signal ended; without one, as if it were Ctrl-C."""
    return 128 + (signal.SIGINT if number is None else number)
