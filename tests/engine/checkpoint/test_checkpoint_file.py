"""Files of `torch.save` with a checksum: changed and truncated files are refused with their name."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.core.errors import ArtifactError
from sightline.engine.checkpoint.file import UnreadableError, has_checksum, load_checksummed, save_checksummed

CONTENT = {"weights": torch.arange(300.0).reshape(3, 100), "step": 7, "names": ["a", "b"], "none": None}


@pytest.fixture(scope="module")
def checksummed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("checksummed") / "a.ckpt"
    save_checksummed(path, CONTENT)
    return path.read_bytes()


def equal(content: dict[str, Any]) -> bool:
    rest = [{key: value for key, value in one.items() if key != "weights"} for one in (content, CONTENT)]
    return torch.equal(content["weights"], CONTENT["weights"]) and rest[0] == rest[1]  # type: ignore[arg-type]


def test_a_saved_file_is_read_back_and_torch_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.ckpt"
    save_checksummed(path, CONTENT)
    assert has_checksum(path)
    assert equal(load_checksummed(path, []))
    assert equal(torch.load(path, weights_only=True))
    assert zipfile.ZipFile(path).comment.startswith(b"sightline sha256 ")
    assert [entry.name for entry in path.parent.iterdir()] == ["a.ckpt"]


@pytest.mark.rows("X06")
@settings(max_examples=150)
@given(data=st.data())
def test_every_changed_bit_is_detected(
    checksummed: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """One changed bit, a truncated file, bytes after the end, or a block of zeros."""
    path = tmp_path_factory.getbasetemp() / "a.ckpt"
    place = data.draw(st.integers(0, len(checksummed) - 1))
    kind = data.draw(st.sampled_from(["bit", "cut", "more", "zeros"]))
    if kind == "bit":
        changed = bytearray(checksummed)
        changed[place] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        changed = bytearray(checksummed[:place])
    elif kind == "more":
        changed = bytearray(checksummed) + data.draw(st.binary(min_size=1, max_size=200))
    else:
        changed = bytearray(checksummed)
        changed[place : place + 512] = bytes(len(changed[place : place + 512]))
    path.write_bytes(changed)
    if bytes(changed) == checksummed:
        return
    try:
        content = load_checksummed(path, [])
    except ArtifactError as error:
        assert str(path) in str(error)  # noqa: PT017 either is right
    else:
        assert not has_checksum(path), "a changed file passed as a valid one"
        assert equal(content), "other weights"


def test_a_change_in_any_byte_of_the_checksum_is_detected(checksummed: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    for place in range(len(checksummed) - 83, len(checksummed)):
        changed = bytearray(checksummed)
        changed[place] ^= 0x11
        path.write_bytes(changed)
        if has_checksum(path):
            with pytest.raises(ArtifactError, match="damaged"):
                load_checksummed(path, [])


def test_a_file_without_a_checksum_is_read_and_its_zip_checksums_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "old.ckpt"
    torch.save(CONTENT, path)
    assert not has_checksum(path)
    assert equal(load_checksummed(path, []))
    changed = bytearray(path.read_bytes())
    changed[changed.index(torch.arange(100.0, 110.0).numpy().tobytes())] ^= 1
    path.write_bytes(changed)
    with pytest.raises(ArtifactError, match="checksum of its record 'old/data/0' does not match"):
        load_checksummed(path, [])


def rewritten(source: Path, target: Path, compression: int) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_records_are_refused_before_they_are_decompressed(compression: int, tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(1 << 20)}, tmp_path / "plain.ckpt")
    bomb = tmp_path / "bomb.ckpt"
    rewritten(tmp_path / "plain.ckpt", bomb, compression)
    assert bomb.stat().st_size < 20_000
    with pytest.raises(ArtifactError, match=r"bomb\.ckpt' is not a checkpoint: it contains compressed records"):
        load_checksummed(bomb, [])


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('executed')",)


def payloads() -> Iterator[Any]:
    yield Payload()
    yield {"model": Payload()}
    yield [print]


@pytest.mark.parametrize("payload", list(payloads()), ids=["top", "inside", "function"])
def test_code_is_not_run(payload: Any, tmp_path: Path) -> None:
    path = tmp_path / "evil.ckpt"
    save_checksummed(path, payload)
    with pytest.raises(UnreadableError, match=r"evil\.ckpt' cannot be read: it contains '[\w.]+', .* could run code"):
        load_checksummed(path, [])


def test_a_failed_save_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    save_checksummed(path, CONTENT)
    before = path.read_bytes()

    def fail() -> None:
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        save_checksummed(path, {"other": 1}, fail)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error")], ids=["memory", "disk"])
def test_an_error_of_the_system_is_not_reported_as_damage(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.ckpt"
    save_checksummed(path, CONTENT)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(UnreadableError, match=r"a\.ckpt' cannot be read: "):
        load_checksummed(path, [])
