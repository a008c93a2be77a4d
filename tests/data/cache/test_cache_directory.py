"""The cache directory: entries are complete or absent, one process builds each, and a limit deletes the oldest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from helpers.images import noise, write_folders, write_image
from sightline.core.log import logger
from sightline.data.cache.directory import Cache, commit_entry, preallocate
from sightline.data.cache.pack import PackOptions, pack_splits
from sightline.data.images.preprocess import Preprocess
from sightline.data.records import DataInfo, Sample
from sightline.data.sources.open import ListSource, open_source

KEYS = [f"{i:032x}" for i in range(9)]
GRAY = Preprocess(4, 4, 1)


def put(cache: Cache, key: str, size: int = 1000, used: float | None = None) -> None:
    """Adds an entry of about `size` bytes that was last used at the time `used`."""
    with cache.build(key) as folder:
        assert folder is not None
        (folder / "pixels.npy").write_bytes(b"x" * size)
        commit_entry(folder, {"origin": "here", "store": "pixels", "shape": [1, 1, 1, size]})
    if used is not None:
        os.utime(cache.folder / key / "meta.json", (used, used))


def names(cache: Cache) -> list[str]:
    return [entry.path.name for entry in cache.entries()]


def visible(folder: Path) -> list[str]:
    """The names of everything in the cache except its lock files."""
    return sorted(path.name for path in folder.iterdir() if path.name != "locks")


def test_an_entry_is_found_by_its_key_with_its_metadata_and_size(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "deep" / "cache")
    assert cache.find(KEYS[0]) is None
    assert cache.entries() == []
    put(cache, KEYS[0], 500)
    entry = cache.find(KEYS[0])
    assert entry is not None
    assert entry.meta["shape"] == [1, 1, 1, 500]
    assert entry.size == sum(path.stat().st_size for path in entry.path.iterdir()) > 500
    assert cache.find(KEYS[1]) is None
    assert names(cache) == [KEYS[0]]


def test_the_directory_comes_from_the_argument_the_environment_or_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "environment"))
    assert Cache().folder == tmp_path / "environment"
    assert Cache(tmp_path / "argument").folder == tmp_path / "argument"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Cache("~/mine").folder == tmp_path / "mine"
    monkeypatch.delenv("SIGHTLINE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert Cache().folder == tmp_path / "xdg" / "sightline" / "packed"
    assert not any((tmp_path / name).exists() for name in ("environment", "argument", "mine", "xdg"))


def test_a_build_that_fails_removes_its_files(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def build(error: type[BaseException]) -> None:
        with cache.build(KEYS[0]) as folder:
            assert folder is not None
            (folder / "half").write_bytes(b"x")
            raise error

    for error in (ValueError, KeyboardInterrupt, OSError):
        with pytest.raises(error):
            build(error)
        assert visible(tmp_path) == []


def test_an_entry_is_not_visible_before_it_is_finished(tmp_path: Path) -> None:
    cache, other = Cache(tmp_path), Cache(tmp_path)
    with cache.build(KEYS[0]) as folder:
        assert folder is not None
        commit_entry(folder, {"shape": [1]})
        assert other.find(KEYS[0]) is None
        assert other.entries() == []
    assert other.find(KEYS[0]) is not None


def test_a_thread_that_waited_finds_the_finished_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads that want the same entry: one builds it, the other logs that it waits and builds nothing."""
    inside, proceed = threading.Event(), threading.Event()
    messages: list[str] = []
    built: list[bool] = []

    def first() -> None:
        with Cache(tmp_path).build(KEYS[0]) as folder:
            inside.set()
            assert proceed.wait(60)
            assert folder is not None
            commit_entry(folder, {"shape": [1]})

    def log(text: str) -> None:
        messages.append(text)
        proceed.set()

    monkeypatch.setattr(logger, "info", log)

    def second() -> None:
        with Cache(tmp_path).build(KEYS[0]) as folder:
            built.append(folder is not None)

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert inside.wait(60)
    threads[1].start()
    for thread in threads:
        thread.join(60)
    assert messages == ["Waiting for another process that is decoding the same data."]
    assert built == [False]


def test_files_of_a_killed_builder_are_removed_by_the_next(tmp_path: Path) -> None:
    for leftover in (f".{KEYS[0]}.deadbeef", f".{KEYS[1]}.deadbeef"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "pixels.npy").write_bytes(b"x" * 100)
    (tmp_path / KEYS[0]).mkdir()  # an entry that was invalidated
    (tmp_path / KEYS[0] / "pixels.npy").write_bytes(b"damaged")
    cache = Cache(tmp_path)
    put(cache, KEYS[0], 10)
    assert visible(tmp_path) == [f".{KEYS[1]}.deadbeef", KEYS[0]]
    assert (tmp_path / KEYS[0] / "pixels.npy").read_bytes() == b"x" * 10


