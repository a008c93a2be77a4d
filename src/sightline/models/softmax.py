"""A softmax that comes twice: cross entropy, which has one of its own, over probabilities."""

import math
import warnings
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class DoubleSoftmax(TorchFunctionMode):
    """Notices, while it is entered, cross entropy of probabilities [B,C], and changes nothing. `classes` is then C, and
    0 as long as there was none. To look reads values back from the device, so it is for one step and not for each."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.cross_entropy and not self.classes:
            given = args[0] if args else (kwargs or {}).get("input")
            if isinstance(given, Tensor) and given.ndim == 2 and _are_probabilities(given.detach()):
                self.classes = given.shape[1]
        return func(*args, **(kwargs or {}))

    def warn(self, found: str, advice: str) -> None:
        """Warns of what was noticed, if anything was: `found` says where, up to the words "cross entropy"."""
        if self.classes:
            least = math.log(math.e + self.classes - 1) - 1
            warnings.warn(
                f"{found}, which applies a softmax of its own: the loss cannot fall below {least:.4f} for "
                f"{self.classes} classes, and the gradients are weak. {advice}",
                UserWarning,
                stacklevel=3,
            )


def _are_probabilities(given: Tensor) -> bool:
    return bool((given >= 0).all()) and bool((given.sum(1) - 1).abs().max() < 1e-3)
