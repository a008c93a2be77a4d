"""Adapts batches of other libraries (a DataLoader, an iterable or a generator) to the trainer's `Loader` interface."""

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
    """Wraps a DataLoader, an iterable or a generator as a loader of `Batch`es on `device`.

    A batch may be (images, labels), (images, labels, weights), a dict with keys for both (`image`, `pixel_values`, …;
    `label`, `target`, …) or a `Batch`. Arrays become tensors, and several inputs stay a tuple. Images must be ready for
    the network: float32 [B, C, H, W], normalised. With `as_given` a batch may be anything and is passed on unchanged,
    for a task that interprets it. A generator cannot start again, so it needs `steps`, the number of batches in an
    epoch, and each epoch continues where the last one stopped.

    An epoch can start at any batch for a list or tuple, and for a loader with `state_dict` and `load_state_dict` (such
    as torchdata's StatefulDataLoader), whose state is part of `position`. Other loaders are not read again up to a
    batch, which could take as long as training did: their runs are resumed at the start of an epoch.

    The order of an epoch is then the same if it is drawn from torch's global generator, as in DataLoader, or from a
    `torch.Generator` of the loader or its sampler, which is set for each epoch to a function of its seed and the epoch.
    In a new process a generator continues with its first batch: to get the same batches, make it start where the epoch
    starts."""

    def __init__(
        self,
        batches: Iterable[Any],
        *,
        steps: int | None = None,
        device: torch.device | str = "cpu",
        as_given: bool = False,
    ):
        if not isinstance(batches, Iterable):
            raise TypeError(f"batches: expected an iterable of batches, found {type(batches).__name__}.")
        if isinstance(batches, Iterator) and steps is None:
            raise TypeError("A generator has no length. Set steps= to the number of batches in an epoch.")
        self.batches = batches
        self.steps = steps
        self.device = torch.device(device)
        self.as_given = as_given
        self._epoch, self._batch = 0, 0
        self._restored = False
        self._read = 0  # batches read from `batches` so far
        self._offset: int | None = None  # batches of the run before the first one read; above 0 only after resuming

    def __len__(self) -> int:
        if self.steps is not None:
            return self.steps
        if isinstance(self.batches, Sized):
            return len(self.batches)
        raise TypeError(
            f"{type(self.batches).__name__} has no length. Set steps= to the number of batches in an epoch."
        )

    def seek(self, epoch: int, batch: int = 0, position: Mapping[str, Any] | None = None) -> None:
        """Makes the next iteration start epoch `epoch` at batch `batch`.

        The state in `position` is loaded into the wrapped loader; if it is from the end of an epoch, the next epoch
        starts. Raises DataError for a batch that could only be reached by reading those before it again."""
        if position and "loader" in position and isinstance(self.batches, StatefulLoader):
            self.batches.load_state_dict(position["loader"])
            self._restored = True
        if batch and not (isinstance(self.batches, list | tuple) or self._restored or self._is_read(epoch, batch)):
            raise DataError(
                f"The {type(self.batches).__name__} cannot start epoch {epoch} at batch {batch}: {self._seek_error()}"
            )
        self._epoch, self._batch = epoch, batch

    def _is_read(self, epoch: int, batch: int) -> bool:
        """Whether this process has already read all batches before this position from a generator."""
        if not isinstance(self.batches, Iterator) or self.steps is None or self._offset is None:
            return False
        return epoch * self.steps + batch <= self._offset + self._read

    def _seek_error(self) -> str:
        if isinstance(self.batches, StatefulLoader):
            return (
                "its state at that batch was not passed in as `position`. Resume from a checkpoint that contains it, "
                "or from the start of an epoch."
            )
        return (
            "it has no state_dict and load_state_dict, and the batches before are not read again. Resume from a "
            "checkpoint at the start of an epoch, or use a loader with a state, such as torchdata's "
            "StatefulDataLoader."
        )

    def position(self) -> Mapping[str, Any] | None:
        """Returns the state of the wrapped loader if it can be loaded again; an empty dict for a list or tuple; None
        for any other loader."""
        if isinstance(self.batches, StatefulLoader):
            return {"loader": self.batches.state_dict()}
        return {} if isinstance(self.batches, list | tuple) else None

    def __iter__(self) -> Iterator[Batch]:
        epoch, first, restored = self._epoch, self._batch, self._restored
        self._epoch, self._batch, self._restored = epoch + 1, 0, False
        for part in self._parts():
            if callable(getattr(part, "set_epoch", None)):  # DistributedSampler shuffles by the epoch it was set to
                part.set_epoch(epoch)
        start = epoch * (self.steps or 0) + first
        if self._offset is None or restored:
            self._offset = start - self._read
        # batches that an interrupted epoch did not read from the generator; they are skipped
        dropped = max(0, start - self._offset - self._read) if isinstance(self.batches, Iterator) else 0
        base = int(torch.randint(2**62, ()))  # a function of the epoch, for which the trainer has seeded torch
        generators = self._generators(epoch)
        ready, draws = not generators and _is_ready(self.batches), True
        with _set_states(generators):
            iterator = iter(self.batches[first:] if isinstance(self.batches, list | tuple) else self.batches)
        for number in range(first - dropped, first):
            if self._next(iterator, generators, base, number) is _END:
                break
        count = first
        while self.steps is None or count < self.steps:
            batch = self._next(iterator, generators, base, count, draws)
            if batch is _END and restored and first == count == 0:  # the restored state was at the end of an epoch
                restored, iterator = False, iter(self.batches)
                continue
            draws = not ready
            if batch is _END:
                break
            count += 1
            yield batch if self.as_given else self._to_batch(batch)
        if self.steps is not None and count < self.steps:
            raise DataError(
                f"The loader returned {count} batches in epoch {epoch}, but steps is {self.steps}. "
                f"Set steps to the number of batches in an epoch, or make the generator longer."
            )

    def _parts(self) -> list[Any]:
        """Returns the objects that may determine the order or have `set_epoch`: the loader and its samplers."""
        batch_sampler = getattr(self.batches, "batch_sampler", None)
        parts = (
            self.batches,
            getattr(self.batches, "sampler", None),
            batch_sampler,
            getattr(batch_sampler, "sampler", None),
        )
        return list({id(part): part for part in parts}.values())

    def _generators(self, epoch: int) -> dict[torch.Generator, Tensor]:
        """Returns the generators of the loader and its samplers with their states at the start of an epoch, which are
        functions of their seeds. A loader with `state_dict` keeps them in its state."""
        parts = [] if isinstance(self.batches, StatefulLoader) else self._parts()
        candidates = [getattr(part, "generator", None) for part in parts]
        generators = {g for g in candidates if isinstance(g, torch.Generator) and g is not torch.default_generator}
        return {
            g: torch.Generator(g.device).manual_seed(derive_key(g.initial_seed(), epoch, "loader")).get_state()
            for g in generators
        }

    def _next(
        self,
        batches: Iterator[Any],
        generators: dict[torch.Generator, Tensor],
        base: int,
        number: int,
        draws: bool = True,
    ) -> Any:
        """Returns the next batch, or _END. What transforms draw in this process is a function of the epoch and the
        batch number, also when the batches before are skipped. If nothing `draws`, no generator is seeded, which saves
        a tenth of a small step for tensors in memory."""
        try:
            if draws:
                with fork_rng(), _set_states(generators):
                    seed_global_generators(derive_key(base, number, "foreign"))
                    batch = next(batches, _END)
            else:
                batch = next(batches, _END)
        except RuntimeError as error:
            reason = _normalize_error(error)
            if reason is None:
                raise
            raise DataError(reason) from error
        self._read += batch is not _END
        return batch

    def _to_batch(self, batch: Any) -> Batch:
        if isinstance(batch, Batch):
            weight, index = (None if part is None else self._labels(part) for part in batch[2:])
            return Batch(self._tensors(batch.x), self._labels(batch.y), weight, index)
        if isinstance(batch, Mapping):
            return Batch(self._tensors(_pick(batch, _IMAGES)), self._labels(_pick(batch, _LABELS)))
        if isinstance(batch, Sequence) and len(batch) in (2, 3):
            weight = self._tensors(batch[2]) if len(batch) == 3 else None
            return Batch(self._tensors(batch[0]), self._labels(batch[1]), weight)
        kind = type(batch).__name__
        found = f"a {kind} of {len(batch)} values" if isinstance(batch, Sequence) else f"of type {kind}"
        raise DataError(f"A batch of the loader is {found}. Expected (images, labels) or a dict of them.")

    def _tensors(self, value: Any) -> Any:
        if isinstance(value, tuple | list):
            return tuple(self._tensors(part) for part in value)
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
        if tensor.dtype == torch.uint8:
            raise DataError(
                f"The loader returned uint8 images {list(tensor.shape)}. Expected normalised floats. Convert and "
                f"normalise them in the loader, or pass the dataset itself as source=."
            )
        return tensor.to(self.device, non_blocking=True)

    def _labels(self, value: Any) -> Any:
        if isinstance(value, tuple | list) and value and not isinstance(value[0], int | float):
            return tuple(self._labels(part) for part in value)
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
        is_other_integer = not tensor.is_floating_point() and tensor.dtype != torch.int64
        return (tensor.to(torch.int64) if is_other_integer else tensor).to(self.device, non_blocking=True)


