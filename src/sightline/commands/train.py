"""`sightline train`: composes and checks a config, then imports torch and trains."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sightline.commands.hydra_config import PRESETS_DIR, add_cwd_to_path, compose_config
from sightline.core.yamlfile import dump_yaml
from sightline.engine.termination import exit_code

if TYPE_CHECKING:
    from sightline.core.types import FitResult


def parser(command: str, text: str) -> argparse.ArgumentParser:
    """Returns an argument parser with the options shared by the commands that compose a config.

    `command` is the command's name and `text` its description."""
    options = argparse.ArgumentParser(
        f"sightline {command}",
        description=text,
        epilog=f"Presets: {'; '.join(_presets())}. `sightline train --cfg job` prints every key with its value; "
        "docs/reference/configuration.md describes them.",
        allow_abbrev=False,
    )
    options.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="select a preset (experiment=mnist) or set a config key (trainer.max_epochs=5)",
    )
    options.add_argument(
        "--config-dir", metavar="DIR", help="a directory with custom presets, such as DIR/experiment/NAME.yaml"
    )
    options.add_argument(
        "--config-name", default="train", metavar="NAME", help="the primary config; default: %(default)s"
    )
    return options


def main(argv: Sequence[str]) -> int:
    """Trains one run. Returns 0 if it finished, 130 if Ctrl-C interrupted it, 143 if SIGTERM did."""
    options = parser(
        "train",
        "Train an image classifier, export its best epoch and evaluate it. Prints the progress of each epoch, the "
        "metrics of the exported model and where its files are. Without overrides it trains on the embedded digits "
        "dataset. Example: sightline train data.root=PATH trainer.max_epochs=5",
    )
    options.add_argument(
        "--cfg", choices=["job"], help="'job' prints the composed and checked config instead of training"
    )
    args = options.parse_intermixed_args(argv)
    config = compose_config(args.overrides, args.config_dir, args.config_name)
    if args.cfg:
        print(dump_yaml(config.to_dict()), end="")
        return 0
    add_cwd_to_path()
    if config.run.name is not None:  # checked again when the run is created; here it fails before torch is imported
        from sightline.runs.directory import check_free

        check_free(config.run.dir, config.run.name)
    from sightline.compose.assemble import fit

    return report(fit(config))


def report(result: FitResult) -> int:
    """Returns the exit code for a run; for an interrupted one, prints how to resume it."""
    if not result.interrupted:
        return 0
    print(
        f"\ninterrupted after step {result.steps}; a checkpoint is saved. Resume with:\n  sightline resume {result.run}"
    )
    return exit_code(result.signal)


def _presets() -> list[str]:
    groups = sorted({file.parent.name for file in PRESETS_DIR.glob("*/*.yaml")})
    return [
        f"{group}={'|'.join(sorted(file.stem for file in (PRESETS_DIR / group).glob('*.yaml')))}" for group in groups
    ]
