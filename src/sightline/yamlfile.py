"""YAML files <-> plain dicts, without the two silent traps of YAML 1.1: `1e-3` is a number, and a key written twice is
an error instead of the last one winning."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from sightline.errors import ConfigError


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
            content = yaml.load(stream, _Loader)  # noqa: S506 a SafeLoader
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no config file '{path}'. A preset of the command line becomes a file with: "
            f"sightline train experiment={file.stem} --cfg job > {file.stem}.yaml"
        ) from error
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(f"'{path}' cannot be read as YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"'{path}': expected keys and values, found a {type(content).__name__}.")
    return content
