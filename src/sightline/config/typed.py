"""Converts a plain dict to frozen dataclasses, and reports unknown keys and values of a wrong type.

An unknown key is an error with the closest valid one; a wrong type is an error with the found and the expected type.
The dataclasses themselves are in `schema.py`."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, field
from typing import Any, Literal, Union

from sightline.core.errors import ConfigError, did_you_mean, join_names, render_argument

Node = dict[str, Any]
NAMING = frozenset(("_target_", "class", "layers"))
"""The keys that say what a node creates; its other keys are arguments."""


def key_field(default: Any, doc: str, *ranges: Any) -> Any:
    """Returns a config field with its documentation and the `Range`s that its value must be in. A default that is a
    dict or a list is copied for every config."""
    metadata = {"doc": doc, "ranges": ranges}
    if isinstance(default, dict | list):
        return field(default_factory=lambda: deep_copy(default), metadata=metadata)
    if dataclasses.is_dataclass(default):
        return field(default_factory=type(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def nodes_of(key: str, value: Any) -> list[tuple[str, Any]]:
    """Returns (key, node) for each node of a key that holds one node, a list of nodes, or none.

    The key of a single node is `key`; those in a list are `key[0]`, `key[1]` and so on."""
    if isinstance(value, list | tuple):
        return [(f"{key}[{position}]", node) for position, node in enumerate(value)]
    return [(key, value)] if value else []


def deep_copy(value: Any) -> Any:
    """Returns a deep copy of nested dicts and lists, with tuples as lists and classes as their dotted names."""
    if isinstance(value, Mapping):
        return {key: deep_copy(item) for key, item in value.items()}
    if isinstance(value, type):  # a class in a config made in Python
        return f"{value.__module__}.{value.__qualname__}"
    return [deep_copy(item) for item in value] if isinstance(value, list | tuple) else value


def to_plain(value: Any) -> Any:
    """Converts dataclasses, at any depth, to plain dicts and lists."""
    if dataclasses.is_dataclass(value):
        return {item.name: to_plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    return deep_copy(value)


def build_config(cls: Any, values: Any, path: str = "", also: tuple[str, ...] = (), root: Any = None) -> Any:
    """Builds an instance of a dataclass of the schema from a mapping.

    `path` is the dotted key of the mapping, `also` are further names to suggest at the top level, and `root` is the
    outermost class of the schema. Raises ConfigError naming the key, what was found, what is expected and the closest
    valid name."""
    root = root or cls
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path or 'the config'}: expected a mapping, found {describe_found(values)}.")
    hints = typing.get_type_hints(cls)
    names = [item.name for item in dataclasses.fields(cls)]
    converted = {}
    for name, value in values.items():
        where = f"{path}.{name}" if path else str(name)
        if name not in names:
            inside = f" in '{path}'" if path else ""
            suggestion = _suggestion(root, str(name), path, (*names, *also))
            valid = join_names(names, 12 if suggestion else 40)
            raise ConfigError(f"unknown key '{where}'.{suggestion} Valid keys{inside}: {valid}.")
        converted[name] = _convert(_over_default(cls, name, value), hints[name], where, root)
    return cls(**converted)


def _default(cls: Any, name: str) -> Any:
    item = next(item for item in dataclasses.fields(cls) if item.name == name)
    return item.default if item.default is not MISSING else typing.cast(Any, item.default_factory)()


def _over_default(cls: Any, name: str, value: Any) -> Any:
    """Merges a node without a target into the default node. A node with a target replaces the default node, so that its
    arguments are never passed to another class."""
    default = _default(cls, name)
    if isinstance(default, dict) and isinstance(value, Mapping) and not NAMING & set(value):
        return {**default, **value}
    return value


def _suggestion(root: Any, name: str, path: str, options: tuple[str, ...]) -> str:
    """Suggests a valid key: the same name in another group (`max_epochs` -> trainer.max_epochs), else the closest."""
    keys = [key for key in ("seed", *(key for key, _ in walk(root))) if key.rpartition(".")[2] == name]
    if keys:
        return f" Did you mean '{keys[0]}'?"
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
    suggestion = did_you_mean(value, [str(choice) for choice in choices]) if isinstance(value, str) else ""
    raise ConfigError(
        f"{render_argument(where)}: expected {' or '.join(_type_name(option) for option in options)}, found "
        f"{describe_found(value)}.{suggestion}"
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


def _type_name(option: Any) -> str:
    origin, args = typing.get_origin(option), typing.get_args(option)
    if origin is Literal:
        choices = [f"'{choice}'" if isinstance(choice, str) else str(choice) for choice in args]
        return f"one of: {', '.join(choices)}" if len(choices) > 2 else " or ".join(choices)
    if origin is list:
        item = "node" if args[0] == Node else _type_name(args[0]).removeprefix("an ").removeprefix("a ")
        return f"a list of {item}s"
    if origin is dict:
        return "a mapping of names to nodes" if args[1] == Node else "a node with '_target_'"
    names = {int: "an integer", float: "a number", str: "a string", bool: "true or false", types.NoneType: "null"}
    return names.get(option, str(option))


def describe_found(value: Any) -> str:
    """Describes a value and its type for a message."""
    if value is None:
        return "null"
    kinds: dict[type, str] = {dict: "mapping", str: "string", bool: "boolean", int: "integer", float: "number"}
    return f"the {kinds.get(type(value), type(value).__name__)} {value!r}"


def walk(cls: Any, prefix: str = "") -> list[tuple[str, dataclasses.Field[Any]]]:
    """Returns every leaf of a schema class as (dotted key, field), in order, for the configuration reference."""
    rows: list[tuple[str, dataclasses.Field[Any]]] = []
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[item.name]):
            rows += walk(hints[item.name], f"{prefix}{item.name}.")
        else:
            rows.append((f"{prefix}{item.name}", item))
    return rows


def describe(cls: Any, name: str) -> tuple[str, Any, str]:
    """Returns (description of the type, default, documentation) of one field."""
    hint = typing.get_type_hints(cls)[name]
    options = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    item = next(item for item in dataclasses.fields(cls) if item.name == name)
    return " or ".join(_type_name(option) for option in options), to_plain(_default(cls, name)), item.metadata["doc"]


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `base` updated with `changes`, recursively.

    If a node in `changes` names another class than the node in `base`, it replaces that node, because the arguments of
    one class are not valid for another."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not _has_other_class(old, value):
            result[key] = merge(old, value)
        else:
            result[key] = value
    return result


def _has_other_class(base: Mapping[str, Any], changes: Mapping[str, Any]) -> bool:
    before, now = (
        # a mapping under a key such as `class` is a separate node
        {key: node[key] for key in NAMING & set(node) if not isinstance(node[key], Mapping)}
        for node in (base, changes)
    )
    if "layers" in before and "layers" in now:  # `layers` is a list of layers, or an argument of that name
        del before["layers"], now["layers"]
    return bool(before and now and before != now)
