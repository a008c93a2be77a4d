"""Decoding, resizing and normalisation, compared with Pillow and plain arithmetic."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from helpers.images import noise, write_image
from sightline.core.errors import DataError
from sightline.data.images.decode import decode_image, is_gray
from sightline.data.images.preprocess import Preprocess

SIDE = st.integers(1, 20)
SEED = st.integers(0, 2**32 - 1)
CHANNELS = st.sampled_from([1, 3])
FILTERS = {name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "lanczos")}


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise_image(mode: str, height: int, width: int, seed: int) -> Image.Image:
    """A Pillow image of noise in any mode, including alpha and palette."""
    random = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(random.integers(0, 65536, (height, width), dtype=np.uint16))
    pixels = random.integers(0, 256, height * width * {"LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}.get(mode, 1), np.uint8)
    if mode == "1":
        return Image.frombytes("L", (width, height), pixels.tobytes()).convert("1")
    image = Image.frombytes(mode, (width, height), pixels.tobytes())
    if mode == "P":
        image.putpalette(random.integers(0, 256, 768, np.uint8).tobytes())
    return image


def plain(image: bytes | Path) -> Image.Image:
    """The image as Pillow alone reads it."""
    with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
        opened.load()
        return opened


def chw(image: Image.Image) -> NDArray[np.uint8]:
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


# --- decoding


@pytest.mark.rows("AB16")
@settings(max_examples=150)
@given(
    case=st.sampled_from(
        [("1", "PNG"), ("1", "TIFF"), ("L", "PNG"), ("L", "BMP"), ("L", "WEBP"), ("P", "PNG"), ("P", "GIF"),
         ("RGB", "PNG"), ("RGB", "BMP"), ("RGB", "TIFF"), ("RGB", "PPM"), ("RGB", "WEBP"), ("CMYK", "TIFF"),
         ("CMYK", "JPEG"), ("L", "JPEG"), ("RGB", "JPEG")]
    ),
    height=SIDE, width=SIDE, seed=SEED, channels=CHANNELS,
)  # fmt: skip
def test_every_kind_of_opaque_file_is_decoded_as_pillow_does(
    case: tuple[str, str], height: int, width: int, seed: int, channels: int
) -> None:
    mode, kind = case
    data = encoded(noise_image(mode, height, width, seed), kind)
    decoded = Preprocess(height, width, channels).decode(data)
    assert decoded.dtype == np.uint8
    assert decoded.shape == (channels, height, width)
    assert decoded.flags.c_contiguous
    assert np.array_equal(decoded, chw(plain(data).convert("L" if channels == 1 else "RGB")))


@pytest.mark.rows("AB16")
@settings(max_examples=80)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    seed=SEED,
    quality=st.integers(1, 100),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    progressive=st.booleans(),
    gray=st.booleans(),
    channels=CHANNELS,
)
def test_the_fast_jpeg_decoder_equals_pillow_to_the_bit(
    height: int, width: int, seed: int, quality: int, subsampling: str, progressive: bool, gray: bool, channels: int
) -> None:
    pixels = noise(height, width, 0 if gray else 3, seed)
    pixels = np.sort(pixels, axis=0)  # smooth in one direction and rough in the other
    options = {} if gray else {"subsampling": subsampling}
    data = encoded(Image.fromarray(pixels), "JPEG", quality=quality, progressive=progressive, **options)
    decoded = Preprocess(height, width, channels).decode(data)
    assert np.array_equal(decoded, chw(plain(data).convert("L" if channels == 1 else "RGB")))


@settings(max_examples=80)
@given(
    mode=st.sampled_from(["LA", "RGBA"]),
    height=SIDE,
    width=SIDE,
    seed=SEED,
    background=st.integers(0, 255),
    channels=CHANNELS,
)
def test_alpha_is_composited_over_the_background(
    mode: str, height: int, width: int, seed: int, background: int, channels: int
) -> None:
    image = noise_image(mode, height, width, seed)
    decoded = Preprocess(height, width, channels, background=background).decode(encoded(image, "PNG"))
    rgba = np.asarray(image.convert("RGBA"), dtype=np.float64)
    alpha = rgba[..., 3:] / 255
    over = rgba[..., :3] * alpha + background * (1 - alpha)
    expected = over.transpose(2, 0, 1) if channels == 3 else (over @ [0.299, 0.587, 0.114])[None]
    assert np.abs(decoded - expected).max() < 1.01  # two roundings


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_shows_the_background(mode: str, channels: int) -> None:
    clear = (10, 10, 10) if mode == "RGB" else 10
    image = Image.new(mode, (4, 4), clear)
    if mode == "P":
        image.putpalette(bytes(range(256)) * 3)
    data = encoded(image, "PNG", transparency=clear)
    assert set(Preprocess(4, 4, channels, background=200).decode(data).ravel().tolist()) == {200}


@settings(max_examples=30)
@given(height=SIDE, width=SIDE, seed=SEED, channels=CHANNELS, kind=st.sampled_from(["PNG", "TIFF"]))
def test_16_bit_gray_is_scaled_and_not_cut(height: int, width: int, seed: int, channels: int, kind: str) -> None:
    image = noise_image("I;16", height, width, seed)
    decoded = Preprocess(height, width, channels).decode(encoded(image, kind))
    expected = np.round(np.asarray(image) / 65535 * 255)
    assert np.array_equal(decoded, np.broadcast_to(expected, (channels, height, width)))


def turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Pixels [H,W] or [H,W,C], turned as EXIF defines the orientation."""
    transposed = pixels.swapaxes(0, 1)
    return {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: transposed,
        6: transposed[:, ::-1],
        7: transposed[::-1, ::-1],
        8: transposed[::-1],
    }[orientation]


