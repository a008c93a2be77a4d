"""`sightline resume RUN`: go on from the last checkpoint."""

import argparse
from collections.abc import Sequence

from sightline.commands.hydra_config import add_cwd_to_path, parse_overrides
from sightline.commands.train import report


def main(argv: Sequence[str]) -> int:
    """Trains on and finishes; a run that was trained to its end is exported and measured again."""
    options = argparse.ArgumentParser("sightline resume", description="Go on with a run from its last checkpoint.")
    options.add_argument("run", metavar="RUN", help="the run's directory")
    options.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="trainer.… keys (but precision, accumulate_grad_batches and gradient_clip_…, which make another step), or "
        "data.root=PATH where the data has moved",
    )
    options.add_argument(
        "--allow-drift", action="store_true", help="go on with other keys, or other data, too; the run records it"
    )
    found = options.parse_intermixed_args(argv)
    changed = parse_overrides(found.overrides, ("trainer.", "data.", "module.", "run.requeue", "seed"), "resume")
    add_cwd_to_path()
    from sightline.compose.assemble import resume

    return report(resume(found.run, changed, allow_drift=found.allow_drift).fit())
