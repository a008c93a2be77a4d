"""The code of functions and classes as digests, and which names it reads and changes."""

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
"""The methods by which an object is used; a class is compared by these and by what they call."""
_MUTATORS = frozenset(
    ("append", "appendleft", "extend", "insert", "pop", "popitem", "remove", "clear", "update", "setdefault", "add")
)
_LIBRARIES = frozenset(("sightline", "torch", "torchvision", "timm", "numpy"))
"""Also where they are not installed in the usual place, as a build from source is not."""


@dataclass(frozen=True)
class CodeInfo:
    """What a function's bytecode says, with that of the functions inside it. `reads` are names of attributes and
    constant texts, `stores` attributes that are assigned, `rebinds` global and enclosing variables that are, `mutates`
    names of containers that are changed in place."""

    digest: str
    loads: frozenset[str]
    reads: frozenset[str]
    stores: frozenset[str]
    rebinds: frozenset[str]
    mutates: frozenset[str]


@functools.lru_cache(maxsize=4096)
def code_info(code: types.CodeType) -> CodeInfo:
    """Comments, docstrings, line numbers and annotations of parameters do not count."""
    found: dict[str, set[str]] = {name: set() for name in ("loads", "reads", "stores", "rebinds", "mutates")}
    trail: list[tuple[int, str]] = []  # how deep the stack is after each instruction, and the name it loads
    arguments = code.co_argcount + code.co_kwonlyargcount
    text = [f"{code.co_argcount} {code.co_posonlyargcount} {code.co_varnames[:arguments]} {code.co_flags & 0x2AC}"]
    before, depth = "", 0
    for step in dis.get_instructions(code):
        name, value = step.opname, step.argval
        text.append(f"{name} {_constant(value)}")
        if isinstance(value, types.CodeType):
            inner = code_info(value)
            for kind in found:
                found[kind] |= getattr(inner, kind)
        elif name.startswith(("LOAD_GLOBAL", "LOAD_NAME")):
            found["loads"].add(value)
        elif name.startswith(("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER")):
            found["reads"].add(value)
            if value in _MUTATORS or (value.endswith("_") and not value.endswith("__")):
                found["mutates"].add(before)
        elif name == "LOAD_CONST" and isinstance(value, str):
            found["reads"].add(value)
        elif name in ("STORE_ATTR", "DELETE_ATTR"):
            found["stores"].add(value)
        elif name in ("STORE_GLOBAL", "DELETE_GLOBAL", "STORE_DEREF", "DELETE_DEREF"):
            found["rebinds"].add(value)
        elif name in ("STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE"):
            found["mutates"] |= _stored_into(name, trail, depth, swapped=text[-2].startswith("SWAP "))
        loaded = value if isinstance(value, tuple) and name.startswith("LOAD_FAST") else (value,)
        if name.startswith("LOAD_") and isinstance(value, str):
            before = value
        effect = dis.stack_effect(step.opcode, step.arg, jump=False)
        for place, item in enumerate(loaded, 1 - len(loaded)):
            loads = name.startswith("LOAD_") and name != "LOAD_CONST" and isinstance(item, str)
            trail.append((depth + effect + place, item if loads else ""))
        depth += effect
    digest = hashlib.sha256("\n".join(text).encode()).hexdigest()[:32]
    return CodeInfo(digest, **{kind: frozenset(names) for kind, names in found.items()})


def _stored_into(name: str, trail: list[tuple[int, str]], depth: int, swapped: bool) -> set[str]:
    """The names of the container whose entry is assigned, without those in its own keys: it is below the key on the
    stack and, in an assignment such as `+=`, below the value too."""
    level = depth - (2 if name == "STORE_SLICE" else 1) - swapped
    end = len(trail)
    while end and trail[end - 1][0] > level:
        end -= 1
    start = end
    while start and trail[start - 1][0] >= level:
        start -= 1
    return {loaded for height, loaded in trail[start:end] if loaded and height == level}


