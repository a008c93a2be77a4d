"""Stratified splits as a function of (seed, row)."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.core.errors import DataError
from sightline.data.sources.splits import split_groups, split_rows

LABELS = st.lists(st.sampled_from("abcde"), min_size=1, max_size=120)
GOLDEN_TEST = [8, 9, 10, 18, 19, 29]
GOLDEN_VAL = [3, 8, 19, 21, 25, 29]


def most_rows(labels: list[str]) -> int:
    """The most rows that can be held out: every class keeps one."""
    return len(labels) - len(set(labels))


@settings(max_examples=150)
@given(labels=LABELS, part=st.floats(0, 1), seed=st.integers(0, 2**40))
def test_both_parts_are_disjoint_complete_in_order_and_of_the_exact_size(
    labels: list[str], part: float, seed: int
) -> None:
    count = round(part * most_rows(labels))
    remaining, held_out = split_rows(labels, count, seed, "val")
    assert len(held_out) == count
    assert sorted(remaining + held_out) == list(range(len(labels)))
    assert remaining == sorted(remaining)
    assert held_out == sorted(held_out)
    assert {labels[row] for row in remaining} == set(labels)
    assert split_rows(labels, count, seed, "val") == (remaining, held_out)


@settings(max_examples=100)
@given(
    sizes=st.lists(st.integers(12, 60), min_size=1, max_size=6),
    part=st.floats(0, 0.9),
    seed=st.integers(0, 1000),
    order=st.randoms(use_true_random=False),
)
def test_every_class_is_held_out_in_proportion_within_one(
    sizes: list[int], part: float, seed: int, order: object
) -> None:
    labels = [str(label) for label, size in enumerate(sizes) for _ in range(size)]
    order.shuffle(labels)  # type: ignore[attr-defined]
    count = int(part * len(labels))
    _, held_out = split_rows(labels, count, seed, "test")
    counts = Counter(labels[row] for row in held_out)
    for label, size in enumerate(sizes):
        assert abs(counts[str(label)] - size * count / len(labels)) < 1


def test_a_balanced_set_splits_evenly() -> None:
    labels = [str(i % 10) for i in range(1000)]
    remaining, held_out = split_rows(labels, 200, 0, "test")
    assert Counter(labels[row] for row in held_out) == dict.fromkeys(map(str, range(10)), 20)
    assert Counter(labels[row] for row in remaining) == dict.fromkeys(map(str, range(10)), 80)


def test_a_tiny_class_keeps_one_row_and_others_replace_it() -> None:
    labels = ["rare", "few", "few", *["many"] * 20]
    remaining, held_out = split_rows(labels, 20, 0, "test")
    assert len(held_out) == 20
    assert Counter(labels[row] for row in remaining) == {"rare": 1, "few": 1, "many": 1}


@pytest.mark.parametrize("count", [3, 4, 100])
def test_holding_out_more_than_the_classes_have_is_refused(count: int) -> None:
    with pytest.raises(DataError, match=rf"data\.val: {count} of 4 images cannot be held out.*2 classes"):
        split_rows(["a", "a", "b", "b"], count, 0, "val")


def test_the_draw_is_a_function_of_the_seed_and_the_purpose() -> None:
    labels = [str(i % 3) for i in range(300)]
    draws = [split_rows(labels, 60, seed, purpose)[1] for seed in range(4) for purpose in ("val", "test")]
    assert len({tuple(draw) for draw in draws}) == len(draws)


def test_every_row_is_held_out_equally_often() -> None:
    labels = ["a"] * 20 + ["b"] * 20
    times: Counter[int] = Counter()
    for seed in range(2000):
        times.update(split_rows(labels, 10, seed, "val")[1])
    # binomial(2000, 1/4): mean 500, standard deviation 19.4
    assert all(abs(times[row] - 500) < 5 * 19.4 for row in range(40))


def test_the_split_never_changes() -> None:
    # a resumed run and a later version must hold out the same images
    labels = [str(i % 3) for i in range(30)]
    assert split_rows(labels, 6, 0, "test")[1] == GOLDEN_TEST
    assert split_rows(labels, 6, 1, "val")[1] == GOLDEN_VAL


# --- groups

ROWS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 12)), min_size=6, max_size=150)


@settings(max_examples=150)
@given(rows=ROWS, part=st.floats(0.05, 0.5), seed=st.integers(0, 1000), order=st.randoms(use_true_random=False))
def test_a_group_is_never_divided_and_no_class_is_emptied(
    rows: list[tuple[str, int]], part: float, seed: int, order: object
) -> None:
    labels, groups = [label for label, _ in rows], [f"g{group}" for _, group in rows]
    count = max(1, round(part * len(rows)))
    try:
        remaining, held_out = split_groups(labels, groups, count, seed, "val")
    except DataError:
        sizes = Counter(labels)
        inside = {group: Counter(label for label, name in zip(labels, groups, strict=True) if name == group)
                  for group in set(groups)}  # fmt: skip
        no_group_fits = all(any(n == sizes[label] for label, n in members.items()) for members in inside.values())
        assert no_group_fits or count > most_rows(labels)
        return
    assert held_out
    assert sorted(remaining + held_out) == list(range(len(rows)))
    assert not {groups[row] for row in remaining} & {groups[row] for row in held_out}
    assert {labels[row] for row in remaining} == set(labels)
    # the rows may come in any order: the same groups are held out
    mixed = list(range(len(rows)))
    order.shuffle(mixed)  # type: ignore[attr-defined]
    again = split_groups([labels[i] for i in mixed], [groups[i] for i in mixed], count, seed, "val")[1]
    assert {groups[mixed[row]] for row in again} == {groups[row] for row in held_out}


@pytest.mark.parametrize("seed", range(5))
def test_small_groups_come_close_to_the_size_and_to_the_class_shares(seed: int) -> None:
    labels = [label for i in range(300) for label in ("a" if i % 3 else "b",) * (2 + i % 4)]
    groups = [f"patient {i}" for i in range(300) for _ in range(2 + i % 4)]
    totals = Counter(labels)
    held_out = split_groups(labels, groups, 200, seed, "test")[1]
    assert abs(len(held_out) - 200) <= 3
    counts = Counter(labels[row] for row in held_out)
    assert all(abs(counts[label] - 200 * n / len(labels)) <= 3 for label, n in totals.items())


def test_another_seed_holds_out_other_groups() -> None:
    labels, groups = ["a", "b"] * 100, [str(i // 2) for i in range(200)]
    draws = {
        tuple(split_groups(labels, groups, 40, seed, purpose)[1]) for seed in range(5) for purpose in ("val", "test")
    }
    assert len(draws) == 10


def test_one_group_is_held_out_even_if_it_is_larger_than_requested() -> None:
    labels, groups = ["a", "b"] * 60, [str(i // 40) for i in range(120)]
    assert len(split_groups(labels, groups, 4, 0, "val")[1]) == 40


def test_groups_that_contain_entire_classes_cannot_be_held_out() -> None:
    with pytest.raises(DataError, match=r"data\.val: no group can be held out.*2 groups.*such as '.' of the class '.'"):
        split_groups(["x"] * 4 + ["y"] * 4, ["1"] * 4 + ["2"] * 4, 2, 0, "val")
