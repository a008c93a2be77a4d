"""What every loader must do: begin any epoch, come back to a position in another process, and say what it cannot do."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from helpers.stateful_loader import TorchdataLike
from helpers.stop_at import StopAt
from sightline.core.errors import DataError
from sightline.core.types import Batch, Loader, TrainState
from sightline.data.augment.flip_shift import Flip, ShiftCrop
from sightline.data.augment.per_image import TransformedLoader
from sightline.data.cache.dataset import PackedDataset
from sightline.data.images.preprocess import Preprocess
from sightline.data.loading.adapter import LoaderAdapter
from sightline.data.loading.loader import BatchLoader
from sightline.engine.checkpoint.content import load_checkpoint
from sightline.engine.checkpoint.writer import Checkpointer
from sightline.engine.iterable_loader import IterableLoader, as_loader
from sightline.engine.runtime import Runtime
from sightline.engine.tasks import SupervisedTask
from sightline.engine.tools.lr_finder import find_lr
from sightline.engine.trainer import Trainer, evaluate
from sightline.metrics.meter import Meter

COUNT, SIZE = 20, 4
STEPS = COUNT // SIZE
IMAGES = torch.arange(COUNT * 16, dtype=torch.float32).reshape(COUNT, 1, 4, 4) / 160
LABELS = torch.arange(COUNT) % 2


def batches(**how: Any) -> BatchLoader:
    data = PackedDataset((IMAGES * 16).to(torch.uint8), LABELS, tuple(map(str, range(COUNT))), ("even", "odd"))
    return BatchLoader(data, Preprocess(4, 4, 1), SIZE, shuffle=True, seed=3, **how)


def noise(image: Tensor) -> Tensor:
    return image + torch.randn(()) / 10


def items() -> list[Batch]:
    rows = torch.arange(COUNT).split(SIZE)
    return [Batch(IMAGES[part], LABELS[part], index=part) for part in rows]


class Unsized:
    """An iterable without a length."""

    def __iter__(self) -> Iterator[Batch]:
        yield from items()


class Stateful(TorchdataLike):
    """The same of the images here."""

    def __init__(self) -> None:
        super().__init__(IMAGES, LABELS, SIZE)


class Lazy(Sequence[Batch]):
    """A sequence that makes each batch when it is asked for, and takes no slices."""

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, number: Any) -> Batch:
        if not 0 <= number < STEPS:
            raise IndexError(number)
        return items()[number]


class StatefulBatches(Stateful):
    """The same of `Batch`es, which needs no adapter."""

    def __iter__(self) -> Iterator[Any]:
        for images, labels in super().__iter__():
            yield Batch(images, labels)


def shuffled(**how: Any) -> LoaderAdapter:
    return LoaderAdapter(DataLoader(TensorDataset(IMAGES, LABELS), SIZE, shuffle=True, **how))


class Own(Loader):
    """A user's, with what the protocol asks for alone."""

    def __init__(self) -> None:
        self.epoch = self.batch = 0

    def seek(self, epoch: int, batch: int = 0, position: Any = None) -> None:
        self.epoch, self.batch = epoch, batch

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = self.epoch, self.batch
        self.epoch, self.batch = epoch + 1, 0
        for batch in items()[first:]:
            yield batch._replace(x=batch.x + epoch)


LOADERS: dict[str, Callable[[], Loader]] = {
    "ours": batches,
    "ours, augmented": lambda: batches(augment=[Flip(), ShiftCrop(1)], workers=2),
    "transformed": lambda: TransformedLoader(batches(), [noise], seed=1),
    "transformed, foreign": lambda: TransformedLoader(Own(), [noise], seed=1),
    "a DataLoader": shuffled,
    "a DataLoader with its generator": lambda: shuffled(generator=torch.Generator().manual_seed(2)),
    "a list of theirs": lambda: LoaderAdapter([(batch.x, batch.y) for batch in items()]),
    "one that keeps its place": lambda: LoaderAdapter(Stateful()),
    "batches that keep their place": lambda: as_loader(StatefulBatches()),
    "a generator": lambda: LoaderAdapter(((batch.x, batch.y) for batch in itertools.cycle(items())), steps=STEPS),
    "a list": lambda: as_loader(items()),
    "a lazy sequence": lambda: as_loader(Lazy()),
    "a tuple": lambda: as_loader(tuple(items())),
    "an iterable": lambda: as_loader(Unsized()),
    "a user's": Own,
}
OWN_ORDER = ("one that keeps its place", "batches that keep their place", "a generator")
"""Their next epoch is what comes next, whatever its number."""


@pytest.fixture(params=LOADERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def epoch_of(loader: Loader, epoch: int, batch: int = 0, position: Any = None) -> list[Batch]:
    """As the trainer asks for it: torch's generator is a function of the epoch."""
    Runtime("cpu", seed=4).reseed(epoch, "loader")
    loader.seek(epoch, batch, position)
    return [Batch(*map(copied, found)) for found in loader]


def copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.x, b.x) and torch.equal(a.y, b.y)  # type: ignore[arg-type]
        for a, b in zip(one, other, strict=True)
    )


