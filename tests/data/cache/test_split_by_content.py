"""The content key: different if any pixel differs, equal for equal pixels in any lossless form. Splits by it are equal
too, and no copy of a training image is held out."""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from helpers.images import noise
from sightline.compose.data import with_saved_splits
from sightline.data.cache.dataset import PackedDataset
from sightline.data.cache.directory import Cache
from sightline.data.cache.pack import PackOptions, pack_splits
from sightline.data.images.decode import decode_image
from sightline.data.images.digest import content_checksum, content_key
from sightline.data.images.preprocess import Preprocess
from sightline.data.records import DataSource
from sightline.data.sources.adapt import as_source
from sightline.data.sources.open import open_source

Pixels = NDArray[np.uint8]


def key_of(image: bytes | Pixels | Image.Image | Path) -> int:
    decoded = decode_image(image, "it")
    if not isinstance(image, bytes | Path):
        assert content_key(image) == content_key(decoded)
    return content_key(decoded)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


# --- different pixels have different keys


@pytest.mark.parametrize("channels", [0, 3])
def test_ten_thousand_images_that_differ_in_one_pixel_have_different_keys(channels: int) -> None:
    """One bright pixel anywhere in 512 x 512: the key depends on all pixels, not on some."""
    side = 512
    pixels = np.zeros((side, side, channels) if channels else (side, side), np.uint8)
    places = np.random.default_rng(0).choice(side * side, 10_000, replace=False)
    keys = {content_key(pixels)}
    for row, column in zip(*divmod(places, side), strict=True):
        pixels[row, column] = 200
        keys.add(content_key(pixels))
        pixels[row, column] = 0
    assert len(keys) == 10_001


def test_images_that_differ_by_one_level_in_one_channel_have_different_keys() -> None:
    pixels = noise(20, 30, 3)
    keys = {content_key(pixels)}
    for place in np.ndindex(*pixels.shape):
        pixels[place] ^= 1
        keys.add(content_key(pixels))
        pixels[place] ^= 1
    assert len(keys) == 1 + pixels.size


