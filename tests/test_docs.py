"""What the README and the docs say is so: their Python runs, their links lead somewhere, what they name exists, and the
messages they show are the ones that come."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import sightline
from sightline import cli
from sightline.config.schema import TrainConfig, walk

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
KEY = re.compile(r"`((?:run|data|module|trainer)\.[a-z_.]+)(?:=[^`]*)?`")
WORD = re.compile(r"(?:^|[\s'\"])((?:run|data|module|trainer)\.[A-Za-z_.]+)=")
NODES = ("module.network", "module.loss", "module.optimizer", "module.lr_scheduler")


def name(path: Path) -> str:
    """A page as the repository knows it."""
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\b[^\n]*\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def commands(page: Path) -> list[str]:
    """Every `sightline …` that a page shows, in a console block after `$` or alone between backticks."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    return re.findall(r"^\$ (sightline [^\n#|]*)", text, re.M) + re.findall(r"`(sightline [^`\n]*)`", prose(page))


def messages(page: Path) -> list[tuple[str, str]]:
    """(command, message) for every mistake that a page shows and that needs no run and no preset to be made."""
    pairs = [
        pair
        for text in blocks(page, "console")
        for pair in re.findall(r"^\$ (sightline .*)\n(sightline: .*)$", text, re.M)
    ]
    return [(line, message) for line, message in pairs if "--config-dir" not in line and "runs/" not in line]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_the_python_of_a_page_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # dataclasses look their module up
    for number, code in enumerate(blocks(page, "python"), start=1):
        exec(compile(code, f"{name(page)}, block {number}", "exec"), module.__dict__)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_and_image_of_a_page_exists(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name(page)}: {target}"
        assert file.is_relative_to(ROOT), f"{name(page)}: {target} leads out of the repository"
        assert not anchor or anchor in anchors(file), f"{name(page)}: {target}"


def anchors(page: Path) -> set[str]:
    """The anchors that the headings of a page make."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_key_a_page_names_is_in_the_schema(page: Path) -> None:
    keys = {key for key, _ in walk()}
    groups = {".".join(key.split(".")[:depth]) for key in keys for depth in (1, 2)}
    text = page.read_text(encoding="utf-8")
    for key in {*KEY.findall(text), *WORD.findall(text)}:
        if key == "data.json" or f"unknown key '{key}'" in text:
            continue  # a file of a run; a mistake shown with its message
        inside_a_node = any(key.startswith(f"{node}.") for node in NODES)
        assert key in keys or key in groups or inside_a_node, f"{name(page)}: {key}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_yaml_block_of_a_page_is_a_config(page: Path) -> None:
    for text in blocks(page, "yaml"):
        values = yaml.safe_load(text)
        values.pop("defaults", None)
        TrainConfig.from_dict(values)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_a_page_shows_exists(page: Path) -> None:
    for line in commands(page):
        word = line.split()[1]
        assert word in (*cli.COMMANDS, "COMMAND", "--help", "…"), f"{name(page)}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_shell_option_a_page_shows_exists(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in commands(page):
        options = re.findall(r"\s(--[a-z-]+)", line)
        if not options or line.split()[1] not in cli.COMMANDS:
            continue
        with pytest.raises(SystemExit):
            cli.main([line.split()[1], "--help"])
        printed = capsys.readouterr().out
        for option in options:
            assert option in printed, f"{name(page)}: {line}"


@pytest.mark.parametrize("page", [page for page in PAGES if messages(page)], ids=name)
def test_every_message_a_page_shows_is_the_one_that_comes(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for line, expected in messages(page):
        with pytest.raises(SystemExit) as exited:
            cli.main(shlex.split(line)[1:])
        printed = capsys.readouterr().err.strip()
        assert exited.value.code == 2
        assert re.fullmatch(re.escape(expected).replace("…", ".*"), printed), f"{name(page)}: {line}\n{printed}"


def test_the_pages_speak_of_every_command_and_preset() -> None:
    text = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    for command in cli.COMMANDS:
        assert f"## {command}\n" in text
    assert cli.usage() in text
    presets = Path(sightline.__file__).parent / "config" / "presets"
    for file in presets.glob("*/*.yaml"):
        assert f"`{file.parent.name}={file.stem}`" in text


def test_the_reference_documents_exactly_the_public_names() -> None:
    pages = (ROOT / "docs" / "reference" / name for name in ("library.md", "exceptions.md"))
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    documented = re.findall(r"^::: sightline\.(\w+)$", text, re.M)
    assert sorted(documented) == sorted(sightline.__all__)


def test_the_architecture_page_and_its_drawing_have_every_package() -> None:
    text = (ROOT / "docs" / "development" / "architecture.md").read_text(encoding="utf-8")
    drawn = set(
        re.findall(r">(\w+)</text>", (ROOT / "docs" / "assets" / "architecture.svg").read_text(encoding="utf-8"))
    )
    headings = {word for line in re.findall(r"^### (.+)$", text, re.M) for word in line.split(", ")}
    source = Path(sightline.__file__).parent
    packages = {path.parent.name for path in source.glob("*/__init__.py")} | {"session"}
    assert packages <= headings
    assert packages | {"cli"} <= drawn


def test_the_architecture_page_has_no_list_of_all_files() -> None:
    """A file is named where one looks for something, not in a table kept by hand."""
    text = (ROOT / "docs" / "development" / "architecture.md").read_text(encoding="utf-8")
    source = Path(sightline.__file__).parent
    linked = set(re.findall(r"\(\.\./\.\./src/sightline/([\w/]+\.py)\)", text))
    assert len(linked) < len(list(source.rglob("*.py"))) / 3


def test_the_configuration_reference_is_made_from_the_schema() -> None:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    reference = hooks.configuration()
    for key, item in walk():
        row = next(line for line in reference.splitlines() if line.startswith(f"| `{key}` |"))
        assert item.metadata["doc"].replace("|", r"\|") in row
    page = (ROOT / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
    assert page.count(hooks.KEYS) == 1


def test_the_license_is_the_whole_apache_license() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    for part in ("Version 2.0, January 2004", "END OF TERMS AND CONDITIONS", "[yyyy] [name of copyright owner]"):
        assert part in text
    assert [f"   {number}. " in text for number in range(1, 10)] == [True] * 9


def rows(tmp_path: Path, lines: str, tests: str, *options: str) -> subprocess.CompletedProcess[str]:
    """scripts/rows on a project of one list and one test file."""
    for folder in ("docs/development", "tests", "scripts"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / "docs" / "development" / "rows.tsv").write_text(f"row\tsection\twhat works\n{lines}")
    (tmp_path / "tests" / "test_a.py").write_text(f"import pytest\n\n{tests}\n")
    script = shutil.copy(ROOT / "scripts" / "rows", tmp_path / "scripts" / "rows")
    return subprocess.run([sys.executable, script, *options], capture_output=True, text=True, check=False)


CITING = '@pytest.mark.rows("A01")\ndef test_one():\n    pass'
LISTED = "A01\tA: one\tit works\n"


def test_rows_writes_the_page_and_then_agrees_with_it(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "development" / "rows.md"
    done = rows(tmp_path, LISTED, CITING)
    assert (done.returncode, page.exists()) == (1, False)
    assert "docs/development/rows.md is not up to date. Run scripts/rows --write." in done.stderr
    assert rows(tmp_path, LISTED, CITING, "--write").returncode == 0
    assert "## A: one" in page.read_text()
    assert "| A01 | it works | `tests/test_a.py::test_one` |" in page.read_text()
    done = rows(tmp_path, LISTED, CITING)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("1 rows of docs/development/rows.tsv, each with a test")
    page.write_text(page.read_text() + "more\n")
    assert rows(tmp_path, LISTED, CITING).returncode == 1


@pytest.mark.parametrize(
    ("lines", "tests", "message"),
    [
        (LISTED, "def test_one():\n    pass", "A01: no test cites it"),
        (LISTED.replace("A01", "A02"), CITING, "A01: tests/test_a.py::test_one cites it, but"),
        (LISTED * 2, CITING, "line 3: A01 is listed twice"),
    ],
)
def test_rows_says_what_is_wrong(tmp_path: Path, lines: str, tests: str, message: str) -> None:
    done = rows(tmp_path, lines, tests, "--write")
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "docs" / "development" / "rows.md").exists()


def test_the_troubleshooting_page_quotes_messages_that_exist() -> None:
    """Each part of a quoted message, between the places of values, is in some message of the source."""
    listed = subprocess.run(
        [sys.executable, ROOT / "scripts" / "messages"], capture_output=True, text=True, check=True
    ).stdout
    text = re.sub(r"\{[^}]*\}", "…", listed)
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    cells = [
        line.split("|")[1] for line in page.splitlines() if line.startswith("| ") and not line.startswith("| message")
    ]
    from_others = ("CUDA out of memory", "torchvision::nms")
    quotes = [quote for cell in cells for quote in re.findall(r"`([^`]+)`", cell) if quote not in from_others]
    assert len(quotes) > 25
    for quote in quotes:
        for part in filter(None, (part.strip(" '.?") for part in quote.split("…"))):
            assert part in text, f"{quote!r}: no message has {part!r}"
