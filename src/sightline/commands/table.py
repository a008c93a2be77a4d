"""What a command lists: a table on a terminal, lines with tabs for another program. Imports no torch."""

from collections.abc import Collection, Mapping, Sequence

_NARROW = 10
_ESCAPED = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})


def print_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[str] = (),
    bold: Collection[tuple[int, str]] = (),
) -> None:
    """On a terminal a table with the columns `right` aligned so and the cells `bold`, (row, column), highlighted; else
    one line a row, with tabs and nothing cut."""
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
    least = 2 * len(header) + 2
    for name, *cells in zip(header, *rows, strict=True):
        is_right = name in right
        title = (
            name.replace("_", "\n", 1) if is_right and "." not in name else name
        )  # val_loss, but a config's key whole
        longest = max(map(len, (*cells, *title.split("\n"))))
        least += longest if is_right else min(longest, _NARROW)
        table.add_column(
            Text(title),
            overflow="fold",
            justify="right" if is_right else "left",
            no_wrap=is_right,
            min_width=min(longest, _NARROW),
        )
    for number, row in enumerate(rows):
        styles = ("bold" if (number, name) in bold else "" for name in header)
        table.add_row(*(Text(cell, style=style) for cell, style in zip(row, styles, strict=True)))
    console.width = max(console.width, least)  # better a line that goes on below than columns of single letters
    console.print(table)


def print_sections(heads: Sequence[str], sections: Mapping[str, Sequence[str]]) -> None:
    """The lines of `heads`, then each section under its name, indented; one without lines is `same`. On a terminal the
    names stand out; nothing is broken into lines."""
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
