"""Prints tables, sections and JSON: formatted on a terminal, as plain text otherwise. Does not import torch."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sightline.core.files import replace_non_finite

_NARROW = 10  # characters to which a text column may shrink
_ESCAPED = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})


def print_json(value: Any) -> None:
    """Prints a value as indented JSON. NaN and infinite numbers become null, other objects their text."""
    print(json.dumps(replace_non_finite(value), indent=2, ensure_ascii=False, default=str))


def print_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[str] = (),
    bold: Collection[tuple[int, str]] = (),
) -> None:
    """Prints a table on a terminal, and otherwise one line per row with tab-separated, complete cells.

    `right` names the right-aligned columns, `bold` the cells to highlight as (row index, column name)."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        for row in (header, *rows):
            print("\t".join(cell.translate(_ESCAPED) for cell in row))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    min_width = 2 * len(header) + 2
    for name, *cells in zip(header, *rows, strict=True):
        is_right = name in right
        # a metric such as val_loss is split into two lines, a config key is not
        title = name.replace("_", "\n", 1) if is_right and "." not in name else name
        longest = max(map(len, (*cells, *title.split("\n"))))
        min_width += longest if is_right else min(longest, _NARROW)
        table.add_column(
            Text(title),
            overflow="fold",
            justify="right" if is_right else "left",
            no_wrap=is_right,
            min_width=min(longest, _NARROW),
        )
    for index, row in enumerate(rows):
        styles = ("bold" if (index, name) in bold else "" for name in header)
        table.add_row(*(Text(cell, style=style) for cell, style in zip(row, styles, strict=True)))
    # on a narrow terminal, wrapped lines are more readable than columns of single letters
    console.width = max(console.width, min_width)
    console.print(table)


def print_sections(heads: Sequence[str], sections: Mapping[str, Sequence[str]]) -> None:
    """Prints the lines of `heads`, then the indented lines of each section under its name.

    A section without lines is printed as `same`. Section names are bold on a terminal. Long lines are not wrapped."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    lines = [Text(head) for head in heads]
    for name, content in sections.items():
        lines += [Text(), Text(name, style="bold"), *(Text(f"  {line}") for line in content or ("same",))]
    for line in lines:
        if console.is_terminal:
            console.print(line)
        else:
            print(line.plain)
