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
    found = options.parse_intermixed_args(words)
    changed = changes(
        found.overrides,
        ("trainer.", "data.root", "data.workers", "data.prefetch", "data.cache", "data.cache_dir", "data.cache_limit"),
        "resume",
    )
    user_code()
    from sightline.config.build import resume

    return report(resume(found.run, changed).fit())
