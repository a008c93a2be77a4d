"""The contract of every loader: it starts any epoch, resumes from a saved position in another process, and reports what
it cannot do."""

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

from helpers.shapes import check_shape
from helpers.stateful_loader import StatefulLoader
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


def batches(**options: Any) -> BatchLoader:
    data = PackedDataset((IMAGES * 16).to(torch.uint8), LABELS, tuple(map(str, range(COUNT))), ("even", "odd"))
    return BatchLoader(data, Preprocess(4, 4, 1), SIZE, shuffle=True, seed=3, **options)


def noise(image: Tensor) -> Tensor:
    return image + torch.randn(()) / 10


def items() -> list[Batch]:
    rows = torch.arange(COUNT).split(SIZE)
    return [Batch(IMAGES[part], LABELS[part], index=part) for part in rows]


class Unsized:
    """An iterable without a length."""

    def __iter__(self) -> Iterator[Batch]:
        yield from items()


class Stateful(StatefulLoader):
    """A loader that keeps its state, over the images of this file."""

    def __init__(self) -> None:
        super().__init__(IMAGES, LABELS, SIZE)


class Lazy(Sequence[Batch]):
    """A sequence that creates each batch on access and does not support slices."""

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, number: Any) -> Batch:
        if not 0 <= number < STEPS:
            raise IndexError(number)
        return items()[number]


class StatefulBatches(Stateful):
    """`Stateful` with `Batch` items, so that it needs no adapter."""

    def __iter__(self) -> Iterator[Any]:
        for images, labels in super().__iter__():
            yield Batch(images, labels)


def shuffled(**options: Any) -> LoaderAdapter:
    return LoaderAdapter(DataLoader(TensorDataset(IMAGES, LABELS), SIZE, shuffle=True, **options))


class CustomLoader(Loader):
    """A user-defined loader with only the methods that the protocol requires."""

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
    "BatchLoader": batches,
    "BatchLoader, augmented": lambda: batches(augment=[Flip(), ShiftCrop(1)], workers=2),
    "transformed": lambda: TransformedLoader(batches(), [noise], seed=1),
    "transformed, custom": lambda: TransformedLoader(CustomLoader(), [noise], seed=1),
    "a DataLoader": shuffled,
    "a DataLoader with its generator": lambda: shuffled(generator=torch.Generator().manual_seed(2)),
    "a list of tuples": lambda: LoaderAdapter([(batch.x, batch.y) for batch in items()]),
    "a stateful loader": lambda: LoaderAdapter(Stateful()),
    "a stateful loader of batches": lambda: as_loader(StatefulBatches()),
    "a generator": lambda: LoaderAdapter(((batch.x, batch.y) for batch in itertools.cycle(items())), steps=STEPS),
    "a list": lambda: as_loader(items()),
    "a lazy sequence": lambda: as_loader(Lazy()),
    "a tuple": lambda: as_loader(tuple(items())),
    "an iterable": lambda: as_loader(Unsized()),
    "a custom loader": CustomLoader,
}
SEQUENTIAL = ("a stateful loader", "a stateful loader of batches", "a generator")
"""Loaders whose next epoch is whatever batches come next, not a function of the epoch number."""


@pytest.fixture(params=LOADERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def epoch_of(loader: Loader, epoch: int, batch: int = 0, position: Any = None) -> list[Batch]:
    """One epoch of batches, requested as the trainer does: torch's generator is seeded by the epoch."""
    Runtime("cpu", seed=4).reseed(epoch, "loader")
    loader.seek(epoch, batch, position)
    return [Batch(*map(copied, item)) for item in loader]


def copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.x, b.x) and torch.equal(a.y, b.y)  # type: ignore[arg-type]
        for a, b in zip(one, other, strict=True)
    )


