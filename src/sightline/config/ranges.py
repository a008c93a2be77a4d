"""Ranges of config values, declared with the fields of the schema."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sightline.core.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """The values that a config key accepts.

    `is_valid` checks a value, and `expected` describes the valid ones in messages. None and strings such as `auto` are
    always valid. In a list each item is checked, or with `as_list` the list as one value."""

    is_valid: Callable[[Any], bool]
    expected: str
    as_list: bool = False

    def check(self, key: str, value: Any) -> None:
        """Raises ConfigError if `value` is not in the range."""
        if value is None or isinstance(value, str):
            return
        for item in value if isinstance(value, list) and not self.as_list else [value]:
            if not self.is_valid(item):
                raise ConfigError(key=key, expected=self.expected, found=item)


def at_least(low: float, expected: str = "") -> Range:
    """Returns the range of numbers >= `low`, including infinity. With an int, messages expect an integer."""
    return Range(lambda value: value >= low, expected or f"{_number(low)} >= {low:g}")


def finite_above(low: float, expected: str = "") -> Range:
    """Returns the range of finite numbers > `low`."""
    return Range(lambda value: low < value < math.inf, expected or f"a number > {low:g}")


def between(low: float, high: float, expected: str = "") -> Range:
    """Returns the range of numbers in [`low`, `high`]. With ints, messages expect an integer."""
    return Range(lambda value: low <= value <= high, expected or f"{_number(low)} in [{low:g}, {high:g}]")


def positive_interval(most: float = math.inf) -> Range:
    """Returns the range of lists [min, max] with 0 < min <= max <= `most`."""
    return Range(
        lambda value: len(value) == 2 and 0 < value[0] <= value[1] <= most and value[1] < math.inf,
        f"two numbers [min, max] with 0 < min <= max{'' if math.isinf(most) else f' <= {most:g}'}",
        as_list=True,
    )


def _number(bound: float) -> str:
    return "an integer" if isinstance(bound, int) else "a number"


PROBABILITY = between(0, 1, "a probability in [0, 1]")
FINITE = Range(math.isfinite, "a finite number")
FRACTION_OR_COUNT = Range(
    lambda value: math.isfinite(value) and (value <= 1 or value == int(value)),
    "a fraction < 1 or an integer number of images",
)
BELOW_2_63 = Range(lambda value: value < 2**63, "an integer < 2**63")
IMAGE_SIZE = Range(
    lambda value: (
        all(int(side) >= 1 for side in ([value] if isinstance(value, int) else value))
        and (isinstance(value, int) or len(value) in (1, 2))
    ),
    "one side or [height, width] in pixels, each >= 1",
    as_list=True,
)
