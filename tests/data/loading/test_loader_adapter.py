"""Batches of another library's making: what is taken, what is refused in words, and that a run resumed on them equals
one that was never interrupted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

from helpers.stateful_loader import TorchdataLike
from helpers.stop_at import StopAt
from sightline.core.errors import DataError
from sightline.core.types import Batch, FitResult, Loader, TrainState
from sightline.data.loading import adapter as foreignloader
from sightline.data.loading.adapter import LoaderAdapter
from sightline.engine.checkpoint.content import load_checkpoint
from sightline.engine.checkpoint.writer import Checkpointer
from sightline.engine.runtime import Runtime
from sightline.engine.tasks import SupervisedTask
from sightline.engine.trainer import Trainer

COUNT, SIZE, CLASSES = 30, 4, 3
IMAGES = torch.randn(COUNT, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(COUNT) % CLASSES


def loader(**how: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(IMAGES, LABELS), batch_size=SIZE, **how)


def batched() -> DataLoader[Any]:
    """Its generator is its sampler's sampler's."""
    data = TensorDataset(IMAGES, LABELS)
    order = RandomSampler(data, generator=torch.Generator().manual_seed(2))
    return DataLoader(data, batch_sampler=BatchSampler(order, SIZE, False))


def first(batches: Iterable[Any], **how: Any) -> Batch:
    return next(iter(LoaderAdapter(batches, **how)))


class Drawing(RandomSampler):
    """Draws from the global generator before each sample."""

    def __iter__(self) -> Iterator[int]:
        for _ in range(len(self)):
            yield int(torch.randint(COUNT, ()))


def drawn(batches: Iterable[Any]) -> list[Tensor]:
    """The labels of two epochs."""
    torch.manual_seed(5)
    ours, found = LoaderAdapter(batches), []
    for epoch in range(2):
        ours.seek(epoch)
        for batch in ours:
            found.append(batch.y)
            torch.rand(3)  # as a step with dropout
    return found


DATA = TensorDataset(IMAGES, LABELS)
ORDERS: dict[str, tuple[Any, bool]] = {
    "in order": (loader, True),
    "shuffled": (lambda: loader(shuffle=True), True),
    "with replacement": (lambda: loader(sampler=RandomSampler(DATA, replacement=True, num_samples=70)), True),
    "a generator of its own": (lambda: loader(shuffle=True, generator=torch.Generator().manual_seed(1)), False),
    "torch's own generator": (
        lambda: loader(
            sampler=RandomSampler(DATA, generator=torch.default_generator, num_samples=70, replacement=True)
        ),
        False,
    ),
    "a sampler that draws": (lambda: loader(sampler=Drawing(DATA)), False),
    "batches of a sampler that draws": (
        lambda: DataLoader(DATA, batch_sampler=BatchSampler(Drawing(DATA), SIZE, False)),
        False,
    ),
    "a list": (lambda: list(loader()), True),
    "two processes": (lambda: loader(shuffle=True, num_workers=2), False),
}


@pytest.mark.parametrize("kind", ORDERS)
def test_ready_tensors_come_in_the_order_that_setting_every_generator_gives(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, ready = ORDERS[kind]
    assert foreignloader._is_ready(make()) is ready
    short = drawn(make())
    monkeypatch.setattr(foreignloader, "_is_ready", lambda batches: False)
    full = drawn(make())
    assert len(short) == len(full) > 10
    assert all(torch.equal(one, other) for one, other in zip(short, full, strict=True))


# --- what a batch may be


SHAPES: dict[str, Any] = {
    "a tuple": lambda x, y: (x, y),
    "a list": lambda x, y: [x, y],
    "a batch": Batch,
    "arrays": lambda x, y: (x.numpy(), y.numpy()),
    "small labels": lambda x, y: (x, y.to(torch.uint8)),
    "int32 labels": lambda x, y: (x, y.numpy().astype(np.int32)),
    "plain labels": lambda x, y: (x, y.tolist()),
    "image and label": lambda x, y: {"image": x, "label": y},
    "pixel_values and labels": lambda x, y: {"pixel_values": x, "labels": y, "attention": None},
    "x and target": lambda x, y: {"id": ["a"], "x": x.numpy(), "target": y},
    "a mapping": lambda x, y: Record(images=x, targets=y),
}


class Record(Mapping[str, Any]):
    """As transformers' BatchFeature: a mapping that is no dict."""

    def __init__(self, **values: Any):
        self.values_ = values

    def __getitem__(self, name: str) -> Any:
        return self.values_[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)


