"""A plain dict -> frozen dataclasses, with words for everything that can be wrong with it.

An unknown key is an error with the nearest valid one; a wrong type says which was found and which is expected. The
dataclasses themselves are in `schema.py`."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, field
from typing import Any, Literal, Union

from sightline.core.errors import ConfigError, did_you_mean, join_names, render_argument

Node = dict[str, Any]
NAMING = frozenset(("_target_", "class", "layers"))
"""The keys that say what a node makes; the others are its arguments."""


def key_field(default: Any, doc: str, *ranges: Any) -> Any:
    """A config field with its line of documentation and the `Range`s that its values must be in; dicts and lists are
    copied for every config."""
    metadata = {"doc": doc, "ranges": ranges}
    if isinstance(default, dict | list):
        return field(default_factory=lambda: deep_copy(default), metadata=metadata)
    if dataclasses.is_dataclass(default):
        return field(default_factory=type(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def nodes_of(key: str, value: Any) -> list[tuple[str, Any]]:
    """The nodes of a key that takes one, a list of them, or none, each with a key of its own: `key`, or `key[0]`,
    `key[1]` and so on of a list."""
    if isinstance(value, list | tuple):
        return [(f"{key}[{position}]", node) for position, node in enumerate(value)]
    return [(key, value)] if value else []


def deep_copy(value: Any) -> Any:
    """A deep copy of nested dicts and lists."""
    if isinstance(value, Mapping):
        return {key: deep_copy(item) for key, item in value.items()}
    if isinstance(value, type):  # a class itself, in a config made in Python: kept by its name, as a file would
        return f"{value.__module__}.{value.__qualname__}"
    return [deep_copy(item) for item in value] if isinstance(value, list | tuple) else value


def to_plain(value: Any) -> Any:
    """Dataclasses, and all inside them, as plain dicts and lists."""
    if dataclasses.is_dataclass(value):
        return {item.name: to_plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    return deep_copy(value)


def build_config(cls: Any, values: Any, path: str = "", also: tuple[str, ...] = (), root: Any = None) -> Any:
    """An instance of a dataclass of the schema. `also` are further names to suggest at the top, `root` is the schema's
    outermost class. Raises ConfigError naming the key, what was found, what was expected and the nearest name."""
    root = root or cls
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path or 'the config'}: expected a group of keys, found {describe_found(values)}.")
    hints = typing.get_type_hints(cls)
    names = [item.name for item in dataclasses.fields(cls)]
    made = {}
    for name, value in values.items():
        where = f"{path}.{name}" if path else str(name)
        if name not in names:
            inside = f" in '{path}'" if path else ""
            raise ConfigError(
                f"unknown key '{where}'.{_suggestion(root, str(name), path, (*names, *also))} "
                f"Valid keys{inside}: {join_names(names, 40)}."
            )
        made[name] = _convert(_over_default(cls, name, value), hints[name], where, root)
    return cls(**made)


def _default(cls: Any, name: str) -> Any:
    item = next(item for item in dataclasses.fields(cls) if item.name == name)
    return item.default if item.default is not MISSING else typing.cast(Any, item.default_factory)()


def _over_default(cls: Any, name: str, value: Any) -> Any:
    """A node without a target of its own changes arguments of the default one; with one, it stands alone, so that no
    argument of the default optimiser ever reaches another."""
    default = _default(cls, name)
    if isinstance(default, dict) and isinstance(value, Mapping) and not NAMING & set(value):
        return {**default, **value}
    return value


def _suggestion(root: Any, name: str, path: str, options: tuple[str, ...]) -> str:
    """The key that was meant: the same name in another group (`max_epochs` -> trainer.max_epochs), else the nearest."""
    homes = [key for key in ("seed", *(key for key, _ in walk(root))) if key.rpartition(".")[2] == name]
    if homes:
        return f" Did you mean '{homes[0]}'?"
    prefix = f"{path}." if path else ""
    return did_you_mean(name, options).replace("'", f"'{prefix}", 1)


def _convert(value: Any, hint: Any, where: str, root: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return build_config(hint, value, where, root=root)
    options = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        accepted, converted = _accept(value, option, where, root)
        if accepted:
            return converted
    choices = [
        choice
        for option in options
        for choice in (typing.get_args(option) if typing.get_origin(option) is Literal else ())
    ]
    hint_ = did_you_mean(value, [str(choice) for choice in choices]) if isinstance(value, str) else ""
    raise ConfigError(
        f"{render_argument(where)}: expected {' or '.join(_words(option) for option in options)}, found "
        f"{describe_found(value)}.{hint_}"
    )


def _accept(value: Any, option: Any, where: str, root: Any) -> tuple[bool, Any]:
    origin, args = typing.get_origin(option), typing.get_args(option)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in args), value
    if origin is list and isinstance(value, list | tuple):
        return True, [_convert(item, args[0], f"{where}[{i}]", root) for i, item in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        return True, {str(key): deep_copy(item) for key, item in value.items()}
    if option is types.NoneType:
        return value is None, None
    if option is float and isinstance(value, int | float) and not isinstance(value, bool):
        return True, float(value)
    if (
        option is str
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and where.startswith(("data.", "run."))
    ):
        return True, str(value)  # class names such as 0 and 1, which YAML reads as numbers
    if option is str and hasattr(value, "__fspath__"):
        return True, str(value)
    return isinstance(option, type) and type(value) is option, value


def _words(option: Any) -> str:
    origin, args = typing.get_origin(option), typing.get_args(option)
    if origin is Literal:
        return " or ".join(f"'{choice}'" if isinstance(choice, str) else str(choice) for choice in args)
    if origin is list:
        return f"a list of {'nodes' if args[0] == Node else _words(args[0]).removeprefix('a ') + 's'}"
    if origin is dict:
        return "a node with '_target_'"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", types.NoneType: "null"}
    return names.get(option, str(option))


def describe_found(value: Any) -> str:
    """A value as a message names it."""
    if value is None:
        return "null"
    kind = {dict: "a group of keys", list: "a list", str: "the text", bool: "the switch"}.get(
        type(value), f"the {type(value).__name__}"
    )
    return f"{kind} {value!r}"


def walk(cls: Any, prefix: str = "") -> list[tuple[str, dataclasses.Field[Any]]]:
    """Every leaf of the schema as (dotted key, field), in order; the configuration reference is made from it."""
    rows: list[tuple[str, dataclasses.Field[Any]]] = []
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[item.name]):
            rows += walk(hints[item.name], f"{prefix}{item.name}.")
        else:
            rows.append((f"{prefix}{item.name}", item))
    return rows


def describe(cls: Any, name: str) -> tuple[str, Any, str]:
    """(type in words, default, documentation) of one field."""
    hint = typing.get_type_hints(cls)[name]
    options = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    item = next(item for item in dataclasses.fields(cls) if item.name == name)
    return " or ".join(_words(option) for option in options), to_plain(_default(cls, name)), item.metadata["doc"]


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, group by group. Where `changes` names another class than a node of `base`,
    its node replaces that one: arguments of one class are not those of another."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not _names_another(old, value):
            result[key] = merge(old, value)
        else:
            result[key] = value
    return result


def _names_another(base: Mapping[str, Any], changes: Mapping[str, Any]) -> bool:
    before, now = (
        # a mapping is a node of its own, under a name such as `class`
        {key: node[key] for key in NAMING & set(node) if not isinstance(node[key], Mapping)}
        for node in (base, changes)
    )
    if "layers" in before and "layers" in now:  # a list of layers, or an argument of that name
        del before["layers"], now["layers"]
    return bool(before and now and before != now)
