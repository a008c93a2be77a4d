"""The `sightline` command line: imports only the requested command, and turns errors into messages and exit codes.

The exit code is 0 after success, 1 if the run failed, 2 for an error that the user can fix, 130 after Ctrl-C and 143
after SIGTERM."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from sightline import __version__
from sightline.config.names import NAMES
from sightline.core.console import set_quiet
from sightline.core.errors import RunFailedError, SightlineError, argument_names, did_you_mean, join_names
from sightline.core.log import show_log
from sightline.engine.termination import SignalDeduplicator, Terminated, exit_code, signal_number

COMMANDS = {
    "inspect": "look at a dataset and print the command that trains on it: sightline inspect DATA",
    "train": "train a classifier: sightline train [experiment=NAME] [key=value …]",
    "evaluate": "evaluate a trained run and write its predictions: sightline evaluate RUN",
    "predict": "classify image files, folders or patterns: sightline predict RUN PATH…",
    "resume": "resume an interrupted run: sightline resume RUN",
    "reproduce": "train a finished run again and check that it is identical: sightline reproduce RUN",
    "runs": "list the runs in a directory with their metrics: sightline runs [DIR]",
    "diff": "show what differs between two runs: sightline diff A B",
    "load": "check an exported model and describe it: sightline load RUN",
    "lr-find": "find a learning rate before training: sightline lr-find [key=value …]",
    "show": "draw images before and after preprocessing and augmentation: sightline show DATA",
    "cache": "list or delete the cached images: sightline cache",
    "data": "convert IDX files to PNG images with CSV tables: sightline data convert-idx IDX OUT",
    "summary": "print the network's layers, shapes and costs: sightline summary [key=value …]",
    "env": "print versions, machine and settings for a bug report: sightline env",
}
_OPTIONS = ("--help", "--version", "--quiet", "--verbose")
_python_format = warnings.formatwarning
_VERBOSITY = {"-q": "quiet", "--quiet": "quiet", "-v": "verbose", "--verbose": "verbose"}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command and exits the process. `argv` defaults to the arguments of the process."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # do not fail on characters that it cannot encode
            stream.reconfigure(errors="backslashreplace")
    _install_signal_handlers()
    argv, verbosity = _split_verbosity(argv)
    set_quiet("quiet" in verbosity)
    warnings.formatwarning = _format_warning
    show_log(logging.DEBUG if "verbose" in verbosity else logging.WARNING if "quiet" in verbosity else logging.INFO)
    try:
        status = _run(argv)
        sys.stdout.flush()
    except SightlineError as error:
        if os.environ.get("SIGHTLINE_TRACEBACK") or "verbose" in verbosity:
            traceback.print_exc()
        print(f"sightline: {error}{_origin(error)}", file=sys.stderr)
        status = error.exit_code
    except KeyboardInterrupt as error:
        print(f"sightline: {'terminated' if isinstance(error, Terminated) else 'interrupted'}", file=sys.stderr)
        status = exit_code(signal_number(error))
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status)


def _split_verbosity(argv: list[str]) -> tuple[list[str], set[str]]:
    """Returns the arguments without `--quiet` and `--verbose`, which may be anywhere before `--`, and which
    of them were set."""
    end = argv.index("--") if "--" in argv else len(argv)
    found = {_VERBOSITY[word] for word in argv[:end] if word in _VERBOSITY}
    return [word for word in argv[:end] if word not in _VERBOSITY] + argv[end:], found


def _install_signal_handlers() -> None:
    """Makes SIGTERM raise `Terminated`, and ignores SIGUSR1, with which schedulers warn of the end of a job: outside
    training there is nothing to save. Training installs its own handlers for both."""
    repeats = SignalDeduplicator()

    def terminate(number: int, _frame: FrameType | None) -> None:
        if not repeats.is_duplicate(number):
            raise Terminated

    with contextlib.suppress(ValueError):  # only the main thread may set handlers
        signal.signal(signal.SIGTERM, terminate)
        if hasattr(signal, "SIGUSR1") and signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Returns the text of a warning. A warning of this package is shown without the place in its code."""
    if issubclass(category, UserWarning) and Path(filename).is_relative_to(Path(__file__).parent):
        return f"sightline: warning: {message}\n"
    return _python_format(message, category, filename, lineno, line)


def _origin(error: SightlineError) -> str:
    """Returns the notes of an error. If other code made the run fail, adds the place and how to see the traceback."""
    cause, notes = error.__cause__, "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
    if not isinstance(error, RunFailedError) or cause is None or isinstance(cause, SightlineError):
        return notes
    place = traceback.extract_tb(cause.__traceback__)[-1]
    return f"{notes}\n(raised in {place.filename}, line {place.lineno}; --verbose shows the full traceback)"


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"sightline {__version__}")
        return 0
    name = argv[0]
    if name not in COMMANDS:
        kind, known = ("option", _OPTIONS) if name.startswith("-") else ("command", COMMANDS)
        message = f"unknown {kind} '{name}'.{did_you_mean(name, known)} Expected one of: {join_names(known, 20)}."
        print(f"sightline: {message} `sightline --help` describes them.", file=sys.stderr)
        return 2
    with argument_names(NAMES):
        status: int = importlib.import_module(f"sightline.commands.{name.replace('-', '_')}").main(argv[1:])
    return status


def usage() -> str:
    """Returns the text that `sightline --help` prints."""
    lines = [f"  {name:<10} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        (
            "Train, evaluate and export image classifiers from one config.",
            "",
            "usage: sightline COMMAND …",
            "",
            *lines,
            "",
            "options of every command:",
            "  -q, --quiet    print only results, warnings and errors: no progress, no tables of a training",
            "  -v, --verbose  also print what is done in detail, and the traceback of an error",
            "",
            "`sightline COMMAND --help` shows more; `sightline train` alone trains on the embedded digits.",
        )
    )