@pytest.mark.parametrize("shape", SHAPES)
def test_batches_of_every_usual_shape(shape: str) -> None:
    make = SHAPES[shape]
    batches = [make(IMAGES[i : i + 4], LABELS[i : i + 4]) for i in (0, 4)]
    taken = LoaderAdapter(batches)
    assert isinstance(taken, Loader)
    assert len(taken) == 2
    for _ in range(2):
        for position, batch in enumerate(taken):
            assert torch.equal(batch.x, IMAGES[4 * position :][:4])
            assert torch.equal(batch.y, LABELS[4 * position :][:4])
            assert batch.y.dtype == torch.int64
            assert batch.weight is None


def test_weights_several_inputs_and_targets_that_are_no_classes() -> None:
    weights = torch.rand(4)
    weighted = first([(IMAGES[:4], LABELS[:4], weights)])
    assert weighted.weight is not None
    assert torch.equal(weighted.weight, weights)
    several = first([((IMAGES[:4], IMAGES[4:8]), LABELS[:4])])
    assert isinstance(several.x, tuple)
    assert torch.equal(several.x[1], IMAGES[4:8])
    soft = torch.rand(4, 3)
    assert torch.equal(first([(IMAGES[:4], soft)]).y, soft)  # type: ignore[arg-type]
    index = torch.arange(4)
    whole = first([Batch(IMAGES[:4], LABELS[:4], weights, index)])
    assert whole.index is not None
    assert torch.equal(whole.index, index)


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        ((IMAGES[:4],), r"a batch of the loader is 1 values; expected \(images, labels\)"),
        ((1, 2, 3, 4), "is 4 values"),
        (IMAGES[:4], "a batch of the loader is Tensor"),
        ({"image": IMAGES[:4]}, "has the keys image, none of y, label, labels, target, targets"),
        ({"foto": IMAGES[:4], "label": LABELS[:4]}, "has the keys foto, label, none of x, image"),
        ((IMAGES[:4].to(torch.uint8), LABELS[:4]), r"uint8 images \[4, 1, 4, 4\].*normalise them in the loader"),
        ((np.zeros((4, 3, 8, 8), np.uint8), LABELS[:4]), r"uint8 images \[4, 3, 8, 8\]"),
        ({"image": IMAGES[:4].to(torch.uint8), "label": LABELS[:4]}, "uint8 images"),
    ],
)
def test_what_is_no_batch_is_refused_in_words(batch: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        first([batch])


def test_a_batch_may_be_left_as_it_is() -> None:
    odd = [{"words": ["a"]}, IMAGES[:4].to(torch.uint8), (1, 2, 3, 4)]
    taken = list(LoaderAdapter(odd, as_given=True))
    assert all(batch is given for batch, given in zip(taken, odd, strict=True))


def test_small_labels_in_a_batch_of_our_own_are_no_images() -> None:
    batch = first([Batch(IMAGES[:4], LABELS[:4].to(torch.uint8))])
    assert torch.equal(batch.y, LABELS[:4])  # type: ignore[arg-type]


def test_what_is_no_loader_is_refused() -> None:
    with pytest.raises(TypeError, match="expected an iterable of batches, got int"):
        LoaderAdapter(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a generator has no length: say with steps="):
        LoaderAdapter(iter([(IMAGES, LABELS)]))

    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return zip(itertools.cycle(IMAGES), itertools.cycle(LABELS), strict=True)

    class Lengthless:
        def __iter__(self) -> Iterator[Any]:
            return iter([(IMAGES, LABELS)])

    for batches in (DataLoader(Endless(), batch_size=4), Lengthless()):
        with pytest.raises(TypeError, match=r"has no (length|len\(\))"):
            len(LoaderAdapter(batches))
    steps = LoaderAdapter(DataLoader(Endless(), batch_size=4), steps=3)
    assert len(steps) == 3
    assert len(list(steps)) == 3
    assert len(list(steps)) == 3


@pytest.mark.rows("B03")
def test_a_data_loader_of_several_processes() -> None:
    """Real worker processes, as most people have."""
    plain = list(LoaderAdapter(loader()))
    torch.manual_seed(0)
    batches = LoaderAdapter(loader(num_workers=2))
    assert [torch.equal(a.x, b.x) for a, b in zip(batches, plain, strict=True)] == [True] * 8
    assert [torch.equal(a.x, b.x) for a, b in zip(batches, plain, strict=True)] == [True] * 8


# --- generators


def numbered(stop: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    for number in itertools.count() if stop is None else range(stop):
        yield torch.full((2, 1, 4, 4), float(number)), torch.tensor([0, 1])


def numbers(batches: Iterable[Batch]) -> list[int]:
    return [int(batch.x.flatten()[0]) for batch in batches]  # type: ignore[union-attr]


def test_a_generator_goes_on_where_the_epoch_before_stopped() -> None:
    batches = LoaderAdapter(numbered(), steps=3)
    assert len(batches) == 3
    assert [numbers(batches) for _ in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_in_a_new_process_an_epoch_begins_with_what_a_generator_gives(epoch: int) -> None:
    """Nothing is read to find its place again: that could take as long as training did."""
    batches = LoaderAdapter(numbered(), steps=3)
    batches.seek(epoch)
    assert [numbers(batches) for _ in range(2)] == [[0, 1, 2], [3, 4, 5]]
    for batch in (1, 2):
        with pytest.raises(
            DataError, match=f"the generator cannot begin epoch {epoch} at batch {batch}: it has no sta"
        ):
            LoaderAdapter(numbered(), steps=3).seek(epoch, batch)


def test_an_epoch_left_early_does_not_move_the_next_one() -> None:
    """After an interruption in the middle of epoch 0, the same process goes on from there."""
    batches = LoaderAdapter(numbered(), steps=3)
    assert numbers(itertools.islice(batches, 2)) == [0, 1]
    batches.seek(0, 2)
    assert numbers(batches) == [2]
    assert numbers(batches) == [3, 4, 5]
    assert numbers(itertools.islice(batches, 1)) == [6]
    with pytest.raises(DataError, match="the generator cannot begin epoch 2 at batch 2"):
        batches.seek(2, 2)
    batches.seek(3)
    assert numbers(batches) == [9, 10, 11]


def test_a_generator_that_is_too_short_is_told() -> None:
    batches = LoaderAdapter(numbered(5), steps=3)
    assert numbers(batches) == [0, 1, 2]
    with pytest.raises(DataError, match=r"the loader gave 2 batches in epoch 1, but steps says 3"):
        numbers(batches)


def test_steps_cut_a_loader_that_is_longer() -> None:
    batches = LoaderAdapter(loader(), steps=5)
    assert [len(list(batches)) for _ in range(2)] == [5, 5]
    with pytest.raises(DataError, match="gave 8 batches in epoch 0, but steps says 9"):
        list(LoaderAdapter(loader(), steps=9))


def test_set_epoch_is_called_on_the_loader_or_its_sampler() -> None:
    from torch.utils.data.distributed import DistributedSampler

    data = TensorDataset(IMAGES, LABELS)
    orders = []
    for rank in range(2):
        sampler = DistributedSampler(data, num_replicas=2, rank=rank, shuffle=True, seed=3)
        batches = LoaderAdapter(DataLoader(data, batch_size=5, sampler=sampler))
        orders.append([torch.cat([batch.x for batch in batches]) for _ in range(2)])  # type: ignore[misc]
        batches.seek(0)
        assert torch.equal(torch.cat([batch.x for batch in batches]), orders[-1][0])  # type: ignore[misc]
    assert not torch.equal(orders[0][0], orders[0][1])
    for epoch in range(2):
        both = torch.cat([orders[0][epoch], orders[1][epoch]]).flatten(1)
        assert torch.equal(both.sort(0).values, IMAGES.flatten(1).sort(0).values)


def test_a_generator_of_the_loaders_own_gives_each_epoch_its_order() -> None:
    """Whatever was drawn before; its seed stays its owner's."""
    generator = torch.Generator().manual_seed(2)
    batches = LoaderAdapter(loader(shuffle=True, generator=generator))
    orders = [torch.cat([batch.x for batch in batches]) for _ in range(3)]  # type: ignore[misc]
    assert not torch.equal(orders[0], orders[1])
    torch.rand(5, generator=generator)
    batches.seek(1)
    assert torch.equal(torch.cat([batch.x for batch in batches]), orders[1])  # type: ignore[misc]
    batches.seek(2)
    next(iter(batches))  # left early
    assert generator.initial_seed() == 2


def test_epochs_side_by_side_do_not_meet_in_the_generator_and_its_owner_finds_it_as_it_was() -> None:
    generator = torch.Generator().manual_seed(2)
    drawn = RandomSampler(IMAGES, replacement=True, num_samples=2 * COUNT, generator=generator)  # in parts of 32
    train, val = LoaderAdapter(loader(sampler=drawn)), LoaderAdapter(loader(shuffle=True, generator=generator))
    alone = [torch.cat([batch.x for batch in batches]) for batches in (train, train, val)]  # type: ignore[misc]
    train.seek(0)
    val.seek(0)
    torch.rand(5, generator=generator)
    place = generator.get_state()
    mixed: list[list[Tensor]] = [[], [], []]
    for one, other in zip(train, train, strict=True):
        mixed[0].append(one.x)  # type: ignore[arg-type]
        mixed[1].append(other.x)  # type: ignore[arg-type]
        if len(mixed[0]) == 2:
            mixed[2] = [batch.x for batch in val]  # type: ignore[misc]
    for found, expected in zip(mixed, alone, strict=True):
        assert torch.equal(torch.cat(found), expected)
    assert torch.equal(generator.get_state(), place)


# --- where an epoch can begin


class Counting:
    """A list's batches with neither length nor index; `read` counts those that were made."""

    def __init__(self, stop: int = 8):
        self.stop, self.read = stop, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in numbered(self.stop):
            self.read += 1
            yield batch


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_begins_anywhere(kind: Callable[[Any], Any]) -> None:
    batches = LoaderAdapter(kind(numbered(8)))
    assert batches.position() == {}
    batches.seek(4, 5)
    assert [numbers(batches) for _ in range(2)] == [[5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7]]
    cut = LoaderAdapter(kind(numbered(8)), steps=6)
    cut.seek(1, 4)
    assert numbers(cut) == [4, 5]
    batches.seek(0, 8)
    assert numbers(batches) == []


def test_what_keeps_no_place_is_not_read_again_to_find_it() -> None:
    """And what was to come before the refusal still comes."""
    plain = Counting()
    for made in (plain, loader(), DataLoader(Noisy(), batch_size=4)):
        batches = LoaderAdapter(made)
        assert batches.position() is None
        with pytest.raises(DataError, match=r"cannot begin epoch 2 at batch 5.*StatefulDataLoader"):
            batches.seek(2, 5)
        assert len(list(batches)) == 8
        batches.seek(2)
        assert len(list(batches)) == 8
    assert plain.read == 16


def test_a_state_that_nobody_gave_back_is_no_place() -> None:
    batches = LoaderAdapter(Stateful())
    assert batches.position()
    with pytest.raises(DataError, match="Stateful cannot begin epoch 0 at batch 3: its state of that moment was not"):
        batches.seek(0, 3)

    class Half(Stateful):
        load_state_dict = None  # type: ignore[assignment]

    half = LoaderAdapter(Half())
    assert half.position() is None


def test_a_state_of_an_epochs_end_begins_the_next_epoch() -> None:
    """As a checkpoint after an epoch holds it."""
    whole = LoaderAdapter(Stateful())
    epochs = [torch.cat([batch.x for batch in whole]) for _ in range(2)]  # type: ignore[misc]
    first, second = LoaderAdapter(Stateful()), LoaderAdapter(Stateful())
    assert torch.equal(torch.cat([batch.x for batch in first]), epochs[0])  # type: ignore[misc]
    second.seek(1, 0, first.position())
    assert torch.equal(torch.cat([batch.x for batch in second]), epochs[1])  # type: ignore[misc]


# --- a run that was ended and goes on


class Stateful(TorchdataLike):
    """The same of the images here."""

    def __init__(self) -> None:
        super().__init__(IMAGES, LABELS, SIZE)


class Noisy(Dataset[Any]):
    """Random transforms in the data set, as torchvision's are: drawn from torch's own generator."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, row: int) -> Any:
        return IMAGES[row] + torch.randn(1, 4, 4) * 0.5, LABELS[row]


def run(
    make: Callable[[], Any], folder: Path, stop: int | None = None, resume: bool = False, epochs: int = 3
) -> tuple[FitResult, dict[str, Tensor], Any]:
    """Trains epochs of eight steps with dropout on a fresh loader; the result, the weights and the loader."""
    torch.manual_seed(123 + resume)  # nothing may depend on where torch's generator stood
    batches = make()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, CLASSES))
    state = TrainState(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    last = folder / "last.ckpt"
    keeper = Checkpointer(last, folder / "best.ckpt", "val_loss", "min")
    trainer = Trainer(
        SupervisedTask(nn.CrossEntropyLoss(), "logits"),
        state,
        LoaderAdapter(batches, steps=8 if isinstance(batches, Iterator) else None),
        {"val": LoaderAdapter(loader())},
        max_epochs=epochs,
        log_every=3,
        runtime=Runtime("cpu", seed=4),
        callbacks=(keeper, *([StopAt(stop)] if stop else ())),
    )
    if resume:
        load_checkpoint(last, state)
    return trainer.fit(), model.state_dict(), batches


def endless(epoch: int = 0) -> Iterator[Any]:
    """From the beginning of an epoch on."""
    generator = torch.Generator().manual_seed(9)
    for number in itertools.count():
        rows = torch.randint(COUNT, (SIZE,), generator=generator)
        if number >= 8 * epoch:
            yield IMAGES[rows], LABELS[rows]


LOADERS: dict[str, Callable[[], Any]] = {
    "shuffled": lambda: loader(shuffle=True),
    "in order": loader,
    "two processes": lambda: loader(shuffle=True, num_workers=2),
    "random transforms in two processes": lambda: DataLoader(Noisy(), batch_size=SIZE, shuffle=True, num_workers=2),
    "random transforms": lambda: DataLoader(Noisy(), batch_size=SIZE, shuffle=True),
    "a generator of its own": lambda: loader(shuffle=True, generator=torch.Generator().manual_seed(2)),
    "a generator of its sampler's": batched,
    "stateful": Stateful,
    "a list": lambda: [*itertools.islice(endless(), 8)],
}


WARNED = pytest.mark.filterwarnings("ignore:LoaderAdapter cannot begin in the middle of an epoch")

# processes are slow to start: each of their loaders is interrupted once
STOPS = [(kind, stop) for kind in LOADERS for stop in ((13,) if "processes" in kind else (3, 8, 13))]


@WARNED
@pytest.mark.parametrize(("kind", "stop"), STOPS)
def test_interrupted_in_mid_epoch_and_resumed_equals_uninterrupted(kind: str, stop: int, tmp_path: Path) -> None:
    """To the bit: weights, the history of every epoch, and the best value; whether it is resumed there, or where the
    loader keeps no place, at the beginning of the epoch."""
    whole, weights, _ = run(LOADERS[kind], tmp_path / "whole")
    cut, _, _ = run(LOADERS[kind], tmp_path / "cut", stop=stop)
    assert cut.interrupted
    assert cut.steps == stop
    state = torch.load(tmp_path / "cut" / "last.ckpt", weights_only=True)
    assert state["step"] == (stop if kind in ("stateful", "a list") else (stop - 1) // 8 * 8)
    resumed, found, _ = run(LOADERS[kind], tmp_path / "cut", resume=True)
    assert not resumed.interrupted
    assert resumed.steps == whole.steps == 24
    assert resumed.history == whole.history
    assert resumed.best == whole.best
    for name, value in weights.items():
        assert torch.equal(value, found[name]), name


@WARNED
@pytest.mark.parametrize("kind", [kind for kind in LOADERS if "processes" not in kind])
def test_killed_after_an_epoch_and_resumed_equals_uninterrupted(kind: str, tmp_path: Path) -> None:
    whole, weights, _ = run(LOADERS[kind], tmp_path / "whole")
    run(LOADERS[kind], tmp_path / "cut", epochs=1)
    resumed, found, _ = run(LOADERS[kind], tmp_path / "cut", resume=True)
    assert resumed.history == whole.history
    assert all(torch.equal(value, found[name]) for name, value in weights.items())


@WARNED
def test_a_generator_that_begins_where_the_epoch_does_trains_the_same(tmp_path: Path) -> None:
    whole, weights, _ = run(endless, tmp_path / "whole")
    assert run(endless, tmp_path / "cut", stop=13)[0].interrupted
    resumed, found, _ = run(lambda: endless(epoch=1), tmp_path / "cut", resume=True)
    assert resumed.history == whole.history
    assert all(torch.equal(value, found[name]) for name, value in weights.items())


def test_a_loader_with_a_state_of_its_own_reads_no_batch_twice(tmp_path: Path) -> None:
    run(Stateful, tmp_path, stop=13)
    _, _, batches = run(Stateful, tmp_path, resume=True)
    assert batches.read == 24 - 13


@WARNED
def test_a_loader_without_a_state_has_none_in_the_checkpoint(tmp_path: Path) -> None:
    run(LOADERS["shuffled"], tmp_path, stop=3)
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["loader"] == {}
    run(Stateful, tmp_path / "other", stop=3)
    content = torch.load(tmp_path / "other" / "last.ckpt", weights_only=True)
    assert content["loader"]["loader"]["position"] == 3


def test_a_loader_whose_state_holds_an_array_can_be_resumed(tmp_path: Path) -> None:
    """numpy's generators keep theirs so."""

    class Arrays(Stateful):
        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "rows": np.arange(3), "count": np.int64(3)}

    run(Arrays, tmp_path, stop=3)
    run(Arrays, tmp_path, resume=True)


@WARNED
def test_a_shuffled_loader_shows_another_order_in_each_epoch_and_the_same_in_the_next_run(tmp_path: Path) -> None:
    seen: list[list[bytes]] = []

    class Watch:
        def __init__(self) -> None:
            self.loader = loader(shuffle=True)
            seen.append([])

        def __len__(self) -> int:
            return 8

        def __iter__(self) -> Iterator[Any]:
            for x, y in self.loader:
                seen[-1].append(x.numpy().tobytes())
                yield x, y

    for name in ("one", "two"):
        run(Watch, tmp_path / name)
    assert seen[0] == seen[1]
    epochs = [seen[0][start : start + 8] for start in (0, 8, 16)]
    assert epochs[0] != epochs[1] != epochs[2]
