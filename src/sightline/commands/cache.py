"""`sightline cache`: lists or deletes the entries of the image cache."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sightline.core.errors import ConfigError

if TYPE_CHECKING:
    from sightline.data.cache.directory import CacheEntry


def main(argv: Sequence[str]) -> int:
    """Lists the cache entries, most recently used first; with `--clear` or `--limit`, deletes entries. Returns 0."""
    options = argparse.ArgumentParser(
        "sightline cache",
        description="List or delete the cached images, which training stores so that later runs need not read and "
        "decode the files again. Prints one line per cache entry with its number of images, size, format, last use "
        "and source.",
        epilog="Example: sightline cache --limit 20",
    )
    options.add_argument(
        "--dir", metavar="PATH", help="the cache directory; default: $SIGHTLINE_CACHE, else the user's cache directory"
    )
    actions = options.add_mutually_exclusive_group()
    actions.add_argument("--clear", action="store_true", help="delete all entries")
    actions.add_argument(
        "--limit", type=_gib, metavar="GIB", help="delete the least recently used entries until at most GIB GiB remain"
    )
    options.add_argument("--json", action="store_true", help="print the entries as JSON")
    args = options.parse_args(argv)
    from sightline.commands.table import print_json
    from sightline.core.console import plain_console
    from sightline.data.cache.directory import GIB, Cache

    cache = Cache(args.dir, float("inf") if args.limit is None else args.limit * GIB)
    if cache.folder.exists() and not cache.folder.is_dir():
        raise ConfigError(f"--dir: '{cache.folder}' is a file; expected a directory.")
    console = plain_console(quiet=False)
    freed = cache.clear() if args.clear else 0 if args.limit is None else cache.trim()
    entries = cache.entries()
    if args.json:
        print_json({"directory": str(cache.folder), "freed": freed, "entries": [_describe(entry) for entry in entries]})
        return 0
    if args.clear or args.limit is not None:
        console.print(f"{format_size(freed)} freed in {cache.folder}")
    if args.clear:
        return 0
    rows = [("images", "size", "format", "last used", "source")] if entries else []
    for entry in entries:
        count, channels, height, width = entry.meta["shape"]
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used))
        layout = f"{entry.meta['store']} {height} x {width} x {channels}"
        rows.append((f"{count:,}", format_size(entry.size), layout, used, entry.meta["origin"]))
    for images, size, layout, used, origin in rows:  # a path may be long and is never wrapped, so it comes last
        console.print(f"{images:>12}  {size:>10}  {layout:<22}  {used:<16}  {origin}")
    total = format_size(sum(entry.size for entry in entries))
    console.print(f"{len(entries)} {'entry' if len(entries) == 1 else 'entries'}, {total} in {cache.folder}")
    return 0


def _describe(entry: CacheEntry) -> dict[str, Any]:
    """Returns an entry as plain values: sizes in bytes, the last use in seconds since 1970."""
    meta = {name: entry.meta[name] for name in ("origin", "store", "shape")}
    return {"path": str(entry.path), "bytes": entry.size, "last_used": entry.last_used, **meta}


def _gib(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number >= 0, found {text}")
    return value


def format_size(count: int) -> str:
    """Returns a number of bytes as text with a binary unit, such as `1.5 MiB`."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{count} bytes" if unit == "bytes" else f"{value:,.1f} {unit}"
