"""Plots of training curves, and file names made from metric names."""

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sightline.core import locate
from sightline.core.files import atomic_write, expand_user

_WITHOUT_WINDOWS = ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template")


class PlotInput(NamedTuple):
    """One curve: its values, its label and a matplotlib colour."""

    value: Sequence[float]
    name: str
    color: str


def visualize(
    y: Sequence[float],
    x: Sequence[PlotInput],
    display: bool = True,
    save_path: str | Path | None = None,
    axis: Any = None,
    title: str | None = None,
) -> None:
    """Plots the curves in `x` below one another, over the horizontal positions `y`.

    `axis` is (left, right, bottom, top). With `save_path`, the figure is saved; the suffix sets the format. With
    `display`, it is shown in a notebook or a window, if there is one. Raises MissingExtraError if matplotlib is not
    installed."""
    figure = locate.import_optional("matplotlib.figure").Figure(figsize=(6.4, 4.8), layout="constrained")
    if title is not None:
        figure.suptitle(title)
    for number, curve in enumerate(x, start=1):
        axes = figure.add_subplot(len(x), 1, number)
        if axis is not None:
            axes.axis(axis)
        axes.plot(list(y), list(curve.value), color=curve.color, label=curve.name, marker="." if len(y) == 1 else None)
        axes.grid(color="#e4e8ec", linewidth=0.6)
        axes.legend(loc=1, frameon=False)
    if save_path is not None:
        path = expand_user(save_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            figure.savefig(file, format=path.suffix[1:].lower() or "png", dpi=100)
    if display:
        _show(figure)


def file_names(names: Iterable[str]) -> dict[str, str]:
    """Maps each name to a form that is safe in a file name; all results differ by more than upper and lower case."""
    safe_names: dict[str, str] = {}
    used: set[str] = set()
    for name in names:
        plain = re.sub(r"[^\w.-]+", "_", name.strip()).strip("._")[:100] or "metric"
        safe, number = plain, 1
        while safe.lower() in used:
            number += 1
            safe = f"{plain}_{number}"
        used.add(safe.lower())
        safe_names[name] = safe
    return safe_names


def _show(figure: Any) -> None:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None and hasattr(shell, "kernel"):  # in a notebook
        locate.import_optional("IPython.display").display(figure)
        return
    matplotlib = locate.import_optional("matplotlib")
    if matplotlib.get_backend().lower() in _WITHOUT_WINDOWS:  # the backends that matplotlib uses without a display
        return
    pyplot = locate.import_optional("matplotlib.pyplot")
    shown = pyplot.figure("sightline", figsize=figure.get_size_inches(), clear=True)
    image = shown.add_axes((0, 0, 1, 1))
    image.axis("off")
    locate.import_optional("matplotlib.backends.backend_agg").FigureCanvasAgg(figure).draw()
    image.imshow(figure.canvas.buffer_rgba())
    pyplot.show(block=False)  # does not block training
    pyplot.pause(0.001)
