"""A network that prints `waiting` in the middle of training and continues once there is a file `go`. Tests copy this
file to where they run a command, so that they can send a signal or fill the disk at a known step."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from torch import Tensor

from sightline.models.networks import SmallCNN

NETWORK = ("module.network._target_=waiting.Net", "module.network.width=8")


class Net(SmallCNN):
    """Waits at its 60th step."""

    steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += self.training
        if self.steps == 60 and not Path("go").exists():
            print("waiting", flush=True)
            while not Path("go").exists():
                time.sleep(0.01)
        return super().forward(x)


def copy_to(place: Path) -> None:
    shutil.copy(__file__, place / "waiting.py")
