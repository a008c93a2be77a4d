"""Hooks of the documentation build. They make the configuration reference from the schema, add CONTRIBUTING.md and
CHANGELOG.md to the site, and turn a link to a source file into a link to a page with that file."""

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
LINK = re.compile(r"\]\((?:\.\./)+((?:src|scripts|benchmarks|examples)/[^)#]+)\)")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".md": "markdown", "": "python"}
ROOT_PAGES = {"CONTRIBUTING.md": "development/contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages of the repository's top directory -> where they are in the site."""


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of the top directory, and one page for each source file that a page links to."""
    linked: set[str] = set()
    for page in files.documentation_pages():
        linked |= set(LINK.findall(page.content_string))
    for path in sorted(linked):
        files.append(File.generated(config, source_page(path), content=source_text(path)))
    for name, place in ROOT_PAGES.items():
        files.append(File.generated(config, place, content=root_page(name, place)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to the pages of source files, and inserts the configuration reference at its marker."""
    if KEYS in markdown:
        markdown = markdown.replace(KEYS, configuration())
    up = "../" * page.file.src_uri.count("/")
    return LINK.sub(lambda match: f"]({up}{source_page(match[1])})", markdown)


def root_page(name: str, place: str) -> str:
    """Returns a page of the top directory with its links as they are in the site."""
    up = "../" * place.count("/")
    text = (ROOT / name).read_text(encoding="utf-8")
    for other, target in ROOT_PAGES.items():
        text = text.replace(f"]({other})", f"]({up}{target})")
    return text.replace("](docs/", f"]({up}")


def source_page(path: str) -> str:
    """Returns the page of a source file: src/sightline/core/types.py -> source/sightline/core/types.md."""
    return f"source/{Path(path.removeprefix('src/')).with_suffix('')}.md"


def source_text(path: str) -> str:
    """Returns the content of that page: the file itself, excluded from the search index."""
    code = (ROOT / path).read_text(encoding="utf-8")
    head = f"---\ntitle: {Path(path).name}\nsearch:\n  exclude: true\nhide:\n  - toc\n---\n\n# `{path}`\n\n"
    return f'{head}````{LANGUAGES[Path(path).suffix]} linenums="1"\n{code}````\n'


def configuration() -> str:
    """Returns every key of the schema as Markdown, one table per group, in the schema's order."""
    from sightline.config.schema import TrainConfig

    return "\n".join(_tables(TrainConfig, ""))


def _tables(cls: Any, path: str) -> list[str]:
    from sightline.config.typed import describe

    hints = typing.get_type_hints(cls)
    names = [item.name for item in dataclasses.fields(cls)]
    groups = [name for name in names if dataclasses.is_dataclass(hints[name])]
    lines = [f"## {f'`{path}`' if path else 'The top level'}", "", f"{cls.__doc__}", ""]
    lines += ["| key | value | default | description |", "|---|---|---|---|"]
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
