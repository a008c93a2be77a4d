"""`sightline lr-find`: which learning rate to train with."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sightline.commands.hydra_config import add_cwd_to_path, compose_config
from sightline.commands.table import print_table
from sightline.commands.train import parser
from sightline.core.errors import ConfigError, MissingExtraError
from sightline.core.files import expand_user
from sightline.report.lr_plot import FORMATS, draw_curve, write_curve

if TYPE_CHECKING:
    from sightline.config.schema import TrainConfig
    from sightline.engine.tools.lr_finder import LRCurve

_ROWS = 10
_WEAK = 0.1


def main(argv: Sequence[str]) -> int:
    """Prints the loss over the learning rate and the suggestion; writes a plot and a CSV. 1 when there is none."""
    options = parser("lr-find", "Find a learning rate: a short training with one that grows, of which nothing stays.")
    options.usage = "sightline lr-find [key=value …] [--out FILE] [--steps N] [--low LR] [--high LR]"
    options.add_argument(
        "--out",
        metavar="FILE",
        default="lr-find.png",
        help="the plot, with a CSV of the same name beside it; default: %(default)s",
    )
    options.add_argument(
        "--steps", type=_steps, default=100, metavar="N", help="batches to train; default: %(default)s"
    )
    options.add_argument("--low", type=_rate, default=1e-7, metavar="LR", help="where to begin; default: %(default)s")
    options.add_argument("--high", type=_rate, default=10.0, metavar="LR", help="where to end; default: %(default)s")
    found = options.parse_intermixed_args(argv)
    config = compose_config(found.overrides, found.config_dir, found.config_name)
    if not found.low < found.high:
        raise ConfigError(f"--low: {found.low:g} is not below --high, {found.high:g}.")
    plot = expand_user(found.out)
    if plot.suffix.lower() not in FORMATS:
        raise ConfigError(f"--out: '{plot}' is no name of a plot ({', '.join(FORMATS)}); call it '{plot.stem}.png'.")
    _free(plot)
    values = _free(plot.with_suffix(".csv"))
    add_cwd_to_path()
    from sightline.compose.lr_find import lr_find

    with _bar(found.steps, config.trainer.progress) as advance:
        curve = lr_find(config, low=found.low, high=found.high, steps=found.steps, on_step=advance)
    _print(curve, config, found.steps)
    _write(curve, plot, values)
    return 1 if curve.suggestion is None else 0


def _free(path: Path) -> Path:
    if path.exists():
        raise ConfigError(f"--out: '{path}' exists; choose another name.")
    if not path.parent.is_dir():
        raise ConfigError(f"--out: there is no directory '{path.parent}'.")
    return path


def _print(curve: LRCurve, config: TrainConfig, steps: int) -> None:
    from sightline.compose.lr_find import lr_key

    count = len(curve.lrs)
    shown = sorted({round(position * (count - 1) / (_ROWS - 1)) for position in range(_ROWS)})
    rows = [(f"{curve.lrs[i]:.2e}", f"{curve.losses[i]:.4f}", f"{curve.smoothed[i]:.4f}") for i in shown]
    print_table(("lr", "loss", "smoothed"), rows, right=("lr", "loss", "smoothed"))
    if curve.diverged and count < steps:
        print(f"stopped after {count} of {steps} steps, where the loss had left its lowest far behind")
    if curve.suggestion is None:
        print(
            f"sightline: no suggestion: of {count} losses hardly any is below the one before. Try more --steps, or "
            f"another --low and --high; else check labels, network and loss.",
            file=sys.stderr,
        )
        return
    steepest = "" if curve.steepest is None else f"  (steepest fall at {curve.steepest:.3g})"
    print(f"suggestion  {curve.suggestion:.3g}{steepest}")
    key = lr_key(config)
    print(f"use it      {key}={curve.suggestion:.3g}")
    if "[" in key:
        print("note: that is an entry of a list, which is given whole, or in a preset")
    if any("lr" in group for group in config.module.param_groups):
        print("note: the learning rates in module.param_groups kept their ratio to this one; change them alike")
    if config.module.head_lr is not None:
        other = "module.optimizer.lr" if key == "module.head_lr" else "module.head_lr"
        print(f"note: {other} kept its ratio to this one; multiply it by the same factor")
    if config.module.freeze_epochs:
        print("note: it is that of the first epochs, in which module.freeze_epochs trains the head alone")
    if curve.fall < _WEAK:
        print(f"note: the loss fell by {curve.fall:.1%} at most, so this means little; try more --steps")


def _write(curve: LRCurve, plot: Path, values: Path) -> None:
    try:
        write_curve(curve, values)
        try:
            draw_curve(curve, plot)
            print(f"plot        {plot}")
        except MissingExtraError as error:
            print(f"note: no plot: {error}", file=sys.stderr)
    except OSError as error:
        raise ConfigError(f"--out: cannot write beside '{plot}': {error}.") from error
    print(f"values      {values}")


@contextmanager
def _bar(total: int, shown: bool) -> Iterator[Callable[[int, float, float], None]]:
    """A function for each step done; it moves a bar, if there is a terminal to draw on."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    disable = not (shown and console.is_terminal and not console.is_dumb_terminal)
    columns = (TextColumn("finding"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    bar = Progress(*columns, console=console, transient=True, disable=disable)
    task = bar.add_task("", total=total)

    def advance(done: int, lr: float, loss: float) -> None:
        bar.start()  # after the data's own bar
        bar.update(task, completed=done, description=f"lr {lr:.1e}  loss {loss:.4f}")

    try:
        yield advance
    finally:
        bar.stop()


def _steps(text: str) -> int:
    if not text.isdecimal() or int(text) < 20:
        raise argparse.ArgumentTypeError(f"expected a number of at least 20, found {text}")
    return int(text)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, such as 1e-6, found {text}")
    return value
