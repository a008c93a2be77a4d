"""What arrays, lists and files hold, as texts of a fixed length: types, shapes and digests."""

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
"""Digests that are known, by the identity of the object, with the object."""
MANY = 4096
"""A container of more entries than this is read once in a call of `train`, as a large array is."""
SHORT = 64
"""A list of more items than this is compared by a digest."""
_FILES, _SMALL = 100_000, 1024


class Sampling(NamedTuple):
    """An array of more than `full` bytes is compared by about `sampled` bytes of it, in evenly spaced chunks of `chunk`
    bytes."""

    full: int = 2 << 30
    sampled: int = 256 << 20
    chunk: int = 16 << 20


class Contents:
    """Makes the digests. `count` says how many arrays and lists were read, `files` how many of the lists were of files,
    `unknown` what could not be read. `describe` gives a description of any other object."""

    def __init__(self, describe: Callable[[Any], Any], digests: Digests, sampling: Sampling = Sampling()):
        self.count = self.files = 0
        self.unknown: list[str] = []
        self._describe = describe
        self._digests = digests
        self._sampling = sampling

    def array(self, value: Tensor | np.ndarray[Any, Any], keep: bool = True) -> str:
        """Type, shape and digest of the values; of a parameter that is trained, type and shape alone. With
        `keep` the digest is known from now on."""
        if isinstance(value, Tensor) and (value.requires_grad or is_lazy(value)):
            return shape_of(value)
        found: str
        if id(value) in self._digests:
            found = self._digests[id(value)][1]
        else:
            total = hashlib.sha256()
            read = self._feed_array(total, value)
            found = f"{shape_of(value)} {read}:{total.hexdigest()[:32]}"
            if keep:
                self._digests[id(value)] = (value, found)
        if " sample:" in found:
            limit = self._sampling.full >> 30
            self.unknown.append(f"all of an array of more than {limit} GiB; a sample of it was compared")
        self.count += 1
        return found

    def items(self, value: Any) -> str:
        """How many items a list or dict has, and a digest of them."""

        def read() -> str:
            total, files = hashlib.sha256(), self.files
            self._feed(total, value)
            kind = "entries" if self.files == files else "entries with files"
            self.files = files
            return f"{len(value)} {kind} sha256:{total.hexdigest()[:32]}"

        found: str = self.kept(value, read)
        self.files += " with files " in found
        return found

    def kept(self, value: Any, read: Callable[[], Any]) -> Any:
        """What `read` gives of an object, or gave."""
        if id(value) not in self._digests:
            self._digests[id(value)] = (value, read())
        self.count += 1
        return self._digests[id(value)][1]

    def key(self, key: Any) -> str:
        """A key of a dict as a text that is the same in every process."""
        if isinstance(key, frozenset | tuple):
            inner = [self.key(item) if isinstance(item, frozenset | tuple) else self._text(item) for item in key]
            return f"({', '.join(inner)})" if isinstance(key, tuple) else f"{{{', '.join(sorted(inner))}}}"
        return key if isinstance(key, str) else self._text(key)

    def _text(self, value: Any) -> str:
        return repr(plain_value(value) if is_plain(value) else self._describe(value))

    def _feed(self, total: Any, value: Any) -> None:
        if isinstance(value, Tensor | np.ndarray):
            many = value.numel() if isinstance(value, Tensor) else value.size
            total.update(self.array(value, keep=many > _SMALL).encode())
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
            found = self.kept(value, lambda: hashlib.sha256(value.tobytes()).hexdigest())
            total.update(f"{value.mode} {value.size} {found}".encode())
        else:
            total.update(repr(self._describe(value)).encode())

    def _feed_array(self, total: Any, value: Tensor | np.ndarray[Any, Any]) -> str:
        """Gives "sha256", or "sample" where not all of it was read."""
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
    """Whether `plain_value` takes it."""
    return value is None or isinstance(
        value, bool | int | float | complex | str | bytes | Path | Enum | np.generic | torch.dtype | slice | range
    )


def plain_value(value: Any) -> Any:
    """A number, a short text, true, false or none; a long text with a digest of the rest."""
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
    """Whether a text looks like the path of a file in a directory."""
    return os.sep in text or Path(text).is_absolute()


def has_files(items: Any) -> bool:
    """Whether a list is one of files, or of pairs that begin with one."""
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
    """Paths below the directory that holds them all, what stands beside them, and the sizes of the files, of at most
    100,000 of them, evenly spaced."""
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
    """The bytes of an array; `sampled`, of rows that are evenly spaced."""
    if isinstance(value, Tensor):
        tensor = value.detach().as_subclass(Tensor).resolve_conj().resolve_neg()
        tensor = tensor.reshape(-1) if tensor.ndim == 0 or tensor.is_contiguous() else tensor
    else:
        array = value.view(np.ndarray)
        array = array.reshape(-1) if array.ndim == 0 or array.flags.c_contiguous else array
    rows: Any = tensor if isinstance(value, Tensor) else array
    wide = max(1, value.nbytes // max(1, len(rows)))
    many = max(1, sampling.chunk // wide)
    starts = range(0, len(rows), many)
    step = -(-value.nbytes // sampling.sampled) if sampled else 1
    for start in starts[::step]:
        part = rows[start : start + many]
        if isinstance(part, Tensor):
            part = part.contiguous().cpu().reshape(-1).view(torch.uint8).numpy()
        yield np.ascontiguousarray(part).view(np.uint8) if part.dtype.kind not in "mM" else part.tobytes()


def shape_of(value: Any) -> str:
    """Type and shape of an array, and whether it is trained."""
    if value is None:
        return "none"
    if isinstance(value, Tensor) and is_lazy(value):
        return "of a shape that the first batch gives"
    sides = " x ".join(map(str, value.shape)) or "one number"
    frozen = isinstance(value, nn.Parameter) and not value.requires_grad
    return f"{str(value.dtype).removeprefix('torch.')} {sides}{' (frozen)' if frozen else ''}"


def digest_of(text: str) -> str:
    """A text of 32 characters."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]
