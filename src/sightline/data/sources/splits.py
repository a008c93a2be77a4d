"""Stratified and grouped splits. Each is a function of the seed and a key per row (its index, content or group), so it
is the same on every platform and needs no generator state."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sightline.core.errors import DataError, arg, render_argument
from sightline.core.rng import derive_key, random_bits

_MAX_PASSES = 20  # over the groups; the selection usually converges after two or three


def split_rows(
    labels: Sequence[str] | Sequence[int], count: int, seed: int, purpose: str, keys: NDArray[np.uint64] | None = None
) -> tuple[list[int], list[int]]:
    """Holds out `count` rows, stratified by label. Returns (indices kept, indices held out), both in ascending order.

    Each class contributes in proportion to its size, rounded by the largest remainder, and keeps at least one row.
    `purpose` ("val" or "test") selects an independent random stream. Rows are chosen by a hash of the seed and their
    `keys` uint64 [N], by default their indices.

    Raises DataError if not every class would keep a row."""
    total = len(labels)
    _, codes, sizes = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    _check_count(count, total, len(sizes), purpose)
    exact = sizes * (count / total)
    quotas = np.floor(exact).astype(np.int64)
    for code in np.argsort(quotas - exact, kind="stable")[: count - int(quotas.sum())]:
        quotas[code] += 1
    excess = 0
    for code in np.flatnonzero(quotas >= sizes):  # a tiny class keeps one row; other classes contribute more
        excess += int(quotas[code] - sizes[code] + 1)
        quotas[code] = sizes[code] - 1
    for code in np.argsort(quotas - sizes, kind="stable"):
        extra = min(excess, int(sizes[code] - 1 - quotas[code]))
        quotas[code] += extra
        excess -= extra
    key = random_bits(derive_key(seed, 0, f"split {purpose}"), np.arange(total) if keys is None else keys)
    order = np.lexsort((key, codes))
    first = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    held_out = np.zeros(total, dtype=bool)
    for start, quota in zip(first, quotas, strict=True):
        held_out[order[start : start + quota]] = True
    return np.flatnonzero(~held_out).tolist(), np.flatnonzero(held_out).tolist()


def split_groups(
    labels: Sequence[str], groups: Sequence[str], count: int, seed: int, purpose: str
) -> tuple[list[int], list[int]]:
    """Holds out complete groups, about `count` rows. Returns (indices kept, indices held out), both in ascending order.

    A local search visits the groups in an order drawn from (seed, group name). It moves a group in or out if the
    held-out rows then fit `count` and the class proportions better. Every class keeps a row to train on, and at least
    one group is held out unless `count` is 0.

    Raises DataError if every group contains all rows of some class."""
    sizes = Counter(labels)
    _check_count(count, len(labels), len(sizes), purpose)
    members: dict[str, Counter[str]] = {}
    for label, group in zip(labels, groups, strict=True):
        members.setdefault(group, Counter())[label] += 1
    if count == 0:
        return list(range(len(labels))), []
    selection = _GroupSelection(sizes, count)
    order = sorted(members, key=lambda group: (derive_key(seed, 0, f"group {purpose} {group}"), group))
    selected: set[str] = set()
    for _ in range(_MAX_PASSES):
        before = len(selected), selection.moved
        for group in order:
            inside = group in selected
            if (inside or selection.keeps_classes(members[group])) and selection.change(members[group], inside) < 0:
                selection.move(members[group], inside)
                selected ^= {group}
        if (len(selected), selection.moved) == before:
            break
    if not selected:  # every group is much larger than `count`: hold out the best one rather than none
        possible = [group for group in order if selection.keeps_classes(members[group])]
        if not possible:
            group = order[0]
            complete = next(label for label, n in members[group].items() if n == sizes[label])
            if len(sizes) == 1:
                raise DataError(
                    f"{render_argument(purpose)}: no group can be held out for {purpose}: all {len(labels)} images "
                    f"are in one group, '{group}'. Set {render_argument(purpose)}=0 or another {arg.group_column}."
                )
            raise DataError(
                f"{render_argument(purpose)}: no group can be held out for {purpose}: each of the {len(order)} groups "
                f"has all images of some class, such as '{group}' of the class '{complete}'. Set "
                f"{render_argument(purpose)}=0 or another {arg.group_column}."
            )
        selected = {min(possible, key=lambda group: selection.change(members[group], False))}
    kept = [row for row, group in enumerate(groups) if group not in selected]
    return kept, [row for row, group in enumerate(groups) if group in selected]


class _GroupSelection:
    """The rows held out so far by class, and their distance from the requested numbers.

    The distance is the squared difference over the expected number, summed over the classes and the total."""

    def __init__(self, sizes: Mapping[str, int], count: int) -> None:
        self.sizes, self.count, self.moved = sizes, count, 0
        self._share = count / sum(sizes.values())
        self._inside: Counter[str] = Counter()
        self._total = 0

    def keeps_classes(self, group: Mapping[str, int]) -> bool:
        """Whether every class would keep a row to train on if the group were held out."""
        return all(self._inside[label] + n < self.sizes[label] for label, n in group.items())

    def change(self, group: Mapping[str, int], out: bool) -> float:
        """Returns by how much the distance grows if the group is held out, or with `out` is returned to train."""
        sign = -1 if out else 1
        change, moved = 0.0, 0
        for label, n in group.items():
            expected = self.sizes[label] * self._share
            change += n * (2 * sign * (self._inside[label] - expected) + n) / max(expected, 1e-9)
            moved += n
        return change + moved * (2 * sign * (self._total - self.count) + moved) / max(self.count, 1e-9)

    def move(self, group: Mapping[str, int], out: bool) -> None:
        """Holds the group out, or with `out` returns it to train."""
        for label, n in group.items():
            self._inside[label] += -n if out else n
            self._total += -n if out else n
        self.moved += 1


def _check_count(count: int, total: int, classes: int, purpose: str) -> None:
    if count > total - classes:
        raise DataError(
            f"{render_argument(purpose)}: {count} of {total} images cannot be held out for {purpose}: "
            + ("at least one" if classes == 1 else f"at least one of each of the {classes} classes")
            + " must remain for training."
        )
