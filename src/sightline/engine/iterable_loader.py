"""Adapts any iterable of batches to the `Loader` protocol, which the trainer iterates."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sightline.core.errors import join_names
from sightline.core.types import Batch, Loader, StatefulLoader

_METHODS = ("seek", "position", "__iter__", "__len__")


def as_loader(batches: Iterable[Batch]) -> Loader:
    """Returns a `Loader` unchanged, and any other iterable wrapped in an `IterableLoader`.

    Raises TypeError if `batches` is not iterable, or has `seek` but lacks another method of `Loader`."""
    missing = [name for name in _METHODS if not callable(getattr(batches, name, None))]
    if not missing:
        return batches  # type: ignore[return-value]
    if "seek" not in missing:
        raise TypeError(
            f"{type(batches).__name__} has `seek` but lacks {join_names(missing)}. Derive it from sightline.Loader, "
            f"and let `seek` accept the value returned by `position` as its third argument."
        )
    if not isinstance(batches, Iterable):
        raise TypeError(f"expected an iterable of batches, found {type(batches).__name__}")
    return IterableLoader(batches)


def loader_class_name(loader: Loader) -> str:
    """The class name of the loader, or of the iterable in an `IterableLoader`, for messages."""
    return type(loader.batches if isinstance(loader, IterableLoader) else loader).__name__


class IterableLoader(Loader):
    """An iterable of `Batch`es on the run's device, as a `Loader`.

    A sequence, such as a list, can start at any batch, and a `StatefulLoader` where its state was saved. Any other
    iterable is read from its start, and the batches before the requested one are dropped."""

    def __init__(self, batches: Iterable[Batch]):
        self.batches = batches
        self._first = 0
        self._restored = False

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]  # callers expect a TypeError if there is no length

    def seek(self, epoch: int, batch: int = 0, position: Mapping[str, Any] | None = None) -> None:
        """Sets the batch at which the next iteration starts. `epoch` is ignored.

        A `StatefulLoader` gets its saved state back. If no batch is left in it, the next iteration starts a new epoch
        where `batch` is 0, and is empty otherwise."""
        self._first = batch
        if position and isinstance(self.batches, StatefulLoader):
            self.batches.load_state_dict(position["loader"])
            self._restored = True

    def position(self) -> Mapping[str, Any] | None:
        """The state of a `StatefulLoader`; {} for a sequence, where the batch number suffices; None for any other."""
        if isinstance(self.batches, StatefulLoader):
            return {"loader": self.batches.state_dict()}
        return {} if isinstance(self.batches, Sequence) else None

    def __iter__(self) -> Iterator[Batch]:
        first, restored = self._first, self._restored
        self._first, self._restored = 0, False
        if restored:
            rest = iter(self.batches)
            for batch in rest:
                return itertools.chain((batch,), rest)
            return iter(() if first else self.batches)
        if isinstance(self.batches, Sequence) and first:
            return (self.batches[number] for number in range(first, len(self.batches)))
        return itertools.islice(self.batches, first, None) if first else iter(self.batches)
