"""The range of a config value, which stands with its field in the schema."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sightline.core.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """The values that a key may have: `is_valid` says whether one is among them, `expected` which they are. `null` and
    a word such as `auto` always are. Of a list every item is tried, or, with `as_list`, the list as one."""

    is_valid: Callable[[Any], bool]
    expected: str
    as_list: bool = False

    def check(self, key: str, value: Any) -> None:
        """Raises ConfigError for a value that is not in the range."""
        if value is None or isinstance(value, str):
            return
        for item in value if isinstance(value, list) and not self.as_list else [value]:
            if not self.is_valid(item):
                raise ConfigError(key=key, expected=self.expected, found=item)


def at_least(low: float, expected: str = "") -> Range:
    """Numbers from `low` on, infinity included."""
    return Range(lambda value: value >= low, expected or f"a number of at least {low}")


def finite_above(low: float, expected: str = "") -> Range:
    """Finite numbers above `low`."""
    return Range(lambda value: low < value < math.inf, expected or f"a number above {low}")


def between(low: float, high: float, expected: str = "") -> Range:
    """Numbers from `low` to `high`, both included."""
    return Range(lambda value: low <= value <= high, expected or f"a number between {low} and {high}")


def positive_interval(most: float = math.inf) -> Range:
    """[least, most] above 0, in this order."""
    return Range(
        lambda value: len(value) == 2 and 0 < value[0] <= value[1] <= most and value[1] < math.inf,
        f"two numbers [least, most] above 0{'' if math.isinf(most) else f' and at most {most}'}",
        as_list=True,
    )


PROBABILITY = between(0, 1, "a probability between 0 and 1")
FINITE = Range(math.isfinite, "a number below infinity")
FRACTION_OR_COUNT = Range(
    lambda value: math.isfinite(value) and (value <= 1 or value == int(value)),
    "a part below 1 or a whole number of images",
)
BELOW_2_63 = Range(lambda value: value < 2**63, "a number below 2**63")
IMAGE_SIZE = Range(
    lambda value: (
        all(int(side) >= 1 for side in ([value] if isinstance(value, int) else value))
        and (isinstance(value, int) or len(value) in (1, 2))
    ),
    "one side or [height, width] of at least 1 pixel",
    as_list=True,
)
