"""`sightline train`: compose, check, and only then import torch and train."""

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
    """The options of the commands that compose a config."""
    made = argparse.ArgumentParser(
        f"sightline {command}",
        description=text,
        epilog="Presets: " + "; ".join(_presets()) + ". Every key: docs/configuration.md, or --cfg job.",
        allow_abbrev=False,
    )
    made.add_argument(
        "overrides", nargs="*", metavar="key=value", help="a preset (experiment=mnist) or a key (trainer.max_epochs=5)"
    )
    made.add_argument(
        "--config-dir", metavar="DIR", help="a directory with presets of your own: DIR/experiment/NAME.yaml"
    )
    made.add_argument("--config-name", default="train", metavar="NAME", help="the primary config; default: %(default)s")
    return made


def main(argv: Sequence[str]) -> int:
    """Trains one run; 0 when it finished, 130 when Ctrl-C ended it, 143 when SIGTERM did."""
    options = parser("train", "Train an image classifier.")
    options.add_argument("--cfg", choices=["job"], help="print the composed config instead of training")
    found = options.parse_intermixed_args(argv)
    config = compose_config(found.overrides, found.config_dir, found.config_name)
    if found.cfg:
        print(dump_yaml(config.to_dict()), end="")
        return 0
    add_cwd_to_path()
    if config.run.name is not None:  # asked again when the run is made; here it is answered before torch is loaded
        from sightline.runs.directory import check_free

        check_free(config.run.dir, config.run.name)
    from sightline.compose.assemble import fit

    return report(fit(config))


def report(result: FitResult) -> int:
    """The exit code of a run; for an interrupted one, how to go on."""
    if not result.interrupted:
        return 0
    print(
        f"\ninterrupted after step {result.steps}; a checkpoint is saved. Go on with:\n  sightline resume {result.run}"
    )
    return exit_code(result.signal)


def _presets() -> list[str]:
    groups = sorted({file.parent.name for file in PRESETS_DIR.glob("*/*.yaml")})
    return [
        f"{group}={'|'.join(sorted(file.stem for file in (PRESETS_DIR / group).glob('*.yaml')))}" for group in groups
    ]
