"""`sightline lr-find`: suggests a learning rate from a short training with a growing one."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sightline.commands.hydra_config import add_cwd_to_path, compose_config
from sightline.commands.table import print_json, print_table
from sightline.commands.train import parser
from sightline.core.console import progress_bar
from sightline.core.errors import ConfigError, MissingExtraError
from sightline.core.files import expand_user
from sightline.core.log import logger
from sightline.report.lr_plot import FORMATS, draw_curve, write_curve

if TYPE_CHECKING:
    from sightline.config.schema import TrainConfig
    from sightline.engine.tools.lr_finder import LRCurve

_ROWS = 10  # learning rates that the printed table shows
_WEAK = 0.1  # relative fall of the loss below which the suggestion is unreliable


def main(argv: Sequence[str]) -> int:
    """Prints the loss over the learning rate and a suggestion, and writes a plot and a CSV file.

    Returns 0, or 1 if there is no suggestion. Raises ConfigError if one of the files exists."""
    options = parser(
        "lr-find",
        "Find a learning rate for a config: train a few batches while the learning rate grows, and discard the result. "
        "Prints the loss at ten learning rates, the suggested learning rate and the override that sets it. Writes a "
        "plot and a CSV file of all steps. The exit code is 1 if there is no suggestion. Example: sightline lr-find "
        "experiment=mnist data.root=PATH",
    )
    options.usage = (
        "sightline lr-find [key=value …] [--out FILE] [--steps N] [--low LR] [--high LR] [--json] [--config-dir DIR] "
        "[--config-name NAME]"
    )
    options.add_argument(
        "--out",
        metavar="FILE",
        default="lr-find.png",
        help=f"the plot file ({', '.join(FORMATS)}); a CSV file of the same name is written beside it; "
        "default: %(default)s",
    )
    options.add_argument(
        "--steps", type=_steps, default=100, metavar="N", help="number of batches to train, >= 20; default: %(default)s"
    )
    options.add_argument(
        "--low", type=_rate, default=1e-7, metavar="LR", help="learning rate of the first step; default: %(default)s"
    )
    options.add_argument(
        "--high", type=_rate, default=10.0, metavar="LR", help="learning rate of the last step; default: %(default)s"
    )
    options.add_argument("--json", action="store_true", help="print every step and the suggestion as JSON")
    args = options.parse_intermixed_args(argv)
    config = compose_config(args.overrides, args.config_dir, args.config_name)
    if not args.low < args.high:
        raise ConfigError(f"--low: {args.low:g} is not below --high, {args.high:g}.")
    plot = expand_user(args.out)
    if plot.suffix.lower() not in FORMATS:
        raise ConfigError(
            f"--out: '{plot}' does not have the suffix of a plot ({', '.join(FORMATS)}). Use '{plot.stem}.png'."
        )
    _check_writable(plot)
    values = _check_writable(plot.with_suffix(".csv"))
    add_cwd_to_path()
    from sightline.compose.lr_find import lr_find

    with progress_bar("lr-find", args.steps, config.trainer.progress) as advance:

        def on_step(_done: int, lr: float, loss: float) -> None:
            advance(1, f"lr {lr:.1e}  loss {loss:.4f}")

        curve = lr_find(config, low=args.low, high=args.high, steps=args.steps, on_step=on_step)
    if not args.json:
        _print(curve, config, args.steps)
    written: dict[str, Path] = {}
    try:
        _write(curve, plot, values, written)
    finally:  # the search may have taken minutes: its result is printed even if it cannot be written
        if args.json:
            _print_json(curve, config, written)
    for name, file in written.items() if not args.json else ():
        print(f"{name:<11} {file}")
    return 1 if curve.suggestion is None else 0


def _check_writable(path: Path) -> Path:
    if path.exists():
        raise ConfigError(f"--out: '{path}' already exists. Choose another name.")
    if not path.parent.is_dir():
        raise ConfigError(f"--out: the directory '{path.parent}' does not exist.")
    return path


def _print_json(curve: LRCurve, config: TrainConfig, written: Mapping[str, Path]) -> None:
    from sightline.compose.lr_find import lr_key

    found = {"suggestion": curve.suggestion, "key": lr_key(config), "fall": curve.fall, **asdict(curve)}
    print_json(found | {name: str(file) for name, file in written.items()})


def _print(curve: LRCurve, config: TrainConfig, steps: int) -> None:
    from sightline.compose.lr_find import lr_key

    count = len(curve.lrs)
    shown = sorted({round(position * (count - 1) / (_ROWS - 1)) for position in range(_ROWS)})
    rows = [(f"{curve.lrs[i]:.2e}", f"{curve.losses[i]:.4f}", f"{curve.smoothed[i]:.4f}") for i in shown]
    print_table(("lr", "loss", "smoothed"), rows, right=("lr", "loss", "smoothed"))
    if curve.diverged and count < steps:
        print(f"stopped after {count} of {steps} steps: the loss diverged")
    if curve.suggestion is None:
        print(
            f"sightline: no suggestion: the loss hardly ever fell in {count} steps. Increase --steps, or change --low "
            f"and --high; if that does not help, check labels, network and loss.",
            file=sys.stderr,
        )
        return
    steepest = "" if curve.steepest is None else f"  (steepest fall at {curve.steepest:.3g})"
    print(f"suggestion  {curve.suggestion:.3g}{steepest}")
    key = lr_key(config)
    print(f"use it      {key}={curve.suggestion:.3g}")
    if "[" in key:
        print("note: this key is an entry of a list; set the complete list, or change the entry in a preset")
    if any("lr" in group for group in config.module.param_groups):
        print(
            "note: the learning rates in module.param_groups kept their ratio to this one; multiply them by the same "
            "factor"
        )
    if config.module.head_lr is not None:
        other = "module.optimizer.lr" if key == "module.head_lr" else "module.head_lr"
        print(f"note: {other} kept its ratio to this one; multiply it by the same factor")
    if config.module.freeze_epochs:
        print("note: this is for the first epochs, in which module.freeze_epochs trains only the head")
    if curve.fall < _WEAK:
        print(f"note: the loss fell by {curve.fall:.1%} at most, so the suggestion is unreliable; increase --steps")


def _write(curve: LRCurve, plot: Path, values: Path, written: dict[str, Path]) -> None:
    """Writes both files and adds them to `written`, by what they are; without matplotlib there is no plot."""
    try:
        write_curve(curve, values)
        written["values"] = values
        try:
            draw_curve(curve, plot)
            written["plot"] = plot
        except MissingExtraError as error:
            logger.warning(f"no plot: {error}")
    except OSError as error:
        raise ConfigError(f"--out: cannot write '{plot}' or '{values}': {error}.") from error


def _steps(text: str) -> int:
    if not text.isdecimal() or int(text) < 20:
        raise argparse.ArgumentTypeError(f"expected an integer >= 20, found {text}")
    return int(text)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number > 0, such as 1e-6, found {text}")
    return value
