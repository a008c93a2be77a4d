"""Images that cannot be read: each is named and none is replaced. With data.on_bad=skip they do not end the run, and
exactly these images are left out."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sightline
from helpers.commands import Command
from helpers.images import noise, write_image, write_table
from sightline.config.typed import merge
from sightline.core.errors import DataError, ImageError
from sightline.data.cache.directory import Cache
from sightline.data.cache.pack import PackOptions, pack_splits
from sightline.data.images.preprocess import Preprocess
from sightline.data.records import DataInfo, Sample
from sightline.data.sources.open import ListSource, open_source

QUICK: dict[str, Any] = {
    "trainer": {"max_epochs": 1, "progress": False},
    "module": {"network": {"width": 4}},
    "data": {"preprocess": {"size": 8, "channels": 3}, "val": 0.25, "test": 0},
}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    """A black PNG of one bit per pixel, a small file for any size of the image."""
    lines = zlib.compressobj(9)
    line = bytes(1 + (width + 7) // 8)
    data = b"".join(lines.compress(line * 500) for _ in range(height // 500)) + lines.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg(pixels: np.ndarray | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(40, 30, 3) if pixels is None else pixels).save(file, "JPEG", **options)
    return file.getvalue()


def large_jpeg() -> bytes:
    """A small JPEG whose header claims 30,000 x 30,000 pixels."""
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 30_000, 30_000)
    return bytes(data)


def broken_chunk() -> bytes:
    """A PNG whose pixels have another checksum than its chunk says."""
    file = io.BytesIO()
    Image.fromarray(noise(20, 20, 3)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[data.index(b"IDAT") + 30] ^= 0xFF
    return bytes(data)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated.jpg": (lambda path: path.write_bytes(jpeg()[:400]), "is damaged, or of a kind that Pillow"),
    "text.png": (
        lambda path: path.write_text("hello, world"), "is not an image in a format.*starts with b'hello, world'"),
    "empty.png": (Path.touch, "the file is empty"),
    "bomb.png": (lambda path: path.write_bytes(png_header(20_000, 20_000)), "too large to decode safely"),
    "claims.jpg": (
        lambda path: path.write_bytes(large_jpeg()), "30,000 x 30,000 pixels, too many to decode safely"),
    "directory.png": (Path.mkdir, "Cannot read .*: Is a directory"),
    "dangling.png": (lambda path: path.symlink_to("nowhere"), "Cannot read .*: No such file"),
    "chunk.png": (lambda path: path.write_bytes(broken_chunk()), "is damaged, or of a kind that Pillow"),
    "half.png": (lambda path: path.write_bytes(broken_chunk()[:200]), "is damaged, or of a kind that Pillow"),
    "header.bmp": (lambda path: path.write_bytes(b"BM" + bytes(60)), "is damaged, or of a kind that Pillow"),
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of good and bad images, and a table of them."""
    root = tmp_path_factory.mktemp("bad")
    rows = []
    for i in range(24):
        write_image(root / f"good{i}.png", noise(8, 8, 3, seed=i) // 2 + np.uint8(i % 2 * 120))
        rows.append(f"good{i}.png,{'ab'[i % 2]}")
    for position, (name, (make, _)) in enumerate(BAD.items()):
        make(root / name)
        rows.insert(3 * position, f"{name},{'ab'[position % 2]}")
    write_table(root / "table" / "labels.csv", "file,label", rows)
    return root


def listed(root: Path) -> dict[str, Sample]:
    """Every row of the table as a sample, as a source lists them if the files are damaged afterwards."""
    lines = (root / "table" / "labels.csv").read_text().splitlines()[1:]
    samples = {}
    for number, line in enumerate(lines, start=2):
        name, label = line.split(",")
        samples[name] = Sample(name, root / name, "ab".index(label), f"labels.csv, row {number}")
    return samples


class Listed:
    """A source of the samples above, with a validation split."""

    def __init__(self, samples: Mapping[str, Sample], val: int = 4):
        self.info = DataInfo("bad", ("a", "b"))
        good = [sample for name, sample in samples.items() if name.startswith("good")]
        held_out = {sample.id for sample in good[:val]}
        self.splits = {"train": [sample for sample in samples.values() if sample.id not in held_out], "val": good[:val]}


def config(folder: Path, **changes: Any) -> dict[str, Any]:
    return merge({**QUICK, "run": {"dir": str(folder), "name": "run"}}, changes)


@pytest.mark.parametrize("store", ["pixels", "encoded"])
@pytest.mark.parametrize("cached", [False, True])
def test_every_kind_of_bad_image_is_named_with_its_row(images: Path, tmp_path: Path, store: str, cached: bool) -> None:
    samples = listed(images)
    source = ListSource(DataInfo("bad", ("a", "b")), {"train": list(samples.values())})
    packing = PackOptions(store, Cache(tmp_path / "cache") if cached else None)
    messages = set()
    for _ in range(2):  # the second time from the cache
        with pytest.raises(DataError, match=rf"^{len(BAD)} images cannot be used \(set data.on_bad=skip") as caught:
            pack_splits(source, Preprocess(8, 8, 3), packing=packing)
        messages.add(str(caught.value))
    (text,) = messages
    lines = text.splitlines()[1:]
    assert len(lines) == len(BAD)
    for line, (name, (_, reason)) in zip(lines, BAD.items(), strict=True):
        assert f"'{images / name}' ({samples[name].where})" in line
        assert re.search(reason, line), line


@pytest.mark.parametrize("name", BAD)
def test_a_single_bad_image_is_named(images: Path, name: str) -> None:
    samples = {key: sample for key, sample in listed(images).items() if key == name or key.startswith("good")}
    source = ListSource(DataInfo("bad", ("a", "b")), {"train": list(samples.values())})
    with pytest.raises(ImageError, match=BAD[name][1]):
        Preprocess(8, 8, 3).decode(images / name)
    with pytest.raises(DataError, match=f"{re.escape(samples[name].where)}.*data.on_bad=skip") as caught:
        pack_splits(source, Preprocess(8, 8, 3))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("store", ["pixels", "encoded"])
@pytest.mark.parametrize("cache", [False, True])
def test_a_run_with_skip_omits_exactly_the_bad_images(
    images: Path, tmp_path: Path, store: str, cache: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"on_bad": "skip", "store": store, "cache": cache, "cache_dir": str(tmp_path / "cache")}
    result = sightline.fit(
        config(tmp_path, data={**data, "val": 0}, trainer={"max_epochs": 1, "progress": True}),
        source=Listed(listed(images)),
    )
    record = json.loads((tmp_path / "run" / "data.json").read_text())
    assert [item["id"] for item in record["left_out"]] == list(BAD)
    for item, (_, reason) in zip(record["left_out"], BAD.values(), strict=True):
        assert item["split"] == "train"
        assert re.search(reason, item["reason"])
        assert "labels.csv, row" in item["reason"]
    assert record["splits"]["train"]["images"] == 20
    assert record["splits"]["val"]["images"] == 4
    output = capsys.readouterr().out
    assert f"left out, because they could not be read: {len(BAD)}" in output
    assert all(name in output for name in BAD)
    assert result.run is not None
    assert (result.run / "exported" / "model.safetensors").is_file()


def test_no_bad_image_is_replaced(images: Path) -> None:
    """The split contains the good images, each once, with its label and pixels."""
    samples, decoder = listed(images), Preprocess(8, 8, 3)
    source = ListSource(DataInfo("bad", ("a", "b")), {"train": list(samples.values())})
    (packed,) = pack_splits(source, decoder, packing=PackOptions(on_bad="skip"))[0].values()
    good = [sample for name, sample in samples.items() if name not in BAD]
    assert packed.ids == tuple(sample.id for sample in good)
    assert packed.labels.tolist() == [sample.label for sample in good]
    expected = np.stack([decoder.decode(sample.image) for sample in good])
    assert np.array_equal(packed.pixels(range(24)).numpy(), expected)
    alone = ListSource(DataInfo("bad", ("a", "b")), {"train": good})
    (without,) = pack_splits(alone, decoder)[0].values()
    assert packed.fingerprint() == without.fingerprint()
    assert packed.statistics() == without.statistics()


def test_the_command_lists_the_images_it_left_out(tmp_path: Path, here: Command) -> None:
    """Bad images are files in the folder of their class."""
    rows = list(BAD.items())[:5]
    for position, name in enumerate(("cat", "dog")):
        for i in range(8):
            write_image(tmp_path / "images" / name / f"{i}.png", noise(8, 8, 3, seed=9 * position + i))
    for position, (name, (make, _)) in enumerate(rows):
        make(tmp_path / "images" / ("cat", "dog")[position % 2] / name)
    arguments = ["train", "data.root=images", "data.preprocess.size=8", "trainer.max_epochs=1", "run.name=mine"]
    done = here(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "5 images cannot be used (set data.on_bad=skip to leave them out)" in done.stderr
    assert all(name in done.stderr for name, _ in rows)
    assert not (tmp_path / "runs").exists()
    done = here(*arguments, "data.on_bad=skip")
    assert done.returncode == 0, done.stderr
    assert "left out, because they could not be read: 5" in done.stdout
    record = json.loads((tmp_path / "runs" / "mine" / "data.json").read_text())
    assert sorted(Path(item["id"]).name for item in record["left_out"]) == sorted(name for name, _ in rows)
    assert sum(split["images"] for split in record["splits"].values()) == 16
    again = here("evaluate", "runs/mine")
    assert again.returncode == 0, again.stderr


def test_a_class_whose_images_are_all_bad_is_an_error(tmp_path: Path) -> None:
    for i in range(6):
        write_image(tmp_path / "images" / "cat" / f"{i}.png", noise(8, 8, seed=i))
        (tmp_path / "images" / "dog").mkdir(exist_ok=True)
        (tmp_path / "images" / "dog" / f"{i}.png").write_text("no image")
    source = open_source("folder", tmp_path / "images", val=0, test=0)
    with pytest.raises(
        DataError, match=r"No image of dog in the train split can be read\. The first of 6 reasons: .*dog/0\.png"
    ):
        pack_splits(source, Preprocess(8, 8, 1), packing=PackOptions(on_bad="skip"))


def test_an_evaluation_split_with_no_good_image_is_an_error(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            for i in range(3):
                write_image(tmp_path / "images" / split / name / f"{i}.png", noise(8, 8, seed=i))
    for path in (tmp_path / "images" / "val" / "cat").iterdir():
        path.write_text("no image")
    packed, _ = pack_splits(open_source("folder", tmp_path / "images"), Preprocess(8, 8, 1),
                            packing=PackOptions(on_bad="skip"))  # fmt: skip
    assert packed["val"].counts == {"cat": 0, "dog": 3}
    assert len(packed["val"].left_out) == 3
    for path in (tmp_path / "images" / "val" / "dog").iterdir():
        path.write_text("no image")
    with pytest.raises(DataError, match=r"No image of cat, dog in the val split can be read\. The first of 6"):
        pack_splits(open_source("folder", tmp_path / "images"), Preprocess(8, 8, 1), packing=PackOptions(on_bad="skip"))


@pytest.mark.parametrize("on_bad", ["error", "skip"])
@pytest.mark.parametrize("reason", ["Permission denied", "Input/output error"])
def test_a_file_that_may_not_be_read(on_bad: str, reason: str, tmp_path: Path) -> None:
    samples = [
        Sample(f"id{i}", write_image(tmp_path / f"{i}.png", noise(8, 8, seed=i)), i % 2, f"row {i}") for i in range(6)
    ]
    file = tmp_path / "3.png"
    file.chmod(0)
    if reason == "Input/output error" or os.access(file, os.R_OK):  # root can read nearly everything
        file.unlink()
        file.symlink_to("/proc/self/mem" if reason == "Input/output error" else "/proc/sys/vm/compact_memory")
        try:
            file.read_bytes()
            pytest.skip("everything can be read here")
        except OSError as error:
            if error.strerror != reason:
                pytest.skip(f"here it is '{error.strerror}'")
    source = ListSource(DataInfo("test", ("a", "b")), {"train": samples})
    message = rf"Cannot read '{tmp_path}/3\.png' \(row 3\): {reason}"
    if on_bad == "error":
        with pytest.raises(DataError, match=message):
            pack_splits(source, Preprocess(8, 8, 1))
    else:
        packed, _ = pack_splits(source, Preprocess(8, 8, 1), packing=PackOptions(on_bad="skip"))
        ((name, actual),) = packed["train"].left_out
        assert name == "id3"
        assert re.search(message, actual)


def test_a_reference_that_fails_is_a_bad_image(tmp_path: Path) -> None:
    """Any exception that the code of an archive or of another library raises."""

    class Member:
        token = "it"

        def read(self) -> bytes:
            raise KeyError("gone")

    samples = [Sample("good0", noise(8, 8), 0), Sample("bad", Member(), 1, "member 7"), Sample("good1", noise(8, 8), 1)]
    source = ListSource(DataInfo("test", ("a", "b")), {"train": samples})
    with pytest.raises(DataError, match=r"Cannot read 'bad' \(member 7\): KeyError: 'gone'"):
        pack_splits(source, Preprocess(8, 8, 1))
    packed, _ = pack_splits(source, Preprocess(8, 8, 1), packing=PackOptions(on_bad="skip"))
    assert [name for name, _ in packed["train"].left_out] == ["bad"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_damaged_member_of_an_archive_is_a_bad_image(tmp_path: Path, kind: str) -> None:
    """Detected by its checksum or by the decoder: the error names it, and it can be left out."""
    import tarfile
    import zipfile

    path = tmp_path / f"images.{kind}"
    contents = {}
    for i in range(12):
        file = io.BytesIO()
        Image.fromarray(noise(8, 8, seed=i)).save(file, "PNG")
        contents[f"{('cat', 'dog')[i % 2]}/{i}.png"] = file.getvalue()
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in contents.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w") as archive:
            for name, data in contents.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    archived = path.read_bytes()
    damaged = contents["cat/4.png"]
    path.write_bytes(archived.replace(damaged, damaged[:45] + bytes(20) + damaged[65:]))
    source = open_source("auto", path, val=0, test=0)
    with pytest.raises(DataError, match=r"cat/4\.png"):
        pack_splits(source, Preprocess(8, 8, 1))
    packed, _ = pack_splits(source, Preprocess(8, 8, 1), packing=PackOptions(on_bad="skip"))
    assert [name for name, _ in packed["train"].left_out] == ["cat/4.png"]


# --- fuzz


FUZZ = """
import io, json, sys, warnings
from collections import Counter
from pathlib import Path
import numpy as np
from PIL import Image

from sightline.data.cache.directory import Cache
from sightline.data.cache.pack import PackOptions, pack_splits
from sightline.data.images.preprocess import Preprocess
from sightline.data.sources.open import ListSource
from sightline.core.errors import ImageError
from sightline.data.records import DataInfo, Sample

warnings.simplefilter("ignore")
folder, count, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(seed)

def encode(kind, mode="RGB", **options):
    pixels = (np.add.outer(np.arange(21), np.arange(17))[..., None] * [5, 3, 7] % 256).astype(np.uint8)
    pixels = pixels + rng.integers(0, 60, pixels.shape, dtype=np.uint8)
    file = io.BytesIO()
    wide = mode == "I;16"
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if wide else Image.fromarray(pixels).convert(mode)
    image.save(file, kind, **options)
    return file.getvalue()

exif = Image.Exif()
exif[0x0112] = 6
exif[0x010E] = "a description"
SEEDS = [
    ("png", encode("PNG")), ("png", encode("PNG", "P")), ("png", encode("PNG", "RGBA")), ("png", encode("PNG", "1")),
    ("png", encode("PNG", "I;16")), ("jpg", encode("JPEG", exif=exif)), ("jpg", encode("JPEG", "L")),
    ("jpg", encode("JPEG", "CMYK")), ("jpg", encode("JPEG", progressive=True)), ("gif", encode("GIF")),
    ("bmp", encode("BMP")), ("bmp", encode("BMP", "P")), ("tif", encode("TIFF")),
    ("tif", encode("TIFF", compression="tiff_lzw")), ("tif", encode("TIFF", "F")), ("webp", encode("WEBP")),
    ("webp", encode("WEBP", lossless=True)), ("ppm", encode("PPM")), ("pgm", encode("PPM", "L")),
    ("jp2", encode("JPEG2000")),
]
SUFFIXES = sorted({suffix for suffix, _ in SEEDS})

def damaged(data):
    data = bytearray(data)
    kind = rng.integers(0, 7)
    if kind == 0:  # single bits, anywhere
        for position in rng.integers(0, len(data), rng.integers(1, 9)):
            data[position] ^= 1 << rng.integers(0, 8)
    elif kind == 1:  # single bits in the header
        for position in rng.integers(0, min(64, len(data)), rng.integers(1, 5)):
            data[position] ^= 1 << rng.integers(0, 8)
    elif kind == 2:
        data = data[: rng.integers(0, len(data))]
    elif kind == 3:  # random bytes over a part
        start = rng.integers(0, len(data))
        length = rng.integers(1, 40)
        data[start : start + length] = rng.bytes(length)
    elif kind == 4:  # a part is missing or repeated
        start, stop = sorted(rng.integers(0, len(data), 2))
        data = data[:start] + data[stop:] if rng.integers(0, 2) else data[:stop] + data[start:]
    elif kind == 5:  # the beginning of one format, the rest of another
        other = SEEDS[rng.integers(0, len(SEEDS))][1]
        cut = rng.integers(0, 40)
        data = data[:cut] + other[cut:]
    else:
        data = bytearray(rng.bytes(rng.integers(0, 300)))
    return bytes(data)

samples = []
for i in range(count):
    suffix, data = SEEDS[rng.integers(0, len(SEEDS))]
    if i % 10:
        data = damaged(data)
    if rng.integers(0, 4) == 0:
        suffix = SUFFIXES[rng.integers(0, len(SUFFIXES))]
    path = folder / f"{i:05}.{suffix}"
    path.write_bytes(data)
    samples.append(Sample(path.name, path, i % 2, f"row {i}"))

decoder = Preprocess(9, 11, (3, 1)[seed % 2], resize=("pad", "crop", "stretch")[seed % 3])
refused, decoded = {}, {}
for sample in samples:
    try:
        decoded[sample.id] = decoder.decode(sample.image)
    except ImageError as error:  # anything else ends this process
        assert str(sample.image) in str(error), error
        refused[sample.id] = str(error)

for store, cache in (("pixels", None), ("pixels", Cache(folder / "cache")), ("encoded", Cache(folder / "cache"))):
    for _ in range(1 if cache is None else 2):
        source = ListSource(DataInfo("fuzz", ("a", "b")), {"train": samples})
        packed = pack_splits(source, decoder, packing=PackOptions(store, cache, "skip"))[0]["train"]
        left_out = dict(packed.left_out)
        assert left_out.keys() == refused.keys(), left_out.keys() ^ refused.keys()
        for name, reason in left_out.items():
            assert name in reason, reason
        shown = packed.pixels(range(len(packed))).numpy()
        for name, pixels in zip(packed.ids, shown, strict=True):
            assert np.array_equal(pixels, decoded[name]), name
print(json.dumps([len(decoded), len(refused)]))
"""


@pytest.mark.parametrize(
    ("count", "seed"), [(2000, 20), *(pytest.param(10_000, seed, marks=pytest.mark.slow) for seed in (4, 5, 6))]
)
def test_fuzzed_files_are_decoded_or_named_and_nothing_crashes_or_hangs(tmp_path: Path, count: int, seed: int) -> None:
    """Flipped bits, cut and spliced files, wrong suffixes, random bytes, of PNG, JPEG with EXIF, GIF, BMP, TIFF, WebP,
    PPM and JPEG 2000; packing omits exactly the images that decoding refuses, with every store and cache."""
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(tmp_path), str(count), str(seed)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    fine, refused = json.loads(done.stdout.splitlines()[-1])
    assert fine + refused == count
    assert fine > count / 8
    assert refused > count / 3