def with_orientation(image: Image.Image, kind: str, orientation: int, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, kind, exif=exif, **options)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int, channels: int) -> None:
    image = Image.fromarray(noise(6, 10, 3))
    data = with_orientation(image, kind, orientation)
    shown = plain(encoded(image, kind)).convert("RGB")  # compressed, but not turned
    expected = turned(np.asarray(shown), orientation).transpose(2, 0, 1)
    height, width = expected.shape[1:]
    decoded = Preprocess(height, width, channels).decode(data, exact=("size",))
    if channels == 3:
        assert np.array_equal(decoded, expected)
    else:
        assert np.array_equal(decoded[0], np.asarray(Image.fromarray(expected.transpose(1, 2, 0)).convert("L")))


def test_exif_orientation_is_applied_at_any_position_in_a_jpeg() -> None:
    data = with_orientation(Image.fromarray(noise(6, 10, 3)), "JPEG", 6)
    comment = b"\xff\xfe" + (202).to_bytes(2, "big") + b"c" * 200  # a segment before the EXIF segment
    moved = data[:2] + comment + data[2:]
    assert plain(moved).getexif()[0x0112] == 6
    first = Preprocess(10, 6, 3).decode(data, exact=("size",))
    assert np.array_equal(Preprocess(10, 6, 3).decode(moved, exact=("size",)), first)


@pytest.mark.rows("AB16")
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tif", "gif"])
def test_colours_are_red_green_blue_in_that_order(tmp_path: Path, suffix: str) -> None:
    colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
    for place, (name, colour) in enumerate(colours.items()):
        path = write_image(tmp_path / f"{name}.{suffix}", Image.new("RGB", (16, 16), colour))
        means = Preprocess(16, 16, 3).decode(path).mean(axis=(1, 2))
        assert means.argmax() == place
        assert means[place] > 240
        assert np.delete(means, place).max() < 15


@pytest.mark.parametrize("channels", [1, 3])
def test_a_file_its_bytes_its_pixels_and_a_pillow_image_decode_the_same(tmp_path: Path, channels: int) -> None:
    pixels = noise(7, 9, 3)
    path = write_image(tmp_path / "a.png", pixels)
    preprocess = Preprocess(5, 5, channels)
    expected = preprocess.decode(path)
    for form in (path.read_bytes(), pixels, Image.fromarray(pixels)):
        assert np.array_equal(preprocess.decode(form), expected)
    gray = noise(7, 9)
    assert np.array_equal(preprocess.decode(gray), preprocess.decode(gray[..., None]))


