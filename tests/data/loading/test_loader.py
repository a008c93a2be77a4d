"""Batches of a packed dataset: which rows, in which order and how augmented, whatever the number of threads, processes
and ranks."""

from __future__ import annotations

import io
import itertools
import platform
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from helpers.commands import python
from helpers.images import noise
from sightline.core.errors import ImageError
from sightline.core.types import Batch, Loader
from sightline.data.augment.colour import ColorJitter
from sightline.data.augment.flip_shift import Flip, ShiftCrop
from sightline.data.augment.geometry import RandomResizedCrop
from sightline.data.augment.per_image import PerImage
from sightline.data.augment.policies import TrivialAugment
from sightline.data.cache.dataset import EncodedImages, PackedDataset
from sightline.data.images.preprocess import Preprocess
from sightline.data.loading.loader import BatchLoader

AUGMENT = (Flip(0.5), Flip(0.5, vertical=True), ShiftCrop(2))
PREPROCESS = Preprocess(5, 5, 1, (0.5,), (0.25,))


def dataset(count: int) -> PackedDataset:
    images = np.random.default_rng(count).integers(0, 256, (count, 1, 5, 5), dtype=np.uint8)
    labels = torch.arange(count) * 7 % 10
    return PackedDataset(torch.from_numpy(images), labels, tuple(map(str, range(count))), tuple(map(str, range(10))))


def loader(count: int, size: int, seed: int = 0, shuffle: bool = True, augment: bool = True) -> BatchLoader:
    return BatchLoader(dataset(count), PREPROCESS, size, shuffle=shuffle, augment=AUGMENT if augment else (), seed=seed)


def rows(batches: list[Batch]) -> list[int]:
    return [row for batch in batches for row in batch.index.tolist()]


def joined(batches: list[Batch]) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.cat([getattr(batch, name) for batch in batches]) for name in ("x", "y", "index"))  # type: ignore[return-value]


def same(one: list[Batch], other: list[Batch]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(joined(one), joined(other), strict=True))


COUNT = st.integers(1, 60)
SIZE = st.integers(1, 70)
SEED = st.integers(0, 2**40)


