"""Loaders of other libraries: which batches are accepted, which are refused with a message, and that a resumed run
equals an uninterrupted one."""

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

from helpers.stateful_loader import StatefulLoader
from helpers.stop_at import StopAt
from sightline.core.errors import DataError
from sightline.core.types import Batch, FitResult, Loader, TrainState
from sightline.data.loading import adapter
from sightline.data.loading.adapter import LoaderAdapter
from sightline.engine.checkpoint.content import load_checkpoint
from sightline.engine.checkpoint.writer import Checkpointer
from sightline.engine.runtime import Runtime
from sightline.engine.tasks import SupervisedTask
from sightline.engine.trainer import Trainer

COUNT, SIZE, CLASSES = 30, 4, 3
IMAGES = torch.randn(COUNT, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(COUNT) % CLASSES


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(IMAGES, LABELS), batch_size=SIZE, **options)


def batched() -> DataLoader[Any]:
    """A loader whose generator belongs to the sampler inside its batch sampler."""
    data = TensorDataset(IMAGES, LABELS)
    order = RandomSampler(data, generator=torch.Generator().manual_seed(2))
    return DataLoader(data, batch_sampler=BatchSampler(order, SIZE, False))


def first(batches: Iterable[Any], **options: Any) -> Batch:
    return next(iter(LoaderAdapter(batches, **options)))


class Drawing(RandomSampler):
    """Draws from the global generator before each sample."""

    def __iter__(self) -> Iterator[int]:
        for _ in range(len(self)):
            yield int(torch.randint(COUNT, ()))


def drawn(batches: Iterable[Any]) -> list[Tensor]:
    """The labels of two epochs."""
    torch.manual_seed(5)
    adapted, labels = LoaderAdapter(batches), []
    for epoch in range(2):
        adapted.seek(epoch)
        for batch in adapted:
            labels.append(batch.y)
            torch.rand(3)  # as a step with dropout
    return labels