# --- limit and clear


def test_beyond_the_limit_the_least_recently_used_entries_are_deleted(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=3900)
    for position, key in enumerate(KEYS[:3]):
        put(cache, key, used=1000 + position)
    assert set(names(cache)) == set(KEYS[:3])
    assert cache.find(KEYS[0]) is not None  # used now, so the second is deleted next
    put(cache, KEYS[3], used=5000)
    assert set(names(cache)) == {KEYS[0], KEYS[2], KEYS[3]}
    assert KEYS[1] not in visible(tmp_path)
    put(cache, KEYS[4], size=10_000)  # more than the limit on its own
    assert names(cache) == [KEYS[4]]


def test_entries_are_listed_with_the_last_used_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for key, used in zip(KEYS, (30, 10, 20), strict=False):
        put(cache, key, used=used)
    assert [entry.last_used for entry in cache.entries()] == [30, 20, 10]
    assert names(cache) == [KEYS[0], KEYS[2], KEYS[1]]


def test_trim_returns_the_bytes_that_it_freed(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for position, key in enumerate(KEYS[:4]):
        put(cache, key, used=position)
    size = cache.entries()[0].size
    assert cache.trim() == 0
    cache.limit = 2 * size
    assert cache.trim() == 2 * size
    assert names(cache) == [KEYS[3], KEYS[2]]


def test_clear_deletes_everything_except_entries_being_built(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    put(cache, KEYS[0])
    put(cache, KEYS[1])
    leftover = tmp_path / f".{KEYS[2]}.{'0' * 16}"
    leftover.mkdir()
    (leftover / "pixels.npy").write_bytes(b"x" * 100)
    total = sum(entry.size for entry in cache.entries()) + 100
    with Cache(tmp_path).build(KEYS[3]) as folder:
        assert folder is not None
        assert cache.clear() == total
        assert visible(tmp_path) == [folder.name]
        commit_entry(folder, {"shape": [1]})
    assert names(cache) == [KEYS[3]]
    assert Cache(tmp_path / "nowhere").clear() == 0
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("meta", [None, "{", ""])
def test_clear_deletes_damaged_entries(tmp_path: Path, meta: str | None) -> None:
    """They may take gigabytes, and are never rebuilt if the files that they were made of have changed."""
    cache = Cache(tmp_path)
    put(cache, KEYS[0])
    entry = cache.entries()[0]
    if meta is None:
        cache.invalidate(entry)
    else:
        (entry.path / "meta.json").write_text(meta)
    assert cache.find(KEYS[0]) is None
    cache.clear()
    assert visible(tmp_path) == []


def test_other_files_in_the_directory_are_never_deleted(tmp_path: Path) -> None:
    """`data.cache_dir` or `sightline cache --dir` may name a directory with other files, such as a home directory."""
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_ed25519").write_text("a key")
    (tmp_path / ".profile").write_text("settings")
    for name, meta in (("experiment", "{}"), ("photos", '{"title": "years of work"}'), ("lists", "[1]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "meta.json").write_text(meta)
        (tmp_path / name / "precious").write_text("years of work")
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    cache = Cache(tmp_path, limit=10)
    put(cache, KEYS[0])
    cache.clear()
    after = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    assert set(before) <= set(after)


def test_an_infinite_limit_deletes_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=float("inf"))
    put(cache, KEYS[0])
    put(cache, KEYS[1])
    assert set(names(cache)) == set(KEYS[:2])


# --- files


def test_preallocated_space_is_really_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preallocate(tmp_path / "a", 100_000)
    status = (tmp_path / "a").stat()
    assert status.st_size == 100_000
    if hasattr(os, "posix_fallocate"):
        assert status.st_blocks * 512 >= 100_000
    preallocate(tmp_path / "empty", 0)
    assert (tmp_path / "empty").stat().st_size == 0
    with pytest.raises(FileExistsError):
        preallocate(tmp_path / "a", 1)
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    preallocate(tmp_path / "b", 1000)
    assert (tmp_path / "b").stat().st_size == 1000


# --- real processes

PACK = """
import logging, sys, time
from pathlib import Path
import sightline.data.cache.entry as storage
from sightline.data.cache.directory import Cache
from sightline.data.cache.pack import PackOptions, pack_splits
from sightline.data.images.preprocess import Preprocess
from sightline.data.sources.open import open_source

root, folder, store, delay = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
decoded = 0

def progress(count):
    global decoded
    decoded += count
    if decoded == count:
        print("started", flush=True)
    time.sleep(delay)

storage._BLOCK_BYTES = 64  # blocks of four images, so that there is a middle to be killed in
logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="note %(message)s", force=True)
cache = Cache(folder)
source = open_source("folder", root, val=0, test=0)
packed, _ = pack_splits(source, Preprocess(4, 4, 1), progress, None, PackOptions(store, cache))
print("done", decoded, packed["train"].fingerprint(), int(packed["train"].pixels(range(60)).sum()), flush=True)
"""


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "-c", PACK, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> list[str]:
    """Waits for a process; the fields of the last line that it printed."""
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out.splitlines()[-1].split()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_folders(tmp_path / "images", {"cat": 40, "dog": 40})


def expected(images: Path) -> tuple[str, str]:
    packed, _ = pack_splits(open_source("folder", images, val=0, test=0), GRAY)
    return packed["train"].fingerprint(), str(int(packed["train"].pixels(range(60)).sum()))


@pytest.mark.parametrize("store", ["pixels", "encoded"])
def test_two_processes_that_pack_the_same_data_make_one_entry(tmp_path: Path, images: Path, store: str) -> None:
    processes = [start(images, tmp_path / "cache", store, 0.02) for _ in range(2)]
    results = [finished(process) for process in processes]
    assert {tuple(result[2:]) for result in results} == {expected(images)}
    assert sorted(int(result[1]) for result in results) == [0, 80], "one decoded, the other waited for it"
    assert len(visible(tmp_path / "cache")) == 1


@pytest.mark.parametrize("store", ["pixels", pytest.param("encoded", marks=pytest.mark.slow)])
def test_when_the_builder_is_killed_a_waiting_process_builds_the_complete_entry(
    tmp_path: Path, images: Path, store: str
) -> None:
    """SIGKILL in the middle of packing, while another process waits for the entry."""
    first = start(images, tmp_path / "cache", store, 30)
    assert first.stdout is not None
    assert first.stdout.readline() == "started\n"
    second = start(images, tmp_path / "cache", store, 0)
    assert second.stdout is not None
    assert second.stdout.readline().startswith("note Waiting for another process")
    (partial,) = visible(tmp_path / "cache")
    assert partial.startswith(".")
    first.send_signal(signal.SIGKILL)
    assert first.wait(300) == -signal.SIGKILL
    first.communicate()
    result = finished(second)
    assert result[1] == "80"
    assert tuple(result[2:]) == expected(images)
    (entry,) = visible(tmp_path / "cache")
    assert not entry.startswith(".")
    again = finished(start(images, tmp_path / "cache", store, 0))
    assert again[1] == "0"
    assert tuple(again[2:]) == expected(images)


def test_an_interrupted_builder_removes_its_partial_entry(tmp_path: Path, images: Path) -> None:
    """SIGINT, as Ctrl-C sends it, in the middle of packing."""
    process = start(images, tmp_path / "cache", "pixels", 30)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert visible(tmp_path / "cache") == []


def test_an_entry_deleted_while_in_use_can_still_be_read(tmp_path: Path) -> None:
    for store in ("pixels", "encoded"):
        samples = [Sample(str(i), write_image(tmp_path / f"{i}.png", noise(4, 4, seed=i)), 0) for i in range(9)]
        cache = Cache(tmp_path / store)
        source = ListSource(DataInfo("test", ("a", "b")), {"train": samples})
        packed, _ = pack_splits(source, GRAY, packing=PackOptions(store, cache))
        cache.clear()
        assert visible(cache.folder) == []
        shown = packed["train"].pixels(range(9))[:, 0].numpy()
        assert np.array_equal(shown, np.stack([noise(4, 4, seed=i) for i in range(9)]))


def test_the_metadata_names_the_origin_of_the_images(tmp_path: Path, images: Path) -> None:
    cache = Cache(tmp_path / "cache")
    before = time.time()
    pack_splits(open_source("folder", images), GRAY, packing=PackOptions("pixels", cache))
    (entry,) = cache.entries()
    meta = json.loads((entry.path / "meta.json").read_text())
    assert len(meta.pop("sum")) == 64
    assert meta == entry.meta
    assert entry.meta["origin"] == str(images)
    assert entry.meta["store"] == "pixels"
    assert entry.meta["shape"] == [80, 1, 4, 4]
    assert entry.last_used >= before - 10
