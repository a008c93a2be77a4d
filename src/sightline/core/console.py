"""Terminal output of commands and callbacks: a console for plain text, and a progress bar.

`NO_COLOR` and `TERM` are obeyed by rich. Output is plain text if it is not a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


class _Output:
    """Whether `--quiet` was set; one setting per process, made by the command line."""

    quiet = False


def set_quiet(quiet: bool) -> None:
    """Turns off progress bars, epoch lines and result tables of every console made from now on."""
    _Output.quiet = quiet


def is_quiet() -> bool:
    """Whether `--quiet` was set."""
    return _Output.quiet


def plain_console(quiet: bool | None = None) -> Console:
    """Returns a rich console that prints text verbatim, without markup, and does not exit on a broken pipe.

    `quiet=False` prints also with `--quiet`: for the result of a command. When the reader of a pipe exits, as `head`
    does, the run continues without output."""
    from rich.console import Console as RichConsole

    class PipeSafeConsole(RichConsole):
        """A console that does not exit on a broken pipe, as rich does by default."""

        def on_broken_pipe(self) -> None:
            """Stops printing and redirects standard output to the null device."""
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    return PipeSafeConsole(highlight=False, markup=False, soft_wrap=True, quiet=is_quiet() if quiet is None else quiet)


@contextmanager
def progress_bar(label: str, total: int, shown: bool = True) -> Iterator[Callable[..., None]]:
    """Yields a function to call with the number of items just done, and optionally a text to show beside the bar.

    The bar appears on standard error, at the first call, if that is a terminal and `shown` is true. `total` is the
    number of items."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, quiet=_Output.quiet)
    columns = (
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    disable = _Output.quiet or not (shown and console.is_terminal and not console.is_dumb_terminal)
    bar = Progress(*columns, console=console, transient=True, disable=disable)
    task = bar.add_task("", total=total)

    def advance(count: int, text: str = "") -> None:
        bar.start()
        bar.update(task, advance=count, description=text)

    try:
        yield advance
    finally:
        bar.stop()
