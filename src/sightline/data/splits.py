"""Stratified splits as a function of (seed, row): no generator state, and the same rows on every platform."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sightline.errors import DataError
from sightline.random import bits, derive


def split_rows(labels: Sequence[str], count: int, seed: int, purpose: str) -> tuple[list[int], list[int]]:
    """(rows kept, rows set aside), both in their old order. Each class gives its share of `count`, rounded by the
    largest remainder, and keeps at least one row; `purpose` keeps the draws for test and val apart.

    Raises DataError when `count` leaves nothing to train on."""
    total = len(labels)
    _, codes, sizes = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    if count > total - len(sizes):
        raise DataError(
            f"data.{purpose}: {count} of {total} images cannot be set aside for {purpose}: "
            f"each of the {len(sizes)} classes must keep one to train on."
        )
    exact = sizes * (count / total)
    shares = np.floor(exact).astype(np.int64)
    for code in np.argsort(shares - exact, kind="stable")[: count - int(shares.sum())]:
        shares[code] += 1
    excess = 0
    for code in np.flatnonzero(shares >= sizes):  # a tiny class keeps one; the others give in its place
        excess += int(shares[code] - sizes[code] + 1)
        shares[code] = sizes[code] - 1
    for code in np.argsort(shares - sizes, kind="stable"):
        given = min(excess, int(sizes[code] - 1 - shares[code]))
        shares[code] += given
        excess -= given
    key = bits(derive(seed, 0, f"split {purpose}"), np.arange(total))
    order = np.lexsort((key, codes))
    first = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    taken = np.zeros(total, dtype=bool)
    for start, share in zip(first, shares, strict=True):
        taken[order[start : start + share]] = True
    return np.flatnonzero(~taken).tolist(), np.flatnonzero(taken).tolist()