def test_the_same_bytes_in_another_shape_are_another_image() -> None:
    flat = noise(1, 720)[0]
    shapes = [(height, 720 // height) for height in range(1, 721) if 720 % height == 0]
    gray = {content_key(flat.reshape(shape)) for shape in shapes}
    colour = {content_key(flat.reshape(height, width // 3, 3)) for height, width in shapes if width % 3 == 0}
    assert len(gray | colour) == len(gray) + len(colour) == len(shapes) + len([w for _, w in shapes if w % 3 == 0])


def test_similar_images_of_every_kind_have_different_keys() -> None:
    """Stripes of every level, moved and transposed, and images with two exchanged blocks."""
    keys, count = set(), 0
    stripes = np.indices((64, 64))[1] % 2 * 255
    for level in range(256):
        for shift in range(2):
            image = np.where(np.roll(stripes, shift, 1) > 0, level, 255 - level).astype(np.uint8)
            for one in (image, image.T):
                if level not in (127, 128):  # these two levels differ by one only
                    keys.add(content_key(np.ascontiguousarray(one)))
                    count += 1
    blocks = noise(64, 64)
    for first in range(0, 64, 8):
        for second in range(0, 64, 8):
            changed = blocks.copy()
            changed[:8, first : first + 8], changed[56:, second : second + 8] = (
                blocks[56:, second : second + 8],
                blocks[:8, first : first + 8],
            )
            keys.add(content_key(changed))
            count += 1
    # a stripe of one level and its opposite, moved by one, are the same image
    assert len(keys) == count - 254 * 2


# --- equal pixels have equal keys


def indexed(pixels: Pixels) -> Image.Image:
    """An image with a palette in random order, of pixels [H,W] or [H,W,3] with at most 256 colours."""
    flat = pixels.reshape(-1, 3) if pixels.ndim == 3 else np.repeat(pixels.reshape(-1, 1), 3, 1)
    colours, index = np.unique(flat, axis=0, return_inverse=True)
    order = np.random.default_rng(0).permutation(len(colours))
    image = Image.fromarray(np.argsort(order)[index.reshape(-1)].reshape(pixels.shape[:2]).astype(np.uint8), "P")
    image.putpalette(colours[order].astype(np.uint8).tobytes())
    return image


def forms_of(pixels: Pixels) -> dict[str, bytes | Pixels | Image.Image]:
    """Every lossless form of gray pixels [H,W], or of RGB pixels [H,W,3]."""
    plain = Image.fromarray(pixels)
    forms: dict[str, bytes | Pixels | Image.Image] = {"array": pixels, "Pillow": plain}
    modes = ["RGB", "RGBA"] if pixels.ndim == 3 else ["L", "LA", "RGB", "RGBA"]
    kinds = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True, "exact": True}, "BMP": {}, "TGA": {}}
    for mode in modes:
        for kind, options in kinds.items():
            if mode == "LA" and kind in ("WEBP", "BMP"):
                continue
            forms[f"{mode} {kind}"] = saved(plain.convert(mode), kind, **options)
        forms[f"{mode} TIFF, compressed"] = saved(plain.convert(mode), "TIFF", compression="tiff_deflate")
    if len(np.unique(pixels.reshape(-1, pixels.shape[2] if pixels.ndim == 3 else 1), axis=0)) <= 256:
        forms |= {f"palette {kind}": saved(indexed(pixels), kind) for kind in ("PNG", "GIF", "BMP", "TIFF")}
    if pixels.ndim == 2:
        forms["array [H,W,1]"] = pixels[..., None]
        forms["array [H,W,3]"] = np.repeat(pixels[..., None], 3, 2)
        forms["16-bit PNG"] = saved(Image.fromarray(pixels.astype(np.uint16) * 257), "PNG")
        forms["16-bit TIFF"] = saved(Image.fromarray(pixels.astype(np.uint16) * 257), "TIFF")
        if set(np.unique(pixels)) <= {0, 255}:
            forms |= {f"1-bit {kind}": saved(plain.convert("1"), kind) for kind in ("PNG", "BMP", "TIFF", "PPM")}
    forms["PNM"] = saved(plain, "PPM")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(pixels)))
    forms["turned, with EXIF"] = saved(turned, "PNG", exif=exif)
    return forms


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["gray", "colour", "few colours", "black and white", "first row gray"]),
)
def test_every_lossless_form_of_the_same_pixels_has_the_same_key(height: int, width: int, seed: int, kind: str) -> None:
    pixels = noise(height, width, 0 if kind in ("gray", "black and white") else 3, seed)
    if kind == "black and white":
        pixels = (pixels > 127).astype(np.uint8) * 255
    elif kind == "few colours":
        pixels = pixels // 86 * 85
    elif kind == "first row gray":
        pixels[0] = pixels[0, :, :1]
    keys = {name: key_of(image) for name, image in forms_of(pixels).items()}
    assert set(keys.values()) == {content_key(pixels)}, keys


def test_transparent_pixels_count_as_white_for_any_background() -> None:
    pixels = noise(9, 8, 4)
    pixels[..., 3] = np.where(pixels[..., 3] > 127, 255, 0)
    image = Image.fromarray(pixels)
    other = pixels.copy()
    other[pixels[..., 3] == 0, :3] = 7  # colours of invisible pixels
    shown = np.where(pixels[..., 3:] == 255, pixels[..., :3], 255).astype(np.uint8)
    assert key_of(image) == key_of(Image.fromarray(other)) == key_of(shown)
    for background in (0, 255):
        assert Preprocess(9, 8, 3, background=background).decode_with_stats(image, "it").key == key_of(image)


# --- the splits of a dataset

COUNT = 120


