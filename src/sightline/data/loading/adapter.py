"""Batches of another library's making, as the trainer takes them."""

import re
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset, default_collate

from sightline.core.errors import DataError, join_names
from sightline.core.rng import derive_key, fork_rng, seed_global_generators
from sightline.core.types import Batch, Loader, StatefulLoader

_END = object()
_IMAGES = ("x", "image", "images", "pixel_values", "input", "inputs", "data")
_LABELS = ("y", "label", "labels", "target", "targets")
_BROADCAST = re.compile(r"output with shape \[(\d+), \d+, \d+\] doesn't match the broadcast shape \[(\d+), ")


class LoaderAdapter(Loader):
    """Any DataLoader, iterable or generator as a loader of `Batch`es on `device`.

    A batch may be (images, labels), (images, labels, weights), a dict with such keys (`image`, `pixel_values`, …;
    `label`, `target`, …) or a `Batch`; arrays become tensors, and several inputs stay a tuple. Images are taken as they
    come: float32 [B,C,H,W], normalised. With `as_given` a batch may be anything, and is handed on as it is, for a task
    that takes it apart itself. A generator, which cannot begin anew, needs `steps`, the length of an epoch, and each
    epoch goes on where the last one stopped.

    A list or tuple begins an epoch at any batch, and so does a loader with `state_dict` and `load_state_dict`
    (torchdata's StatefulDataLoader), whose state is its `position`. No other is read again from its beginning to get
    there, which could take as long as training did: its runs are resumed at the beginning of an epoch, where the order
    is the same as long as it is drawn from torch's generator, as DataLoader's is, or from a `torch.Generator` of the
    loader's or its sampler's own, which is set for each epoch as a function of its seed and the epoch. A generator that
    a new process made continues with whatever it gives first: to get the same batches, make it begin where the epoch
    does."""

    def __init__(
        self,
        batches: Iterable[Any],
        *,
        steps: int | None = None,
        device: torch.device | str = "cpu",
        as_given: bool = False,
    ):
        if not isinstance(batches, Iterable):
            raise TypeError(f"expected an iterable of batches, got {type(batches).__name__}")
        if isinstance(batches, Iterator) and steps is None:
            raise TypeError("a generator has no length: say with steps= how many of its batches are an epoch")
        self.batches = batches
        self.steps = steps
        self.device = torch.device(device)
        self.as_given = as_given
        self._epoch, self._batch = 0, 0
        self._restored = False
        self._taken = 0  # batches taken from a generator so far
        self._before: int | None = None  # batches of the run before its first; none, but in a process that resumes

    def __len__(self) -> int:
        if self.steps is not None:
            return self.steps
        if isinstance(self.batches, Sized):
            return len(self.batches)
        raise TypeError(f"{type(self.batches).__name__} has no length; say with steps= how long an epoch is")

    def seek(self, epoch: int, batch: int = 0, position: Mapping[str, Any] | None = None) -> None:
        """Makes the next iteration epoch `epoch` from batch `batch` on. The wrapped loader gets the state in `position`
        back; where that is the state of the end of an epoch, the next one begins. Raises DataError for a batch that
        could only be reached by reading those before it again."""
        if position and "loader" in position and isinstance(self.batches, StatefulLoader):
            self.batches.load_state_dict(position["loader"])
            self._restored = True
        if batch and not (isinstance(self.batches, list | tuple) or self._restored or self._has_given(epoch, batch)):
            raise DataError(
                f"the {type(self.batches).__name__} cannot begin epoch {epoch} at batch {batch}: {self._why_not()}"
            )
        self._epoch, self._batch = epoch, batch

    def _has_given(self, epoch: int, batch: int) -> bool:
        """Whether a generator has given what is before this place already, to this process."""
        if not isinstance(self.batches, Iterator) or self.steps is None or self._before is None:
            return False
        return epoch * self.steps + batch <= self._before + self._taken

    def _why_not(self) -> str:
        if isinstance(self.batches, StatefulLoader):
            return (
                "its state of that moment was not passed in as `position`. Resume from a checkpoint that holds it, "
                "or from an epoch's beginning."
            )
        return (
            "it has no state_dict and load_state_dict, and the batches before are not read again to get there. Go on "
            "from a checkpoint of an epoch's beginning, or give a loader that keeps its place, such as torchdata's "
            "StatefulDataLoader."
        )

    def position(self) -> Mapping[str, Any] | None:
        """The wrapped loader's own state, where it has one that it can be given back; nothing more for a list or tuple;
        None for any other."""
        if isinstance(self.batches, StatefulLoader):
            return {"loader": self.batches.state_dict()}
        return {} if isinstance(self.batches, list | tuple) else None

    def __iter__(self) -> Iterator[Batch]:
        epoch, first, restored = self._epoch, self._batch, self._restored
        self._epoch, self._batch, self._restored = epoch + 1, 0, False
        for part in self._parts():
            if callable(getattr(part, "set_epoch", None)):  # DistributedSampler's way to shuffle anew
                part.set_epoch(epoch)
        place = epoch * (self.steps or 0) + first
        if self._before is None or restored:
            self._before = place - self._taken
        # what an epoch that was left early has not taken from a generator, which is still alive
        dropped = max(0, place - self._before - self._taken) if isinstance(self.batches, Iterator) else 0
        base = int(torch.randint(2**62, ()))  # the trainer has seeded torch for the epoch: a function of it
        own = self._own(epoch)
        ready, draws = not own and _is_ready(self.batches), True
        with _lent(own):
            found = iter(self.batches[first:] if isinstance(self.batches, list | tuple) else self.batches)
        for number in range(first - dropped, first):
            if self._next(found, own, base, number) is _END:
                break
        count = first
        while self.steps is None or count < self.steps:
            batch = self._next(found, own, base, count, draws)
            if batch is _END and restored and first == count == 0:  # that was the state of the end of an epoch
                restored, found = False, iter(self.batches)
                continue
            draws = not ready
            if batch is _END:
                break
            count += 1
            yield batch if self.as_given else self._converted(batch)
        if self.steps is not None and count < self.steps:
            raise DataError(
                f"the loader gave {count} batches in epoch {epoch}, but steps says {self.steps}. "
                f"Set steps to what an epoch has, or make the generator go on."
            )

    def _parts(self) -> list[Any]:
        """What may draw the order, and may be told the epoch: the loader and its samplers, each once."""
        batch_sampler = getattr(self.batches, "batch_sampler", None)
        parts = (
            self.batches,
            getattr(self.batches, "sampler", None),
            batch_sampler,
            getattr(batch_sampler, "sampler", None),
        )
        return list({id(part): part for part in parts}.values())

    def _own(self, epoch: int) -> dict[torch.Generator, Tensor]:
        """The loader's own generators, and their states at the beginning of an epoch: a function of their seeds. Those
        of a loader that keeps its place are in its state."""
        parts = [] if isinstance(self.batches, StatefulLoader) else self._parts()
        found = [getattr(part, "generator", None) for part in parts]
        own = {each for each in found if isinstance(each, torch.Generator) and each is not torch.default_generator}
        return {
            each: torch.Generator(each.device).manual_seed(derive_key(each.initial_seed(), epoch, "loader")).get_state()
            for each in own
        }

    def _next(
        self, batches: Iterator[Any], own: dict[torch.Generator, Tensor], base: int, number: int, draws: bool = True
    ) -> Any:
        """The next batch, or _END. What transforms in this process draw is a function of the epoch and the batch's
        number: the same when the batches before it are read in one go. Where nothing `draws`, no generator is set,
        which for ready tensors takes a tenth of a small step."""
        try:
            if draws:
                with fork_rng(), _lent(own):
                    seed_global_generators(derive_key(base, number, "foreign"))
                    batch = next(batches, _END)
            else:
                batch = next(batches, _END)
        except RuntimeError as error:
            reason = _explained(error)
            if reason is None:
                raise
            raise DataError(reason) from error
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


