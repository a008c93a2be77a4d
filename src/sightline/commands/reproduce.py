"""`sightline reproduce RUN`: trains a finished run again from its record and checks that the results are identical."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.commands.hydra_config import add_cwd_to_path, parse_overrides
from sightline.commands.table import print_json
from sightline.config.typed import merge
from sightline.core.errors import ConfigError, join_names
from sightline.engine.termination import exit_code

if TYPE_CHECKING:
    from sightline.core.types import FitResult
    from sightline.report.record import RunRecord
    from sightline.report.reproduce import Cause, Certificate

_ALLOWED_KEYS = ("data.root", "data.workers", "data.prefetch", "data.cache", "data.cache_dir", "data.cache_limit")
"""Config keys that may be overridden, because they do not affect the result."""


def main(argv: Sequence[str]) -> int:
    """Trains a run again and compares the two bit by bit. The run itself is only read.

    Returns 0 if they are identical, 1 if not, 130 if Ctrl-C interrupted the training, 143 if SIGTERM did."""
    options = argparse.ArgumentParser(
        "sightline reproduce",
        description="Train a finished run again from its record and check that log, weights, metrics and predictions "
        "are identical to the bit. Prints the result for each of these parts; if they differ, also the first "
        "difference and the likeliest cause. The exit code is 0 if they are identical, else 1. Takes as long as the "
        "original training.",
        epilog="Example: sightline reproduce runs/digits",
    )
    options.add_argument("run", metavar="RUN", help="the run's directory")
    options.add_argument(
        "overrides",
        nargs="*",
        default=[],  # else the message for a missing RUN lists it too
        metavar="key=value",
        help=f"a key to change, such as data.root=PATH if the data has moved; one of: {', '.join(_ALLOWED_KEYS)}",
    )
    options.add_argument("--dir", metavar="DIR", help="write the new run into this directory and keep it")
    options.add_argument("--keep", action="store_true", help="keep the new run and print its path")
    options.add_argument("--json", action="store_true", help="print one JSON object with everything that was compared")
    args = options.parse_intermixed_args(argv)
    overrides = parse_overrides(args.overrides, _ALLOWED_KEYS, "reproduce")
    from sightline.report.compare import open_record
    from sightline.report.reproduce import certify, check_reproducible

    record = open_record(args.run)
    check_reproducible(record)
    name = f"{record.run.path.resolve().name}-again"
    with ExitStack() as stack:
        parent = _parent_directory(args.dir, args.keep, record, name, stack)
        result, data = _train(record, overrides, parent, name)
        if result.interrupted:
            print("interrupted; nothing was compared", file=sys.stderr)
            return exit_code(result.signal)
        certificate = certify(record, open_record(parent / name), data)
        kept = parent / name if args.keep or args.dir else None
        if args.json:
            print_json(certificate.to_dict() | {"again": kept and str(kept)})
        else:
            print("\n".join(_certificate_lines(certificate, kept)))
    return 0 if certificate.identical else 1


def _parent_directory(directory: str | None, keep: bool, record: RunRecord, name: str, stack: ExitStack) -> Path:
    """Returns the directory to create the new run in.

    Unless the run is to be kept, this is a temporary directory that is deleted when `stack` closes."""
    if directory is None:
        if keep:
            return Path(tempfile.mkdtemp(prefix="sightline-reproduce-"))
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sightline-reproduce-")))
    from sightline.core.files import expand_user

    parent = expand_user(directory)
    if parent.resolve().is_relative_to(record.run.path.resolve()):
        raise ConfigError(f"--dir: '{directory}' is inside the run, which is only read. Choose another directory.")
    if (parent / name).exists():
        raise ConfigError(
            f"--dir: '{parent / name}' already exists, and runs are not overwritten. Choose another directory."
        )
    return parent


def _train(record: RunRecord, overrides: Mapping[str, Any], parent: Path, name: str) -> tuple[FitResult, Cause | None]:
    """Trains the run again, and returns the result and what has changed in its data since.

    Changes are also printed before the first step. All output goes to standard error."""
    add_cwd_to_path()
    from sightline.compose.assemble import assemble
    from sightline.report.record import read_record
    from sightline.report.reproduce import data_cause, describe_drift, pinned_settings

    # without run.requeue: a scheduler's job for this command is not one for the run
    run: dict[str, Any] = {"dir": str(parent), "name": name, "requeue": None}
    config = merge(merge(record.config, overrides), {"trainer": pinned_settings(record), "run": run})
    with redirect_stdout(sys.stderr):
        assembly = assemble(config)
        data = data_cause(record, read_record(assembly.run))
        notes = [f"changed since the run: {data.description}"] if data is not None else []
        if drift := describe_drift(record):
            notes.append(
                f"the run was resumed with other settings; it is now trained with the last ones only: "
                f"{join_names(drift, 5)}"
            )
        if notes:
            print("\n".join([*notes, "training continues, to show what this changes"]), flush=True)
        assembly.show_results = False  # the new run's files are compared, and usually deleted
        return assembly.fit(), data


def _certificate_lines(certificate: Certificate, kept: Path | None) -> list[str]:
    path = certificate.run.run.path
    lines = []
    if certificate.identical:
        lines.append(f"identical: training '{path}' again gave the same bits")
    else:
        lines.append(f"not identical: training '{path}' again gave another result")
        lines.append(f"first difference: {certificate.first}")
    for part, summary in certificate.parts.items():
        lines.append(f"  {part:<12} {certificate.differ.get(part) or f'the same ({summary})'}")
    causes = [cause.description for cause in certificate.causes]
    if certificate.identical:
        lines += [f"although changed: {cause}" for cause in causes]
    elif causes:
        lines.append(f"likeliest cause: {causes[0]}")
        lines += [f"also changed: {cause}" for cause in causes[1:]]
    else:
        lines.append(
            "likeliest cause: a kernel that is not deterministic, or custom code whose random numbers or inputs are "
            "not in the record. Data, versions, CPU, threads, device, code and config are unchanged. To find out, "
            "reproduce the run twice with --keep and compare both with sightline diff: if they differ, this is the "
            "cause"
        )
    return [*lines, *([f"kept: {kept}"] if kept else [])]
