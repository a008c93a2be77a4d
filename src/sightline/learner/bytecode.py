"""Digests of the bytecode of functions and classes, and the names that this code reads and changes."""

import dis
import functools
import hashlib
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENTRIES = (
    *("forward", "__call__", "__getitem__", "__getitems__", "__iter__", "__next__", "__len__"),
    *("step", "get_lr", "__compute__", "update", "getValue", "reset"),
)
"""The methods through which objects are used. A class is compared by these methods and the methods they call."""
_MUTATORS = frozenset(
    ("append", "appendleft", "extend", "insert", "pop", "popitem", "remove", "clear", "update", "setdefault", "add")
)
_LIBRARIES = frozenset(("sightline", "torch", "torchvision", "timm", "numpy"))
"""Packages that count as installed code wherever they are, such as in a build from source."""


@dataclass(frozen=True)
class CodeInfo:
    """The digest of a function's bytecode, nested functions included, and the names that it uses.

    `loads` are global variables, `reads` attributes and string constants, `stores` assigned attributes, `rebinds`
    assigned global and enclosing variables, and `mutates` containers that are changed in place."""

    digest: str
    loads: frozenset[str]
    reads: frozenset[str]
    stores: frozenset[str]
    rebinds: frozenset[str]
    mutates: frozenset[str]


@functools.lru_cache(maxsize=4096)
def code_info(code: types.CodeType) -> CodeInfo:
    """Analyses a code object; comments, docstrings, line numbers and parameter annotations do not count."""
    used: dict[str, set[str]] = {name: set() for name in ("loads", "reads", "stores", "rebinds", "mutates")}
    trail: list[tuple[int, str]] = []  # (stack depth, name loaded) after each instruction
    arguments = code.co_argcount + code.co_kwonlyargcount
    text = [f"{code.co_argcount} {code.co_posonlyargcount} {code.co_varnames[:arguments]} {code.co_flags & 0x2AC}"]
    last_name, depth = "", 0
    for step in dis.get_instructions(code):
        name, value = step.opname, step.argval
        text.append(f"{name} {_constant(value)}")
        if isinstance(value, types.CodeType):
            inner = code_info(value)
            for kind in used:
                used[kind] |= getattr(inner, kind)
        elif name.startswith(("LOAD_GLOBAL", "LOAD_NAME")):
            used["loads"].add(value)
        elif name.startswith(("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER")):
            used["reads"].add(value)
            if value in _MUTATORS or (value.endswith("_") and not value.endswith("__")):
                used["mutates"].add(last_name)
        elif name == "LOAD_CONST" and isinstance(value, str):
            used["reads"].add(value)
        elif name in ("STORE_ATTR", "DELETE_ATTR"):
            used["stores"].add(value)
        elif name in ("STORE_GLOBAL", "DELETE_GLOBAL", "STORE_DEREF", "DELETE_DEREF"):
            used["rebinds"].add(value)
        elif name in ("STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE"):
            used["mutates"] |= _stored_into(name, trail, depth, swapped=text[-2].startswith("SWAP "))
        loaded = value if isinstance(value, tuple) and name.startswith("LOAD_FAST") else (value,)
        if name.startswith("LOAD_") and isinstance(value, str):
            last_name = value
        effect = dis.stack_effect(step.opcode, step.arg, jump=False)
        for place, item in enumerate(loaded, 1 - len(loaded)):
            loads = name.startswith("LOAD_") and name != "LOAD_CONST" and isinstance(item, str)
            trail.append((depth + effect + place, item if loads else ""))
        depth += effect
    digest = hashlib.sha256("\n".join(text).encode()).hexdigest()[:32]
    return CodeInfo(digest, **{kind: frozenset(names) for kind, names in used.items()})


def _stored_into(name: str, trail: list[tuple[int, str]], depth: int, swapped: bool) -> set[str]:
    """The names of the container whose entry is assigned, without the names in the key.

    On the stack, the container is below the key and, in an assignment such as `+=`, also below the value."""
    level = depth - (2 if name == "STORE_SLICE" else 1) - swapped
    end = len(trail)
    while end and trail[end - 1][0] > level:
        end -= 1
    start = end
    while start and trail[start - 1][0] >= level:
        start -= 1
    return {loaded for height, loaded in trail[start:end] if loaded and height == level}


def _constant(value: Any) -> str:
    """A constant of bytecode as a string that is the same in every process."""
    if isinstance(value, types.CodeType):
        return code_info(value).digest
    if isinstance(value, frozenset):
        return f"{{{', '.join(sorted(map(_constant, value)))}}}"
    return f"({', '.join(map(_constant, value))})" if isinstance(value, tuple) else repr(value)


