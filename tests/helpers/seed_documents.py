"""Code blocks from the documents of the trainers that the interfaces replace. The documents are not part of the
repository: they are read from `$SIGHTLINE_SHARED`, and a test that needs a missing one is skipped with its name."""

from __future__ import annotations

import re
from pathlib import Path

from helpers.shared_data import missing

_FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n`]*\n(.*?)^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)


def document(shared: Path, number: str) -> str:
    """The text of `seeds/<number>_….txt`."""
    files = sorted((shared / "seeds").glob(f"{number}_*.txt"))
    if not files:
        missing(f"no document {number} in '{shared / 'seeds'}'")
    return files[0].read_text(encoding="utf-8")


def code_blocks(text: str) -> list[str]:
    """The contents of the fenced blocks, in order; a fence that is never closed is ignored."""
    return [match[2] for match in _FENCE.finditer(text)]


def one_with(blocks: list[str], pattern: str) -> str:
    """The one block that matches a regular expression."""
    matching = [block for block in blocks if re.search(pattern, block, re.MULTILINE)]
    assert len(matching) == 1, f"{len(matching)} blocks with {pattern!r}"
    return matching[0]
