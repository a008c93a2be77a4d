"""`sightline resume RUN`: go on from the last checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from sightline.commands.compose import changes, user_code
from sightline.commands.train import report


def main(words: Sequence[str]) -> int:
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
    found = options.parse_intermixed_args(words)
    changed = changes(found.overrides, ("trainer.", "data.", "module.", "run.requeue", "seed"), "resume")
    user_code()
    from sightline.compose.assemble import resume

    return report(resume(found.run, changed, allow_drift=found.allow_drift).fit())
