"""The command table: reads the first word, imports that command alone, and turns an error into a message and an exit
code (2: yours to fix; 1: the run failed; 130: interrupted by Ctrl-C; 143: ended by SIGTERM)."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType

from sightline import __version__
from sightline.config.names import NAMES
from sightline.core.errors import RunFailedError, SightlineError, argument_names, did_you_mean
from sightline.engine.termination import SignalDeduplicator, Terminated, exit_code, signal_number

COMMANDS = {
    "train": "train a classifier: sightline train [experiment=NAME] [key=value …]",
    "evaluate": "measure a trained run on its data, sample by sample: sightline evaluate RUN",
    "predict": "classify files, folders or patterns: sightline predict RUN PATH…",
    "resume": "go on with an interrupted run: sightline resume RUN",
    "reproduce": "train a finished run again and certify that it is the same: sightline reproduce RUN",
    "runs": "list the runs in a directory with their metrics: sightline runs [DIR]",
    "diff": "show what differs between two runs: sightline diff A B",
    "load": "check an exported model and say what it is: sightline load RUN",
    "lr-find": "find a learning rate before training: sightline lr-find [key=value …]",
    "show": "draw pictures as they are, as the network sees them, and augmented: sightline show DATA",
    "cache": "list or clear the decoded images that are kept: sightline cache",
    "data": "unpack IDX files into pictures with tables: sightline data convert-idx IDX OUT",
    "summary": "print the network's layers, shapes and costs: sightline summary [key=value …]",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command and exits."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file name, or a narrow encoding, is no reason to end
            stream.reconfigure(errors="backslashreplace")
    _listen()
    try:
        status = _run(argv)
        sys.stdout.flush()
    except SightlineError as error:
        if os.environ.get("SIGHTLINE_TRACEBACK"):
            traceback.print_exc()
        print(f"sightline: {error}{_origin(error)}", file=sys.stderr)
        status = error.exit_code
    except KeyboardInterrupt as error:
        print(f"sightline: {'terminated' if isinstance(error, Terminated) else 'interrupted'}", file=sys.stderr)
        status = exit_code(signal_number(error))
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status)


def _listen() -> None:
    """SIGTERM is raised wherever the program is; SIGUSR1, a scheduler's warning, ends nothing, where nothing is being
    trained that could be saved. A command that trains has its own way with both."""
    repeats = SignalDeduplicator()

    def end(number: int, _frame: FrameType | None) -> None:
        if not repeats.is_duplicate(number):
            raise Terminated

    with contextlib.suppress(ValueError):  # only the main thread may
        signal.signal(signal.SIGTERM, end)
        if hasattr(signal, "SIGUSR1") and signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _origin(error: SightlineError) -> str:
    """The notes of an error; and for a run that failed in code that is not ours where, and how to see the traceback."""
    cause, notes = error.__cause__, "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
    if not isinstance(error, RunFailedError) or cause is None:
        return notes
    place = traceback.extract_tb(cause.__traceback__)[-1]
    return (
        f"{notes}\n(raised in {place.filename}, line {place.lineno}; SIGHTLINE_TRACEBACK=1 shows the whole traceback)"
    )


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"sightline {__version__}")
        return 0
    name = argv[0]
    if name not in COMMANDS:
        print(f"sightline: no command '{name}'.{did_you_mean(name, COMMANDS)}\n\n{usage()}", file=sys.stderr)
        return 2
    with argument_names(NAMES):
        status: int = importlib.import_module(f"sightline.commands.{name.replace('-', '_')}").main(argv[1:])
    return status


def usage() -> str:
    """What `sightline --help` prints."""
    lines = [f"  {name:<10} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        (
            "Train, check, ship and stream image classifiers from one config.",
            "",
            "usage: sightline COMMAND …",
            "",
            *lines,
            "",
            "`sightline COMMAND --help` says more; `sightline train` alone trains on embedded digits.",
        )
    )
