"""A loader of another library that saves its position."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


class StatefulLoader:
    """A loader with `state_dict` and `load_state_dict`, like torchdata's StatefulDataLoader. Its order comes from its
    own generator, which nothing else seeds. `read` counts the batches that it yielded."""

    def __init__(self, images: Tensor, labels: Tensor, size: int) -> None:
        self.images, self.labels, self.size = images, labels, size
        self.generator = torch.Generator().manual_seed(5)
        self.start = self.generator.get_state()
        self.position, self.read = 0, 0
        self.restored = False

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.size)

    def __iter__(self) -> Iterator[Any]:
        if self.restored:
            self.generator.set_state(self.start)
        else:
            self.position, self.start = 0, self.generator.get_state()
        self.restored = False
        order = torch.randperm(len(self.images), generator=self.generator)
        while self.position < len(self):
            rows = order[self.position * self.size :][: self.size]
            self.position += 1
            self.read += 1
            yield self.images[rows], self.labels[rows]

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "start": self.start, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position, self.start, self.restored = state["position"], state["start"], True
        self.generator.set_state(state["generator"])
