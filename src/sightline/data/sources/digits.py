"""The embedded digits: 1,797 handwritten digits in the package (Alpaydin and Kaynak, UCI, 1998; CC BY 4.0)."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def load_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Returns (images uint8 [1797, 8, 8], labels int64 [1797] in 0..9) in the order of scikit-learn's `load_digits`.

    The 17 gray levels are scaled to 0..255."""
    import numpy as np

    with resources.files("sightline.data.sources").joinpath("digits.npz").open("rb") as file, np.load(file) as arrays:
        return arrays["images"], arrays["labels"].astype(np.int64)
