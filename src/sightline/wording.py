"""Messages in the words of who called: below, an error names the keys of the config and the commands."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sightline.errors import SightlineError


@contextmanager
def reworded(words: Mapping[str, str]) -> Iterator[None]:
    """An error that leaves the block says `words[x]` wherever it said x; of two that overlap the longer one counts. Its
    type and its notes stay."""
    try:
        yield
    except SightlineError as error:
        found = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
        told = re.sub(found, lambda match: words[match[0]], str(error))
        if told == str(error):
            raise
        made = type(error)(told)
        for note in getattr(error, "__notes__", ()):
            made.add_note(note)
        raise made from error
