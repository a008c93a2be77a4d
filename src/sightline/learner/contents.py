"""Short strings that identify the contents of arrays, lists and files: types, shapes and digests."""

from __future__ import annotations

import hashlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

Digests = dict[int, tuple[object, Any]]
"""A cache of digests: the `id` of an object -> (the object, its digest)."""
MANY = 4096
"""A container with more entries is read only once per call to `train`, as a large array is."""
SHORT = 64
"""A list with more items is compared by a digest."""
_FILES, _SMALL = 100_000, 1024


class Sampling(NamedTuple):
    """How large arrays are compared: above `full` bytes, by about `sampled` bytes in evenly spaced chunks.

    `chunk` is the size of a chunk in bytes."""

    full: int = 2 << 30
    sampled: int = 256 << 20
    chunk: int = 16 << 20


class Contents:
    """Computes digests of arrays and containers.

    `count` is the number of arrays and lists read, `files` the number of lists of files among them, and `unknown` what
    could not be read. `describe` describes any other object."""

    def __init__(self, describe: Callable[[Any], Any], digests: Digests, sampling: Sampling = Sampling()):
        self.count = self.files = 0
        self.unknown: list[str] = []
        self._describe = describe
        self._digests = digests
        self._sampling = sampling

    def array(self, value: Tensor | np.ndarray[Any, Any], keep: bool = True) -> str:
        """Returns dtype, shape and digest of an array; for a trained parameter, only dtype and shape.

        With `keep`, the digest is cached."""
        if isinstance(value, Tensor) and (value.requires_grad or is_lazy(value)):
            return shape_of(value)
        summary: str
        if id(value) in self._digests:
            summary = self._digests[id(value)][1]
        else:
            digest = hashlib.sha256()
            read = self._feed_array(digest, value)
            summary = f"{shape_of(value)} {read}:{digest.hexdigest()[:32]}"
            if keep:
                self._digests[id(value)] = (value, summary)
        if " sample:" in summary:
            limit = self._sampling.full >> 30
            self.unknown.append(f"all values of an array of more than {limit} GiB (a sample of it was compared)")
        self.count += 1
        return summary

    def items(self, value: Any) -> str:
        """Returns the number of items of a list or dict, and a digest of them."""

        def read() -> str:
            digest, files = hashlib.sha256(), self.files
            self._feed(digest, value)
            kind = "entries" if self.files == files else "entries with files"
            self.files = files
            return f"{len(value)} {kind} sha256:{digest.hexdigest()[:32]}"

        summary: str = self.kept(value, read)
        self.files += " with files " in summary
        return summary

    def kept(self, value: Any, read: Callable[[], Any]) -> Any:
        """Returns the result of `read` for an object; it is called once per object and cached."""
        if id(value) not in self._digests:
            self._digests[id(value)] = (value, read())
        self.count += 1
        return self._digests[id(value)][1]

    def key(self, key: Any) -> str:
        """Returns a dict key as a string that is the same in every process."""
        if isinstance(key, frozenset | tuple):
            inner = [self.key(item) if isinstance(item, frozenset | tuple) else self._text(item) for item in key]
            return f"({', '.join(inner)})" if isinstance(key, tuple) else f"{{{', '.join(sorted(inner))}}}"
        return key if isinstance(key, str) else self._text(key)

    def _text(self, value: Any) -> str:
        return repr(plain_value(value) if is_plain(value) else self._describe(value))

    def _feed(self, total: Any, value: Any) -> None:
        if isinstance(value, Tensor | np.ndarray):
            count = value.numel() if isinstance(value, Tensor) else value.size
            total.update(self.array(value, keep=count > _SMALL).encode())
        elif is_plain(value):
            total.update(repr(plain_value(value)).encode() + b"\0")
        elif isinstance(value, list | tuple | deque) and has_files(value):
            self.files += 1
            _feed_files(total, value)
        elif isinstance(value, list | tuple) and all(type(item) in (int, float, str) for item in value):
            total.update(repr([*value]).encode())
        elif isinstance(value, list | tuple | deque):
            total.update(f"{len(value)}[".encode())
            for item in value:
                self._feed(total, item)
        elif isinstance(value, dict) and all(
            type(part) in (int, float, str) for pair in value.items() for part in pair
        ):
            total.update(repr(sorted(map(repr, value.items()))).encode())
        elif isinstance(value, Mapping):
            for name, key in sorted(((self.key(key), key) for key in value), key=itemgetter(0)):
                total.update(name.encode(errors="surrogatepass") + b"\0")
                self._feed(total, value[key])
        elif isinstance(value, set | frozenset):
            total.update(repr(sorted(map(self._text, value))).encode())
        elif callable(getattr(value, "tobytes", None)) and hasattr(value, "mode"):  # a Pillow image
            digest = self.kept(value, lambda: hashlib.sha256(value.tobytes()).hexdigest())
            total.update(f"{value.mode} {value.size} {digest}".encode())
        else:
            total.update(repr(self._describe(value)).encode())

    def _feed_array(self, total: Any, value: Tensor | np.ndarray[Any, Any]) -> str:
        """Returns "sha256", or "sample" if only part of the array was read."""
        if isinstance(value, np.ndarray) and value.dtype.hasobject:
            for item in value.reshape(-1).tolist():
                self._feed(total, item)
            return "sha256"
        if isinstance(value, Tensor) and (value.layout != torch.strided or value.is_quantized or value.is_meta):
            self.unknown.append(f"the values of a {value.layout} tensor")
            return "sha256"
        sampled = value.nbytes > self._sampling.full
        for part in _parts(value, self._sampling, sampled):
            total.update(part)
        return "sample" if sampled else "sha256"


