"""`sightline cache`: what decoded images are kept, and how to be rid of them."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence


def main(words: Sequence[str]) -> int:
    """Lists the entries, or deletes them."""
    options = argparse.ArgumentParser("sightline cache", description="List or clear the packed data sets.")
    options.add_argument("--dir", metavar="PATH", help="the cache directory; default: $SIGHTLINE_CACHE or the user's")
    doing = options.add_mutually_exclusive_group()
    doing.add_argument("--clear", action="store_true", help="delete all entries")
    doing.add_argument(
        "--limit", type=_gib, metavar="GIB", help="delete what was unused for longest until so much is left"
    )
    found = options.parse_args(words)
    from rich.table import Table

    from sightline.data.cache import GIB, Cache
    from sightline.engine.progress import plain_console

    cache = Cache(found.dir, float("inf") if found.limit is None else found.limit * GIB)
    console = plain_console()
    if found.clear:
        console.print(f"{size_words(cache.clear())} freed in {cache.folder}")
        return 0
    if found.limit is not None:
        console.print(f"{size_words(cache.trim())} freed in {cache.folder}")
    entries = cache.entries()
    if entries:
        table = Table(box=None, pad_edge=False)
        for name in ("from", "images", "size", "kept as", "used"):
            table.add_column(name, justify="right" if name in ("images", "size") else "left")
        for entry in entries:
            count, channels, height, width = entry.meta["shape"]
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
            kind = f"{entry.meta['store']} {height} x {width} x {channels}"
            table.add_row(entry.meta["origin"], f"{count:,}", size_words(entry.size), kind, used)
        console.print(table)
    total = size_words(sum(entry.size for entry in entries))
    console.print(f"{len(entries)} data set{'s' * (len(entries) != 1)}, {total} in {cache.folder}")
    return 0


def _gib(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, found {text}")
    return value


def size_words(count: int) -> str:
    """A number of bytes for people."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{count} bytes" if unit == "bytes" else f"{value:,.1f} {unit}"