def saved(position: Any) -> Any:
    """A position after a round trip through a checkpoint."""
    file = io.BytesIO()
    torch.save(position, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_it_is_a_loader_with_the_right_number_of_batches(name: str) -> None:
    loader = LOADERS[name]()
    assert isinstance(loader, Loader)
    assert as_loader(loader) is loader
    epoch = epoch_of(loader, 0)
    assert len(epoch) == STEPS
    if name == "an iterable":
        with pytest.raises(TypeError):
            len(loader)
    else:
        assert len(loader) == STEPS


def test_batches_have_the_documented_shapes_and_dtypes(name: str) -> None:
    for batch in epoch_of(LOADERS[name](), 0):
        sizes = check_shape(batch.x, "float32 [B,C,H,W]", {"C": 1, "H": 4, "W": 4})
        check_shape(batch.y, "int64 [B]", sizes)
        if batch.index is not None:
            check_shape(batch.index, "int64 [B]", sizes)
        if batch.weight is not None:
            check_shape(batch.weight, "float32 [B]", sizes)


@pytest.mark.parametrize("name", sorted(set(LOADERS) - set(SEQUENTIAL)))
def test_an_epoch_is_a_function_of_its_number(name: str) -> None:
    """It does not depend on earlier epochs, nor on one that was left early."""
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
    following = [Batch(*map(copied, item)) for item in loader]
    if name in SEQUENTIAL:
        epoch_of(other, 0)
    assert same(following, epoch_of(other, 1))


@pytest.mark.parametrize("done", [1, STEPS - 1])
def test_a_position_inside_an_epoch_is_resumed(name: str, done: int) -> None:
    """In another process, from what a checkpoint saves; or the loader reports that it cannot."""
    loader, again = LOADERS[name](), LOADERS[name]()
    Runtime("cpu", seed=4).reseed(1, "loader")
    loader.seek(1)
    iterator = iter(loader)
    for _ in range(done):
        next(iterator)
    position = loader.position()
    rest = [Batch(*map(copied, item)) for item in iterator]
    if position is None:
        if isinstance(again, IterableLoader):  # it reads the batches before the position again
            assert same(epoch_of(again, 1, done), rest)
        else:
            with pytest.raises(DataError, match=f"cannot start epoch 1 at batch {done}"):
                again.seek(1, done)
            assert len(list(again)) == STEPS, "the refused seek had an effect"
        return
    assert same(epoch_of(again, 1, done, saved(position)), rest)


def test_the_position_after_an_epoch_is_the_start_of_the_next(name: str) -> None:
    loader, again = LOADERS[name](), LOADERS[name]()
    epoch_of(loader, 0)
    position = saved(loader.position())
    assert same(epoch_of(again, 1, 0, position), epoch_of(loader, 1))


@pytest.mark.parametrize("name", sorted(set(LOADERS) - {"a generator"}))
def test_the_learning_rate_finder_does_not_move_the_loader(name: str) -> None:
    """Training is the same with and without a search before it. The batches of a generator cannot be restored."""

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
    """From the first batch on, whatever the position of the loader was."""
    loader = LOADERS[name]()
    if loader.position() == {}:
        loader.seek(0, 2)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    seen: list[int] = []
    evaluate(SupervisedTask(torch.nn.CrossEntropyLoss()), model, loader, Meter(), between=lambda: seen.append(1))
    assert len(seen) == STEPS


def test_the_trainer_resumes_a_loader_of_another_library_at_its_position(tmp_path: Path) -> None:
    """Its state is read only after it was restored, and is the state of the interrupted run."""
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
def test_an_object_that_is_not_a_loader_is_an_error(missing: str) -> None:
    members = {
        "seek": CustomLoader.seek,
        "position": CustomLoader.position,
        "__iter__": CustomLoader.__iter__,
        "__len__": CustomLoader.__len__,
    }
    half = type("Half", (), {name: value for name, value in members.items() if name != missing})()
    message = rf"Half has `seek` but lacks {missing}\. Derive it from sightline\.Loader"
    with pytest.raises(TypeError, match=message):
        as_loader(half)
    task, state = SupervisedTask(torch.nn.CrossEntropyLoss()), TrainState(torch.nn.Linear(1, 1))
    with pytest.raises(TypeError, match="Half has `seek` but lacks"):
        Trainer(task, state, items(), {"val": half}, max_epochs=1)
    with pytest.raises(TypeError, match="expected an iterable of batches, found int"):
        as_loader(3)  # type: ignore[arg-type]