def sparse(count: int = COUNT, side: int = 64) -> list[Pixels]:
    """Black images with one white pixel each, all at different positions."""
    places = np.random.default_rng(1).choice(side * side, count, replace=False)
    images = np.zeros((count, side * side), np.uint8)
    images[np.arange(count), places] = 255
    return list(images.reshape(count, side, side))


def label_of(number: int) -> str:
    return "ab"[number % 2]


def in_folders(root: Path, name: str, make: Callable[[Pixels], bytes]) -> DataSource:
    for number, pixels in enumerate(sparse()):
        path = root / name / label_of(number) / f"{number * 7919 % COUNT}.img.{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make(pixels))
    return open_source("folder", root / name)


def in_npz(root: Path) -> DataSource:
    np.savez(root / "data.npz", images=np.stack(sparse()), labels=np.arange(COUNT) % 2)
    return open_source("npz", root / "data.npz")


def in_idx(root: Path) -> DataSource:
    (root / "idx").mkdir()
    for name, array in (("images-idx3", np.stack(sparse())), ("labels-idx1", (np.arange(COUNT) % 2).astype(np.uint8))):
        head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        (root / "idx" / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
    return open_source("idx", root / "idx")


def in_parquet(root: Path) -> DataSource:
    images = [{"bytes": saved(Image.fromarray(pixels), "PNG"), "path": None} for pixels in sparse()]
    table = pa.table({"image": images, "label": [label_of(number) for number in range(COUNT)]})
    pq.write_table(table, root / "data.parquet")
    return open_source("parquet", root / "data.parquet")


def png(mode: str) -> Callable[[Pixels], bytes]:
    return lambda pixels: saved(Image.fromarray(pixels).convert(mode), "PNG")


SOURCES: dict[str, Callable[[Path], DataSource]] = {
    "gray": lambda root: in_folders(root, "png", png("L")),
    "rgb": lambda root: in_folders(root, "png", png("RGB")),
    "1-bit": lambda root: in_folders(root, "png", png("1")),
    "palette": lambda root: in_folders(root, "png", lambda pixels: saved(indexed(pixels), "PNG")),
    "bmp": lambda root: in_folders(root, "bmp", lambda pixels: saved(Image.fromarray(pixels), "BMP")),
    "tiff": lambda root: in_folders(root, "tif", lambda pixels: saved(Image.fromarray(pixels), "TIFF")),
    "npz": in_npz,
    "idx": in_idx,
    "parquet": in_parquet,
    "arrays": lambda root: as_source((np.stack(sparse()), np.arange(COUNT) % 2)),
}


def shown_in(packed: dict[str, PackedDataset]) -> dict[str, set[bytes]]:
    """The images of each split, as bytes of the pixels that the network sees."""
    return {
        split: {image.numpy().tobytes() for image in part.pixels(range(len(part)))} for split, part in packed.items()
    }


def test_the_splits_are_the_same_in_every_lossless_form_and_size(tmp_path: Path) -> None:
    shown = {}
    for name, make in SOURCES.items():
        (tmp_path / name).mkdir()
        source = make(tmp_path / name)
        packed, _ = pack_splits(source, {"size": 64, "channels": 1})
        shown[name] = shown_in(packed)
        assert {split: len(part) for split, part in packed.items()} == {"train": 84, "val": 12, "test": 24}
        assert sum(map(len, shown[name].values())) == COUNT, "two images are equal"
        in_colour, _ = pack_splits(source, {"size": 64, "channels": 3})
        assert {
            split: {image[: 64 * 64] for image in images} for split, images in shown_in(in_colour).items()
        } == shown[name]
    assert all(splits == shown["gray"] for splits in shown.values())


@pytest.mark.parametrize("store", ["pixels", "encoded"])
@pytest.mark.parametrize("cached", [False, True])
def test_large_images_with_small_differences_are_not_copies(store: str, cached: bool, tmp_path: Path) -> None:
    """300 images of 512 x 512, each with one small dot: a test split of 60, not of a few."""
    images = np.zeros((300, 512, 512), np.uint8)
    places = np.random.default_rng(0).integers(0, 510, (300, 2))
    for image, (row, column) in zip(images, places, strict=True):
        image[row : row + 2, column : column + 2] = 255
    for number, image in enumerate(images):
        path = tmp_path / "images" / label_of(number) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, compress_level=1)
    packing = PackOptions(store, Cache(tmp_path / "cache") if cached else None)
    for _ in range(2):  # decoded, then from the cache
        source = open_source("folder", tmp_path / "images")
        packed, _ = pack_splits(source, {"size": 32, "channels": 1}, packing=packing)
        assert {split: len(part) for split, part in packed.items()} == {"train": 210, "val": 30, "test": 60}
        stats = packed["train"].stats
        assert stats is not None
        assert stats.keys.dtype == np.uint64
        assert len(set(stats.keys.tolist())) == 300


