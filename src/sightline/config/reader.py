"""YAML files -> plain dicts, without the two silent traps of YAML 1.1: `1e-3` is a number, and a key written twice is
an error instead of the last one winning."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from sightline.errors import ConfigError


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                mark = key_node.start_mark
                raise ConfigError(f"{mark.name}, line {mark.line + 1}: the key '{key}' is there twice.")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)


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
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"'{path}' cannot be read as YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"'{path}': expected keys and values, found a {type(content).__name__}.")
    return content