def test_decoding_does_not_change_its_input() -> None:
    pixels = noise(6, 6)
    before = pixels.copy()
    Preprocess(6, 6, 3).decode(pixels)
    Preprocess(3, 3, 1, resize="pad").decode(pixels)
    assert np.array_equal(pixels, before)


# --- resizing


@settings(max_examples=80)
@given(
    source=st.tuples(SIDE, SIDE),
    wanted=st.tuples(SIDE, SIDE),
    seed=SEED,
    channels=CHANNELS,
    interpolation=st.sampled_from(sorted(FILTERS)),
    resize=st.sampled_from(["stretch", "crop", "pad"]),
    background=st.integers(0, 255),
)
@example((200, 1), (8, 8), 0, 1, "bilinear", "pad", 255)
@example((1, 200), (8, 8), 0, 3, "bilinear", "crop", 255)
def test_resizing_equals_pillows(
    source: tuple[int, int],
    wanted: tuple[int, int],
    seed: int,
    channels: int,
    interpolation: str,
    resize: str,
    background: int,
) -> None:
    image = Image.fromarray(noise(*source, 3, seed)).convert("L" if channels == 1 else "RGB")
    preprocess = Preprocess(*wanted, channels, resize=resize, interpolation=interpolation, background=background)
    decoded = preprocess.decode(image)
    assert decoded.shape == preprocess.shape == (channels, *wanted)
    size, method = wanted[::-1], FILTERS[interpolation]
    if source == wanted:
        expected = image
    elif resize == "stretch":
        expected = image.resize(size, method)
    elif resize == "crop":
        expected = ImageOps.fit(image, size, method)
    else:
        expected = ImageOps.pad(image, size, method, color=background if channels == 1 else (background,) * 3)
    assert np.array_equal(decoded, chw(expected))


def test_crop_cuts_the_centre_and_pad_keeps_everything() -> None:
    pixels = np.zeros((10, 30), dtype=np.uint8)
    pixels[:, 10:20] = 100  # the middle third
    crop = Preprocess(10, 10, 1, resize="crop").decode(pixels)
    assert (crop == 100).all()
    pad = Preprocess(30, 30, 1, resize="pad", background=77).decode(pixels)
    assert (pad[0, :10] == 77).all()
    assert (pad[0, 20:] == 77).all()
    assert np.array_equal(pad[0, 10:20], pixels)


# --- refused images


def assert_refused(preprocess: Preprocess, image: Path | bytes, *messages: str, exact: tuple[str, ...] = ()) -> None:
    with pytest.raises(DataError) as caught:
        preprocess.decode(image, exact=exact)
    for message in messages:
        assert message in str(caught.value)


GRAY = Preprocess(8, 8, 1)


def test_a_text_file_named_png_is_not_an_image(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("not an image", encoding="utf-8")
    assert_refused(GRAY, path, f"'{path}'", "is not an image", "b'not an image'")


def test_an_empty_file_is_not_an_image(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.touch()
    assert_refused(GRAY, path, f"'{path}'", "the file is empty")
    assert_refused(GRAY, b"", "the image", "empty")


def test_a_missing_file_and_a_directory_are_named(tmp_path: Path) -> None:
    assert_refused(GRAY, tmp_path / "no.png", f"Cannot read '{tmp_path / 'no.png'}'", "No such file")
    assert_refused(GRAY, tmp_path, f"Cannot read '{tmp_path}'")


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.6, 0.9])
@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("GIF", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {})],
)
def test_a_truncated_file_is_named(tmp_path: Path, kind: str, options: dict[str, object], fraction: float) -> None:
    data = encoded(Image.fromarray(noise(40, 40, 3)), kind, **options)
    path = tmp_path / "cut.img"
    path.write_bytes(data[: int(fraction * len(data))])
    assert_refused(Preprocess(40, 40, 3), path, f"'{path}'")


