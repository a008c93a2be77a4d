"""`sightline resume RUN`: continues a run from its last checkpoint."""

import argparse
from collections.abc import Sequence

from sightline.commands.hydra_config import add_cwd_to_path, parse_overrides
from sightline.commands.train import report


def main(argv: Sequence[str]) -> int:
    """Trains the remaining epochs; a run that is fully trained is exported and evaluated again.

    Returns 0 if the run finished, 130 if Ctrl-C interrupted it, 143 if SIGTERM did."""
    options = argparse.ArgumentParser(
        "sightline resume",
        description="Continue a run from its last checkpoint, then export and evaluate it. Without overrides, the "
        "result is the same as without the interruption. A run that is fully trained is only exported and evaluated "
        "again. Prints the same as sightline train.",
        epilog="Example: sightline resume runs/digits trainer.device=cuda",
    )
    options.add_argument("run", metavar="RUN", help="the run's directory")
    options.add_argument(
        "overrides",
        nargs="*",
        default=[],  # else the message for a missing RUN lists it too
        metavar="key=value",
        help="a trainer key to change (except precision, accumulate_grad_batches and gradient_clip_…, which change the "
        "training step), data.root=PATH if the data has moved, or data.workers, data.prefetch, data.on_bad or "
        "data.cache…",
    )
    options.add_argument(
        "--allow-drift",
        action="store_true",
        help="also accept keys and data that change the training; the changes are recorded in the run",
    )
    args = options.parse_intermixed_args(argv)
    changes = parse_overrides(args.overrides, ("trainer.", "data.", "module.", "run.requeue", "seed"), "resume")
    add_cwd_to_path()
    from sightline.compose.assemble import resume

    return report(resume(args.run, changes, allow_drift=args.allow_drift).fit())