def _is_ready(batches: Iterable[Any]) -> bool:
    """Whether nothing draws from a global generator once an epoch's first batch is there: the batches are in memory, or
    they are made of tensors in memory, in an order that torch draws at the beginning."""
    if type(batches) is not DataLoader:
        return type(batches) in (list, tuple)
    return (
        type(batches.dataset) is TensorDataset
        and batches.collate_fn is default_collate
        and batches.num_workers == 0
        and type(batches.batch_sampler) is BatchSampler
        and _draws_at_first(batches.batch_sampler.sampler)
    )


def _draws_at_first(sampler: Any) -> bool:
    if type(sampler) is RandomSampler:  # it draws as it goes from a generator that was passed in
        return sampler.generator is None
    return type(sampler) is SequentialSampler


@contextmanager
def _lent(own: dict[torch.Generator, Tensor]) -> Iterator[None]:
    """Generators go on from the states that are noted of them, which are noted anew after the block. Outside of it they
    are as their owner has them, so that epochs that are left early, or run side by side, do not meet in them."""
    before = {generator: generator.get_state() for generator in own}
    for generator, state in own.items():
        generator.set_state(state)
    try:
        yield
    finally:
        for generator, state in before.items():
            own[generator] = generator.get_state()
            generator.set_state(state)


def _pick(batch: Mapping[str, Any], names: Sequence[str]) -> Any:
    for name in names:
        if name in batch:
            return batch[name]
    raise DataError(f"a batch of the loader has the keys {join_names(map(str, batch))}, none of {join_names(names)}.")


def _explained(error: RuntimeError) -> str | None:
    """What is wrong with a Normalize for three channels over a picture of one; None for any other error."""
    match = _BROADCAST.search(str(error))
    if match is None or "normalize" not in "".join(traceback.format_exception(error)).lower():
        return None
    return (
        f"the transform Normalize has a mean and a std of {match[2]} values, and the image has {match[1]} channel(s). "
        f"For one channel write Normalize((0.5,), (0.5,))."
    )