def test_a_truncated_jpeg_with_exif_is_named(tmp_path: Path) -> None:
    data = with_orientation(Image.fromarray(noise(40, 40, 3)), "JPEG", 6)
    path = tmp_path / "cut.jpg"
    path.write_bytes(data[: len(data) // 2])
    assert_refused(Preprocess(40, 40, 3), path, f"'{path}'")


@settings(max_examples=60)
@given(
    data=st.binary(max_size=80), start=st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"GIF89a"])
)
def test_any_bytes_are_an_image_or_a_data_error(data: bytes, start: bytes) -> None:
    try:
        assert GRAY.decode(start + data).shape == (1, 8, 8)
    except DataError as error:
        assert "the image" in str(error)  # noqa: PT017 an image by chance is not a failure


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@settings(max_examples=60)
@given(at=st.integers(0, 20), junk=st.binary(min_size=1, max_size=6))
def test_damaged_exif_does_not_crash(at: int, junk: bytes) -> None:
    data = bytearray(with_orientation(Image.fromarray(noise(8, 8)), "JPEG", 6))
    start = data.find(b"Exif\0\0") + 6 + at
    data[start : start + len(junk)] = junk
    try:
        assert GRAY.decode(bytes(data)).shape == (1, 8, 8)
    except DataError as error:
        assert "the image" in str(error)  # noqa: PT017 a file that Pillow cannot read is a data error


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), dtype=np.float32),
        np.zeros((4, 4), dtype=np.uint16),
        np.zeros((1, 4, 4, 3), dtype=np.uint8),
        np.zeros(4, dtype=np.uint8),
        np.zeros((3, 8, 8), dtype=np.uint8),
        np.zeros((4, 4, 5), dtype=np.uint8),
    ],
    ids=lambda pixels: f"{pixels.dtype}{pixels.shape}",
)
def test_pixels_of_another_dtype_or_shape_are_refused(pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(DataError, match=r"a\.png: expected uint8 pixels \[H,W\] or \[H,W,C\] with C 1, 3 or 4, found"):
        GRAY.decode(pixels, "a.png")


def test_errors_use_the_name_of_the_argument() -> None:
    with pytest.raises(DataError, match="message 7 is not an image"):
        GRAY.decode(b"junk", "message 7")


def test_exact_refuses_images_that_would_have_to_change(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", noise(6, 9, 3))
    assert_refused(Preprocess(8, 8, 3), path, f"'{path}'", "6 x 9", "8 x 8", "data.preprocess.size", exact=("size",))
    assert_refused(Preprocess(6, 9, 1), path, f"'{path}'", "colour", "data.preprocess.channels", exact=("channels",))
    assert Preprocess(6, 9, 3).decode(path, exact=("size", "channels")).shape == (3, 6, 9)
    assert Preprocess(8, 8, 1).decode(path).shape == (1, 8, 8)
    gray = write_image(tmp_path / "g.png", noise(6, 9))
    assert Preprocess(6, 9, 3).decode(gray, exact=("size", "channels")).shape == (3, 6, 9)
    assert Preprocess(6, 9, 1).decode(gray, exact=("size", "channels")).shape == (1, 6, 9)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "P", "RGB", "RGBA"])
def test_gray_is_recognised_by_the_mode_of_the_file(tmp_path: Path, mode: str) -> None:
    gray = mode in ("1", "L", "LA", "I;16")
    path = write_image(tmp_path / "a.png", noise_image(mode, 5, 5, 0))
    assert is_gray(decode_image(path, "a")) is gray
    assert is_gray(decode_image(path.read_bytes(), "a")) is gray
    if gray:
        Preprocess(5, 5, 1).decode(path, exact=("channels",))