DATA = TensorDataset(IMAGES, LABELS)
ORDERS: dict[str, tuple[Any, bool]] = {
    "in order": (loader, True),
    "shuffled": (lambda: loader(shuffle=True), True),
    "with replacement": (lambda: loader(sampler=RandomSampler(DATA, replacement=True, num_samples=70)), True),
    "a separate generator": (lambda: loader(shuffle=True, generator=torch.Generator().manual_seed(1)), False),
    "torch's global generator": (
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
def test_the_fast_path_for_tensors_in_memory_gives_the_same_order_as_the_general_one(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, ready = ORDERS[kind]
    assert adapter._is_ready(make()) is ready
    fast = drawn(make())
    monkeypatch.setattr(adapter, "_is_ready", lambda batches: False)
    general = drawn(make())
    assert len(fast) == len(general) > 10
    assert all(torch.equal(one, other) for one, other in zip(fast, general, strict=True))


# --- forms of a batch


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
    """Like transformers' BatchFeature: a mapping that is not a dict."""

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
    adapted = LoaderAdapter(batches)
    assert isinstance(adapted, Loader)
    assert len(adapted) == 2
    for _ in range(2):
        for position, batch in enumerate(adapted):
            assert torch.equal(batch.x, IMAGES[4 * position :][:4])
            assert torch.equal(batch.y, LABELS[4 * position :][:4])
            assert batch.y.dtype == torch.int64
            assert batch.weight is None


def test_weights_several_inputs_and_soft_targets() -> None:
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
    full = first([Batch(IMAGES[:4], LABELS[:4], weights, index)])
    assert full.index is not None
    assert torch.equal(full.index, index)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((IMAGES[:4],), r"A batch of the loader is a tuple of 1 values\. Expected \(images, labels\)"),
        ((1, 2, 3, 4), "is a tuple of 4 values"),
        (IMAGES[:4], "A batch of the loader is of type Tensor"),
        ({"image": IMAGES[:4]}, r"has the keys image\. Expected one of: y, label, labels, target, targets"),
        ({"foto": IMAGES[:4], "label": LABELS[:4]}, r"has the keys foto, label\. Expected one of: x, image"),
        ((IMAGES[:4].to(torch.uint8), LABELS[:4]), r"uint8 images \[4, 1, 4, 4\].*normalise them in the loader"),
        ((np.zeros((4, 3, 8, 8), np.uint8), LABELS[:4]), r"uint8 images \[4, 3, 8, 8\]"),
        ({"image": IMAGES[:4].to(torch.uint8), "label": LABELS[:4]}, "uint8 images"),
    ],
)
def test_an_invalid_batch_is_refused_with_a_message(batch: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        first([batch])


def test_batches_can_be_returned_unchanged() -> None:
    batches = [{"words": ["a"]}, IMAGES[:4].to(torch.uint8), (1, 2, 3, 4)]
    returned = list(LoaderAdapter(batches, as_given=True))
    assert all(batch is expected for batch, expected in zip(returned, batches, strict=True))


def test_uint8_labels_in_a_batch_object_are_not_taken_for_images() -> None:
    batch = first([Batch(IMAGES[:4], LABELS[:4].to(torch.uint8))])
    assert torch.equal(batch.y, LABELS[:4])  # type: ignore[arg-type]


def test_an_object_that_is_not_a_loader_is_refused() -> None:
    with pytest.raises(TypeError, match="expected an iterable of batches, found int"):
        LoaderAdapter(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"A generator has no length\. Set steps="):
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
    """With real worker processes."""
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


def test_a_generator_continues_where_the_previous_epoch_stopped() -> None:
    batches = LoaderAdapter(numbered(), steps=3)
    assert len(batches) == 3
    assert [numbers(batches) for _ in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_in_a_new_process_an_epoch_starts_with_the_first_batches_of_a_generator(epoch: int) -> None:
    """No batches are read to reach the position: that could take as long as training did."""
    batches = LoaderAdapter(numbered(), steps=3)
    batches.seek(epoch)
    assert [numbers(batches) for _ in range(2)] == [[0, 1, 2], [3, 4, 5]]
    for batch in (1, 2):
        with pytest.raises(
            DataError, match=f"The generator cannot start epoch {epoch} at batch {batch}: it has no sta"
        ):
            LoaderAdapter(numbered(), steps=3).seek(epoch, batch)


def test_an_epoch_left_early_does_not_move_the_next_one() -> None:
    """After an interruption in the middle of epoch 0, the same process continues from there."""
    batches = LoaderAdapter(numbered(), steps=3)
    assert numbers(itertools.islice(batches, 2)) == [0, 1]
    batches.seek(0, 2)
    assert numbers(batches) == [2]
    assert numbers(batches) == [3, 4, 5]
    assert numbers(itertools.islice(batches, 1)) == [6]
    with pytest.raises(DataError, match="The generator cannot start epoch 2 at batch 2"):
        batches.seek(2, 2)
    batches.seek(3)
    assert numbers(batches) == [9, 10, 11]


def test_a_generator_that_is_too_short_is_an_error() -> None:
    batches = LoaderAdapter(numbered(5), steps=3)
    assert numbers(batches) == [0, 1, 2]
    with pytest.raises(DataError, match=r"The loader returned 2 batches in epoch 1, but steps is 3"):
        numbers(batches)


def test_steps_limit_a_longer_loader() -> None:
    batches = LoaderAdapter(loader(), steps=5)
    assert [len(list(batches)) for _ in range(2)] == [5, 5]
    with pytest.raises(DataError, match="returned 8 batches in epoch 0, but steps is 9"):
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


def test_a_loader_with_its_generator_has_a_fixed_order_for_each_epoch() -> None:
    """Whatever was drawn before, and without a new seed for the generator."""
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


def test_interleaved_epochs_with_one_generator_are_independent_and_do_not_change_it() -> None:
    generator = torch.Generator().manual_seed(2)
    sampler = RandomSampler(IMAGES, replacement=True, num_samples=2 * COUNT, generator=generator)  # in parts of 32
    train, val = LoaderAdapter(loader(sampler=sampler)), LoaderAdapter(loader(shuffle=True, generator=generator))
    alone = [torch.cat([batch.x for batch in batches]) for batches in (train, train, val)]  # type: ignore[misc]
    train.seek(0)
    val.seek(0)
    torch.rand(5, generator=generator)
    state = generator.get_state()
    mixed: list[list[Tensor]] = [[], [], []]
    for one, other in zip(train, train, strict=True):
        mixed[0].append(one.x)  # type: ignore[arg-type]
        mixed[1].append(other.x)  # type: ignore[arg-type]
        if len(mixed[0]) == 2:
            mixed[2] = [batch.x for batch in val]  # type: ignore[misc]
    for parts, expected in zip(mixed, alone, strict=True):
        assert torch.equal(torch.cat(parts), expected)
    assert torch.equal(generator.get_state(), state)


# --- where an epoch can start


class Counting:
    """An iterable of batches with neither length nor indexing; `read` counts the batches that were read."""

    def __init__(self, stop: int = 8):
        self.stop, self.read = stop, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in numbered(self.stop):
            self.read += 1
            yield batch


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_starts_at_any_batch(kind: Callable[[Any], Any]) -> None:
    batches = LoaderAdapter(kind(numbered(8)))
    assert batches.position() == {}
    batches.seek(4, 5)
    assert [numbers(batches) for _ in range(2)] == [[5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7]]
    cut = LoaderAdapter(kind(numbered(8)), steps=6)
    cut.seek(1, 4)
    assert numbers(cut) == [4, 5]
    batches.seek(0, 8)
    assert numbers(batches) == []


def test_a_loader_without_a_state_is_not_read_to_reach_a_position() -> None:
    """After the refusal the loader still returns every batch."""
    plain = Counting()
    for iterable in (plain, loader(), DataLoader(Noisy(), batch_size=4)):
        batches = LoaderAdapter(iterable)
        assert batches.position() is None
        with pytest.raises(DataError, match=r"cannot start epoch 2 at batch 5.*StatefulDataLoader"):
            batches.seek(2, 5)
        assert len(list(batches)) == 8
        batches.seek(2)
        assert len(list(batches)) == 8
    assert plain.read == 16


def test_a_position_inside_an_epoch_needs_the_saved_state() -> None:
    batches = LoaderAdapter(Stateful())
    assert batches.position()
    with pytest.raises(DataError, match="Stateful cannot start epoch 0 at batch 3: its state at that batch was not"):
        batches.seek(0, 3)

    class Half(Stateful):
        load_state_dict = None  # type: ignore[assignment]

    half = LoaderAdapter(Half())
    assert half.position() is None


def test_the_state_at_the_end_of_an_epoch_starts_the_next_epoch() -> None:
    """A checkpoint after an epoch holds this state."""
    uninterrupted = LoaderAdapter(Stateful())
    epochs = [torch.cat([batch.x for batch in uninterrupted]) for _ in range(2)]  # type: ignore[misc]
    first, second = LoaderAdapter(Stateful()), LoaderAdapter(Stateful())
    assert torch.equal(torch.cat([batch.x for batch in first]), epochs[0])  # type: ignore[misc]
    second.seek(1, 0, first.position())
    assert torch.equal(torch.cat([batch.x for batch in second]), epochs[1])  # type: ignore[misc]


# --- interrupted and resumed runs


class Stateful(StatefulLoader):
    """A loader that keeps its state, over the images of this file."""

    def __init__(self) -> None:
        super().__init__(IMAGES, LABELS, SIZE)


class Noisy(Dataset[Any]):
    """A dataset with random transforms that draw from torch's global generator, as torchvision's do."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, row: int) -> Any:
        return IMAGES[row] + torch.randn(1, 4, 4) * 0.5, LABELS[row]


def run(
    make: Callable[[], Any], folder: Path, stop: int | None = None, resume: bool = False, epochs: int = 3
) -> tuple[FitResult, dict[str, Tensor], Any]:
    """Trains epochs of eight steps with dropout on a new loader; returns the result, the weights and the loader."""
    torch.manual_seed(123 + resume)  # nothing may depend on the state of torch's generator
    batches = make()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, CLASSES))
    state = TrainState(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    last = folder / "last.ckpt"
    checkpointer = Checkpointer(last, folder / "best.ckpt", "val_loss", "min")
    trainer = Trainer(
        SupervisedTask(nn.CrossEntropyLoss(), "logits"),
        state,
        LoaderAdapter(batches, steps=8 if isinstance(batches, Iterator) else None),
        {"val": LoaderAdapter(loader())},
        max_epochs=epochs,
        log_every=3,
        runtime=Runtime("cpu", seed=4),
        callbacks=(checkpointer, *([StopAt(stop)] if stop else ())),
    )
    if resume:
        load_checkpoint(last, state)
    return trainer.fit(), model.state_dict(), batches


def endless(epoch: int = 0) -> Iterator[Any]:
    """Endless random batches from the start of `epoch` on."""
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
    "a separate generator": lambda: loader(shuffle=True, generator=torch.Generator().manual_seed(2)),
    "a generator of the sampler": batched,
    "stateful": Stateful,
    "a list": lambda: [*itertools.islice(endless(), 8)],
}


WARNED = pytest.mark.filterwarnings("ignore:LoaderAdapter cannot start in the middle of an epoch")

# processes are slow to start: each of their loaders is interrupted once
STOPS = [(kind, stop) for kind in LOADERS for stop in ((13,) if "processes" in kind else (3, 8, 13))]


@WARNED
@pytest.mark.parametrize(("kind", "stop"), STOPS)
def test_a_run_interrupted_inside_an_epoch_and_resumed_equals_an_uninterrupted_one(
    kind: str, stop: int, tmp_path: Path
) -> None:
    """Weights, history and best value are equal to the bit, whether the run is resumed there or, if the loader has no
    state, at the start of the epoch."""
    uninterrupted, weights, _ = run(LOADERS[kind], tmp_path / "uninterrupted")
    stopped, _, _ = run(LOADERS[kind], tmp_path / "stopped", stop=stop)
    assert stopped.interrupted
    assert stopped.steps == stop
    state = torch.load(tmp_path / "stopped" / "last.ckpt", weights_only=True)
    assert state["step"] == (stop if kind in ("stateful", "a list") else (stop - 1) // 8 * 8)
    resumed, resumed_weights, _ = run(LOADERS[kind], tmp_path / "stopped", resume=True)
    assert not resumed.interrupted
    assert resumed.steps == uninterrupted.steps == 24
    assert resumed.history == uninterrupted.history
    assert resumed.best == uninterrupted.best
    for name, value in weights.items():
        assert torch.equal(value, resumed_weights[name]), name


@WARNED
@pytest.mark.parametrize("kind", [kind for kind in LOADERS if "processes" not in kind])
def test_a_run_killed_after_an_epoch_and_resumed_equals_an_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    uninterrupted, weights, _ = run(LOADERS[kind], tmp_path / "uninterrupted")
    run(LOADERS[kind], tmp_path / "stopped", epochs=1)
    resumed, resumed_weights, _ = run(LOADERS[kind], tmp_path / "stopped", resume=True)
    assert resumed.history == uninterrupted.history
    assert all(torch.equal(value, resumed_weights[name]) for name, value in weights.items())


@WARNED
def test_a_generator_that_starts_at_the_resumed_epoch_trains_the_same(tmp_path: Path) -> None:
    uninterrupted, weights, _ = run(endless, tmp_path / "uninterrupted")
    assert run(endless, tmp_path / "stopped", stop=13)[0].interrupted
    resumed, resumed_weights, _ = run(lambda: endless(epoch=1), tmp_path / "stopped", resume=True)
    assert resumed.history == uninterrupted.history
    assert all(torch.equal(value, resumed_weights[name]) for name, value in weights.items())


def test_a_stateful_loader_reads_no_batch_twice(tmp_path: Path) -> None:
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
    """As the states of NumPy's generators do."""

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
