"""Detection of a double softmax: cross entropy, which applies one, called on probabilities."""

import math
import warnings
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class DoubleSoftmax(TorchFunctionMode):
    """A context manager that detects `F.cross_entropy` called on probabilities [B,C]; it changes no result.

    `classes` is C after such a call, else 0. It reads values back from the device, so use it for a single step."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.cross_entropy and not self.classes:
            scores = args[0] if args else (kwargs or {}).get("input")
            if isinstance(scores, Tensor) and scores.ndim == 2 and _are_probabilities(scores.detach()):
                self.classes = scores.shape[1]
        return func(*args, **(kwargs or {}))

    def warn(self, found: str, advice: str) -> None:
        """Emits a UserWarning if a double softmax was detected.

        The message starts with `found`, which says where and ends with "cross entropy", and ends with `advice`."""
        if self.classes:
            least = math.log(math.e + self.classes - 1) - 1
            warnings.warn(
                f"{found}, which applies its own softmax: the loss cannot fall below {least:.4f} for "
                f"{self.classes} classes, and the gradients are weak. {advice}",
                UserWarning,
                stacklevel=3,
            )


def _are_probabilities(scores: Tensor) -> bool:
    return bool((scores >= 0).all()) and bool((scores.sum(1) - 1).abs().max() < 1e-3)