def test_gray_pixels_are_recognised_by_their_shape() -> None:
    assert is_gray(decode_image(noise(4, 4), "a"))
    assert is_gray(decode_image(noise(4, 4, 1), "a"))
    assert not is_gray(decode_image(noise(4, 4, 3), "a"))


# --- normalising


VALUE = st.floats(-2, 2)
SPREAD = st.floats(0.01, 4)


@settings(max_examples=60)
@given(data=st.data(), channels=CHANNELS, seed=SEED)
def test_normalising_equals_the_plain_formula(data: st.DataObject, channels: int, seed: int) -> None:
    mean = data.draw(st.lists(VALUE, min_size=channels, max_size=channels))
    std = data.draw(st.lists(SPREAD, min_size=channels, max_size=channels))
    preprocess = Preprocess(3, 5, channels, tuple(mean), tuple(std))
    pixels = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (4, *preprocess.shape), dtype=np.uint8))
    before = pixels.clone()
    normalised = preprocess.normalizer()(pixels)
    assert normalised.dtype == torch.float32
    assert torch.equal(pixels, before)
    shape = (1, channels, 1, 1)
    wide_mean, wide_std = (torch.tensor(v, dtype=torch.float64).view(shape) for v in (mean, std))
    expected = (pixels.double() / 255 - wide_mean) / wide_std
    # a few roundings of float32, of numbers as large as the larger of pixel and mean
    allowed = 4 * torch.finfo(torch.float32).eps * (wide_mean.abs() + 1) / wide_std
    assert ((normalised.double() - expected).abs() <= allowed).all()


def test_without_mean_and_std_pixels_are_between_0_and_1() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    assert Preprocess(1, 1, 1).normalizer()(pixels).ravel().tolist() == [0.0, 1.0]


def test_each_image_is_normalised_independently() -> None:
    preprocess = Preprocess(4, 4, 3, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (16, 3, 4, 4), dtype=np.uint8))
    normalize = preprocess.normalizer()
    assert torch.equal(normalize(pixels), torch.cat([normalize(one[None]) for one in pixels]))


def test_one_value_applies_to_every_channel_and_another_number_of_values_is_refused() -> None:
    assert Preprocess(2, 2, 3, (0.5,), (0.25,)) == Preprocess(2, 2, 3, (0.5,) * 3, (0.25,) * 3)
    with pytest.raises(DataError, match=r"data\.preprocess\.mean: 3 values for 1 channel"):
        Preprocess(2, 2, 1, (0.5,) * 3, (0.5,))
    with pytest.raises(DataError, match=r"data\.preprocess\.std: 2 values for 3 channel"):
        Preprocess(2, 2, 3, (0.5,), (0.5, 0.5))


@settings(max_examples=40)
@given(
    preprocess=st.builds(
        Preprocess,
        height=SIDE,
        width=SIDE,
        channels=st.just(3),
        mean=st.tuples(VALUE, VALUE, VALUE) | st.tuples(VALUE),
        std=st.tuples(SPREAD, SPREAD, SPREAD) | st.tuples(SPREAD),
        resize=st.sampled_from(["stretch", "crop", "pad"]),
        interpolation=st.sampled_from(sorted(FILTERS)),
        background=st.integers(0, 255),
    )
)
def test_it_is_equal_after_to_dict_and_json(preprocess: Preprocess) -> None:
    assert Preprocess.from_dict(preprocess.to_dict()) == preprocess
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess


# --- unusual shapes in every orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 1), (4000, 3), (3, 4000), (257, 31)])
def test_every_shape_format_and_orientation_is_decoded_as_pillow_does(
    size: tuple[int, int], kind: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.sort(noise(*size, 3, seed=orientation), axis=0)
    for image in (Image.fromarray(pixels), Image.fromarray(pixels[..., 0])):
        data = encoded(image, kind, exif=exif)
        upright = ImageOps.exif_transpose(plain(data))
        for channels in (1, 3):
            decoded = Preprocess(upright.height, upright.width, channels).decode(data)
            assert np.array_equal(decoded, chw(upright.convert("L" if channels == 1 else "RGB")))
