"""Counter-based randomness: every number is a function of its arguments, and the numbers look random."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare, kstest

from sightline.core.rng import Permutation, derive_key, integers, random_bits, uniform

KEYS = st.integers(0, 2**64 - 1)
ROWS = np.arange(5000)

GOLDEN_KEY = 0xC7094A97A8F4191B
GOLDEN_ORDER = [3, 7, 8, 5, 1, 9, 0, 4, 2, 6]
GOLDEN_LARGE = [643480, 63138, 161002, 195517]
GOLDEN_UNIFORM = [0.03537314583208051, 0.8991229108877845, 0.32627922084870253]
GOLDEN_INTEGERS = [-1, -1, -1, 3, 2, 1, 3, 3]


def looks_uniform(counts: NDArray[np.int64]) -> bool:
    """Whether a chi-squared test accepts a uniform distribution. Seeds are fixed, so the result never varies."""
    return bool(chisquare(counts).pvalue > 1e-3)


def test_the_mixing_function_is_splitmix64() -> None:
    # the first outputs of the reference implementation seeded with 0, https://prng.di.unimi.it/splitmix64.c
    expected = np.array([0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC], np.uint64)
    assert random_bits(0, np.arange(1, 5)).tolist() == expected.tolist()


def test_the_random_stream_is_unchanged() -> None:
    # a run that is resumed with a later version must see the same order and the same augmentations
    assert derive_key(0, 0, "order") == GOLDEN_KEY
    assert Permutation(10, derive_key(0, 0, "order"))[:].tolist() == GOLDEN_ORDER
    assert Permutation(1_000_000, derive_key(7, 3, "order"))[:4].tolist() == GOLDEN_LARGE
    assert uniform(1, 2, "flip", np.array([0, 1, 1_000_000])).tolist() == GOLDEN_UNIFORM
    assert integers(1, 2, "shift", np.arange(8), -3, 3).tolist() == GOLDEN_INTEGERS


@pytest.mark.parametrize("first", range(0, 301, 50))
def test_a_permutation_is_a_bijection_for_every_small_length(first: int) -> None:
    for n in range(first, min(first + 50, 301)):
        order = Permutation(n, derive_key(n, 1, "order"))
        assert len(order) == n
        assert sorted(order[:].tolist()) == list(range(n))


@pytest.mark.parametrize("n", [1023, 1024, 1025, 65_537, 100_003])
def test_a_long_permutation_is_a_bijection_and_can_be_sliced(n: int) -> None:
    order = Permutation(n, derive_key(3, 5, "order"))
    complete = order[:]
    assert complete.dtype == np.int64
    assert np.array_equal(np.sort(complete), np.arange(n))
    pieces = [order[at : at + 777] for at in range(0, n, 777)]
    assert np.array_equal(np.concatenate(pieces), complete)
    assert np.array_equal(order[n - 5 :], complete[n - 5 :])
    assert np.array_equal(order[::3], complete[::3])


def test_a_permutation_too_long_for_memory_can_be_sliced() -> None:
    n = 10**12
    part = Permutation(n, derive_key(0, 0, "order"))[n - 1000 :]
    assert len(set(part.tolist())) == 1000
    assert part.min() >= 0
    assert part.max() < n


@settings(max_examples=50)
@given(n=st.integers(0, 2000), key=KEYS, cut=st.tuples(st.integers(0, 2100), st.integers(0, 2100)))
def test_any_slice_equals_that_part_of_the_complete_order(n: int, key: int, cut: tuple[int, int]) -> None:
    order = Permutation(n, key)
    assert order[cut[0] : cut[1]].tolist() == order[:].tolist()[cut[0] : cut[1]]


def test_a_negative_length_is_refused() -> None:
    with pytest.raises(ValueError, match="expected an integer >= 0, found -1"):
        Permutation(-1, 0)


@pytest.mark.parametrize(("n", "seeds"), [(2, 2000), (3, 3000), (4, 6000)])
def test_every_order_of_a_few_rows_is_equally_likely(n: int, seeds: int) -> None:
    numbers = {order: i for i, order in enumerate(itertools.permutations(range(n)))}
    drawn = [numbers[tuple(Permutation(n, derive_key(seed, 0, "order"))[:].tolist())] for seed in range(seeds)]
    assert looks_uniform(np.bincount(drawn, minlength=len(numbers)))


@pytest.mark.parametrize("n", [5, 10, 16])
def test_every_row_is_equally_likely_in_every_place_and_after_every_other(n: int) -> None:
    orders = np.stack([Permutation(n, derive_key(0, epoch, "order"))[:] for epoch in range(2500)])
    for place in range(n):
        assert looks_uniform(np.bincount(orders[:, place], minlength=n)), f"place {place}"
    followers = np.zeros((n, n), dtype=np.int64)
    np.add.at(followers, (orders[:, :-1].ravel(), orders[:, 1:].ravel()), 1)
    assert looks_uniform(followers[~np.eye(n, dtype=bool)])


def test_epochs_and_seeds_give_unrelated_orders() -> None:
    orders = [Permutation(200, derive_key(seed, epoch, "order"))[:] for seed in range(3) for epoch in range(3)]
    for one, other in itertools.combinations(orders, 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.25
        assert np.sum(one == other) < 8  # one on average


def test_uniform_numbers_are_uniform() -> None:
    numbers = uniform(0, 0, "flip", ROWS)
    assert numbers.dtype == np.float64
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert kstest(numbers, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.05


@pytest.mark.parametrize("other", [(1, 0, "flip"), (0, 1, "flip"), (0, 0, "vertical flip")])
def test_seed_epoch_and_purpose_each_give_another_independent_stream(other: tuple[int, int, str]) -> None:
    assert abs(np.corrcoef(uniform(0, 0, "flip", ROWS), uniform(*other, ROWS))[0, 1]) < 0.05


def test_keys_of_different_uses_differ() -> None:
    purposes = ("order", "flip", "vertical flip", "shift down", "shift right", "split val", "split test")
    keys = {derive_key(seed, epoch, purpose) for seed in range(20) for epoch in range(20) for purpose in purposes}
    assert len(keys) == 20 * 20 * len(purposes)


@pytest.mark.parametrize(("low", "high"), [(0, 0), (0, 1), (-2, 2), (0, 8)])
def test_integers_cover_their_range_evenly_with_both_ends(low: int, high: int) -> None:
    numbers = integers(0, 0, "shift", ROWS, low, high)
    assert numbers.dtype == np.int64
    assert set(numbers.tolist()) == set(range(low, high + 1))
    if low < high:
        assert looks_uniform(np.bincount(numbers - low))


@settings(max_examples=50)
@given(
    rows=st.lists(st.integers(0, 2**62), min_size=1, max_size=40),
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 10**6),
    size=st.integers(1, 40),
)
@pytest.mark.rows("X15")
def test_a_draw_depends_on_its_own_row_and_not_on_its_batch(rows: list[int], seed: int, epoch: int, size: int) -> None:
    index = np.array(rows, dtype=np.int64)
    together = uniform(seed, epoch, "flip", index)
    in_batches = [uniform(seed, epoch, "flip", index[at : at + size]) for at in range(0, len(index), size)]
    assert np.concatenate(in_batches).tolist() == together.tolist()
    assert uniform(seed, epoch, "flip", index[::-1])[::-1].tolist() == together.tolist()


def test_drawing_does_not_change_the_index() -> None:
    index = np.arange(6)
    uniform(0, 0, "flip", index)
    integers(0, 0, "flip", index, 0, 3)
    random_bits(1, index)
    assert index.tolist() == [0, 1, 2, 3, 4, 5]
