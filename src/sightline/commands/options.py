"""Options that several commands have."""

import argparse


def add_model_options(options: argparse.ArgumentParser) -> None:
    """Where an exported model answers, and whose code it may name."""
    options.add_argument("--device", default="cpu", help="a torch device, or auto; default: %(default)s")
    options.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="PREFIX",
        help="trust the stored model to name code of this module",
    )
