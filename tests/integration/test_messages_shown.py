"""The messages that users see after a mistake, each compared with tests/fixtures/messages.txt.

A changed message must be changed there too, so that its wording is seen in a review. To rewrite the file:
`UPDATE_MESSAGES=1 pytest tests/integration/test_messages_shown.py`."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from helpers.commands import Command, run_command
from helpers.message_cases import CALLS, COMMANDS, PROCESSES, SECTIONS, Case, Place, train_run
from sightline.core.errors import SightlineError, argument_names

UPDATE = os.environ.get("UPDATE_MESSAGES") == "1"
MESSAGES = Path(__file__).parents[1] / "fixtures" / "messages.txt"
CASES = COMMANDS | CALLS | PROCESSES
HEADER = """What a user sees after a mistake: the id of the case, the exit code or the exception, and the message.
Written by tests/integration/test_messages_shown.py from the cases in tests/helpers/message_cases.py.
"""
WIDTH, LINES = 120, 3
"""A message has at most three lines, and at most as many characters as three lines of 120."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Trains a run of each kind when a case first needs it."""
    return cache(lambda kind: train_run(kind, tmp_path_factory.mktemp(f"base-{kind}")))


@pytest.fixture
def place(tmp_path: Path, trained: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Place:
    """The empty directory of a case, which is also the current one."""
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, trained)


def prepared(case: Case, place: Place) -> Case:
    for make in case.files:
        make(place)
    return case


def normalised(text: str, place: Place) -> str:
    """Returns a message without what differs between machines, runs and versions of Python and torch.

    The directory of the case becomes DIR, that of the trained runs BASE, hexadecimal ids and digests HEX, and the line
    of source code and the loss of a failed training N. Left out are the usage that argparse prints before an error, as
    --help does, and the quotes around its choices."""
    text = re.sub(r"\Ausage: .*?(?=^sightline [\w-]+: error: )", "", text, flags=re.DOTALL | re.MULTILINE)
    text = text.replace(str(place.path.resolve()), "DIR").replace(str(place.path), "DIR")
    text = re.sub(r"/\S*/base-\w+", "BASE", text)
    text = re.sub(r"\b(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{8,}\b", "HEX", text)
    text = re.sub(r"(\(raised in .*, line|The training loss rose to) [\d.]+", r"\1 N", text)
    text = re.sub(r"(?<=choose from )[^)]*", lambda match: match[0].replace("'", ""), text)
    return text.strip()


def recorded() -> dict[str, str]:
    """Returns the text of every block in the file, by the id of its case."""
    blocks = MESSAGES.read_text(encoding="utf-8").split("\n# ")[1:] if MESSAGES.exists() else []
    return dict(block.strip("\n").split("\n", 1) for block in blocks)


def compare(name: str, text: str) -> None:
    """Compares what a case gave with its block; with UPDATE_MESSAGES=1, writes the block instead."""
    if not UPDATE:
        assert text == recorded().get(name, "")
        return
    with MESSAGES.open("a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several workers write blocks
        blocks = recorded() | {name: text}
        lines = [f"\n# {case}\n{blocks[case]}\n" for case in CASES if case in blocks]
        MESSAGES.write_text(HEADER + "".join(lines), encoding="utf-8")


@pytest.mark.parametrize("name", COMMANDS)
def test_message_of_a_command(name: str, here: Command, place: Place) -> None:
    case = prepared(COMMANDS[name], place)
    assert isinstance(case.run, str)
    done = here(*shlex.split(case.run))
    compare(name, f"exit code {done.returncode}\n{normalised(done.stderr or done.stdout, place)}")


@pytest.mark.parametrize("name", CALLS)
def test_message_of_a_call(name: str, place: Place) -> None:
    case = prepared(CALLS[name], place)
    assert not isinstance(case.run, str)
    with argument_names({}), pytest.raises((SightlineError, TypeError, ValueError)) as raised:
        case.run(place)
    compare(name, f"{type(raised.value).__name__}\n{normalised(str(raised.value), place)}")


@pytest.mark.parametrize("name", PROCESSES)
def test_message_of_a_process(name: str, place: Place) -> None:
    case = prepared(PROCESSES[name], place)
    assert isinstance(case.run, str)
    done = run_command(*shlex.split(case.run), cwd=place.path)
    assert "Traceback" not in done.stderr
    compare(name, f"exit code {done.returncode}\n{normalised(done.stderr, place)}")


@pytest.mark.skipif(UPDATE, reason="the file is being written")
def test_every_block_has_a_case_and_no_message_is_long() -> None:
    ids = re.findall(r"^# (.+)$", MESSAGES.read_text(encoding="utf-8"), re.MULTILINE)
    assert ids == list(CASES)
    assert len(CASES) == sum(map(len, SECTIONS)), "two sections have a case of the same id"
    assert len(CASES) >= 130
    for name, block in recorded().items():
        text = block.partition("\n")[2]
        assert text, f"{name}: there is no message"
        assert text.count("\n") < LINES, f"{name}: the message has too many lines"
        assert len(text) <= LINES * WIDTH, f"{name}: the message is too long"