def saved(position: Any) -> Any:
    """As it comes back from a checkpoint."""
    file = io.BytesIO()
    torch.save(position, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_it_is_a_loader_of_so_many_batches(name: str) -> None:
    loader = LOADERS[name]()
    assert isinstance(loader, Loader)
    assert as_loader(loader) is loader
    found = epoch_of(loader, 0)
    assert len(found) == STEPS
    if name == "an iterable":
        with pytest.raises(TypeError):
            len(loader)
    else:
        assert len(loader) == STEPS


@pytest.mark.parametrize("name", sorted(set(LOADERS) - set(OWN_ORDER)))
def test_an_epoch_is_a_function_of_its_number(name: str) -> None:
    """Not of the epochs before, nor of whether one was left early."""
    loader = LOADERS[name]()
    first, second = epoch_of(loader, 0), epoch_of(loader, 1)
    loader.seek(5)
    next(iter(loader))
    assert same(epoch_of(loader, 1), second)
    assert same(epoch_of(LOADERS[name](), 1), second)
    assert same(epoch_of(loader, 0), first)


def test_without_a_seek_the_next_epoch_follows(name: str) -> None:
    loader, other = LOADERS[name](), LOADERS[name]()
    epoch_of(loader, 0)
    Runtime("cpu", seed=4).reseed(1, "loader")
    following = [Batch(*map(copied, found)) for found in loader]
    if name in OWN_ORDER:
        epoch_of(other, 0)
    assert same(following, epoch_of(other, 1))


@pytest.mark.parametrize("done", [1, STEPS - 1])
def test_a_position_in_mid_epoch_is_come_back_to(name: str, done: int) -> None:
    """In another process, by what a checkpoint keeps; or it says that it cannot be."""
    loader, again = LOADERS[name](), LOADERS[name]()
    Runtime("cpu", seed=4).reseed(1, "loader")
    loader.seek(1)
    iterator = iter(loader)
    for _ in range(done):
        next(iterator)
    position = loader.position()
    rest = [Batch(*map(copied, found)) for found in iterator]
    if position is None:
        if isinstance(again, IterableLoader):  # which reads what comes before again
            assert same(epoch_of(again, 1, done), rest)
        else:
            with pytest.raises(DataError, match=f"cannot begin epoch 1 at batch {done}"):
                again.seek(1, done)
            assert len(list(again)) == STEPS, "nothing was sought"
        return
    assert same(epoch_of(again, 1, done, saved(position)), rest)


def test_the_position_after_an_epoch_is_the_beginning_of_the_next(name: str) -> None:
    loader, again = LOADERS[name](), LOADERS[name]()
    epoch_of(loader, 0)
    position = saved(loader.position())
    assert same(epoch_of(again, 1, 0, position), epoch_of(loader, 1))


@pytest.mark.parametrize("name", sorted(set(LOADERS) - {"a generator"}))
def test_the_learning_rate_finder_leaves_it_where_it_was(name: str) -> None:
    """Training is the same with and without a search before it; the batches of a generator cannot be put back."""

    def trained(search: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1))
        task, loader, runtime = SupervisedTask(torch.nn.CrossEntropyLoss()), LOADERS[name](), Runtime("cpu", seed=4)
        if search:
            find_lr(task, state, loader, high=1e-2, steps=8, runtime=runtime)
        Trainer(task, state, loader, {"val": items()}, max_epochs=2, runtime=runtime).fit()
        return [*model.state_dict().values()]

    assert all(map(torch.equal, trained(search=False), trained(search=True)))


def test_an_evaluation_reads_each_batch_once(name: str) -> None:
    """From the first, wherever the loader was."""
    loader = LOADERS[name]()
    if loader.position() == {}:
        loader.seek(0, 2)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    seen: list[int] = []
    evaluate(SupervisedTask(torch.nn.CrossEntropyLoss()), model, loader, Meter(), between=lambda: seen.append(1))
    assert len(seen) == STEPS


def test_a_loader_of_another_library_in_the_trainer_is_resumed_where_it_was(tmp_path: Path) -> None:
    """Its state is asked for after it was given back, never before, and is what the interrupted run had."""
    calls: list[str] = []

    class Watched(StatefulBatches):
        def state_dict(self) -> dict[str, Any]:
            calls.append("state_dict")
            return super().state_dict()

        def load_state_dict(self, state: dict[str, Any]) -> None:
            calls.append("load_state_dict")
            super().load_state_dict(state)

    def trained(folder: Path, stop: int | None = None, resume: bool = False) -> list[Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1))
        checkpointer = Checkpointer(folder / "last.ckpt", folder / "best.ckpt", "train_loss", "min")
        callbacks = [checkpointer, *([StopAt(stop)] if stop else [])]
        task, runtime = SupervisedTask(torch.nn.CrossEntropyLoss()), Runtime("cpu", seed=4)
        trainer = Trainer(task, state, Watched(), max_epochs=3, callbacks=callbacks, runtime=runtime)
        if resume:
            load_checkpoint(folder / "last.ckpt", state)
        calls.clear()
        trainer.fit()
        return [*model.state_dict().values()]

    uninterrupted = trained(tmp_path / "uninterrupted")
    for stop in (3, STEPS, 2 * STEPS + 1):
        folder = tmp_path / f"{stop}"
        trained(folder, stop=stop)
        resumed = trained(folder, resume=True)
        assert calls[0] == "load_state_dict"
        assert calls.count("load_state_dict") == 1
        assert all(map(torch.equal, resumed, uninterrupted))


@pytest.mark.parametrize("missing", ["position", "__len__"])
def test_what_is_no_loader_is_an_error(missing: str) -> None:
    members = {"seek": Own.seek, "position": Own.position, "__iter__": Own.__iter__, "__len__": Own.__len__}
    half = type("Half", (), {name: value for name, value in members.items() if name != missing})()
    text = rf"Half has `seek`, but no {missing}\. Derive it from sightline\.Loader"
    with pytest.raises(TypeError, match=text):
        as_loader(half)
    task, state = SupervisedTask(torch.nn.CrossEntropyLoss()), TrainState(torch.nn.Linear(1, 1))
    with pytest.raises(TypeError, match="Half has `seek`, but no"):
        Trainer(task, state, items(), {"val": half}, max_epochs=1)
    with pytest.raises(TypeError, match="expected an iterable of batches, got int"):
        as_loader(3)  # type: ignore[arg-type]