@pytest.mark.rows("CB3")
@settings(max_examples=60)
@given(count=COUNT, size=SIZE, seed=SEED, shuffle=st.booleans())
def test_every_row_comes_once_per_epoch_and_the_last_batch_holds_the_rest(
    count: int, size: int, seed: int, shuffle: bool
) -> None:
    batches = loader(count, size, seed, shuffle)
    sizes = [size] * (count // size) + [count % size] * bool(count % size)
    if shuffle and size > 1 and len(sizes) > 1 and sizes[-1] == 1:  # no training batch has only one image
        sizes = [*sizes[:-2], size + 1]
    assert len(batches) == len(sizes)
    for _ in range(2):
        epoch = list(batches)
        assert sorted(rows(epoch)) == list(range(count))
        assert [len(batch.y) for batch in epoch] == sizes


@settings(max_examples=40)
@given(count=COUNT, sizes=st.tuples(SIZE, SIZE), seed=SEED, epoch=st.integers(0, 50))
@pytest.mark.rows("X15")
def test_the_batch_size_changes_neither_the_order_nor_any_image(
    count: int, sizes: tuple[int, int], seed: int, epoch: int
) -> None:
    streams = []
    for size in sizes:
        batches = loader(count, size, seed)
        batches.seek(epoch)
        streams.append(list(batches))
    assert same(*streams)


@settings(max_examples=40)
@given(count=COUNT, size=SIZE, seed=SEED, epoch=st.integers(0, 3), data=st.data())
@pytest.mark.rows("X15")
def test_seeking_equals_skipping_batches(count: int, size: int, seed: int, epoch: int, data: st.DataObject) -> None:
    sequential = loader(count, size, seed)
    for _ in range(epoch):
        list(sequential)
    full = list(sequential)
    batch = data.draw(st.integers(0, len(full)))
    sought = loader(count, size, seed)
    sought.seek(epoch, batch)
    rest = list(sought)
    assert len(rest) == len(full) - batch
    if rest:
        assert same(rest, full[batch:])
    assert same(list(sought), list(sequential)), "the epoch after a sought one is incomplete"


def test_epochs_differ_in_order_and_in_augmentation() -> None:
    batches = loader(50, 8)
    first, second = list(batches), list(batches)
    assert rows(first) != rows(second)
    x, _, index = joined(first)
    other, _, other_index = joined(second)
    changed = (x[index.argsort()] != other[other_index.argsort()]).flatten(1).any(1)
    assert changed.float().mean().item() > 0.5


def test_the_same_seed_gives_the_same_stream_and_another_seed_another() -> None:
    one, same_seed, other = loader(50, 8, seed=3), loader(50, 8, seed=3), loader(50, 8, seed=4)
    for _ in range(3):
        first = list(one)
        assert same(first, list(same_seed))
        assert rows(first) != rows(list(other))


def test_torchs_global_generator_is_neither_used_nor_changed() -> None:
    torch.manual_seed(1)
    first = list(loader(20, 8))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = list(loader(20, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert same(first, second)


def test_index_gives_the_row_of_every_image_and_label() -> None:
    data = dataset(37)
    batches = BatchLoader(data, PREPROCESS, 8, shuffle=True)
    expected = PREPROCESS.normalizer()(data.images)
    for batch in batches:
        assert batch.x.dtype == torch.float32
        assert batch.y.dtype == batch.index.dtype == torch.int64
        assert torch.equal(batch.x, expected[batch.index])
        assert torch.equal(batch.y, data.labels[batch.index])


def test_without_shuffle_every_epoch_is_in_the_order_of_the_data() -> None:
    batches = loader(20, 6, shuffle=False)
    assert rows(list(batches)) == rows(list(batches)) == list(range(20))


def test_without_augmentation_every_epoch_shows_the_same_images() -> None:
    batches = loader(20, 6, shuffle=False, augment=False)
    assert same(list(batches), list(batches))


def test_an_epoch_left_in_the_middle_is_followed_by_the_next_one() -> None:
    batches = loader(30, 4)
    next(iter(batches))
    second = loader(30, 4)
    second.seek(1)
    assert same(list(batches), list(second))


def test_the_data_is_not_changed() -> None:
    data = dataset(20)
    before = data.fingerprint()
    list(BatchLoader(data, PREPROCESS, 8, shuffle=True, augment=AUGMENT))
    assert data.fingerprint() == before


def test_a_long_epoch_is_the_same_in_any_batch_size() -> None:
    # longer than the part of the order that is computed at once
    count = 140_000
    data = PackedDataset(
        torch.zeros((count, 1, 1, 1), dtype=torch.uint8),
        torch.zeros(count, dtype=torch.int64),
        ("",) * count,
        ("a", "b"),
    )
    orders = []
    for size in (999, 70_000, 200_000):
        batches = BatchLoader(data, Preprocess(1, 1, 1), size, shuffle=True)
        batches.seek(2, 1 if size == 999 else 0)
        orders.append(torch.cat([batch.index for batch in batches] or [torch.empty(0)]))
    assert torch.equal(orders[0], orders[1][999:])
    assert torch.equal(orders[1], orders[2])
    assert torch.equal(orders[1].sort().values, torch.arange(count))


def test_an_empty_split_has_no_batches() -> None:
    batches = loader(0, 8)
    assert len(batches) == 0
    assert list(batches) == []


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_needs_at_least_one_image(size: int) -> None:
    with pytest.raises(ValueError, match=f"an integer >= 1, found {size}"):
        loader(4, size)


def test_it_is_a_loader_that_a_trainer_can_resume() -> None:
    assert isinstance(loader(4, 2), Loader)


# --- threads, prefetch depth, ranks and batch size do not change the samples


CHAINS: dict[str, tuple[Any, ...]] = {
    "plain": (),
    "batched": AUGMENT,
    "crop": (RandomResizedCrop((0.2, 1.0)), Flip(0.5), ColorJitter(0.4, 0.4, 0.4)),
    "policy": (ShiftCrop(1), TrivialAugment()),
}
KINDS = [f"{kind} {chain}" for kind in ("pixels", "encoded") for chain in CHAINS] + ["rows batched", "encoded alone"]


@cache
def files() -> tuple[bytes, ...]:
    """Seven encoded colour images of different sizes, PNG and JPEG."""
    contents = []
    for i, (height, width) in enumerate([(9, 9), (12, 7), (8, 20), (6, 6), (15, 15), (9, 30), (11, 10)]):
        file = io.BytesIO()
        Image.fromarray(noise(height, width, 3, seed=i)).save(file, "JPEG" if i % 2 else "PNG")
        contents.append(file.getvalue())
    return tuple(contents)


def sides_of(data: bytes) -> tuple[int, int]:
    """(height, width) of an encoded image."""
    width, height = Image.open(io.BytesIO(data)).size
    return height, width


def encoded(count: int, side: int = 6, images: Sequence[bytes] | None = None) -> PackedDataset:
    images = images or files()
    intact = files() if len(images) == len(files()) else images  # one of `images` may be damaged
    sizes = np.array([sides_of(data) for data in intact], np.int32)
    store = EncodedImages(Preprocess(side, side, 3), sizes, images.__getitem__, lambda row: f"'file {row}'")
    rows = np.arange(count) * 3 % len(images)
    return PackedDataset(store, torch.arange(count) % 2, tuple(map(str, range(count))), ("a", "b"), rows)


def make_loader(kind: str, count: int, size: int, **options: Any) -> BatchLoader:
    store, chain = kind.split()
    augment = (PerImage(lambda image: image.flip(1)), *AUGMENT) if chain == "alone" else CHAINS[chain]
    if store == "encoded":
        data, preprocess = encoded(count), Preprocess(6, 6, 3, (0.4,), (0.3,))
    else:
        pixels = np.random.default_rng(count).integers(0, 256, (count + 5, 3, 6, 6), dtype=np.uint8)
        order = np.random.default_rng(1).permutation(count + 5)[:count] if store == "rows" else None
        images = torch.from_numpy(pixels if store == "rows" else pixels[:count])
        data = PackedDataset(images, torch.arange(count) % 2, tuple(map(str, range(count))), ("a", "b"), order)
        preprocess = Preprocess(6, 6, 3, (0.4,), (0.3,))
    return BatchLoader(data, preprocess, size, augment=augment, **options)


def by_row(batches: list[Batch]) -> tuple[Tensor, Tensor]:
    """(x, y) in the order of the dataset; asserts that every row occurs once."""
    x, y, index = joined(batches)
    order = index.argsort()
    assert torch.equal(index[order], torch.arange(len(index))), "a row is missing or occurs twice"
    return x[order], y[order]


WORKERS, DEPTHS = (0, 1, 2, 4), (0, 1, 2, 5)


@pytest.mark.rows("X15")
@pytest.mark.parametrize("kind", KINDS)
def test_threads_and_prefetch_depth_do_not_change_any_batch(kind: str) -> None:
    count, size, epoch = 23, 5, 3
    reference = make_loader(kind, count, size, shuffle=True, seed=7, workers=0)
    reference.seek(epoch)
    expected = list(reference)
    for workers, prefetch in itertools.product(WORKERS, DEPTHS):
        batches = make_loader(kind, count, size, shuffle=True, seed=7, workers=workers, prefetch=prefetch)
        batches.seek(epoch)
        result = list(batches)
        assert [len(batch.y) for batch in result] == [5, 5, 5, 5, 3]
        assert same(result, expected), (workers, prefetch)
        batches.seek(epoch, 2)
        assert same(list(batches), expected[2:]), (workers, prefetch)


@pytest.mark.rows("X15")
@settings(max_examples=60)
@given(
    kind=st.sampled_from(KINDS),
    count=st.integers(3, 30),
    size=st.integers(1, 12),
    world=st.integers(1, 3),
    seed=SEED,
    epoch=st.integers(0, 9),
    workers=st.sampled_from(WORKERS),
    prefetch=st.sampled_from(DEPTHS),
    shuffle=st.booleans(),
)
def test_samples_do_not_depend_on_how_an_epoch_is_divided(
    kind: str, count: int, size: int, world: int, seed: int, epoch: int, workers: int, prefetch: int, shuffle: bool
) -> None:
    """Batch size, worker count, rank count and prefetch depth change neither the samples drawn
    per epoch nor any sample's augmentation."""
    reference = make_loader(kind, count, count, seed=seed, workers=0, shuffle=shuffle)
    reference.seek(epoch)
    expected = by_row(list(reference))
    batches: list[Batch] = []
    steps = set()
    for rank in range(world):
        rank_loader = make_loader(
            kind,
            count,
            size,
            seed=seed,
            shuffle=shuffle,
            workers=workers,
            prefetch=prefetch,
            rank=rank,
            world_size=world,
        )
        rank_loader.seek(epoch)
        part = list(rank_loader)
        assert all(len(batch.y) for batch in part), "a step without an image"
        steps |= {len(part), len(rank_loader)}
        batches += part
    assert len(steps) == 1, "ranks with different numbers of steps wait for each other forever"
    x, y = by_row(batches)
    assert torch.equal(x, expected[0])
    assert torch.equal(y, expected[1])


@settings(max_examples=80)
@given(count=st.integers(1, 60), size=st.integers(1, 9), world=st.integers(1, 3), data=st.data())
def test_ranks_share_each_step_evenly_and_seek_together(count: int, size: int, world: int, data: st.DataObject) -> None:
    if count < world:
        with pytest.raises(ValueError, match=f"{count} images are too few for {world} processes"):
            BatchLoader(dataset(count), PREPROCESS, size, rank=0, world_size=world)
        return
    ranks = [
        BatchLoader(dataset(count), PREPROCESS, size, shuffle=True, rank=rank, world_size=world, workers=0)
        for rank in range(world)
    ]
    epochs = [list(rank) for rank in ranks]
    alone = loader(count, size * world, augment=False)
    order = rows(list(alone))
    seen: list[int] = []
    for step in range(len(ranks[0])):
        sizes = [len(part[step].y) for part in epochs]
        assert max(sizes) - min(sizes) <= 1
        seen += [row for part in epochs for row in part[step].index.tolist()]
        if step < len(ranks[0]) - 1:
            assert sizes == [size] * world
    assert seen == order, "together the ranks do not follow the order of one process"
    batch = data.draw(st.integers(0, len(ranks[0])))
    for rank, part in zip(ranks, epochs, strict=True):
        rank.seek(0, batch)
        assert rows(list(rank)) == rows(part[batch:])


@settings(max_examples=40)
@given(
    count=st.integers(3, 900),
    size=st.sampled_from([16, 32, 64]),
    world=st.integers(1, 3),
    workers=st.sampled_from(WORKERS),
    shuffle=st.booleans(),
    draw=st.data(),
)
def test_small_batches_prepared_together_equal_those_prepared_alone(
    count: int, size: int, world: int, workers: int, shuffle: bool, draw: st.DataObject
) -> None:
    """Also from the middle of an epoch and on several ranks; each batch is aligned in memory as one prepared alone."""
    data = dataset(count)
    expected = PREPROCESS.normalizer()(data.images)
    # batches of 25 values are not prepared together
    alone = BatchLoader(data, PREPROCESS, 1, shuffle=shuffle, seed=3, workers=0)
    ranks = [
        BatchLoader(data, PREPROCESS, size, shuffle=shuffle, seed=3, workers=workers, rank=rank, world_size=world)
        for rank in range(world)
    ]
    first = draw.draw(st.integers(0, len(ranks[0]) - 1))
    parts = []
    for batches in ranks:
        batches.seek(0, first)
        parts.append(list(batches))
    order = [row for step in zip(*parts, strict=True) for batch in step for row in batch.index.tolist()]
    assert order == rows(list(alone))[first * size * world :]
    for batch in itertools.chain(*parts):
        assert torch.equal(batch.x, expected[batch.index])
        assert torch.equal(batch.y, data.labels[batch.index])
        assert batch.x.data_ptr() % 64 == 0


@pytest.mark.parametrize(("rank", "world"), [(-1, 2), (2, 2), (1, 1)])
def test_an_invalid_rank_is_refused(rank: int, world: int) -> None:
    with pytest.raises(ValueError, match=rf"rank: expected an integer in \[0, {world - 1}\], found {rank}"):
        BatchLoader(dataset(9), PREPROCESS, 2, rank=rank, world_size=world)


@pytest.mark.rows("X15")
@pytest.mark.parametrize("kind", ["pixels batched", "encoded crop", "encoded batched", "pixels policy"])
def test_no_two_epochs_repeat_an_augmentation(kind: str) -> None:
    """Of 40 epochs no two are equal, and every sample is augmented in more than ten ways."""
    batches = make_loader(kind, 24, 7, seed=3, shuffle=True, workers=1)
    epochs = [by_row(list(batches))[0] for _ in range(40)]
    assert len({epoch.numpy().tobytes() for epoch in epochs}) == 40
    ways = [len({epoch[row].numpy().tobytes() for epoch in epochs}) for row in range(24)]
    assert min(ways) > 10
    for one, other in itertools.pairwise(epochs):
        assert (one != other).flatten(1).any(1).float().mean() > 0.5


def test_look_returns_rows_as_an_epoch_returns_them() -> None:
    for kind in KINDS:
        batches = make_loader(kind, 20, 6, seed=5, shuffle=True)
        batches.seek(4)
        x, y = by_row(list(batches))
        look = batches.look([11, 3, 3], 4)
        assert torch.equal(look.x, x[[11, 3, 3]])
        assert torch.equal(look.y, y[[11, 3, 3]])
        assert look.index.tolist() == [11, 3, 3]


def test_a_crop_is_taken_from_the_original_image() -> None:
    """It shows a detail that is lost when the full image is resized first."""
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255  # one pixel wide: at 1/16 of the size, all gray
    file = io.BytesIO()
    Image.fromarray(stripes).save(file, "PNG")
    data = encoded(30, 16, [file.getvalue()])
    crop = RandomResizedCrop((0.004, 0.006), (1.0, 1.0))  # about 16 x 16 pixels of it
    x = by_row(list(BatchLoader(data, Preprocess(16, 16, 3), 8, augment=[crop])))[0]
    assert x.flatten(1).std(1).min() > 0.1
    resized = by_row(list(BatchLoader(data, Preprocess(16, 16, 3), 8)))[0]
    assert resized.flatten(1).std(1).max() < 0.02


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["pixels batched", "pixels plain", "encoded crop"])
def test_a_batch_of_which_a_view_is_kept_is_not_overwritten(kind: str, workers: int) -> None:
    """Whatever shares its memory: a slice, a NumPy array or a detached tensor."""
    views = (lambda x: x[1], lambda x: x[:1].numpy(), lambda x: x.detach().flatten(1).T, lambda x: x.numpy()[::2])
    for view in views:
        batches = make_loader(kind, 160, 4, shuffle=True, workers=workers)
        pairs = [(view(batch.x), view(batch.x.clone())) for batch in itertools.chain(batches, batches)]
        assert all((np.asarray(one) == np.asarray(other)).all() for one, other in pairs)


# --- threads start and end


def running() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread is not threading.main_thread()}


def threads_ended(before: set[threading.Thread], seconds: float = 60) -> bool:
    """Whether all threads started since `before` have ended; waits up to `seconds` for them."""
    end = time.monotonic() + seconds
    while running() - before:
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


@pytest.mark.parametrize("kind", ["pixels batched", "pixels plain", "encoded crop"])
@pytest.mark.parametrize("requested", [0, 1, 3])
def test_an_iterator_closed_early_ends_its_threads_and_the_next_epoch_is_complete(kind: str, requested: int) -> None:
    before = running()
    batches = make_loader(kind, 40, 4, shuffle=True, seed=1, workers=4, prefetch=5)
    for _ in range(3):
        iterator = iter(batches)
        seen = list(itertools.islice(iterator, requested))
        assert len(seen) == requested
        iterator.close()
        del iterator
    assert threads_ended(before)
    reference = make_loader(kind, 40, 4, shuffle=True, seed=1, workers=0)
    epoch = 3 if requested else 0  # an epoch of which no batch was requested has not started
    reference.seek(epoch)
    assert same(list(batches), list(reference))
    assert threads_ended(before)


@pytest.mark.parametrize("kind", ["pixels batched", "encoded crop"])
def test_a_loop_that_stops_early_ends_the_threads(kind: str) -> None:
    before = running()
    batches = make_loader(kind, 40, 4, workers=2, prefetch=2)
    for _ in batches:
        break
    assert threads_ended(before)

    def failing_step() -> None:
        for _ in batches:
            raise RuntimeError("a step that failed")

    with pytest.raises(RuntimeError, match="a step that failed"):
        failing_step()
    assert threads_ended(before)


def test_no_more_batches_are_started_than_may_wait() -> None:
    started: list[int] = []

    def count(images: Tensor, index: NDArray[np.int64], seed: int, epoch: int) -> Tensor:
        started.append(len(index))
        return images

    for prefetch in (1, 2, 5):
        started.clear()
        batches = BatchLoader(dataset(100), PREPROCESS, 4, augment=[count], workers=2, prefetch=prefetch)
        for received, _ in enumerate(batches, start=1):
            time.sleep(0.002)
            assert received <= len(started) <= received + prefetch
        assert len(started) == 25


def test_no_batch_is_started_after_the_iterator_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch is returned; two threads have started one each and wait until the queued ones are cancelled."""
    started: list[int] = []
    cancelled = threading.Event()
    shutdown = ThreadPoolExecutor.shutdown

    def cancel(pool: ThreadPoolExecutor, wait: bool = True, *, cancel_futures: bool = False) -> None:
        shutdown(pool, wait=False, cancel_futures=cancel_futures)
        cancelled.set()
        shutdown(pool, wait=wait)

    def block(images: Tensor, index: NDArray[np.int64], seed: int, epoch: int) -> Tensor:
        started.append(len(index))
        assert 0 in index or cancelled.wait(60)
        return images

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", cancel)
    before = running()
    iterator = iter(BatchLoader(dataset(200), PREPROCESS, 4, augment=[block], workers=2, prefetch=20))
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    assert threads_ended(before)
    assert len(started) <= 3


class Failing:
    """An augmentation that raises at a certain row."""

    def __init__(self, row: int, threaded: bool = True):
        self.row, self.threaded = row, threaded

    def __call__(self, images: Tensor, index: NDArray[np.int64], seed: int, epoch: int) -> Tensor:
        if self.row in index:
            raise ArithmeticError(f"row {self.row} of epoch {epoch}")
        return images


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("threaded", [False, True])
def test_an_exception_of_an_augmentation_reaches_the_loop_at_its_batch(workers: int, threaded: bool) -> None:
    before = running()
    batches = BatchLoader(dataset(30), PREPROCESS, 4, augment=[Failing(13, threaded)], workers=workers, prefetch=5)
    received: list[Batch] = []
    with pytest.raises(ArithmeticError, match="row 13 of epoch 0"):
        received.extend(batches)
    assert len(received) == 3
    assert threads_ended(before)
    batches.seek(1, 4)
    assert rows(list(batches)) == list(range(16, 30)), "the loader does not continue after an error"


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_a_bad_encoded_image_is_named_in_the_loop(workers: int) -> None:
    before = running()
    data = encoded(30, images=[*files()[:5], files()[5][:100], files()[6]])
    (bad,) = {row for row in range(7) if data.rows is not None and data.rows[row] == 5}
    batches = BatchLoader(data, Preprocess(6, 6, 3), 2, workers=workers, prefetch=2)
    received: list[Batch] = []
    with pytest.raises(ImageError, match="'file 5' is damaged, or of a kind that Pillow"):
        received.extend(batches)
    assert len(received) == bad // 2
    assert threads_ended(before)


def test_an_augmentation_that_is_not_threaded_runs_in_the_calling_thread() -> None:
    seen: set[int] = set()

    def record(image: Tensor) -> Tensor:
        seen.add(threading.get_ident())
        return image

    list(BatchLoader(dataset(20), PREPROCESS, 4, augment=[PerImage(record)], workers=4, prefetch=3))
    assert seen == {threading.get_ident()}


def test_two_iterators_at_once_do_not_disturb_each_other() -> None:
    one, other = loader(30, 4), loader(30, 4)
    other.seek(1)
    batches = loader(30, 4)
    first = iter(batches)
    received = [next(first)]
    second = list(batches)
    received += first
    assert same(received, list(one))
    assert same(second, list(other))


# --- large data


LARGE = """
import sys, numpy as np, torch
from sightline.data.loading.loader import BatchLoader
from sightline.data.cache.dataset import PackedDataset
from sightline.data.images.preprocess import Preprocess

def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))

