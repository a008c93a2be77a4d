"""Zip and tar files as datasets, read in place: the same samples as unpacked, and errors in them are reported."""

from __future__ import annotations

import io
import random
import shutil
import tarfile
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers.images import noise, write_folders, write_image, write_table
from sightline.core.errors import DataError
from sightline.data.records import Sample
from sightline.data.sources.archive import ArchiveTree
from sightline.data.sources.open import open_source

ALL = {"val": 0, "test": 0}
KINDS = [".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"]
MODES = {".zip": "", ".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}


def pack(root: Path, suffix: str, top: str = "") -> Path:
    """Writes an archive of the files in `root` beside it, with `top` before their names."""
    path = root.with_name(f"{root.name}{suffix}")
    names = sorted(file.relative_to(root).as_posix() for file in root.rglob("*"))
    random.Random(0).shuffle(names)
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.write(root / name, top + name)
    else:
        with tarfile.open(path, MODES[suffix]) as archive:
            for name in names:
                archive.add(root / name, top + name, recursive=False)
    return path


def content(sample: Sample) -> bytes:
    image = sample.image
    if isinstance(image, bytes):
        return image
    data = image.read_bytes() if isinstance(image, Path) else image.read()  # type: ignore[union-attr]
    assert isinstance(data, bytes)
    return data


@pytest.fixture(params=["folders", "splits", "table", "tables", "nested"])
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory in each of the layouts of data."""
    root = tmp_path / "pets"
    if request.param == "folders":
        return write_folders(root, {"dog": 2, "cat": 3})
    if request.param == "splits":
        for split in ("train", "Valid", "test"):
            write_folders(root / split, {"a": 2, "b": 2})
    if request.param == "table":
        for i in range(4):
            write_image(root / "images" / f"{i}.png", noise(4, 4, seed=i))
        write_table(root / "info.csv", ",file,label,site", [f"{i},images/{i}.png,{i % 2},s{i}" for i in range(4)])
    if request.param == "tables":
        for split in ("train", "validation", "test"):
            write_folders(root / split, {".": 2})
            write_table(root / split / "labels.csv", "image name,label", ["0.png,x", "1.png,y"])
    if request.param == "nested":
        for name in ("a/deep/er/1.png", "a/2.JPG", "a-/0.png", "b/x.png", "b/._x.png", "b/notes.txt"):
            write_image(root / name) if name.endswith(("g", "G")) else (root / name).write_text("x")
    return root


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize("top", ["", "./", "data/", "./data/"])
def test_an_archive_is_read_like_the_folder_that_was_packed(layout: Path, suffix: str, top: str) -> None:
    expected = open_source("auto", layout, **ALL)
    archive = pack(layout, suffix, top)
    shutil.rmtree(layout)  # nothing may be read from there
    source = open_source("auto", archive, **ALL)
    assert source.info.name == "pets"
    assert source.info.root == archive
    assert source.info.classes == expected.info.classes
    for split, samples in expected.splits.items():
        others = source.splits[split]
        assert [(s.id, s.label, dict(s.columns)) for s in others] == [(s.id, s.label, dict(s.columns)) for s in samples]
        assert all(str(archive) in sample.where for sample in others)
    assert list(source.splits) == list(expected.splits)


@pytest.mark.parametrize("suffix", KINDS)
def test_the_images_are_the_bytes_that_were_packed(tmp_path: Path, suffix: str) -> None:
    root = write_folders(tmp_path / "pets", {"dog": 20, "cat": 20})
    expected = [content(sample) for sample in open_source("folder", root, **ALL).splits["train"]]
    samples = open_source("folder", pack(root, suffix), **ALL).splits["train"]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(content, samples * 5)) == expected * 5
    assert samples[0].where == f"'{tmp_path}/pets{suffix}', member 'cat/0.png'"


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_the_token_changes_with_the_archive(tmp_path: Path, suffix: str) -> None:
    root = write_folders(tmp_path / "pets", {"dog": 1, "cat": 1})

    def tokens() -> list[str]:
        samples = open_source("folder", pack(root, suffix), **ALL).splits["train"]
        return [sample.image.token for sample in samples]  # type: ignore[union-attr, misc]

    first = tokens()
    assert len(set(first)) == 2
    write_image(root / "dog" / "0.png", noise(4, 4, seed=77))
    assert not set(tokens()) & set(first)


def test_an_archive_that_is_replaced_after_listing_still_reads_as_listed(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "pets", {"dog": 1, "cat": 1})
    samples = open_source("folder", pack(root, ".tar"), **ALL).splits["train"]
    expected = (root / "cat" / "0.png").read_bytes()
    (tmp_path / "pets.tar").unlink()
    (tmp_path / "pets.tar").write_bytes(b"else")
    assert content(samples[0]) == expected


def test_files_that_macos_adds_are_skipped(tmp_path: Path) -> None:
    path = pack(write_folders(tmp_path / "pets", {"dog": 1, "cat": 1}), ".zip", "pets/")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/pets/dog/._0.png", b"x")
        archive.writestr("pets/dog/.DS_Store", b"x")
    assert [sample.id for sample in open_source("auto", path, **ALL).splits["train"]] == ["cat/0.png", "dog/0.png"]


def test_only_one_top_folder_is_skipped_and_never_a_split(tmp_path: Path) -> None:
    write_folders(tmp_path / "pets" / "train", {"dog": 1, "cat": 1})
    source = open_source("auto", pack(tmp_path / "pets", ".zip"), **ALL)
    assert [sample.id for sample in source.splits["train"]] == ["train/cat/0.png", "train/dog/0.png"]
    shutil.rmtree(tmp_path / "pets")
    write_folders(tmp_path / "pets", {"dog": 1})
    with pytest.raises(DataError, match="only one class, 'dog'"):
        open_source("auto", pack(tmp_path / "pets", ".zip"), **ALL)


# --- damaged or unsafe archives


def zipped(path: Path, *names: str, **options: object) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:  # type: ignore[arg-type]
        for name in names:
            archive.writestr(name, b"x" * 100)
    return path


def tarred(path: Path, *infos: tarfile.TarInfo, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for info in infos:
            archive.addfile(info, io.BytesIO(b"x" * info.size))
    return path


def info(name: str, size: int = 100, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = size, kind, "a/1.png"
    return member


@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "/etc/x.png", "a/..", "C:/x.png"])
def test_a_member_outside_the_archive_is_refused(tmp_path: Path, name: str) -> None:
    for path in (zipped(tmp_path / "x.zip", "a/1.png", name), tarred(tmp_path / "x.tar", info("a/1.png"), info(name))):
        with pytest.raises(DataError, match=rf"the member '{name}' points outside the archive"):
            open_source("auto", path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    for path in (
        zipped(tmp_path / "x.zip", "a/1.png", "a/1.png"),
        tarred(tmp_path / "x.tar", info("a/1.png"), info("./a/1.png")),
    ):
        with pytest.raises(DataError, match=r"the member '(\./)?a/1\.png' is in the archive twice"):
            open_source("auto", path)


def test_encrypted_linked_and_unusually_compressed_members_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", "a/1.png")
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"x\.zip', member 'a/1\.png': encrypted\. Unpack"):
        open_source("auto", path)
    with pytest.raises(
        DataError, match=r"member 'a/1\.png': compressed with method 14\. Expected 'stored' or 'deflate'"
    ):
        open_source("auto", zipped(tmp_path / "y.zip", "a/1.png", compression=zipfile.ZIP_LZMA))
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
        with pytest.raises(DataError, match=r"member 'a/2\.png': a link or another special file.*tar --dereference"):
            open_source("auto", tarred(tmp_path / "x.tar", info("a/1.png"), info("a/2.png", 0, kind)))
    link = zipfile.ZipInfo("a/l.png")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr(link, "1.png")
    with pytest.raises(DataError, match=r"member 'a/l\.png': a link, not a file"):
        open_source("auto", tmp_path / "z.zip")


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize("damage", ["empty", "else", "half", "flipped"])
def test_a_damaged_archive_is_reported_as_damaged(tmp_path: Path, suffix: str, damage: str) -> None:
    root = write_folders(tmp_path / "pets", {"dog": 8, "cat": 8})
    path = pack(root, suffix)
    data = path.read_bytes()
    size = len(data)
    if damage == "flipped":
        step = 512 if suffix == ".tar" else 97
        damaged = bytes(byte ^ 0x55 if i % step < 2 else byte for i, byte in enumerate(data) if i > 600)
        data = data[: size - len(damaged)] + damaged
    path.write_bytes({"empty": b"", "else": b"no archive" * 200, "half": data[: size // 2 + 100]}.get(damage, data))

    def everything() -> list[bytes]:
        return [content(sample) for sample in open_source("folder", path, **ALL).splits["train"]]

    with pytest.raises(DataError, match=r"pets.*(damaged|is not a readable archive)"):
        everything()


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_tar_that_is_truncated_between_two_members_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tarred(tmp_path / "x.tar", *(info(f"{name}/{i}.png") for name in "ab" for i in range(3)))
    data = path.read_bytes()[: 6 * 1024]  # header and data of each take 1,024 bytes; the end mark is missing
    path.unlink()
    if suffix == ".tar.gz":
        data = zlib.compress(data, wbits=31)
    (tmp_path / f"x{suffix}").write_bytes(data)
    with pytest.raises(DataError, match="is not a readable archive or is damaged: empty header"):
        open_source("auto", tmp_path / f"x{suffix}")


def test_a_member_whose_bytes_changed_fails_its_checksum(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", "a/1.png", "b/1.png")
    path.write_bytes(path.read_bytes().replace(b"xxxx", b"yyyy", 1))
    samples = open_source("auto", path, **ALL).splits["train"]
    assert content(samples[1]) == b"x" * 100
    with pytest.raises(DataError, match=r"x\.zip', member 'a/1\.png': damaged, with a wrong checksum"):
        content(samples[0])


def test_a_compressed_tar_too_large_for_memory_says_what_to_do(tmp_path: Path) -> None:
    path = tarred(tmp_path / "x.tar.gz", info("a/1.png", 2**19), info("b/1.png", 2**19 + 1), mode="w:gz")
    with pytest.raises(
        DataError, match=r"x\.tar\.gz' is larger than 1 MB when unpacked.*as a \.zip or as a \.tar without compress"
    ):
        ArchiveTree(path, max_unpacked=2**20)
    tarred(tmp_path / "x.tar", info("a/1.png", 2**19), info("b/1.png", 2**20))
    assert len(open_source("auto", tmp_path / "x.tar", **ALL).splits["train"]) == 2


def test_a_name_in_an_archive_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tarred(tmp_path / "x.tar", info("a/1.png"), info("b/K\udce4fer.png"))
    with pytest.raises(DataError, match=r"K\\xe4fer\.png' is not UTF-8"):
        open_source("auto", path)


def test_a_table_in_an_archive_cannot_name_files_outside_it(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "pets", {"a": 1})
    for name, message in (
        ("../secret.png", "is outside the data"),
        ("a/1.png", r"does not exist\. Did you mean '0.png'"),
    ):
        write_table(root / "info.csv", "file,label", ["a/0.png,x", f"{name},y"])
        with pytest.raises(DataError, match=rf"pets\.zip/info\.csv, row 3: .*{message}"):
            open_source("auto", pack(root, ".zip"))


def test_mnist_in_its_archive_equals_mnist_unpacked(shared: Path, mnist: Path) -> None:
    packed = open_source("auto", shared / "data" / "mnist10k-png.tar.gz", **ALL)
    plain = open_source("auto", mnist, **ALL)
    assert packed.info.name == "mnist10k-png"
    assert [(s.id, s.label) for s in packed.splits["train"]] == [(s.id, s.label) for s in plain.splits["train"]]
    assert all(content(packed.splits["train"][i]) == content(plain.splits["train"][i]) for i in range(0, 10_000, 97))