def _is_ready(batches: Iterable[Any]) -> bool:
    """Whether nothing draws from a global generator after the first batch of an epoch: the batches are in memory, or
    are collated from tensors in memory in an order that torch draws at the start."""
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
    if type(sampler) is RandomSampler:  # with a generator that was passed in, it draws during the epoch
        return sampler.generator is None
    return type(sampler) is SequentialSampler


@contextmanager
def _set_states(states: dict[torch.Generator, Tensor]) -> Iterator[None]:
    """Sets the generators to `states` for the block, and updates `states` after it. Outside the block the generators
    have the states of their owner, so that interrupted or simultaneous epochs do not affect each other."""
    before = {generator: generator.get_state() for generator in states}
    for generator, state in states.items():
        generator.set_state(state)
    try:
        yield
    finally:
        for generator, state in before.items():
            states[generator] = generator.get_state()
            generator.set_state(state)


def _pick(batch: Mapping[str, Any], names: Sequence[str]) -> Any:
    for name in names:
        if name in batch:
            return batch[name]
    raise DataError(
        f"A batch of the loader has the keys {join_names(map(str, batch))}. Expected one of: {join_names(names)}."
    )


def _normalize_error(error: RuntimeError) -> str | None:
    """Returns a message for a Normalize of three channels that was applied to a gray image; None for other errors."""
    match = _BROADCAST.search(str(error))
    if match is None or "normalize" not in "".join(traceback.format_exception(error)).lower():
        return None
    return (
        f"The transform Normalize has a mean and a std of {match[2]} values, but the image has {match[1]} channel(s). "
        f"For one channel write Normalize((0.5,), (0.5,))."
    )
