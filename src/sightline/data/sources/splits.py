"""Stratified splits as a function of (seed, row), (seed, what the row shows) or (seed, group): no generator state, and
the same rows on every platform."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sightline.core.errors import DataError, arg, render_argument
from sightline.core.rng import derive_key, random_bits

_PASSES = 20  # over the groups; the choice has settled after two or three


def split_rows(
    labels: Sequence[str] | Sequence[int], count: int, seed: int, purpose: str, keys: NDArray[np.uint64] | None = None
) -> tuple[list[int], list[int]]:
    """(rows kept, rows set aside), both in their old order. Each class gives its share of `count`, rounded by the
    largest remainder, and keeps at least one row; `purpose` keeps the draws for test and val apart. The draw is a
    function of each row's key, by default its number.

    Raises DataError when `count` leaves nothing to train on."""
    total = len(labels)
    _, codes, sizes = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    _check_count(count, total, len(sizes), purpose)
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
    key = random_bits(derive_key(seed, 0, f"split {purpose}"), np.arange(total) if keys is None else keys)
    order = np.lexsort((key, codes))
    first = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    taken = np.zeros(total, dtype=bool)
    for start, share in zip(first, shares, strict=True):
        taken[order[start : start + share]] = True
    return np.flatnonzero(~taken).tolist(), np.flatnonzero(taken).tolist()


def split_groups(
    labels: Sequence[str], groups: Sequence[str], count: int, seed: int, purpose: str
) -> tuple[list[int], list[int]]:
    """(rows kept, rows set aside), both in their old order; a group is never divided. The groups are looked at in an
    order drawn from (seed, group name) and change sides as long as that brings the part set aside closer to `count`
    and to the class shares. Every class keeps a row to train on, and at least one group is set aside.

    Raises DataError when every group has all there is of some class."""
    sizes = Counter(labels)
    _check_count(count, len(labels), len(sizes), purpose)
    members: dict[str, Counter[str]] = {}
    for label, group in zip(labels, groups, strict=True):
        members.setdefault(group, Counter())[label] += 1
    if count == 0:
        return list(range(len(labels))), []
    choice = _GroupSelection(sizes, count)
    order = sorted(members, key=lambda group: (derive_key(seed, 0, f"group {purpose} {group}"), group))
    taken: set[str] = set()
    for _ in range(_PASSES):
        before = len(taken), choice.moved
        for group in order:
            inside = group in taken
            if (inside or choice.leaves_some(members[group])) and choice.change(members[group], inside) < 0:
                choice.move(members[group], inside)
                taken ^= {group}
        if (len(taken), choice.moved) == before:
            break
    if not taken:  # every group is much larger than what was asked for: the least of them, rather than none
        possible = [group for group in order if choice.leaves_some(members[group])]
        if not possible:
            group = order[0]
            whole = next(label for label, n in members[group].items() if n == sizes[label])
            if len(sizes) == 1:
                raise DataError(
                    f"{render_argument(purpose)}: no group can be set aside for {purpose}: all {len(labels)} images "
                    f"are in one "
                    f"group, '{group}'. Set {render_argument(purpose)}=0 or another {arg.group_column}."
                )
            raise DataError(
                f"{render_argument(purpose)}: no group can be set aside for {purpose}: each of the {len(order)} groups "
                f"has all "
                f"images of some class, such as '{group}' of the class '{whole}'. Set {render_argument(purpose)}=0 or "
                f"another "
                f"{arg.group_column}."
            )
        taken = {min(possible, key=lambda group: choice.change(members[group], False))}
    kept = [row for row, group in enumerate(groups) if group not in taken]
    return kept, [row for row, group in enumerate(groups) if group in taken]


class _GroupSelection:
    """The rows set aside so far, by class, and how far they are from what was asked for: squared differences over the
    expected number, summed over the classes and the total."""

    def __init__(self, sizes: Mapping[str, int], count: int) -> None:
        self.sizes, self.count, self.moved = sizes, count, 0
        self._share = count / sum(sizes.values())
        self._inside: Counter[str] = Counter()
        self._total = 0

    def leaves_some(self, group: Mapping[str, int]) -> bool:
        """Whether every class would keep a row to train on."""
        return all(self._inside[label] + n < self.sizes[label] for label, n in group.items())

    def change(self, group: Mapping[str, int], out: bool) -> float:
        """By how much the distance grows when the group is set aside, or taken back (`out`)."""
        sign = -1 if out else 1
        change, moved = 0.0, 0
        for label, n in group.items():
            expected = self.sizes[label] * self._share
            change += n * (2 * sign * (self._inside[label] - expected) + n) / max(expected, 1e-9)
            moved += n
        return change + moved * (2 * sign * (self._total - self.count) + moved) / max(self.count, 1e-9)

    def move(self, group: Mapping[str, int], out: bool) -> None:
        """Sets the group aside, or takes it back."""
        for label, n in group.items():
            self._inside[label] += -n if out else n
            self._total += -n if out else n
        self.moved += 1


def _check_count(count: int, total: int, classes: int, purpose: str) -> None:
    if count > total - classes:
        raise DataError(
            f"data.{purpose}: {count} of {total} images cannot be set aside for {purpose}: "
            + ("one must be left" if classes == 1 else f"each of the {classes} classes must keep one")
            + " to train on."
        )