def python_version() -> str:
    """The interpreter, its version and its optimisation level; bytecode is compared only if these are equal."""
    return f"{sys.implementation.name} {'.'.join(map(str, sys.version_info[:3]))}{' -O' * sys.flags.optimize}"


@functools.lru_cache(maxsize=4096)
def is_library(module: str | None) -> bool:
    """Whether a module is installed code, which is compared only by name, and not the user's code."""
    top = (module or "").partition(".")[0]
    if top in _LIBRARIES or top in sys.stdlib_module_names:
        return True
    if top in ("__main__", "__mp_main__"):
        return False
    loaded = sys.modules.get(module or "") or sys.modules.get(top)
    parts = Path(getattr(loaded, "__file__", None) or "").parts
    return "site-packages" in parts or "dist-packages" in parts


def name_of(kind: Any) -> str:
    """The name of a class or function: the full name for installed code, otherwise only the last part.

    So a user's class may move to another module, for example when its script is imported."""
    module = getattr(kind, "__module__", None)
    name = getattr(kind, "__qualname__", None) or getattr(kind, "__name__", None) or type(kind).__name__
    if isinstance(module, str) and is_library(module):
        return name if module == "builtins" else f"{module}.{name}"
    return str(name).rpartition(".")[2]


def methods_of(cls: type, entries: Iterable[str]) -> Iterator[tuple[type, str, types.FunctionType]]:
    """Yields (class, name, function) of the user's methods in `entries` and of those that they call.

    The decorators of a method follow it under its name."""
    owners = own_classes(cls)
    waiting, seen = deque(entries), set()
    while waiting:
        name = waiting.popleft()
        if name in seen:
            continue
        seen.add(name)
        for owner in owners:
            for function in functions_of(vars(owner).get(name)):
                yield owner, name, function
                waiting.extend(sorted(code_info(function.__code__).reads))


def reads_of(cls: type, entries: Iterable[str]) -> frozenset[str]:
    """The names that the methods of `methods_of(cls, entries)` read."""
    return frozenset().union(*(code_info(function.__code__).reads for _, _, function in methods_of(cls, entries)))


def moving_attributes(cls: type, calls: Iterable[str] = ()) -> tuple[set[str], set[str]]:
    """Returns (assigned attributes, containers changed in place) of the methods that training calls.

    These are the methods of `entries_of`, those that override a method of an installed class, and `calls`."""
    stored: set[str] = set()
    mutated: set[str] = set()
    installed = {name for owner in cls.__mro__ if is_library(owner.__module__) for name in vars(owner)}
    overriding = sorted(name for name in installed & members_of(cls) if not name.startswith("__"))
    for _, _, function in methods_of(cls, [*entries_of(cls), *overriding, *sorted(calls)]):
        info = code_info(function.__code__)
        stored |= info.stores
        mutated |= info.mutates
    return stored, mutated


def own_classes(cls: type) -> list[type]:
    """The user's classes among a class and its bases, the most derived first."""
    return [owner for owner in cls.__mro__ if not is_library(owner.__module__)]


def members_of(cls: type) -> set[str]:
    """The names that the user's classes define."""
    return {name for owner in own_classes(cls) for name in vars(owner)}


def made_by_library(cls: type) -> frozenset[str]:
    """The attributes that the `__init__` methods of installed classes assign."""
    attributes: frozenset[str] = frozenset()
    for owner in cls.__mro__:
        init = vars(owner).get("__init__")
        if is_library(owner.__module__) and isinstance(init, types.FunctionType):
            attributes |= code_info(init.__code__).stores
    return attributes


def functions_of(member: Any) -> list[types.FunctionType]:
    """The user's functions behind a class member: the decorated function, then its decorators from the inside out."""
    if isinstance(member, property):
        member = member.fget
    elif isinstance(member, functools.cached_property):
        member = member.func
    elif isinstance(member, staticmethod | classmethod):
        member = member.__func__
    callables: dict[int, Any] = {}
    while callable(member) and id(member) not in callables:
        callables[id(member)] = member
        member = getattr(member, "__dict__", {}).get("__wrapped__")
    functions = [item for item in callables.values() if isinstance(item, types.FunctionType)]
    return [function for function in reversed(functions) if not is_installed(function)]


def is_installed(function: types.FunctionType) -> bool:
    """Whether a function is installed code.

    Its `__module__` cannot be used: `functools.wraps` copies it from the decorated function."""
    return is_library(function.__globals__.get("__name__"))


def entries_of(cls: type) -> list[str]:
    """The methods of `ENTRIES` that the user's classes define."""
    members = members_of(cls)
    return [name for name in ENTRIES if name in members]
