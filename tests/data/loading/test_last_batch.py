"""The end of an epoch: no training batch has one image, and `drop_last` drops an incomplete one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sightline
from sightline.core.errors import ConfigError
from sightline.core.types import Batch, TrainState
from sightline.data.cache.dataset import PackedDataset
from sightline.data.images.preprocess import Preprocess
from sightline.data.loading.loader import BatchLoader
from sightline.engine.tasks import SupervisedTask

PREPROCESS = Preprocess(4, 4, 1, (0.5,), (0.25,))


def dataset(count: int) -> PackedDataset:
    images = np.random.default_rng(count).integers(0, 256, (count, 1, 4, 4), dtype=np.uint8)
    labels = torch.arange(count) % 2
    return PackedDataset(torch.from_numpy(images), labels, tuple(map(str, range(count))), ("a", "b"))


def batches(loader: BatchLoader, epoch: int) -> list[list[int]]:
    loader.seek(epoch)
    return [batch.index.tolist() for batch in loader if batch.index is not None]


@given(
    count=st.integers(1, 60), size=st.integers(1, 9), world=st.integers(1, 3), balanced=st.booleans(),
    drop=st.booleans(), workers=st.sampled_from([0, 2]), epoch=st.integers(0, 3),
)  # fmt: skip
@settings(max_examples=150)
def test_no_training_batch_has_one_image_and_every_image_comes_once(
    count: int, size: int, world: int, balanced: bool, drop: bool, workers: int, epoch: int
) -> None:
    """In an earlier version, 61 images in batches of 4 ended with a batch of one."""
    if count < world or (drop and count < size * world):
        return
    data, seen, lengths = dataset(count), list[int](), set[int]()
    for rank in range(world):
        loader = BatchLoader(
            data, PREPROCESS, size, shuffle=True, balanced=balanced, drop_last=drop, workers=workers, rank=rank,
            world_size=world,
        )  # fmt: skip
        result = batches(loader, epoch)
        lengths.add(len(result))
        assert len(result) == len(loader)
        seen += [row for batch in result for row in batch]
        if drop:
            assert {len(batch) for batch in result} == {size}
        elif size > 1 and count >= 2 * world:
            assert all(2 <= len(batch) <= size + 2 for batch in result)
        for first in range(len(result) + 1):  # resuming anywhere
            loader.seek(epoch, first)
            assert [batch.index.tolist() for batch in loader if batch.index is not None] == result[first:]
    assert len(lengths) == 1
    expected = count // (size * world) * size * world if drop else count
    assert len(seen) == expected
    if not balanced:
        assert len(set(seen)) == expected


def test_other_images_are_left_out_in_every_epoch() -> None:
    loader = BatchLoader(dataset(10), PREPROCESS, 4, shuffle=True, drop_last=True)
    left_out = [set(range(10)) - {row for batch in batches(loader, epoch) for row in batch} for epoch in range(20)]
    assert all(len(rows) == 2 for rows in left_out)
    assert set().union(*left_out) == set(range(10))


def test_evaluation_has_its_last_image_in_a_separate_batch() -> None:
    assert [len(rows) for rows in batches(BatchLoader(dataset(9), PREPROCESS, 4), 0)] == [4, 4, 1]


class Normalised(nn.Module):
    """A network with batch normalisation, which cannot be trained on one image."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.sizes.append(len(x))
        output: Tensor = self.layers(x)
        return output


@pytest.mark.parametrize("sampler", ["shuffle", "balanced"])
@pytest.mark.parametrize(("size", "accumulate"), [(64, 1), (16, 4), (2, 32), (21, 3), (8, 2)])
def test_batch_normalisation_trains_to_the_end_of_the_epoch(
    tmp_path: Path, size: int, accumulate: int, sampler: str
) -> None:
    """In an earlier version, epoch 1 ended with "Expected more than 1 value per channel when training"."""
    total = 1797
    for left in (1, 2, 3):
        steps = (total - left - 1) // (size * accumulate)
        train = steps * size * accumulate + left
        config = {
            "data": {"batch_size": size, "test": total - train, "val": 0, "sampler": sampler},
            "module": {"monitor": "train_loss"},
            "trainer": {"max_epochs": 1, "progress": False, "accumulate_grad_batches": accumulate},
            "run": {"dir": str(tmp_path)},
        }
        model = Normalised()
        result = sightline.fit(config, model=model)
        sizes = model.sizes[1:] if model.sizes[0] == 2 and sum(model.sizes) == train + 2 else model.sizes
        assert sum(sizes) == train  # without the two images that the network was tried with
        assert min(sizes) >= 2
        assert result.epochs == 1


@given(total=st.integers(1, 40), accumulate=st.integers(1, 9), size=st.integers(1, 9))
def test_a_batch_is_never_split_into_parts_of_one_image(total: int, accumulate: int, size: int) -> None:
    sizes: list[int] = []

    class Watched(nn.Module):
        """Records how many images it receives."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            output: Tensor = self.layer(x)
            return output

    model = Watched()
    task = SupervisedTask(nn.CrossEntropyLoss(), accumulate=accumulate, part_size=size)
    task.train_step(TrainState(model, torch.optim.SGD(model.parameters(), 0.1)), Batch(torch.randn(total, 3),
                    torch.zeros(total, dtype=torch.int64)))  # fmt: skip
    assert sum(sizes) == total
    if size > 1 and accumulate > 1:
        assert min(sizes) >= min(2, total)


def test_leaving_out_every_image_is_refused(tmp_path: Path) -> None:
    config = {"data": {"batch_size": 2000, "drop_last": True}, "run": {"dir": str(tmp_path)}}
    message = r"data\.drop_last: the 1258 training images do not fill one step of 2000"
    with pytest.raises(ConfigError, match=message):
        sightline.fit(config)
    with pytest.raises(ValueError, match="drop_last: 3 images do not fill one step of 4"):
        BatchLoader(dataset(3), PREPROCESS, 4, drop_last=True)