def test_copies_with_and_without_a_palette_are_never_in_two_splits(tmp_path: Path) -> None:
    """Each image twice: once with a palette, as optimisers write PNG files, and once as RGB."""
    random = np.random.default_rng(2)
    for number in range(100):
        pixels = random.integers(0, 4, (16, 16, 3), dtype=np.uint8) * 85
        for copy, image in enumerate((indexed(pixels), Image.fromarray(pixels))):
            path = tmp_path / label_of(number) / f"{number}-{copy}.png"
            path.parent.mkdir(exist_ok=True)
            image.save(path)
    packed, _ = pack_splits(open_source("folder", tmp_path), {"size": 16, "channels": 3})
    shown = shown_in(packed)
    assert min(map(len, shown.values())) > 0
    assert not shown["train"] & shown["test"]
    assert not shown["train"] & shown["val"]
    assert not shown["val"] & shown["test"]


# --- runs of earlier versions


def stored() -> dict[str, bytes]:
    """One image in modes that earlier versions distinguished."""
    rgb = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    image = Image.fromarray(rgb)
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "rgb": saved(image, "PNG"),
        "gray": saved(image.convert("L"), "PNG"),
        "palette": saved(image.quantize(16), "PNG"),
        "jpeg": saved(image, "JPEG", quality=90),
        "1-bit": saved(image.convert("1"), "PNG"),
        "rgba": saved(Image.fromarray(np.dstack([rgb, rgb[..., :1]])), "PNG"),
        "16-bit": saved(Image.fromarray(rgb[..., 0].astype(np.uint16) * 250), "PNG"),
        "turned": saved(image, "TIFF", exif=exif),
        "large": saved(Image.fromarray(np.tile(rgb, (12, 12, 1))), "PNG"),
    }


CHECKSUMS = {
    "rgb": 3424849082,
    "gray": 3239294050,
    "palette": 1295705250,
    "jpeg": 3445971120,
    "1-bit": 4206889114,
    "rgba": 2729526974,
    "16-bit": 796008605,
    "turned": 1683395077,
    "large": 314513374,
}
"""The checksums as computed by the version that drew splits by them."""


@pytest.mark.parametrize("name", CHECKSUMS)
def test_the_checksums_of_earlier_versions_do_not_change(name: str) -> None:
    """A run of that version is resumed and evaluated on its own splits."""
    assert content_checksum(stored()[name], "it") == CHECKSUMS[name]


@pytest.mark.parametrize("store", ["pixels", "encoded"])
def test_a_run_of_an_earlier_version_keeps_its_splits(store: str, tmp_path: Path) -> None:
    source = in_folders(tmp_path, "png", png("L"))
    current, _ = pack_splits(source, {"size": 64, "channels": 1}, packing=PackOptions(store))
    for record, same in (({"drawn_by": "content key"}, True), ({}, False)):
        packing = PackOptions(store, Cache(tmp_path / "cache"))
        earlier, _ = pack_splits(with_saved_splits(source, record), {"size": 64, "channels": 1}, packing=packing)
        assert (shown_in(earlier) == shown_in(current)) is same
