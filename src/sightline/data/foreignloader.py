"""Batches of another library's making, as the trainer takes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.data.generators import preserved, seed_all
from sightline.errors import DataError, listing
from sightline.random import derive
from sightline.types import Batch

_END = object()
_IMAGES = ("x", "image", "images", "pixel_values", "input", "inputs", "data")
_LABELS = ("y", "label", "labels", "target", "targets")


class ForeignLoader:
    """Any DataLoader, iterable or generator as a loader of `Batch`es on `device`.

    A batch may be (images, labels), (images, labels, weights), a dict with such keys (`image`, `pixel_values`, …;
    `label`, `target`, …) or a `Batch`; arrays become tensors, and several inputs stay a tuple. Images are taken as they
    come: float32 [B,C,H,W], normalised. A generator, which cannot begin anew, needs `steps`, the length of an epoch,
    and each epoch goes on where the last one stopped.

    `seek` to the middle of an epoch: where the loader has `state_dict` (torchdata's StatefulDataLoader) and its state
    was given back by `load_state_dict`, it goes on from there; else the batches before are read and dropped, which
    gives the same ones as long as the loader's order is a function of torch's generator, as DataLoader's is."""

    def __init__(self, batches: Iterable[Any], *, steps: int | None = None, device: torch.device | str = "cpu"):
        if not isinstance(batches, Iterable):
            raise TypeError(f"expected an iterable of batches, got {type(batches).__name__}")
        if isinstance(batches, Iterator) and steps is None:
            raise TypeError("a generator has no length: say with steps= how many of its batches are an epoch")
        self.batches = batches
        self.steps = steps
        self.device = torch.device(device)
        self._epoch, self._batch = 0, 0
        self._restored = False
        self._taken = 0  # batches taken from a generator so far

    def __len__(self) -> int:
        if self.steps is not None:
            return self.steps
        if isinstance(self.batches, Sized):
            return len(self.batches)
        raise TypeError(f"{type(self.batches).__name__} has no length; say with steps= how long an epoch is")

    def seek(self, epoch: int, batch: int = 0) -> None:
        """Makes the next iteration epoch `epoch` from batch `batch` on."""
        self._epoch, self._batch = epoch, batch

    def state_dict(self) -> dict[str, Any]:
        """The wrapped loader's own state, where it has one."""
        own = getattr(self.batches, "state_dict", None)
        return {"loader": own()} if own is not None else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Gives the wrapped loader its state back; the next iteration goes on from there."""
        own = getattr(self.batches, "load_state_dict", None)
        if own is not None and "loader" in state:
            own(state["loader"])
            self._restored = True

    def __iter__(self) -> Iterator[Batch]:
        epoch, first, restored = self._epoch, self._batch, self._restored
        self._epoch, self._batch, self._restored = epoch + 1, 0, False
        for owner in (self.batches, getattr(self.batches, "sampler", None)):
            if callable(getattr(owner, "set_epoch", None)):  # DistributedSampler's way to shuffle anew
                owner.set_epoch(epoch)  # type: ignore[union-attr]
        dropped = 0 if restored else first
        if isinstance(self.batches, Iterator) and self.steps is not None and not restored:
            dropped = max(0, epoch * self.steps + first - self._taken)  # none, but in a process that resumes
        base = int(torch.randint(2**62, ()))  # the trainer has seeded torch for the epoch: a function of it
        found = iter(self.batches)
        for number in range(first - dropped, first):
            if self._next(found, base, number) is _END:
                break
        count = first
        while self.steps is None or count < self.steps:
            batch = self._next(found, base, count)
            if batch is _END:
                break
            count += 1
            yield self._converted(batch)
        if self.steps is not None and count < self.steps:
            raise DataError(
                f"the loader gave {count} batches in epoch {epoch}, but steps says {self.steps}. "
                f"Set steps to what an epoch has, or make the generator go on."
            )

    def _next(self, batches: Iterator[Any], base: int, number: int) -> Any:
        """The next batch, or _END. What transforms in this process draw is a function of the epoch and the batch's
        number: the same when the batches before it are read in one go."""
        with preserved():
            seed_all(derive(base, number, "foreign"))
            batch = next(batches, _END)
        self._taken += batch is not _END
        return batch

    def _converted(self, batch: Any) -> Batch:
        if isinstance(batch, Batch):
            weight, index = (None if part is None else self._labels(part) for part in batch[2:])
            return Batch(self._tensors(batch.x), self._labels(batch.y), weight, index)
        if isinstance(batch, Mapping):
            return Batch(self._tensors(_pick(batch, _IMAGES)), self._labels(_pick(batch, _LABELS)))
        if isinstance(batch, Sequence) and len(batch) in (2, 3):
            weight = self._tensors(batch[2]) if len(batch) == 3 else None
            return Batch(self._tensors(batch[0]), self._labels(batch[1]), weight)
        found = f"{len(batch)} values" if isinstance(batch, Sequence) else type(batch).__name__
        raise DataError(f"a batch of the loader is {found}; expected (images, labels) or a dict of them.")

    def _tensors(self, value: Any) -> Any:
        if isinstance(value, tuple | list):
            return tuple(self._tensors(part) for part in value)
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
        if tensor.dtype == torch.uint8:
            raise DataError(
                f"the loader gives uint8 images {list(tensor.shape)}; the network takes normalised floats. Convert and "
                f"normalise them in the loader, or give the data set itself as source=."
            )
        return tensor.to(self.device, non_blocking=True)

    def _labels(self, value: Any) -> Any:
        if isinstance(value, tuple | list) and value and not isinstance(value[0], int | float):
            return tuple(self._labels(part) for part in value)
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
        whole = not tensor.is_floating_point() and tensor.dtype != torch.int64
        return (tensor.to(torch.int64) if whole else tensor).to(self.device, non_blocking=True)


def _pick(batch: Mapping[str, Any], names: Sequence[str]) -> Any:
    for name in names:
        if name in batch:
            return batch[name]
    raise DataError(f"a batch of the loader has the keys {listing(map(str, batch))}, none of {listing(names)}.")
