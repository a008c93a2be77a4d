"""Curves, shown and saved; names of metrics as names of files."""

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sightline.core import locate
from sightline.core.files import atomic_write, expand_user

_WITHOUT_WINDOWS = ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template")


class PlotInput(NamedTuple):
    """One curve: its values, its name, and its colour as matplotlib names it."""

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
    """Draws each curve of `x` over `y`, one below the other; `axis` is (left, right, bottom, top). It is shown where
    there is somewhere to show it, a notebook or a window, and else only saved. Raises MissingExtraError without
    matplotlib."""
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
    """Each name as a part of a file's name, no two the same whatever the file system makes of capitals."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        plain = re.sub(r"[^\w.-]+", "_", name.strip()).strip("._")[:100] or "metric"
        safe, number = plain, 1
        while safe.lower() in taken:
            number += 1
            safe = f"{plain}_{number}"
        taken.add(safe.lower())
        found[name] = safe
    return found


def _show(figure: Any) -> None:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None and hasattr(shell, "kernel"):  # a notebook shows the image itself
        locate.import_optional("IPython.display").display(figure)
        return
    matplotlib = locate.import_optional("matplotlib")
    if matplotlib.get_backend().lower() in _WITHOUT_WINDOWS:  # what matplotlib chooses where there is no display
        return
    pyplot = locate.import_optional("matplotlib.pyplot")
    shown = pyplot.figure("sightline", figsize=figure.get_size_inches(), clear=True)
    image = shown.add_axes((0, 0, 1, 1))
    image.axis("off")
    locate.import_optional("matplotlib.backends.backend_agg").FigureCanvasAgg(figure).draw()
    image.imshow(figure.canvas.buffer_rgba())
    pyplot.show(block=False)  # training continues
    pyplot.pause(0.001)
