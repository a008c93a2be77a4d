"""Decoding processes: the same results as threads, and no run fails because one of them ends."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.images import noise, write_image
from sightline.core.errors import DataError
from sightline.data.cache import workers as module
from sightline.data.cache.dataset import PackedDataset
from sightline.data.cache.directory import Cache
from sightline.data.cache.pack import PackOptions, pack_splits
from sightline.data.cache.workers import DecodingProcesses, Workers
from sightline.data.images.preprocess import Preprocess
from sightline.data.records import DataInfo, Sample
from sightline.data.sources.open import ListSource

DECODER = Preprocess(8, 8, 3)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    listed = []
    for i in range(60):
        side = 8 if i % 3 else 11
        path = write_image(tmp_path / f"{i:02}.{'jpg' if i % 2 else 'png'}", noise(side, side, 3, seed=i))
        listed.append(Sample(f"id{i}", path, i % 2))
    return listed


def pack(samples: list[Sample], cache: Path | None, on_bad: str = "error") -> PackedDataset:
    source = ListSource(DataInfo("test", ("a", "b")), {"train": samples})
    workers = Workers(2, process_files=10)
    packing = PackOptions("pixels", Cache(cache) if cache else None, on_bad, workers=workers)
    return pack_splits(source, DECODER, packing=packing)[0]["train"]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the blocks that processes decoded."""
    lengths: list[int] = []
    real = DecodingProcesses.decode

    def decode(self: DecodingProcesses, paths: list[str], offset: int) -> object:
        block = real(self, paths, offset)
        lengths.append(len(paths) if block is not None else 0)
        return block

    monkeypatch.setattr(DecodingProcesses, "decode", decode)
    return lengths


def test_processes_decode_the_same_as_threads(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = counted(monkeypatch)
    packed = pack(samples, tmp_path / "cache")
    assert sum(blocks) == 60
    plain = pack(samples, None)
    assert sum(blocks) == 60, "without a cache, processes decoded"
    assert packed.fingerprint() == plain.fingerprint()
    assert np.array_equal(packed.pixels(range(60)).numpy(), plain.pixels(range(60)).numpy())
    assert packed.statistics() == plain.statistics()


def test_an_image_that_processes_cannot_read_is_named(samples: list[Sample], tmp_path: Path) -> None:
    samples[7].image.write_bytes(b"no image")  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"'.*07\.jpg' is not an image"):
        pack(samples, tmp_path / "cache")
    left_out = pack(samples, tmp_path / "cache", "skip").left_out
    assert [name for name, _ in left_out] == ["id7"]


@pytest.mark.filterwarnings("error")
def test_threads_decode_where_processes_cannot_be_started(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = pack(samples, None)
    for name in ("", str(tmp_path / "nothing here")):
        monkeypatch.setattr(sys, "executable", name)
        blocks = counted(monkeypatch)
        assert pack(samples, tmp_path / f"cache of {len(name)}").fingerprint() == plain.fingerprint()
        assert sum(blocks) == 0


def test_output_of_python_at_startup_is_ignored(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("print('good morning, and \\N{SNOWMAN}')\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    blocks = counted(monkeypatch)
    assert pack(samples, tmp_path / "cache").fingerprint() == pack(samples, None).fingerprint()
    assert sum(blocks) == 60


def test_paths_of_the_interpreter_may_be_path_objects(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path])
    blocks = counted(monkeypatch)
    pack(samples, tmp_path / "cache")
    assert sum(blocks) == 60


@pytest.mark.parametrize(("kind", "crash"), [(signal.SIGKILL, False), (signal.SIGSEGV, True)])
def test_a_process_that_ends_is_replaced_by_a_thread_unless_a_file_crashed_it(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: signal.Signals, crash: bool
) -> None:
    real = module._send

    def send(process: module.subprocess.Popen[bytes], message: object) -> None:
        if isinstance(message, tuple) and isinstance(message[0], int):
            os.kill(process.pid, kind)
            process.wait()
        real(process, message)

    monkeypatch.setattr(module, "_send", send)
    plain = pack(samples, None)
    if crash:
        with pytest.raises(DataError, match=r"One of the files from '.*00\.png' to '.*' crashes the decoder"):
            pack(samples, tmp_path / "cache")
        assert [path.name for path in (tmp_path / "cache").iterdir()] == ["locks"]
    else:
        assert pack(samples, tmp_path / "cache").fingerprint() == plain.fingerprint()


def test_closed_processes_decode_nothing(samples: list[Sample], tmp_path: Path) -> None:
    processes = DecodingProcesses(2)
    processes.close()
    processes.close()
    (tmp_path / "pixels").write_bytes(bytes(60 * 192))
    processes.begin(DECODER, tmp_path / "pixels")
    assert processes.decode([str(samples[0].image)], 0) is None