def is_plain(value: Any) -> bool:
    """Whether `plain_value` accepts the value."""
    return value is None or isinstance(
        value, bool | int | float | complex | str | bytes | Path | Enum | np.generic | torch.dtype | slice | range
    )


def plain_value(value: Any) -> Any:
    """Converts to a number, a bool, None or a string; a long string becomes its start and a digest."""
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else repr(float(value))
    if isinstance(value, str | bytes):
        text = value if isinstance(value, str) else value.hex()
        return str(text) if len(text) <= 200 else f"{text[:40]}... sha256:{digest_of(text)}"
    return value if value is None or isinstance(value, bool | int) else str(value)


def is_path(text: str) -> bool:
    """Whether a string looks like a file path with a directory."""
    return os.sep in text or Path(text).is_absolute()


def has_files(items: Any) -> bool:
    """Whether a list holds file paths, or tuples that start with one. Only the first file must exist."""
    if not isinstance(items, Sequence) or isinstance(items, str) or not items:
        return False
    path = _path_in(items[0])
    if path is None or not (is_path(path) or "." in path) or not os.path.isfile(path):  # noqa: PTH113 of any text
        return False
    return all(_path_in(item) is not None for item in items)


def _path_in(item: Any) -> str | None:
    first = item[0] if isinstance(item, list | tuple) and item else item
    return os.fspath(first) if isinstance(first, str | Path) else None


def _feed_files(total: Any, items: Sequence[Any]) -> None:
    """Adds the paths relative to their common directory, the values beside them, and the file sizes.

    Sizes are read from at most 100,000 files, evenly spaced."""
    paths = [str(_path_in(item)) for item in items]
    first, last = min(paths), max(paths)
    same = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    length = first.rfind(os.sep, 0, same) + 1
    total.update("\0".join(path[length:] for path in paths).encode(errors="surrogateescape"))
    total.update(repr([item[1:] for item in items if isinstance(item, list | tuple)]).encode())
    for path in paths[:: -(-len(paths) // _FILES)]:
        try:
            total.update(f"{os.stat(path).st_size} ".encode())  # noqa: PTH116 of 100,000 files
        except OSError:
            total.update(b"none ")


def _parts(value: Tensor | np.ndarray[Any, Any], sampling: Sampling, sampled: bool) -> Iterator[Any]:
    """Yields the bytes of an array in chunks; with `sampled`, only of evenly spaced ones."""
    if isinstance(value, Tensor):
        tensor = value.detach().as_subclass(Tensor).resolve_conj().resolve_neg()
        tensor = tensor.reshape(-1) if tensor.ndim == 0 or tensor.is_contiguous() else tensor
    else:
        array = value.view(np.ndarray)
        array = array.reshape(-1) if array.ndim == 0 or array.flags.c_contiguous else array
    rows: Any = tensor if isinstance(value, Tensor) else array
    row_bytes = max(1, value.nbytes // max(1, len(rows)))
    rows_per_chunk = max(1, sampling.chunk // row_bytes)
    starts = range(0, len(rows), rows_per_chunk)
    step = -(-value.nbytes // sampling.sampled) if sampled else 1
    for start in starts[::step]:
        part = rows[start : start + rows_per_chunk]
        if isinstance(part, Tensor):
            part = part.contiguous().cpu().reshape(-1).view(torch.uint8).numpy()
        yield np.ascontiguousarray(part).view(np.uint8) if part.dtype.kind not in "mM" else part.tobytes()


def shape_of(value: Any) -> str:
    """The dtype and shape of an array, and whether it is a frozen parameter."""
    if value is None:
        return "none"
    if isinstance(value, Tensor) and is_lazy(value):
        return "of a shape that the first batch gives"
    sides = " x ".join(map(str, value.shape)) or "one number"
    frozen = isinstance(value, nn.Parameter) and not value.requires_grad
    return f"{str(value.dtype).removeprefix('torch.')} {sides}{' (frozen)' if frozen else ''}"


def digest_of(text: str) -> str:
    """The first 32 hexadecimal digits of the SHA-256 of a string."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]