count = 10_000_000
images = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(count, 1, 1, 1)
labels = torch.zeros(1, dtype=torch.int64).expand(count)
data = PackedDataset(images, labels, range(count), ("a", "b"))
loader = BatchLoader(data, Preprocess(1, 1, 1), 500, shuffle=True, seed=5, workers=int(sys.argv[1]))
loader.seek(0, 19_990)
list(loader)  # memory that the first steps of any run need
before = peak = anonymous()
loader.seek(3, 9_000)
rows = []
for number, batch in enumerate(loader):
    if number == 600:
        break
    rows.append(batch.index.numpy().astype(np.int32))
    peak = max(peak, anonymous())
rows = np.concatenate(rows)
print(len(rows), len(np.unique(rows)), rows.min(), rows.max(), np.abs(np.diff(rows)).mean(), peak - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("workers", ["0", "2"])
def test_ten_million_rows_are_shuffled_without_an_index(workers: str) -> None:
    """An order of 10 million rows would take 80 MB; a part of it, from the middle of an epoch, takes a few MB."""
    total, distinct, low, high, jump, grown = python(LARGE, workers).split()
    assert int(total) == int(distinct) == 300_000
    assert int(low) < 1000
    assert int(high) > 9_999_000
    # a third of the rows: consecutive rows come from everywhere, not from near each other
    assert 3.2e6 < float(jump) < 3.5e6
    assert int(grown) < 8_000  # KB, of which 1.2 MB are the rows this test keeps


# --- memory stays flat


FLAT = """
import ctypes, io, sys
malloc = ctypes.CDLL(None)
malloc.mallopt(-8, 1)  # M_ARENA_MAX: otherwise the number of heaps, which keep free memory, is chance
import numpy as np, torch
from PIL import Image
from sightline.data.augment.flip_shift import Flip, ShiftCrop
from sightline.data.augment.geometry import RandomResizedCrop
from sightline.data.loading.loader import BatchLoader
from sightline.data.cache.dataset import EncodedImages, PackedDataset
from sightline.data.images.preprocess import Preprocess

kind, count, epochs, size = sys.argv[1], *map(int, sys.argv[2:])
torch.set_num_threads(1)
generator = np.random.default_rng(0)
decoder = Preprocess(32, 32, 3)
if kind == "pixels":
    images = torch.from_numpy(generator.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8))
    augment = [Flip(0.5), ShiftCrop(4)]
else:
    files, sizes = [], []
    for i in range(count):
        file = io.BytesIO()
        side = 40 + i % 60
        sizes.append((side, 120 - side))
        Image.fromarray(generator.integers(0, 256, (side, 120 - side, 3), dtype=np.uint8)).save(file, "JPEG")
        files.append(file.getvalue())
    images = EncodedImages(decoder, np.array(sizes, np.int32), files.__getitem__, str)
    augment = [RandomResizedCrop(), Flip(0.5)]
data = PackedDataset(images, torch.zeros(count, dtype=torch.int64), range(count), ("a", "b"))
loader = BatchLoader(data, decoder, size, shuffle=True, augment=augment, workers=2)

def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))

pools = [pool._arrays for pool in (loader._floats, loader._bytes)]
used, most = [], 0
for epoch in range(epochs):
    for batch in loader:
        most = max(most, *map(len, pools))
    malloc.malloc_trim(0)  # how much free memory is not returned yet depends on the order of threads
    used.append(anonymous() - sum(buffer.nbytes for pool in pools for buffer in pool) // 1024)
print(max(used[2:]) - max(used[:2]), most, loader.prefetch)
"""


@pytest.mark.rows("X15")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is measured through glibc's malloc")
@pytest.mark.parametrize(
    ("kind", "count", "epochs", "size"),
    [
        ("pixels", 4_000, 20, 16),
        ("encoded", 120, 20, 16),
        pytest.param("pixels", 50_000, 20, 128, marks=pytest.mark.slow),
        pytest.param("encoded", 300, 200, 32, marks=pytest.mark.slow),
    ],
)
def test_memory_is_flat_from_the_second_epoch_on(kind: str, count: int, epochs: int, size: int) -> None:
    """Memory without the batch buffers does not grow, and there are only as many buffers as batches at a time."""
    grown, buffers, prefetch = map(int, python(FLAT, kind, str(count), str(epochs), str(size)).split())
    assert grown < 1_000  # KB
    assert buffers <= prefetch + 4  # waiting, started, in use by the loop, and just returned by each of two threads
