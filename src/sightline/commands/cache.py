"""`sightline cache`: what decoded images are kept, and how to be rid of them."""

import argparse
import time
from collections.abc import Sequence

from sightline.core.errors import ConfigError


def main(argv: Sequence[str]) -> int:
    """Lists the entries, or deletes them."""
    options = argparse.ArgumentParser("sightline cache", description="List or clear the packed data sets.")
    options.add_argument("--dir", metavar="PATH", help="the cache directory; default: $SIGHTLINE_CACHE or the user's")
    doing = options.add_mutually_exclusive_group()
    doing.add_argument("--clear", action="store_true", help="delete all entries")
    doing.add_argument(
        "--limit", type=_gib, metavar="GIB", help="delete what was unused for longest until so much is left"
    )
    found = options.parse_args(argv)
    from sightline.data.cache.directory import GIB, Cache
    from sightline.engine.progress import plain_console

    cache = Cache(found.dir, float("inf") if found.limit is None else found.limit * GIB)
    if cache.folder.exists() and not cache.folder.is_dir():
        raise ConfigError(f"--dir: '{cache.folder}' is a file; expected a directory.")
    console = plain_console()
    if found.clear:
        console.print(f"{format_size(cache.clear())} freed in {cache.folder}")
        return 0
    if found.limit is not None:
        console.print(f"{format_size(cache.trim())} freed in {cache.folder}")
    entries = cache.entries()
    rows = [("images", "size", "kept as", "used", "from")] if entries else []
    for entry in entries:
        count, channels, height, width = entry.meta["shape"]
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used))
        kind = f"{entry.meta['store']} {height} x {width} x {channels}"
        rows.append((f"{count:,}", format_size(entry.size), kind, used, entry.meta["origin"]))
    for images, size, kind, used, origin in rows:  # a path is never broken into lines, so it comes last
        console.print(f"{images:>12}  {size:>10}  {kind:<22}  {used:<16}  {origin}")
    total = format_size(sum(entry.size for entry in entries))
    console.print(f"{len(entries)} data set{'s' * (len(entries) != 1)}, {total} in {cache.folder}")
    return 0


def _gib(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, found {text}")
    return value


def format_size(count: int) -> str:
    """A number of bytes for people."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{count} bytes" if unit == "bytes" else f"{value:,.1f} {unit}"
