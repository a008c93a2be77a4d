"""Command-line options that several commands share."""

import argparse


def positive_int(text: str) -> int:
    """Converts the value of an option to an integer >= 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, found {text}")
    return int(text)


def add_model_options(options: argparse.ArgumentParser) -> None:
    """Adds `--device`, the device to run the model on, and `--allow`, the modules that a stored model may use."""
    options.add_argument(
        "--device", default="cpu", help="cpu, cuda, mps, a device such as cuda:1, or auto; default: %(default)s"
    )
    options.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="PREFIX",
        help="trust the stored model to use code from this module, such as mynet; may be repeated",
    )
