"""A loader of another library that keeps its place."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


class TorchdataLike:
    """A loader with a state of its own, as torchdata's StatefulDataLoader: its order comes from a generator of its own,
    which nobody else seeds. `read` counts the batches that were made."""

    def __init__(self, images: Tensor, labels: Tensor, size: int) -> None:
        self.images, self.labels, self.size = images, labels, size
        self.generator = torch.Generator().manual_seed(5)
        self.begun = self.generator.get_state()
        self.position, self.read = 0, 0
        self.restored = False

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.size)

    def __iter__(self) -> Iterator[Any]:
        if self.restored:
            self.generator.set_state(self.begun)
        else:
            self.position, self.begun = 0, self.generator.get_state()
        self.restored = False
        order = torch.randperm(len(self.images), generator=self.generator)
        while self.position < len(self):
            rows = order[self.position * self.size :][: self.size]
            self.position += 1
            self.read += 1
            yield self.images[rows], self.labels[rows]

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "begun": self.begun, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position, self.begun, self.restored = state["position"], state["begun"], True
        self.generator.set_state(state["generator"])
