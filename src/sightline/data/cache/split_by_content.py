"""Splits drawn by what the images show, once that is known.

A source draws by row, since it decodes nothing. Drawn by content instead, an image is in the same split whatever
the order, the names or the format it comes in and whatever size it is brought to, and no exact copy of a training image
is in another split."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sightline.data.records import RowSplits, Sample
from sightline.data.sources.splits import split_rows


class SplitImages(NamedTuple):
    """A split: its samples, and for each the row of its image."""

    samples: Sequence[Sample]
    rows: NDArray[np.int64]


def split_by_content(
    parts: Mapping[str, SplitImages], drawn: RowSplits, content: NDArray[np.uint64], bad: Mapping[int, str]
) -> dict[str, SplitImages]:
    """The parts that `drawn` set aside, as many images as before and each class's share of them, drawn anew by the
    `content` keys uint64 [N] of the images; the others as they are. Images that could not be read (`bad`) stay where
    they were. Copies that would fall apart all go to train, unless a class had nothing else to set aside. Samples keep
    the order of the list they come from."""
    names = [split for split in drawn.places if split in parts]
    order = np.argsort(np.concatenate([drawn.places[split] for split in names]), kind="stable")
    listed = [sample for split in names for sample in parts[split].samples]
    samples = [listed[i] for i in order.tolist()]
    rows = np.concatenate([parts[split].rows for split in names])[order]
    home = np.repeat(np.arange(len(names)), [len(parts[split].rows) for split in names])[order]
    good = ~np.isin(rows, np.fromiter(bad, np.int64, len(bad)))
    keys = content[rows]
    labels = np.array([sample.label if drawn.by_class else 0 for sample in samples])
    train = names.index("train")
    left = np.flatnonzero(good)
    after = np.where(good, train, home)
    for number, split in enumerate(names):
        if number != train:
            count = int((home[good] == number).sum())
            kept, taken = split_rows(labels[left].tolist(), count, drawn.seed, split, keys[left])
            chosen = left[taken]
            torn = np.isin(keys[chosen], keys[left[kept]])
            whole = chosen[~torn | ~np.isin(labels[chosen], labels[chosen[~torn]])]
            after[whole] = number
            left = np.setdiff1d(left, whole)
    made = dict(parts)
    for number, split in enumerate(names):
        mine = np.flatnonzero(after == number)
        made[split] = SplitImages([samples[i] for i in mine.tolist()], rows[mine])
    return made
