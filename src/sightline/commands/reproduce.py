"""`sightline reproduce RUN`: train a finished run again from its own record, and certify that it is the same."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.commands.hydra_config import add_cwd_to_path, parse_overrides
from sightline.config.typed import merge
from sightline.core.errors import ConfigError, join_names
from sightline.engine.termination import exit_code

if TYPE_CHECKING:
    from sightline.core.types import FitResult
    from sightline.report.record import RunRecord
    from sightline.report.reproduce import Cause, Certificate

_ELSEWHERE = ("data.root", "data.workers", "data.prefetch", "data.cache", "data.cache_dir", "data.cache_limit")


def main(argv: Sequence[str]) -> int:
    """0 when every bit is the same, 1 when not, 130 when Ctrl-C ended it, 143 when SIGTERM did. The run itself is only
    read."""
    options = argparse.ArgumentParser(
        "sightline reproduce",
        description="Train a finished run again from its own record, which takes as long as it did, and certify that "
        "it is the same to the bit, or say where it parts and why.",
    )
    options.add_argument("run", metavar="RUN", help="the run's directory")
    options.add_argument(
        "overrides", nargs="*", metavar="key=value", help="data.root=PATH where the data has moved; data.cache…"
    )
    options.add_argument("--dir", metavar="DIR", help="train it again in this directory, and keep it")
    options.add_argument("--keep", action="store_true", help="keep what was trained again, and say where it is")
    options.add_argument("--json", action="store_true", help="one JSON object with all that was compared")
    found = options.parse_intermixed_args(argv)
    changed = parse_overrides(found.overrides, _ELSEWHERE, "reproduce")
    from sightline.report.compare import open_record
    from sightline.report.reproduce import certify, check_reproducible

    record = open_record(found.run)
    check_reproducible(record)
    name = f"{record.run.path.resolve().name}-again"
    with ExitStack() as stack:
        place = _place(found.dir, found.keep, record, name, stack)
        result, data = _train(record, changed, place, name)
        if result.interrupted:
            print("interrupted; nothing was compared", file=sys.stderr)
            return exit_code(result.signal)
        certificate = certify(record, open_record(place / name), data)
        kept = place / name if found.keep or found.dir else None
        if found.json:
            print(json.dumps(certificate.to_dict() | {"again": kept and str(kept)}, indent=2, ensure_ascii=False))
        else:
            print("\n".join(_print_certificate(certificate, kept)))
    return 0 if certificate.identical else 1


def _place(directory: str | None, keep: bool, record: RunRecord, name: str, stack: ExitStack) -> Path:
    """The directory that the run is trained again in; it goes when the stack is closed, unless it is to be kept."""
    if directory is None:
        if keep:
            return Path(tempfile.mkdtemp(prefix="sightline-reproduce-"))
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sightline-reproduce-")))
    from sightline.core.files import expand_user

    place = expand_user(directory)
    if place.resolve().is_relative_to(record.run.path.resolve()):
        raise ConfigError(f"--dir: '{directory}' is in the run itself, which is not touched; name another directory.")
    if (place / name).exists():
        raise ConfigError(f"--dir: '{place / name}' exists, and a run is never written over; name another directory.")
    return place


def _train(record: RunRecord, changed: Mapping[str, Any], place: Path, name: str) -> tuple[FitResult, Cause | None]:
    """Trains the run again, and says what of its data is not as it was, before the first step too. What is shown
    meanwhile goes to standard error."""
    add_cwd_to_path()
    from sightline.compose.assemble import assemble
    from sightline.report.record import read_record
    from sightline.report.reproduce import data_cause, describe_drift, pinned_settings

    own: dict[str, Any] = {"dir": str(place), "name": name, "requeue": None}  # it is not the run that is to be queued
    config = merge(merge(record.config, changed), {"trainer": pinned_settings(record), "run": own})
    with redirect_stdout(sys.stderr):
        assembly = assemble(config)
        data = data_cause(record, read_record(assembly.run))
        notes = [f"not what the run saw: {data.description}"] if data is not None else []
        if drift := describe_drift(record):
            notes.append(
                f"the run was resumed with other settings, and is now trained in one go: {join_names(drift, 5)}"
            )
        if notes:
            print("\n".join([*notes, "training all the same, to see what that changes"]), flush=True)
        # the progress is that of any training; where its results are is of no use, they are compared and removed
        assembly.show_results = False
        return assembly.fit(), data


def _print_certificate(certificate: Certificate, kept: Path | None) -> list[str]:
    path = certificate.run.run.path
    lines = []
    if certificate.identical:
        lines.append(f"identical: '{path}', trained again from its record, is the same to the bit")
    else:
        lines.append(f"not identical: '{path}', trained again from its record, is not the same")
        lines.append(f"first difference: {certificate.first}")
    for part, argv in certificate.parts.items():
        lines.append(f"  {part:<12} {certificate.differ.get(part) or f'the same ({argv})'}")
    causes = [cause.description for cause in certificate.causes]
    if certificate.identical:
        lines += [f"although not as it was: {argv}" for argv in causes]
    elif causes:
        lines.append(f"likeliest cause: {causes[0]}")
        lines += [f"also not as it was: {argv}" for argv in causes[1:]]
    else:
        lines.append(
            "likeliest cause: a kernel that is not deterministic, or code of your own that draws or reads what is not "
            "in the record; data, versions, CPU, threads, device, code and config are as they were. To find out, run "
            "this twice with --keep, and compare the two with sightline diff: if these differ too, it is that"
        )
    return [*lines, *([f"kept: {kept}"] if kept else [])]
