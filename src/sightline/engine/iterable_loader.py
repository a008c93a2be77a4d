"""Any iterable of batches as a `Loader`, which is what the trainer iterates."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sightline.core.errors import join_names
from sightline.core.types import Batch, Loader, StatefulLoader

_METHODS = ("seek", "position", "__iter__", "__len__")


def as_loader(batches: Iterable[Batch]) -> Loader:
    """A `Loader` as it is; any other iterable as one. Raises TypeError for what cannot be iterated, and for a class
    with `seek` that lacks another method of a `Loader`."""
    missing = [name for name in _METHODS if not callable(getattr(batches, name, None))]
    if not missing:
        return batches  # type: ignore[return-value]
    if "seek" not in missing:
        raise TypeError(
            f"{type(batches).__name__} has `seek`, but no {join_names(missing)}. Derive it from sightline.Loader, "
            f"and let `seek` take what `position` returned as its third argument."
        )
    if not isinstance(batches, Iterable):
        raise TypeError(f"expected an iterable of batches, got {type(batches).__name__}")
    return IterableLoader(batches)


def loader_class_name(loader: Loader) -> str:
    """The class of what is iterated, for messages."""
    return type(loader.batches if isinstance(loader, IterableLoader) else loader).__name__


class IterableLoader(Loader):
    """An iterable of `Batch`es on the run's device. An epoch begins at any batch of a sequence, such as a list, and
    where a `StatefulLoader` was; any other iterable is read from its beginning, and the batches before are dropped."""

    def __init__(self, batches: Iterable[Batch]):
        self.batches = batches
        self._first = 0
        self._restored = False

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]  # TypeError is what a caller expects of what has no length

    def seek(self, epoch: int, batch: int = 0, position: Mapping[str, Any] | None = None) -> None:
        """Every epoch has the same batches, as far as this class knows. A `StatefulLoader` gets its state back; where
        that is the state of the end of an epoch, the next one begins."""
        self._first = batch
        if position and isinstance(self.batches, StatefulLoader):
            self.batches.load_state_dict(position["loader"])
            self._restored = True

    def position(self) -> Mapping[str, Any] | None:
        """The state of a `StatefulLoader`; nothing more than the batch's number for a sequence; None for any other."""
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
