"""The curve of the learning-rate finder as a plot and as a CSV table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sightline.core import locate
from sightline.core.files import atomic_write, write_text

if TYPE_CHECKING:
    from sightline.engine.tools.lr_finder import LRCurve

FORMATS = (".png", ".svg", ".pdf")
"""The suffixes of a plot."""


def write_curve(curve: LRCurve, path: Path) -> None:
    """Writes a CSV with the columns `lr,loss,smoothed` and one row per step; numbers have all digits."""
    rows = zip(curve.lrs, curve.losses, curve.smoothed, strict=True)
    write_text(path, "\n".join(("lr,loss,smoothed", *(",".join(map(repr, row)) for row in rows), "")))


def draw_curve(curve: LRCurve, path: Path) -> None:
    """Writes a plot of the loss over the learning rate, with the suggested rates marked, in the format of the suffix.

    Raises MissingExtraError if matplotlib is not installed."""
    # a Figure without pyplot uses the Agg backend and needs no display
    figure = locate.import_optional("matplotlib.figure").Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="learning rate", ylabel="training loss")
    axes.plot(curve.lrs, curve.losses, color="#b8c4d0", linewidth=1, label="loss")
    axes.plot(curve.lrs, curve.smoothed, color="#1f6fb2", linewidth=2, label="smoothed")
    for name, lr, style in (("valley", curve.valley, "-"), ("steepest", curve.steepest, ":")):
        if lr is not None:
            axes.axvline(lr, color="#e08a1e", linestyle=style, linewidth=1.5, label=f"{name} {lr:.3g}")
    # limits the y axis, since a loss that diverges at the end would flatten the rest of the curve
    best = curve.smoothed.index(min(curve.smoothed))
    low, high = min(curve.losses), min(max(curve.smoothed), 1.5 * max(map(abs, curve.smoothed[: best + 1])))
    margin = 0.05 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)
    axes.grid(color="#e4e8ec", linewidth=0.6)
    axes.legend(frameon=False)
    with atomic_write(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower(), dpi=120)
