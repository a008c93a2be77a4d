"""Reads and writes plain dicts as YAML files, without two silent traps of YAML 1.1.

`1e-3` is read as a number, and a duplicate key is an error instead of replacing the first value. Files are not trusted:
one that would use up memory or time when it is loaded is refused."""

import os
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, TextIO

import yaml

from sightline.core.errors import ConfigError, first_line
from sightline.core.files import LONGEST, MAX_JSON_DEPTH

MAX_BYTES = 4 * 2**20
"""The largest size of a YAML file in bytes. A config with tens of thousands of class names is below it."""
_MAX_NODES = 1_000_000


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # the base class reports it
            if key in seen:
                mark = key_node.start_mark
                raise ConfigError(f"{mark.name}, line {mark.line + 1}: the key '{key}' appears twice.")
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    pass


for _codec in (_Loader, _Dumper):  # in the dumper, it quotes strings that look like such a number
    _codec.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
        list("-+0123456789."),
    )


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Returns the mapping as YAML text, in its own order. `read_yaml` reads it back equal."""
    text: str = yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads the mapping in a YAML file. Raises ConfigError naming the file and, if known, the line."""
    file = Path(path)
    try:
        with file.open(encoding="utf-8") as stream:
            if os.fstat(stream.fileno()).st_size > MAX_BYTES:
                raise ConfigError(f"'{path}' cannot be read: it is larger than {MAX_BYTES // 2**20} MiB.")
            content = _load(stream)
    except FileNotFoundError as error:
        raise ConfigError(
            f"the config file '{path}' does not exist. To write a preset of the command line to a file: "
            f"sightline train experiment={file.stem} --cfg job > {file.stem}.yaml"
        ) from error
    except RecursionError as error:
        raise ConfigError(f"'{path}' cannot be read: it is nested deeper than {MAX_JSON_DEPTH} levels.") from error
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(f"'{path}' cannot be read as YAML: {yaml_reason(error)}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"'{path}': expected a mapping of keys to values, found a {type(content).__name__}.")
    return content


def yaml_reason(error: Exception) -> str:
    """Returns what is wrong in a YAML text, with the line if the error has it, without a full stop."""
    mark = getattr(error, "problem_mark", None)
    problem = str(error).rstrip(".") if mark is None else getattr(error, "problem", None) or first_line(error)
    return problem if mark is None else f"line {mark.line + 1}: {problem}"


def _load(stream: TextIO) -> Any:
    loader = _Loader(stream)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check(root: yaml.Node) -> None:
    """Raises ValueError for a document that takes far more memory or time than its size suggests.

    A short alias can stand for an entire tree, or for a node that contains it; parsing an integer takes time that is
    quadratic in its digits."""
    sizes: dict[int, tuple[int, int]] = {}  # by id of a node: (nodes, levels) below and including it
    ancestors: set[int] = set()
    stack = [root]
    while stack:
        node = stack[-1]
        children = _children(node)
        if id(node) not in sizes and id(node) not in ancestors:
            ancestors.add(id(node))
            if any(id(item) in ancestors for item in children):
                raise ValueError("an alias in it refers to a node that contains the alias")
            stack += [item for item in children if id(item) not in sizes]
            continue
        stack.pop()
        if id(node) in sizes:
            continue
        ancestors.discard(id(node))
        below = [sizes[id(item)] for item in children]
        size, depth = 1 + sum(size for size, _ in below), 1 + max((depth for _, depth in below), default=0)
        if size > _MAX_NODES:
            raise ValueError(f"its aliases expand to more than {_MAX_NODES:,} values")
        if depth > MAX_JSON_DEPTH + 2:  # the outermost mapping and the leaf do not count
            raise ValueError(f"it is nested deeper than {MAX_JSON_DEPTH} levels")
        sizes[id(node)] = (size, depth)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.ScalarNode):
        if node.tag.endswith((":int", ":float")) and len(node.value) > LONGEST:
            raise ValueError(f"it contains a number of {len(node.value)} digits; at most {LONGEST} are allowed")
        return []
    return [item for pair in node.value for item in pair] if isinstance(node, yaml.MappingNode) else list(node.value)
