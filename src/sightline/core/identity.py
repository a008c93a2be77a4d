"""Compares the settings of a training with those saved in a run directory, and describes the differences."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Path = tuple[str | int, ...]
MISSING = object()
_LONG = 8


@dataclass(frozen=True)
class Change:
    """A value that differs from the saved one.

    `path` leads to it through mappings and lists; its first part is the name of the setting. `free` means that the
    setting may change when a run is resumed. `str()` describes the change as a clause without a full stop."""

    path: Path
    was: Any
    now: Any
    free: bool = False

    @property
    def key(self) -> str:
        """The name of the setting that contains the value."""
        return str(self.path[0])

    def __str__(self) -> str:
        return describe_change(self.path, self.was, self.now)


@dataclass(frozen=True)
class Identity:
    """The settings that identify a training, by name, as nested plain values, lists and mappings.

    A mapping may describe an object, see `differences`. `is_free(name)` returns whether that setting may change when
    the run is resumed."""

    values: Mapping[str, Any]
    is_free: Callable[[str], bool] = lambda name: False

    def compare(self, saved: Mapping[str, Any]) -> list[Change]:
        """Returns what has changed since `saved` was written. A setting that is None equals a missing one."""
        absent = (MISSING, None)
        return [
            Change(path, was, now, self.is_free(str(path[0])))
            for path, was, now in differences(dict(saved), dict(self.values))
            if len(path) > 1 or was not in absent or now not in absent
        ]


def data_values(fingerprints: Mapping[str, str]) -> dict[str, str]:
    """Returns the fingerprints of a run's splits as values to compare; a difference is reported as other content."""
    return {f"the {split} split": f"content sha256:{digest}" for split, digest in fingerprints.items()}


def differences(was: Any, now: Any, path: Path = (), code: bool = True) -> Iterator[tuple[Path, Any, Any]]:
    """Yields (path, was, now) for each difference between two descriptions; a value that one side lacks is `MISSING`.

    In a mapping that describes an object, `@class` is its class, `@code` the digests of its code, `@uses` the values
    that its code uses, and `@settings` the attributes of an object of an installed library. A name in `@settings` that
    only one side has is ignored, because it belongs to another version of the library. Without `code`, `@code` is not
    compared, and such names in `@uses` are ignored too."""
    if isinstance(was, dict) and isinstance(now, dict):
        if was.get("@class") != now.get("@class"):
            yield (*path, "@class"), was.get("@class", MISSING), now.get("@class", MISSING)
            return
        ignore_missing = path[-1:] == ("@settings",) or (path[-1:] == ("@uses",) and not code)
        for name in {**was, **now}:
            if (name == "@code" and not code) or (ignore_missing and not (name in was and name in now)):
                continue
            yield from differences(was.get(name, MISSING), now.get(name, MISSING), (*path, name), code)
    elif _same_length(was, now) and any(map(_is_compound, (*was, *now))):
        for position, pair in enumerate(zip(was, now, strict=True)):
            yield from differences(*pair, (*path, position), code)
    elif was is not now and was != now:
        yield path, was, now


def set_at_path(values: Any, path: Path, value: Any) -> None:
    """Sets the value at `path` of a description in place; `MISSING` removes it."""
    for name in path[:-1]:
        values = values[name]
    if value is not MISSING:
        values[path[-1]] = value
    elif isinstance(values, dict):
        del values[path[-1]]


def describe_change(path: Path, was: Any, now: Any) -> str:
    """Describes one difference as a clause: "network: layer '1' was ReLU and is now Tanh"."""
    setting, *rest = path
    names = layer = outer = kind = ""
    for before, name in zip(("", *rest), rest, strict=False):
        if before == "@layers":
            outer, layer, names = (names, str(name), "") if name else (outer, layer, names)
        elif isinstance(name, int):
            names += f"[{name}]"
        elif name in ("@parameters", "@buffers"):
            names += f"{' of ' if names else ''}{name[1:-1]} "
        elif name.startswith("@"):
            kind = name
        else:
            names += f"{'.' if names and not names.endswith(' ') else ''}{name}"
            kind = kind if kind == "@code" else ""
    if kind == "@code":
        return f"{setting}: the code of {rest[-1]} is not the same"
    where = " of ".join(part for part in (names, f"layer '{layer}'" if layer else "", outer) if part)
    if _differs_within(was, now):
        if where in ("", "content"):
            return f"the content of {setting} is not the same"
        return f"{setting}: the content of {where} is not the same"
    short, shorter = _short(was), _short(now)
    if kind == "@class" and short.rpartition(".")[2] != shorter.rpartition(".")[2]:
        short, shorter = short.rpartition(".")[2], shorter.rpartition(".")[2]
    return f"{setting}{f': {where}' if where else ''} was {short} and is now {shorter}"


def _same_length(was: Any, now: Any) -> bool:
    return isinstance(was, list) and isinstance(now, list) and len(was) == len(now)


def _is_compound(value: Any) -> bool:
    return isinstance(value, dict | list) or (isinstance(value, str) and _without_digest(value) != value)


def _differs_within(was: Any, now: Any) -> bool:
    """Returns whether a message can only say that two values differ: digests, and long lists of the same length."""
    if isinstance(was, str) and isinstance(now, str):
        return _without_digest(was) == _without_digest(now)
    return _same_length(was, now) and len(was) > _LONG


def _short(value: Any) -> str:
    if value is MISSING:
        return "missing"
    if isinstance(value, dict):
        inner = value.get("function", value)
        return str(inner["@class"]) if "@class" in inner else "a dict"
    if isinstance(value, list) and (len(value) > _LONG or any(map(_is_compound, value))):
        return f"a list of length {len(value)}"
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return _without_digest(value) if isinstance(value, str) else repr(value)


def _without_digest(text: str) -> str:
    return text.partition(" sha256:")[0].partition(" sample:")[0]