def _constant(value: Any) -> str:
    """A constant of bytecode, in the same order in every process."""
    if isinstance(value, types.CodeType):
        return code_info(value).digest
    if isinstance(value, frozenset):
        return f"{{{', '.join(sorted(map(_constant, value)))}}}"
    return f"({', '.join(map(_constant, value))})" if isinstance(value, tuple) else repr(value)


def python_version() -> str:
    """What bytecode depends on: it is compared only where this is the same."""
    return f"{sys.implementation.name} {'.'.join(map(str, sys.version_info[:3]))}{' -O' * sys.flags.optimize}"


@functools.lru_cache(maxsize=4096)
def is_library(module: str | None) -> bool:
    """Whether a module is installed code, which is compared by name alone, and not the user's own."""
    top = (module or "").partition(".")[0]
    if top in _LIBRARIES or top in sys.stdlib_module_names:
        return True
    if top in ("__main__", "__mp_main__"):
        return False
    found = sys.modules.get(module or "") or sys.modules.get(top)
    parts = Path(getattr(found, "__file__", None) or "").parts
    return "site-packages" in parts or "dist-packages" in parts


def name_of(kind: Any) -> str:
    """The name of a class or function: of installed code the full one. A class of the user's may move to another
    module, as a script that is imported does."""
    module = getattr(kind, "__module__", None)
    name = getattr(kind, "__qualname__", None) or getattr(kind, "__name__", None) or type(kind).__name__
    if isinstance(module, str) and is_library(module):
        return name if module == "builtins" else f"{module}.{name}"
    return str(name).rpartition(".")[2]


def methods_of(cls: type, entries: Iterable[str]) -> Iterator[tuple[type, str, types.FunctionType]]:
    """(class, name, function) of the user's own methods that are called by these names, or by one of those. The
    decorators of a method follow it under its name."""
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
    """The names that the methods of `methods_of` read."""
    return frozenset().union(*(code_info(function.__code__).reads for _, _, function in methods_of(cls, entries)))


def moving_attributes(cls: type, calls: Iterable[str] = ()) -> tuple[set[str], set[str]]:
    """(attributes that are assigned, containers that are changed) by the methods that training calls: those of
    `entries_of`, those that override one of an installed class, and `calls`."""
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
    """The user's own among the classes that a class is made of, the most derived first."""
    return [owner for owner in cls.__mro__ if not is_library(owner.__module__)]


def members_of(cls: type) -> set[str]:
    """The names that the user's own classes define."""
    return {name for owner in own_classes(cls) for name in vars(owner)}


def made_by_library(cls: type) -> frozenset[str]:
    """The attributes that the `__init__` of installed classes gives an object."""
    made: frozenset[str] = frozenset()
    for owner in cls.__mro__:
        init = vars(owner).get("__init__")
        if is_library(owner.__module__) and isinstance(init, types.FunctionType):
            made |= code_info(init.__code__).stores
    return made


def functions_of(member: Any) -> list[types.FunctionType]:
    """The user's functions behind a member of a class: the one that decorators wrap, then they, from inside out."""
    if isinstance(member, property):
        member = member.fget
    elif isinstance(member, functools.cached_property):
        member = member.func
    elif isinstance(member, staticmethod | classmethod):
        member = member.__func__
    found: dict[int, Any] = {}
    while callable(member) and id(member) not in found:
        found[id(member)] = member
        member = getattr(member, "__dict__", {}).get("__wrapped__")
    functions = [one for one in found.values() if isinstance(one, types.FunctionType)]
    return [function for function in reversed(functions) if not is_installed(function)]


def is_installed(function: types.FunctionType) -> bool:
    """Whether the code of a function is a library's. Its `__module__` does not say so: `functools.wraps` gives a
    decorator that of the function inside."""
    return is_library(function.__globals__.get("__name__"))


def entries_of(cls: type) -> list[str]:
    """Those of `ENTRIES` that the user's own classes define."""
    own = members_of(cls)
    return [name for name in ENTRIES if name in own]
