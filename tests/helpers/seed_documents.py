"""Code blocks out of the documents of the trainers that the interfaces stand in for. The documents are not part of the
repository: they are read where `$SIGHTLINE_SHARED` has them, and a test that needs one skips by name without."""

from __future__ import annotations

import re
from pathlib import Path

from helpers.shared_data import absent

_FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n`]*\n(.*?)^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)


def document(shared: Path, number: str) -> str:
    """The text of `seeds/<number>_….txt`."""
    found = sorted((shared / "seeds").glob(f"{number}_*.txt"))
    if not found:
        absent(f"no document {number} in '{shared / 'seeds'}'")
    return found[0].read_text(encoding="utf-8")


def code_blocks(text: str) -> list[str]:
    """What stands between fences, in order; a fence that is never closed holds nothing."""
    return [match[2] for match in _FENCE.finditer(text)]


def one_with(blocks: list[str], part: str) -> str:
    """The one block that a regular expression is found in."""
    found = [block for block in blocks if re.search(part, block, re.MULTILINE)]
    assert len(found) == 1, f"{len(found)} blocks with {part!r}"
    return found[0]
