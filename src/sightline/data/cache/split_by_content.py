"""Random splits by image content instead of by row.

A source splits by row, since it decodes nothing. When splits are drawn by content, an image is always in the same
split, independent of its position, name, file format and target size, and exact copies of a training image are kept
out of the other splits where possible."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sightline.data.records import RowSplits, Sample
from sightline.data.sources.splits import split_rows


class SplitImages(NamedTuple):
    """The samples of a split, and the row of each sample's image, int64 [N]."""

    samples: Sequence[Sample]
    rows: NDArray[np.int64]


def split_by_content(
    parts: Mapping[str, SplitImages], drawn: RowSplits, content: NDArray[np.uint64], bad: Mapping[int, str]
) -> dict[str, SplitImages]:
    """Draws the splits in `drawn` again, by the `content` keys of the images; other splits in `parts` are unchanged.

    `content` is uint64 [N], one key per image; `bad` maps the rows of unreadable images to the reason. Each held-out
    split is drawn with its previous number of readable images, and stratified if `drawn.by_class`. Unreadable images
    stay in their split. Copies of an image that would be in train and in a held-out split are all assigned to train,
    unless the held-out split would otherwise have no image of their class. Samples keep the order of the source."""
    names = [split for split in drawn.places if split in parts]
    order = np.argsort(np.concatenate([drawn.places[split] for split in names]), kind="stable")
    listed = [sample for split in names for sample in parts[split].samples]
    samples = [listed[i] for i in order.tolist()]
    rows = np.concatenate([parts[split].rows for split in names])[order]
    old_split = np.repeat(np.arange(len(names)), [len(parts[split].rows) for split in names])[order]
    readable = ~np.isin(rows, np.fromiter(bad, np.int64, len(bad)))
    keys = content[rows]
    labels = np.array([sample.label if drawn.by_class else 0 for sample in samples])
    train = names.index("train")
    remaining = np.flatnonzero(readable)
    new_split = np.where(readable, train, old_split)
    for number, split in enumerate(names):
        if number != train:
            count = int((old_split[readable] == number).sum())
            kept, held_out = split_rows(labels[remaining].tolist(), count, drawn.seed, split, keys[remaining])
            chosen = remaining[held_out]
            has_copies = np.isin(keys[chosen], keys[remaining[kept]])
            assigned = chosen[~has_copies | ~np.isin(labels[chosen], labels[chosen[~has_copies]])]
            new_split[assigned] = number
            remaining = np.setdiff1d(remaining, assigned)
    result = dict(parts)
    for number, split in enumerate(names):
        members = np.flatnonzero(new_split == number)
        result[split] = SplitImages([samples[i] for i in members.tolist()], rows[members])
    return result
