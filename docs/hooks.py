"""What MkDocs does beside rendering: the configuration reference is made from the schema, and a link to a file of the
repository leads to a page with that file."""

from __future__ import annotations

import dataclasses
import re
import sys
import typing
from pathlib import Path
from typing import Any

import yaml
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
if str(ROOT / "src") not in sys.path:  # the build needs no installed package
    sys.path.insert(0, str(ROOT / "src"))

KEYS = "<!-- the keys of the schema -->"
LINK = re.compile(r"\]\(\.\./((?:src|scripts|benchmarks)/[^)#]+)\)")
LANGUAGES = {".py": "python", ".yaml": "yaml", "": "python"}


def on_files(files: Files, config: Any) -> Files:
    """Adds one page for each source file that a page of the docs links to."""
    linked: set[str] = set()
    for page in files.documentation_pages():
        linked |= set(LINK.findall(page.content_string))
    for path in sorted(linked):
        files.append(File.generated(config, source_page(path), content=source_text(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Leads links out of the docs to the pages above, and puts the reference where its mark stands."""
    if KEYS in markdown:
        markdown = markdown.replace(KEYS, configuration())
    return LINK.sub(lambda match: f"]({source_page(match[1])})", markdown)


def source_page(path: str) -> str:
    """The page of a source file: src/sightline/core/types.py -> source/sightline/core/types.md."""
    return f"source/{Path(path.removeprefix('src/')).with_suffix('')}.md"


def source_text(path: str) -> str:
    """That page: the file itself, not searched."""
    code = (ROOT / path).read_text(encoding="utf-8")
    head = f"---\ntitle: {Path(path).name}\nsearch:\n  exclude: true\nhide:\n  - toc\n---\n\n# `{path}`\n\n"
    return f'{head}````{LANGUAGES[Path(path).suffix]} linenums="1"\n{code}````\n'


def configuration() -> str:
    """Every key of the schema, one table for each group, in the schema's order."""
    from sightline.config.schema import TrainConfig

    return "\n".join(_tables(TrainConfig, ""))


def _tables(cls: Any, path: str) -> list[str]:
    from sightline.config.typed import describe

    hints = typing.get_type_hints(cls)
    names = [item.name for item in dataclasses.fields(cls)]
    groups = [name for name in names if dataclasses.is_dataclass(hints[name])]
    lines = [f"## {f'`{path}`' if path else 'The top level'}", "", f"{cls.__doc__}", ""]
    lines += ["| key | value | default | |", "|---|---|---|---|"]
    for name in (name for name in names if name not in groups):
        kind, default, text = describe(cls, name)
        key = f"{path}.{name}" if path else name
        lines.append("| " + " | ".join((f"`{key}`", kind, f"`{_yaml(default)}`", _cell(text))) + " |")
    lines.append("")
    for name in groups:
        lines += _tables(hints[name], f"{path}.{name}" if path else name)
    return lines


def _yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float("inf"), allow_unicode=True)
    return _cell(text.removesuffix("\n...\n").strip())


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
