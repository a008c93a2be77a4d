"""Whether a training is the one that a directory holds: what is compared, and how a difference is described."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Path = tuple[str | int, ...]
MISSING = object()
_LONG = 8


@dataclass(frozen=True)
class Change:
    """One value that is not as it was: `path` leads to it through mappings and lists, its first part is the name of the
    setting. `free` says that it may change when a run is resumed. `str()` of it is a clause without a full stop."""

    path: Path
    was: Any
    now: Any
    free: bool = False

    @property
    def key(self) -> str:
        """The name of the setting that it is in."""
        return str(self.path[0])

    def __str__(self) -> str:
        return describe_change(self.path, self.was, self.now)


@dataclass(frozen=True)
class Identity:
    """What makes a training the one it is: settings by name, as plain values, lists and mappings of them. A mapping
    may describe an object, see `differences`. `is_free` says of a name whether that setting may change."""

    values: Mapping[str, Any]
    is_free: Callable[[str], bool] = lambda name: False

    def compare(self, saved: Mapping[str, Any]) -> list[Change]:
        """What has changed since `saved` was written, in the order of the values."""
        found = differences(dict(saved), dict(self.values))
        nothing = (MISSING, None)  # a setting that is null, and one that is not there
        return [
            Change(path, was, now, self.is_free(str(path[0])))
            for path, was, now in found
            if len(path) > 1 or was not in nothing or now not in nothing
        ]


def data_values(fingerprints: Mapping[str, str]) -> dict[str, str]:
    """The fingerprints of a run's splits, as values to compare: a difference is that of a content."""
    return {f"the {split} images": f"content sha256:{digest}" for split, digest in fingerprints.items()}


def differences(was: Any, now: Any, path: Path = (), code: bool = True) -> Iterator[tuple[Path, Any, Any]]:
    """(path, was, now) wherever two descriptions differ; what only one has is `MISSING` in the other.

    In a mapping that describes an object, `@class` is its class, `@code` the code of a function, `@settings` and
    `@uses` the attributes of installed code: one that only one side has is another version's. Without `code`, that of
    functions is not compared."""
    if isinstance(was, dict) and isinstance(now, dict):
        if was.get("@class") != now.get("@class"):
            yield (*path, "@class"), was.get("@class", MISSING), now.get("@class", MISSING)
            return
        either = path[-1:] == ("@settings",) or (path[-1:] == ("@uses",) and not code)
        for name in {**was, **now}:
            if (name == "@code" and not code) or (either and not (name in was and name in now)):
                continue
            yield from differences(was.get(name, MISSING), now.get(name, MISSING), (*path, name), code)
    elif _same_length(was, now) and any(map(_is_compound, (*was, *now))):
        for place, pair in enumerate(zip(was, now, strict=True)):
            yield from differences(*pair, (*path, place), code)
    elif was is not now and was != now:
        yield path, was, now


def set_at_path(values: Any, path: Path, value: Any) -> None:
    """Sets one value of a description; `MISSING` removes it."""
    for name in path[:-1]:
        values = values[name]
    if value is not MISSING:
        values[path[-1]] = value
    elif isinstance(values, dict):
        del values[path[-1]]


def describe_change(path: Path, was: Any, now: Any) -> str:
    """One difference as a clause: "network: layer '1' was ReLU; now it is Tanh"."""
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
        return f"{setting}: the content{f' of {where}' if where not in ('', 'content') else ''} is not the same"
    short, shorter = _short(was), _short(now)
    if kind == "@class" and short.rpartition(".")[2] != shorter.rpartition(".")[2]:
        short, shorter = short.rpartition(".")[2], shorter.rpartition(".")[2]
    return f"{setting}{f': {where}' if where else ''} was {short}; now it is {shorter}"


def _same_length(was: Any, now: Any) -> bool:
    return isinstance(was, list) and isinstance(now, list) and len(was) == len(now)


def _is_compound(value: Any) -> bool:
    return isinstance(value, dict | list) or (isinstance(value, str) and _without_digest(value) != value)


def _differs_within(was: Any, now: Any) -> bool:
    """Whether there is no more to say of two values than that they differ: digests, and long lists."""
    if isinstance(was, str) and isinstance(now, str):
        return _without_digest(was) == _without_digest(now)
    return _same_length(was, now) and len(was) > _LONG


def _short(value: Any) -> str:
    if value is MISSING:
        return "not there"
    if isinstance(value, dict):
        inner = value.get("function", value)
        return str(inner["@class"]) if "@class" in inner else "a dict of other entries"
    if isinstance(value, list) and (len(value) > _LONG or any(map(_is_compound, value))):
        return f"a list of {len(value)}"
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return _without_digest(value) if isinstance(value, str) else repr(value)


def _without_digest(text: str) -> str:
    return text.partition(" sha256:")[0].partition(" sample:")[0]
