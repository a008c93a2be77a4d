"""Which values of a metric are the better ones."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType


def better_when(monitor: str, known: Mapping[str, str] = MappingProxyType({})) -> str:
    """ "min" for a metric that is better when lower (a loss, an error), "max" for the rest. `monitor` is
    `<split>_<metric>` or the metric alone; `known` says it of metrics whose name does not tell."""
    head = monitor.partition("/")[0]  # what follows is the name of a class, or a place
    metric = monitor.partition("_")[2] if "_" in head else monitor
    if metric in known:
        return known[metric]
    name = metric.partition("/")[0].rpartition("_")[2]
    return "min" if name in ("loss", "error", "mse", "mae", "nll", "brier", "ece") else "max"
