"""The logger of the library, and how the command line shows it.

The library logs through `logging` (logger `sightline`) and never configures it: the program that imports Sightline
decides what is shown. The command line calls `show_log` once."""

import logging
import sys

logger = logging.getLogger("sightline")
"""Warnings are problems that Sightline worked around, such as a damaged checkpoint; INFO says what it did."""


class _CommandFormatter(logging.Formatter):
    """`sightline: message` for warnings and errors, the plain message otherwise."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line to print."""
        text = super().format(record)
        return f"sightline: {text}" if record.levelno >= logging.WARNING else text


class _StandardError(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what `sys.stderr` is at that time, which a test or a notebook may replace."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record."""
        self.stream = sys.stderr
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 the name in logging
        """Ignores that standard error is closed, or that a signal handler has interrupted a write to it."""


def show_log(level: int = logging.INFO) -> None:
    """Shows the library's messages of at least `level` on standard error. Called again, it only changes the level."""
    if not any(isinstance(handler, _StandardError) for handler in logger.handlers):
        handler = _StandardError()
        handler.setFormatter(_CommandFormatter())
        logger.addHandler(handler)
    logger.setLevel(level)
