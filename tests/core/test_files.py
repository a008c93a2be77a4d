"""Atomic writes, JSON files and checksums."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.core.files import atomic_write, read_json, replace_non_finite, sha256, write_json, write_text


def names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


class Interruption(BaseException):
    """A BaseException that is not an Exception, like KeyboardInterrupt."""


def test_a_file_appears_when_the_block_ends_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    with atomic_write(path) as file:
        file.write(b"content")
        assert not path.exists()
    assert path.read_bytes() == b"content"
    assert names(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("error", [OSError, Interruption])
def test_a_failed_write_keeps_the_old_file_and_no_temporary_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(error), atomic_write(path) as file:  # noqa: PT012
        file.write(b"half of the n")
        file.flush()
        raise error
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


def test_a_failed_first_write_creates_no_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk full"), atomic_write(tmp_path / "file.bin"):
        raise OSError("disk full")
    assert names(tmp_path) == []


def test_a_directory_at_the_path_is_an_error_without_a_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_text(tmp_path / "taken", "x")
    assert names(tmp_path) == ["taken"]


def test_an_open_reader_sees_the_old_content_when_the_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    write_text(path, "old")
    with path.open(encoding="utf-8") as reader:
        write_text(path, "new and longer")
        assert reader.read() == "old"
    assert path.read_text(encoding="utf-8") == "new and longer"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "file.txt", "x")
        assert os.umask(umask) == umask, "writing changed the umask"
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == mode


def test_text_is_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "file.txt", "Größe ≥ 1 → 數\n")
    assert (tmp_path / "file.txt").read_bytes() == "Größe ≥ 1 → 數\n".encode()


def test_non_finite_numbers_become_null(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"loss": math.nan, "rows": [math.inf, (-math.inf, 1.5)], "name": "NaN"})
    text = path.read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {"loss": None, "rows": [None, [None, 1.5]], "name": "NaN"}
    assert text.endswith("}\n")


def test_a_value_that_json_cannot_encode_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"old": True})
    with pytest.raises(TypeError):
        write_json(path, {"bad": object()})
    assert read_json(path) == {"old": True}
    assert names(tmp_path) == ["file.json"]


def test_invalid_json_is_a_value_error(tmp_path: Path) -> None:
    write_text(tmp_path / "file.json", "{")
    with pytest.raises(ValueError, match="line 1"):
        read_json(tmp_path / "file.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=30)
@given(value=JSON)
def test_json_round_trips_unchanged(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.json"
    write_json(path, value)
    assert read_json(path) == value
    assert replace_non_finite(value) == value


def test_a_checksum_is_the_sha256_of_the_content(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "file.bin").write_bytes(content)
    assert sha256(tmp_path / "file.bin") == hashlib.sha256(content).hexdigest()
