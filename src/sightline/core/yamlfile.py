"""YAML files <-> plain dicts, without the two silent traps of YAML 1.1: `1e-3` is a number, and a key written twice is
an error instead of the last one winning. A file may come from anywhere: one that is made to take all memory or time is
refused."""

import os
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, TextIO

import yaml

from sightline.core.errors import ConfigError
from sightline.core.files import LONGEST, MAX_JSON_DEPTH

MAX_BYTES = 4 * 2**20
"""Bytes of a file; a config with tens of thousands of class names has one."""
_MAX_NODES = 1_000_000


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # the base class has the words for it
            if key in seen:
                mark = key_node.start_mark
                raise ConfigError(f"{mark.name}, line {mark.line + 1}: the key '{key}' is there twice.")
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    pass


for _codec in (_Loader, _Dumper):  # the writer too, so that a text which looks like such a number is written in quotes
    _codec.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
        list("-+0123456789."),
    )


def dump_yaml(values: Mapping[str, Any]) -> str:
    """YAML text, in the mapping's order, that `read_yaml` reads back equal."""
    text: str = yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError naming the file, and the line where it can be told."""
    file = Path(path)
    try:
        with file.open(encoding="utf-8") as stream:
            if os.fstat(stream.fileno()).st_size > MAX_BYTES:
                raise ConfigError(f"'{path}' is no config: it is larger than {MAX_BYTES // 2**20} MiB.")
            content = _load(stream)
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no config file '{path}'. A preset of the command line becomes a file with: "
            f"sightline train experiment={file.stem} --cfg job > {file.stem}.yaml"
        ) from error
    except RecursionError as error:
        raise ConfigError(f"'{path}' is no config: it is nested deeper than {MAX_JSON_DEPTH} levels.") from error
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(f"'{path}' cannot be read as YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"'{path}': expected keys and values, found a {type(content).__name__}.")
    return content


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
    """Raises ValueError for what unfolds into more than it seems: an alias costs a few letters and stands for a whole
    tree, or for itself; a number of many digits takes its square in time."""
    sizes: dict[int, tuple[int, int]] = {}  # by node: how many nodes it stands for, how many levels
    above: set[int] = set()
    stack = [root]
    while stack:
        node = stack[-1]
        inside = _inside(node)
        if id(node) not in sizes and id(node) not in above:
            above.add(id(node))
            if any(id(item) in above for item in inside):
                raise ValueError("an alias in it stands for what it is in")
            stack += [item for item in inside if id(item) not in sizes]
            continue
        stack.pop()
        if id(node) in sizes:
            continue
        above.discard(id(node))
        found = [sizes[id(item)] for item in inside]
        size, depth = 1 + sum(size for size, _ in found), 1 + max((depth for _, depth in found), default=0)
        if size > _MAX_NODES:
            raise ValueError(f"its aliases unfold into more than {_MAX_NODES:,} values")
        if depth > MAX_JSON_DEPTH + 2:  # the outermost mapping and the leaf are none
            raise ValueError(f"it is nested deeper than {MAX_JSON_DEPTH} levels")
        sizes[id(node)] = (size, depth)


def _inside(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.ScalarNode):
        if node.tag.endswith((":int", ":float")) and len(node.value) > LONGEST:
            raise ValueError(f"it has a number of {len(node.value)} digits")
        return []
    return [item for pair in node.value for item in pair] if isinstance(node, yaml.MappingNode) else list(node.value)
