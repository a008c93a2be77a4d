"""Every mode and bit depth that Pillow opens, compared with the values that were written to the file.

Most of these files are written here byte by byte, because Pillow writes few of the bit depths that it reads."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from helpers.images import noise
from sightline.core.errors import DataError, ImageError
from sightline.data.cache.workers import decode_block
from sightline.data.images.decode import composite_alpha, decode_image, is_gray, to_encoded_bytes, try_decode_jpeg
from sightline.data.images.preprocess import Preprocess

Values = NDArray[Any]
BACKGROUND = 90


# --- files written by hand


def values_of(bits: int, *shape: int, seed: int = 0) -> Values:
    """Random values of `bits` bits, among them the smallest and the largest."""
    values = np.random.default_rng(seed).integers(0, 1 << bits, shape, dtype=np.int64)
    values.reshape(-1)[:2] = 0, (1 << bits) - 1
    return values


def packed(values: Values, bits: int, order: str = ">") -> bytes:
    """Rows of values, the most significant bit first, each row padded to full bytes."""
    rows = values.reshape(len(values), -1)
    if bits >= 8 and bits % 8 == 0:
        return rows.astype(f"{order}u{bits // 8}").tobytes()
    single = (rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(single.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()


def png(values: Values, bits: int, kind: int, *chunks: tuple[bytes, bytes], interlaced: bool = False) -> bytes:
    """A PNG of colour type `kind`: 0 gray, 2 RGB, 3 palette, 4 gray and alpha, 6 RGBA; `chunks` precede the pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape[:2]
    passes = [values]
    if interlaced:  # Adam7
        steps = [(0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1)]
        passes = [values[top::down, left::right] for top, down, left, right in steps]
    lines = b"".join(b"\0" + packed(part[i : i + 1], bits) for part in passes if part.size for i in range(len(part)))
    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlaced)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in parts)


def tiff(
    values: Values, bits: int, photometric: int, order: str = "<", data: bytes | None = None, **tags: Any
) -> bytes:
    """A TIFF file of one strip, or with `planar=2` one for each channel. `tags`: `extra`, `form` (of the samples),
    `deflate`, `planar`, `colours` (a palette), `chroma` (subsampling) and `turned` (EXIF orientation)."""
    height, width = values.shape[:2]
    count = 1 if values.ndim == 2 else values.shape[2]
    planes = [values[..., i] for i in range(count)] if tags.get("planar") == 2 and values.ndim == 3 else [values]
    strips = [packed(plane, bits, order) if data is None else data for plane in planes]
    if tags.get("deflate"):
        strips = [zlib.compress(strip) for strip in strips]
    starts = [8 + sum(map(len, strips[:i])) for i in range(len(strips))]
    fields: dict[int, tuple[str, Sequence[int]]] = {
        256: ("H", [width]), 257: ("H", [height]), 258: ("H", [bits] * count),
        259: ("H", [8 if tags.get("deflate") else 1]), 262: ("H", [photometric]), 273: ("I", starts),
        277: ("H", [count]), 278: ("H", [height]), 279: ("I", [len(strip) for strip in strips]),
    }  # fmt: skip
    for name, tag in (
        ("turned", 274),
        ("planar", 284),
        ("colours", 320),
        ("extra", 338),
        ("form", 339),
        ("chroma", 530),
    ):
        if name in tags:
            value = tags[name]
            fields[tag] = ("H", [value] * (count if name == "form" else 1) if isinstance(value, int) else value)
    body = b"".join(strips) + bytes(sum(map(len, strips)) % 2)
    start = 8 + len(body)
    more = start + 6 + 12 * len(fields)
    entries = blob = b""
    for tag, (code, items) in sorted(fields.items()):
        raw = struct.pack(f"{order}{len(items)}{code}", *items)
        entries += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[code], len(items))
        entries += raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack(f"{order}I", more + len(blob))
        blob += raw if len(raw) > 4 else b""
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, start)
    return head + body + struct.pack(f"{order}H", len(fields)) + entries + bytes(4) + blob


def pnm(values: Values, largest: int, *, plain: bool) -> bytes:
    """A PGM or PPM file, as text or binary."""
    kind = (2 if values.ndim == 2 else 3) + (0 if plain else 3)
    head = f"P{kind}\n{values.shape[1]} {values.shape[0]}\n{largest}\n".encode()
    return head + (" ".join(map(str, values.ravel())).encode() if plain else packed(values, 8 if largest < 256 else 16))


def jpeg2000(values: Values, bits: Sequence[int], *, signed: bool = False) -> bytes:
    """Lossless JPEG 2000. Pillow writes 8 or 16 bits; the header is then changed to `bits` of each channel. A decoder
    adds half of the range that the header states, so the values are written with the difference."""
    wide = 16 if max(bits) > 8 else 8
    shift = (1 << (wide - 1)) - np.array([0 if signed else 1 << (count - 1) for count in bits])
    raw = (values.reshape(*values.shape[:2], len(bits)) + shift).astype(np.uint16 if wide == 16 else np.uint8)
    stream = io.BytesIO()
    Image.fromarray(raw[..., 0] if len(bits) == 1 else raw).save(stream, "JPEG2000", no_jp2=True, mct=0)
    data = bytearray(stream.getvalue())
    for band, count in enumerate(bits):
        data[42 + 3 * band] = (count - 1) | (128 if signed else 0)
    return bytes(data)


def jp2(codestream: bytes, width: int, height: int, bits: int, colours: Sequence[tuple[int, ...]]) -> bytes:
    """A JP2 file around a codestream of palette indices."""

    def box(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I4s", len(data) + 8, kind) + data

    head = box(b"ihdr", struct.pack(">IIHBBBB", height, width, 1, bits - 1, 7, 0, 0))
    head += box(b"pclr", struct.pack(">HB", len(colours), 3) + b"\7\7\7" + bytes(sum(colours, ())))
    head += box(b"cmap", b"".join(struct.pack(">HBB", 0, 1, i) for i in range(3)))
    head += box(b"colr", struct.pack(">BBBI", 1, 0, 0, 16))
    first = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 " + bytes(4) + b"jp2 ")
    return first + box(b"jp2h", head) + box(b"jp2c", codestream)


class Bits:
    """The coded part of a JPEG, with a Huffman table in which the code of each length is the length in 5 bits."""

    def __init__(self) -> None:
        self.text = ""

    def put(self, difference: int) -> None:
        length = abs(difference).bit_length()
        self.text += f"{length:05b}"
        if 0 < length < 16:
            self.text += f"{difference if difference > 0 else difference + (1 << length) - 1:0{length}b}"

    def data(self) -> bytes:
        text = self.text + "1" * (-len(self.text) % 8)
        return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def huffman(codes: int) -> bytes:
    return segment(0xC4, bytes(5) + bytes([codes]) + bytes(11) + bytes(range(codes)))


def lossless_jpeg(values: Values, bits: int, before: bytes = b"") -> bytes:
    """Each value is coded as its difference from the one before it. Channels share one table."""
    height, width = values.shape[:2]
    count = 1 if values.ndim == 2 else values.shape[2]
    left = np.empty_like(values)
    left[:, 1:], left[1:, 0], left[0, 0] = values[:, :-1], values[:-1, 0], 1 << (bits - 1)
    coded = Bits()
    for difference in (values - left).ravel().tolist():
        coded.put((difference + 32767) % 65536 - 32767)
    channels = b"".join(bytes([i, 0x11, 0]) for i in range(count))
    scan = bytes([count]) + b"".join(bytes([i, 0]) for i in range(count)) + b"\1\0\0"
    frame = segment(0xC3, struct.pack(">BHHB", bits, height, width, count) + channels)
    return b"\xff\xd8" + before + frame + huffman(17) + segment(0xDA, scan) + coded.data() + b"\xff\xd9"


def block_jpeg(
    factors: Sequence[tuple[int, int]],
    seed: int = 0,
    bits: int = 8,
    ids: Sequence[int] = (1, 2, 3, 4),
    before: bytes = b"",
    marker: int = 0xC0,
) -> bytes:
    """2 x 3 groups of blocks of random colours; `factors` are the (horizontal, vertical) sampling of each channel."""
    random, rows, columns = np.random.default_rng(seed), 2, 3
    across, down = (max(pair[i] for pair in factors) for i in (0, 1))
    size = (8 * rows * down, 8 * columns * across)
    frame = struct.pack(">BHHB", bits, *size, len(factors))
    frame += b"".join(bytes([ids[i], 16 * h + v, 0]) for i, (h, v) in enumerate(factors))
    coded, last = Bits(), [0] * len(factors)
    for _ in range(rows * columns * (across * down if len(factors) == 1 else 1)):
        for i, (h, v) in enumerate(factors):
            for _ in range(h * v if len(factors) > 1 else 1):
                value = 8 * (int(random.integers(0, 1 << bits)) - (1 << (bits - 1)))
                coded.put(value - last[i])
                coded.text += "0"  # no other frequencies
                last[i] = value
    scan = bytes([len(factors)]) + b"".join(bytes([ids[i], 0]) for i in range(len(factors))) + b"\0\x3f\0"
    tables = segment(0xDB, b"\0" + b"\1" * 64) + segment(marker, frame) + huffman(16)
    tables += segment(0xC4, b"\x10\1" + bytes(15) + b"\0")
    return b"\xff\xd8" + before + tables + segment(0xDA, scan) + coded.data() + b"\xff\xd9"


def adobe(transform: int) -> bytes:
    return segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, transform))


def fits(values: Values, bits: int) -> bytes:
    cards = [f"SIMPLE  = {'T':>20}", f"BITPIX  = {bits:>20}", f"NAXIS   = {2:>20}"]
    cards += [f"NAXIS1  = {values.shape[1]:>20}", f"NAXIS2  = {values.shape[0]:>20}", "END"]
    kind = {8: "u1", 16: ">i2", 32: ">i4", -32: ">f4"}[bits]
    data: bytes = values[::-1].astype(kind).tobytes()
    return "".join(f"{card:80}" for card in cards).ljust(2880).encode() + data.ljust(2880, b"\0")


def bmp_of_16_bits(values: Values) -> bytes:
    """A BMP file with 5 bits for each of red, green and blue."""
    height, width = values.shape[:2]
    pixels = (values[..., 0] << 10) | (values[..., 1] << 5) | values[..., 2]
    rows = b"".join(line.astype("<u2").tobytes().ljust((2 * width + 3) // 4 * 4, b"\0") for line in pixels[::-1])
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 16, 0, len(rows), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(rows), 0, 0, 54) + head + rows


def bmp_of_a_palette(values: Values, bits: int, colours: Values) -> bytes:
    """A BMP file with a palette; `colours` [N,3] are red, green, blue."""
    height, width = values.shape
    stride = (width * bits + 31) // 32 * 4
    rows = b""
    for line in values[::-1]:
        packed = np.packbits(((line[:, None] >> np.arange(bits)[::-1]) & 1).astype(np.uint8).reshape(-1))
        rows += packed.tobytes().ljust(stride, b"\0")
    table = np.hstack([colours[:, ::-1], np.zeros((len(colours), 1), np.int64)]).astype(np.uint8).tobytes()
    start = 54 + len(table)
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, len(rows), 0, 0, len(colours), 0)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + head + table + rows


# --- decoded values


class Case(NamedTuple):
    """A file, the values 0..255 that it shows (gray [H,W] or RGB [H,W,3]), and by how much decoded values may differ:
    half a level for one rounding."""

    data: bytes
    expected: Values
    within: float = 0.5


def over(levels: Values, alpha: Values) -> Values:
    """Values composited over the background, with alpha in [0, 1]."""
    return levels * alpha + BACKGROUND * (1 - alpha)


def scaled(values: Values, bits: int) -> Values:
    return values * 255 / ((1 << bits) - 1)


def cases() -> dict[str, Case]:
    result: dict[str, Case] = {}
    result |= png_cases() | tiff_cases() | other_cases()
    return result


def png_cases() -> dict[str, Case]:
    result = {}
    for bits in (1, 2, 4, 8, 16):
        gray = values_of(bits, 5, 9)
        result[f"png gray {bits}"] = Case(png(gray, bits, 0), scaled(gray, bits))
        for place in (0, 1, 7):  # black, white and a value between
            clear = int(gray[0, place])
            shown = np.where(gray == clear, BACKGROUND, scaled(gray, bits))
            data = png(gray, bits, 0, (b"tRNS", struct.pack(">H", clear)))
            result[f"png gray {bits} with value {place} transparent"] = Case(data, shown)
        if bits <= 8:
            palette = values_of(8, 1 << bits, 3, seed=1)
            chunk = (b"PLTE", palette.astype(np.uint8).tobytes())
            result[f"png palette {bits}"] = Case(png(gray, bits, 3, chunk), palette[gray])
            alphas = values_of(8, 1 << bits, seed=2)
            data = png(gray, bits, 3, chunk, (b"tRNS", alphas.astype(np.uint8).tobytes()))
            shown = over(palette[gray], alphas[gray][..., None] / 255)
            result[f"png palette {bits} with alpha"] = Case(data, shown, 1)
    for bits in (8, 16):
        within = 0.5 if bits == 8 else 1  # of a 16-bit colour Pillow keeps the upper 8 bits
        rgb = values_of(bits, 5, 9, 3)
        result[f"png rgb {bits}"] = Case(png(rgb, bits, 2), scaled(rgb, bits), within)
        rgba = values_of(bits, 5, 9, 4)
        shown = over(scaled(rgba[..., :3], bits), rgba[..., 3:] / ((1 << bits) - 1))
        result[f"png rgba {bits}"] = Case(png(rgba, bits, 6), shown, within + 1)
        both = values_of(bits, 5, 9, 2)
        shown = over(scaled(both[..., 0], bits), both[..., 1] / ((1 << bits) - 1))
        result[f"png gray and alpha {bits}"] = Case(png(both, bits, 4), shown, within + 1)
        for interlaced in (False, True):
            rgb[0, :4] = [[7, 7, 7], [7, 7, 8], [7 << (bits - 8), 0, 0], [7, 7, 7]]
            clear = (b"tRNS", struct.pack(">3H", 7, 7, 7))
            shown = np.where((rgb == 7).all(-1)[..., None], BACKGROUND, scaled(rgb, bits))
            name = f"png rgb {bits} with a transparent colour{', interlaced' if interlaced else ''}"
            result[name] = Case(png(rgb, bits, 2, clear, interlaced=interlaced), shown, within)
    rgb[1, :4] = [
        [0x3007, 0x3007, 0x3007],
        [0x3007, 0x3007, 0x3008],
        [0x3107, 0x3007, 0x3007],
        [0x3007, 0x3007, 0x3007],
    ]
    clear = (b"tRNS", struct.pack(">3H", 0x3007, 0x3007, 0x3007))
    shown = np.where((rgb == 0x3007).all(-1)[..., None], BACKGROUND, scaled(rgb, 16))
    result["png rgb 16 with a bright transparent colour"] = Case(png(rgb, 16, 2, clear), shown, 1)
    return result


def tiff_cases() -> dict[str, Case]:
    result = {}
    for order, deflate in (("<", False), (">", False), ("<", True), (">", True)):
        name = f"{'little' if order == '<' else 'big'} endian{' deflate' if deflate else ''}"
        for bits in (1, 2, 4, 8, 12, 16):
            for photometric in (0, 1):  # white is 0, black is 0
                if (bits == 12 and (photometric == 0 or order == ">")) or (
                    bits == 16 and order == ">" and not photometric
                ):
                    continue  # not opened by Pillow
                gray = values_of(bits, 5, 10)
                data = tiff(gray, bits, photometric, order, deflate=deflate)
                shown = scaled(gray, bits) if photometric else 255 - scaled(gray, bits)
                result[f"tiff {name} gray {bits} photometric {photometric}"] = Case(data, shown)
        for bits in (8, 16):
            within = 0.5 if bits == 8 else 1
            rgba = values_of(bits, 5, 10, 4)
            levels, alpha = scaled(rgba[..., :3], bits), rgba[..., 3:] / ((1 << bits) - 1)
            make = {"deflate": deflate, "order": order}
            result[f"tiff {name} rgb {bits}"] = Case(tiff(rgba[..., :3], bits, 2, **make), levels, within)
            result[f"tiff {name} rgbx {bits}"] = Case(tiff(rgba, bits, 2, extra=0, **make), levels, within)
            result[f"tiff {name} rgba {bits}"] = Case(
                tiff(rgba, bits, 2, extra=2, **make), over(levels, alpha), within + 1
            )
            dark = np.concatenate([(rgba[..., :3] * alpha).astype(np.int64), rgba[..., 3:]], axis=-1)
            shown = scaled(dark[..., :3], bits) + BACKGROUND * (1 - alpha)
            # a dark value is divided by alpha, rounded, and multiplied again
            result[f"tiff {name} rgba {bits}, premultiplied"] = Case(
                tiff(dark, bits, 2, extra=1, **make), shown, within + 2
            )
            inks = (255 - scaled(rgba[..., :3], bits)) * (255 - scaled(rgba[..., 3:], bits)) / 255
            result[f"tiff {name} cmyk {bits}"] = Case(tiff(rgba, bits, 5, **make), inks, within + 1.5)
            if deflate or bits == 8:
                data = tiff(rgba[..., :3], bits, 2, planar=2, **make)
                result[f"tiff {name} rgb {bits}, separate channels"] = Case(data, levels, within)
        both = values_of(8, 5, 10, 2)
        alpha = both[..., 1] / 255
        result[f"tiff {name} gray and other"] = Case(tiff(both, 8, 1, extra=0, **make), both[..., 0])
        result[f"tiff {name} gray and alpha"] = Case(tiff(both, 8, 1, extra=2, **make), over(both[..., 0], alpha), 1.5)
        dark = np.stack([(both[..., 0] * alpha).astype(np.int64), both[..., 1]], axis=-1)
        shown = dark[..., 0] + BACKGROUND * (1 - alpha)
        result[f"tiff {name} gray and alpha, premultiplied"] = Case(tiff(dark, 8, 1, extra=1, **make), shown, 2.5)
        for bits in (1, 2, 4, 8):
            palette = values_of(8, 1 << bits, 3, seed=3)
            index = values_of(bits, 5, 10)
            for factor in (1, 256, 257):  # some programs write 8-bit colours
                colours = (palette.T * factor).ravel().tolist()
                data = tiff(index, bits, 3, colours=colours, **make)
                result[f"tiff {name} palette {bits} times {factor}"] = Case(data, palette[index])
    return result


def other_cases() -> dict[str, Case]:
    result = {}
    for largest in (1, 3, 100, 255, 256, 1000, 1023, 4095, 16383, 65535):
        for plain in (False, True):
            gray, rgb = (np.random.default_rng(0).integers(0, largest + 1, shape) for shape in ((5, 9), (5, 9, 3)))
            gray[0, :2], rgb[0, 0] = (0, largest), (0, largest, 0)
            kind = "text" if plain else "binary"
            # more than 255: scaled to 16 bits, then to 8
            data = pnm(gray, largest, plain=plain)
            result[f"pgm {kind} {largest}"] = Case(data, gray * 255 / largest, 0.5 if largest < 256 else 0.502)
            result[f"ppm {kind} {largest}"] = Case(pnm(rgb, largest, plain=plain), rgb * 255 / largest)
    result["pbm"] = Case(b"P1\n3 2\n0 1 0\n1 1 0\n", np.array([[255, 0, 255], [0, 0, 255]]))
    for bits in range(1, 17):
        gray = values_of(bits, 7, 6)
        result[f"jpeg 2000 gray {bits}"] = Case(jpeg2000(gray, (bits,)), scaled(gray, bits))
    rgb = np.stack([values_of(bits, 7, 6, seed=bits) for bits in (5, 6, 4)], axis=-1)
    shown = np.stack([scaled(rgb[..., i], bits) for i, bits in enumerate((5, 6, 4))], axis=-1)
    result["jpeg 2000 rgb 565"] = Case(jpeg2000(rgb, (5, 6, 4)), shown)
    rgb, alpha = values_of(8, 7, 6, 3), values_of(1, 7, 6, 1)
    data = jpeg2000(np.concatenate([rgb, alpha], axis=-1), (8, 8, 8, 1))
    result["jpeg 2000 with 1-bit alpha"] = Case(data, over(rgb, alpha))
    both = np.concatenate([rgb[..., :1], alpha], axis=-1)
    result["jpeg 2000 gray with 1-bit alpha"] = Case(jpeg2000(both, (8, 1)), over(rgb[..., 0], alpha[..., 0]))
    for bits in (2, 4, 8):
        colours = [(200 - i, i, 3 * i) for i in range(1 << bits)] if bits < 8 else [(200 - i, i, 3) for i in range(200)]
        index = values_of(bits, 7, 6) % len(colours)
        data = jp2(jpeg2000(index, (bits,)), 6, 7, bits, colours)
        result[f"jpeg 2000 palette {bits}"] = Case(data, np.array(colours)[index])
    gray = values_of(8, 5, 9)
    result["fits 8"] = Case(fits(gray, 8), gray)
    result["lossless jpeg 8"] = Case(lossless_jpeg(gray, 8), gray)
    rgb = values_of(8, 5, 9, 3)
    result["lossless jpeg 8, rgb"] = Case(lossless_jpeg(rgb, 8, adobe(0)), rgb)
    five = values_of(5, 5, 9, 3)
    for bits in (1, 4, 8):
        colours = values_of(8, 1 << bits, 3, seed=3)
        index = values_of(bits, 5, 11)
        result[f"bmp palette {bits}"] = Case(bmp_of_a_palette(index, bits, colours), colours[index])
    ramp = np.repeat(np.arange(256)[:, None], 3, 1)
    for name, colours in {"gray": ramp, "gray, reversed": ramp[::-1]}.items():
        index = values_of(8, 5, 11)
        shown = index if name == "gray" else colours[index]  # Pillow reads this palette as gray
        result[f"bmp palette 8 {name}"] = Case(bmp_of_a_palette(index, 8, colours), shown)
    two = np.array([[0, 0, 0], [255, 255, 255]])
    for bits in (1, 8):
        for name, colours in {"black and white": two, "white and black": two[::-1]}.items():
            index = values_of(1, 5, 11)
            shown = index * 255 if name == "black and white" else colours[index]
            result[f"bmp palette {bits} {name}"] = Case(bmp_of_a_palette(index, bits, colours), shown)
    result["bmp 16"] = Case(bmp_of_16_bits(five), five * 255 / 31, 1)
    return result


CASES = cases()


def shown_by(data: bytes | Path | Image.Image, case: Case, channels: int, **options: Any) -> Values:
    height, width = case.expected.shape[:2]
    return Preprocess(height, width, channels, background=BACKGROUND).decode(data, **options)


@pytest.mark.parametrize("name", CASES)
def test_every_mode_and_bit_depth_shows_the_values_that_were_written(name: str) -> None:
    case = CASES[name]
    gray = case.expected.ndim == 2
    rgb = case.expected[None].repeat(3, 0) if gray else case.expected.transpose(2, 0, 1)
    luma = case.expected if gray else case.expected @ [0.299, 0.587, 0.114]
    assert np.abs(shown_by(case.data, case, 3).astype(float) - rgb).max() <= case.within + 1e-9
    assert np.abs(shown_by(case.data, case, 1)[0].astype(float) - luma).max() <= case.within + (0 if gray else 0.6)
    assert is_gray(decode_image(case.data, "a")) is gray
    assert composite_alpha(decode_image(case.data, "a"), BACKGROUND).shape == case.expected.shape


@pytest.mark.parametrize("name", CASES)
def test_a_file_its_bytes_a_pillow_image_and_the_cache_give_the_same_pixels(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    path = tmp_path / "image"
    path.write_bytes(case.data)
    for channels in (1, 3):
        expected = shown_by(case.data, case, channels)
        assert np.array_equal(shown_by(path, case, channels), expected)
        with Image.open(path) as opened:
            assert np.array_equal(shown_by(opened, case, channels), expected)
            assert np.array_equal(shown_by(to_encoded_bytes(opened, "a"), case, channels), expected)
        assert np.array_equal(
            shown_by(to_encoded_bytes(Image.open(io.BytesIO(case.data)), "a"), case, channels), expected
        )
        height, width = case.expected.shape[:2]
        part = Preprocess(height - 2, width - 3, channels, background=BACKGROUND).decode(
            path, crop=(1, 2, height - 2, width - 3)
        )
        assert np.array_equal(part, expected[:, 1:-1, 2:-1])
        pixels = np.empty((1, channels, height, width), np.uint8)
        decode_block([case.data], Preprocess(height, width, channels, background=BACKGROUND), pixels)
        assert np.array_equal(pixels[0], expected)


@pytest.mark.parametrize(
    ("bits", "orientation"), [(12, 6), (16, 3), (12, 1)], ids=["12 turned", "16 upside down", "12 upright"]
)
def test_orientation_and_bit_depth_of_a_tiff_are_both_applied(bits: int, orientation: int) -> None:
    gray = values_of(bits, 6, 10)
    decoded = decode_image(tiff(gray, bits, 1, turned=orientation), "a")
    expected = {1: gray, 3: gray[::-1, ::-1], 6: gray.T[:, ::-1]}[orientation]
    assert np.abs(composite_alpha(decoded, 0) - scaled(expected, bits)).max() <= 0.5


def test_orientation_and_a_transparent_16_bit_colour_are_both_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb = values_of(16, 4, 6, 3)
    rgb[0, 1], rgb[0, 2] = (300, 300, 300), (300, 300, 301)
    clear = struct.pack(">3H", 300, 300, 300)
    chunks = ((b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")), (b"tRNS", clear))
    decoded = composite_alpha(decode_image(png(rgb, 16, 2, *chunks), "a"), 255)
    assert decoded.shape == (6, 4, 3)
    assert decoded[1, 3].tolist() == [255, 255, 255]
    assert decoded[2, 3].tolist() == [1, 1, 1]


@pytest.mark.parametrize("deflate", [False, True])
def test_a_tiff_that_pillow_has_loaded_keeps_its_bit_depth(deflate: bool) -> None:
    data = tiff(values_of(12, 5, 10), 12, 1, deflate=deflate)
    loaded = Image.open(io.BytesIO(data))
    loaded.load()
    assert np.array_equal(composite_alpha(decode_image(loaded, "a"), 0), composite_alpha(decode_image(data, "a"), 0))


def test_lab_is_converted_to_srgb() -> None:
    """White, black, and sRGB red, green and blue, whose values in L*a*b* (D50) are well known."""
    lab = [[100, 0, 0], [0, 0, 0], [54.3, 80.8, 69.9], [87.8, -79.3, 81.0], [29.6, 68.3, -112.0]]
    stored = np.array([[[round(light * 2.55), round(a) & 255, round(b) & 255] for light, a, b in lab]])
    expected = np.array([[[255] * 3, [0] * 3, [255, 0, 0], [0, 255, 0], [0, 0, 255]]])
    decoded = composite_alpha(decode_image(tiff(stored, 8, 8), "a"), 0)
    assert np.abs(decoded.astype(int) - expected).max() <= 25  # a* and b* have steps of 1


# --- Pillow images


def pillow_image(mode: str, seed: int = 0) -> tuple[Image.Image, Values | None]:
    """An image in memory and the values it shows, or None if they are not known."""
    random = np.random.default_rng(seed)
    eight = random.integers(0, 256, (6, 8, 4), dtype=np.uint8)
    first, rest, alpha = eight[..., 0].astype(float), eight[..., :3].astype(float), eight[..., 3:] / 255
    bands = len(Image.new(mode, (1, 1)).getbands())

    def image(pixels: Values = eight) -> Image.Image:
        return Image.frombytes(mode, (8, 6), np.ascontiguousarray(pixels[..., :bands]).tobytes())

    if mode.startswith("I;16"):
        wide = random.integers(0, 65536, (6, 8))
        order = ">" if mode.endswith("B") else "<"
        return Image.frombytes(mode, (8, 6), wide.astype(f"{order}u2").tobytes()), wide * 255 / 65535
    if mode == "1":
        return Image.fromarray(first > 127), np.where(first > 127, 255.0, 0.0)
    if mode in ("I", "F"):
        return Image.new(mode, (8, 6)), None
    if mode in ("P", "PA"):
        created, colours = image(np.roll(eight, 0)), random.integers(0, 256, (256, 3))
        created.putpalette(colours.astype(np.uint8).tobytes())
        levels = colours[eight[..., 0]].astype(float)
        return created, over(levels, eight[..., 1:2] / 255) if mode == "PA" else levels
    if mode in ("La", "RGBa"):
        dark = (eight[..., : bands - 1] * (eight[..., bands - 1 : bands] / 255)).astype(np.uint8)
        both = np.concatenate([dark, eight[..., bands - 1 : bands]], axis=-1)
        shown = dark + BACKGROUND * (1 - eight[..., bands - 1 : bands] / 255)
        return image(both), shown[..., 0] if mode == "La" else shown
    if mode in ("YCbCr", "HSV", "LAB"):
        created = Image.fromarray(eight[..., :3] // 8 + 100).convert(mode)
        return created, (eight[..., :3] // 8 + 100).astype(float)
    if mode == "CMYK":
        return image(), (255 - rest) * (255 - eight[..., 3:].astype(float)) / 255
    shown = {"L": first, "LA": over(first, eight[..., 1] / 255), "RGBA": over(rest, alpha)}.get(mode, rest)
    return image(), shown


@settings(max_examples=120)
@given(mode=st.sampled_from(sorted(set(Image.MODES))), seed=st.integers(0, 1000), channels=st.sampled_from([1, 3]))
def test_a_pillow_image_of_any_mode_is_decoded_and_encoded_or_refused(mode: str, seed: int, channels: int) -> None:
    image, shown = pillow_image(mode, seed)
    before = image.tobytes()
    preprocess = Preprocess(6, 8, channels, background=BACKGROUND)
    if shown is None:
        with pytest.raises(ImageError, match=r"^it has (signed 32-bit|floating-point) pixels"):
            preprocess.decode(image, "it")
        return
    decoded = preprocess.decode(image)
    if channels == 1:
        expected = (shown if shown.ndim == 2 else shown @ [0.299, 0.587, 0.114])[None]
    else:
        expected = shown[None].repeat(3, 0) if shown.ndim == 2 else shown.transpose(2, 0, 1)
    assert np.abs(decoded - expected).max() <= (8 if mode in ("HSV", "LAB") else 3 if mode == "YCbCr" else 2.6)
    assert np.array_equal(preprocess.decode(to_encoded_bytes(image, "it")), decoded)
    assert np.array_equal(preprocess.decode(image.copy()), decoded)
    assert image.tobytes() == before
    assert image.mode == mode
    part = Preprocess(3, 4, channels, background=BACKGROUND).decode(image, crop=(2, 1, 3, 4))
    assert np.array_equal(part, decoded[:, 2:5, 1:5])


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "I;16"])
def test_the_transparent_value_of_a_pillow_image_shows_the_background(mode: str) -> None:
    image, shown = pillow_image(mode, 3)
    assert shown is not None
    clear = image.getpixel((2, 1))
    image.info["transparency"] = clear
    preprocess = Preprocess(6, 8, 3, background=BACKGROUND)
    decoded = preprocess.decode(image)
    transparent = np.array([[image.getpixel((x, y)) == clear for x in range(8)] for y in range(6)])
    assert (decoded[:, transparent] == BACKGROUND).all()
    levels = shown if shown.ndim == 3 else shown[..., None].repeat(3, -1)
    assert np.abs(decoded - levels.transpose(2, 0, 1))[:, ~transparent].max() <= 0.5
    assert np.array_equal(preprocess.decode(to_encoded_bytes(image, "a")), decoded)


WRITTEN = {
    "BMP": "1 L P RGB", "DIB": "1 L P RGB", "DDS": "L LA RGB RGBA", "GIF": "1 L P", "ICO": "1 L RGB RGBA LA",
    "PCX": "1 L P RGB", "PNG": "1 L P RGB RGBA LA", "PPM": "1 L RGB", "SGI": "L RGB RGBA", "TGA": "1 L P RGB RGBA LA",
    "TIFF": "1 L P RGB RGBA LA", "WEBP": "1 L P RGB RGBA LA",
}  # fmt: skip


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in WRITTEN.items() for mode in modes.split()])
def test_files_that_pillow_writes_without_loss_are_read_without_loss(kind: str, mode: str) -> None:
    rgba = np.random.default_rng(5).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    rgba[..., 3] = np.where(rgba[..., 3] > 90, 255, 0)
    image = Image.fromarray(rgba if mode in ("RGBA", "LA") else rgba[..., :3]).convert(mode)
    stream = io.BytesIO()
    image.save(stream, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    expected = np.asarray(image.convert("RGBA")).astype(float)
    levels = over(expected[..., :3], expected[..., 3:] / 255)
    decoded = Preprocess(16, 16, 3, background=BACKGROUND).decode(stream.getvalue())
    assert np.abs(decoded - levels.transpose(2, 0, 1)).max() <= 0.5


def test_the_first_frame_of_an_animation_is_decoded() -> None:
    frames = [Image.fromarray(noise(8, 8, 3, seed=seed)).convert("P") for seed in range(3)]
    for kind, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
        stream = io.BytesIO()
        frames[0].save(stream, kind, save_all=True, append_images=frames[1:], **options)
        decoded = Preprocess(8, 8, 3).decode(stream.getvalue())
        assert np.array_equal(decoded, np.asarray(frames[0].convert("RGB")).transpose(2, 0, 1))


# --- JPEG

ONE = (1, 1)
SAMPLED: dict[str, Sequence[tuple[int, int]]] = {
    "4:4:4": (ONE, ONE, ONE), "4:2:2": ((2, 1), ONE, ONE), "4:2:0": ((2, 2), ONE, ONE), "4:4:0": ((1, 2), ONE, ONE),
    "4:1:1": ((4, 1), ONE, ONE), "4:4:1": ((1, 4), ONE, ONE), "4:1:0": ((4, 2), ONE, ONE), "2 x 4": ((2, 4), ONE, ONE),
    "3 x 1": ((3, 1), ONE, ONE), "luma is the smallest": (ONE, (2, 2), (2, 2)), "unequal": ((2, 2), (1, 2), (2, 1)),
    "colours 2 x 1 of 2 x 2": ((2, 2), (2, 1), (2, 1)), "all 2 x 1": ((2, 1), (2, 1), (2, 1)), "gray": (ONE,),
    "gray 2 x 2": ((2, 2),), "gray 4 x 1": ((4, 1),), "CMYK": (ONE,) * 4,
}  # fmt: skip
STORED: dict[str, dict[str, Any]] = {
    "ids R, G, B": {"ids": b"RGB"}, "ids 0, 1, 2": {"ids": (0, 1, 2)}, "ids 5, 6, 7": {"ids": (5, 6, 7)},
    "Adobe RGB": {"before": adobe(0)}, "Adobe YCbCr": {"before": adobe(1)}, "Adobe 2": {"before": adobe(2)},
    "extended": {"marker": 0xC1}, "lossless marker in a comment": {"before": segment(0xFE, b"\xff\xc3")},
}  # fmt: skip


def assert_as_pillow(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(opened if opened.mode == "L" else opened.convert("RGB"))
    decoded = composite_alpha(decode_image(data, "a"), 0)
    assert np.array_equal(decoded, expected)
    fast = try_decode_jpeg(data)
    assert fast is None or np.array_equal(fast, expected)
    levels = np.asarray(Image.fromarray(expected).convert("L"))
    assert np.array_equal(Preprocess(*expected.shape[:2], 1).decode(data)[0], levels)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", SAMPLED)
def test_jpeg_of_every_sampling_is_decoded_as_pillow_does(name: str, seed: int) -> None:
    assert_as_pillow(block_jpeg(SAMPLED[name], seed))


@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:0", "4:4:1"])
@pytest.mark.parametrize("name", STORED)
def test_jpeg_of_every_colour_space_is_decoded_as_pillow_does(name: str, sampling: str) -> None:
    assert_as_pillow(block_jpeg(SAMPLED[sampling], **STORED[name]))


@pytest.mark.parametrize("transform", [0, 2])
def test_jpeg_with_four_inks_is_decoded_as_pillow_does(transform: int) -> None:
    assert_as_pillow(block_jpeg((ONE,) * 4, before=adobe(transform)))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 9, 12, 16])
@pytest.mark.parametrize("kind", ["gray", "RGB", "YCbCr"])
def test_a_lossless_jpeg_of_other_than_8_bits_is_refused(bits: int, kind: str) -> None:
    shape = (5, 9) if kind == "gray" else (5, 9, 3)
    data = lossless_jpeg(values_of(bits, *shape), bits, b"" if kind == "gray" else adobe(int(kind == "YCbCr")))
    assert try_decode_jpeg(data) is None
    with pytest.raises(ImageError, match=f"^x.jpg {NOT_DECODED} JPEG, cannot handle {bits}-bit"):
        Preprocess(5, 9, 1).decode(data, "x.jpg")


# --- refused files and the reason

# 2 x 2 RGB of 12 bits, reversible: Pillow cannot write it
RGB_OF_12_BITS = (
    "ff4fff51002f0000000000020000000200000000000000000000000200000002000000000000000000030b01010b01010b0101ff"
    "52000c00000001000004040001ff5c00044060ff640025000143726561746564206279204f70656e4a5045472076657273696f6e"
    "20322e352e34ff90000a00000000002c0001ff93dfe020077a9f454fee344bcfe418005c455de25fcfe41c0b9a5c2a0f2719ffd9"
)
GRAY, GRAY_16, RGB_16 = values_of(8, 5, 10), values_of(16, 5, 10), values_of(16, 5, 10, 3)
LONG = values_of(31, 5, 10)
NO_RANGE = "pixels, whose values for black and white are not known. Save it with unsigned 8 or 16 bits"
NOT_DECODED = "is damaged, or of a kind that Pillow does not support:"
UNKNOWN = f"{NOT_DECODED} TIFF, .*"
SEPARATE = (
    "channels separately .PlanarConfiguration 2., which Pillow decodes incorrectly. Save it with PlanarConfiguration 1"
)
REFUSED: dict[str, tuple[bytes, str]] = {
    "bmp 4, black and white": (
        bmp_of_a_palette(values_of(1, 5, 11), 4, np.array([[0, 0, 0], [255, 255, 255]])),
        "4 bits per pixel and a palette of gray levels only, which Pillow decodes incorrectly. Save it as PNG",
    ),
    "tiff signed 8": (tiff(GRAY, 8, 1, form=2), f"has signed 8-bit {NO_RANGE}"),
    "tiff signed 16": (tiff(GRAY_16, 16, 1, form=2), f"has signed 16-bit {NO_RANGE}"),
    "tiff signed 16 big endian": (tiff(GRAY_16, 16, 1, ">", form=2, deflate=True), f"has signed 16-bit {NO_RANGE}"),
    "tiff signed 32": (tiff(LONG, 32, 1, form=2), f"has signed 32-bit {NO_RANGE}"),
    "tiff unsigned 32": (tiff(LONG, 32, 1), f"has unsigned 32-bit {NO_RANGE}"),
    "tiff float 32": (tiff(LONG, 32, 1, form=3), f"has floating-point {NO_RANGE}"),
    "tiff float 16": (tiff(GRAY_16, 16, 1, form=3), f"{UNKNOWN} .1 channel.s. of floating-point 16-bit samples"),
    "tiff 10": (tiff(values_of(10, 5, 10), 10, 1), f"{UNKNOWN} unsigned 10-bit .*; save it with unsigned 8 or 16 bits"),
    "tiff 14": (tiff(values_of(14, 5, 10), 14, 1), f"{UNKNOWN} unsigned 14-bit samples"),
    "tiff 12 big endian": (tiff(values_of(12, 5, 10), 12, 1, ">"), f"{UNKNOWN} 12-bit samples, MM byte order"),
    "tiff 12 white is 0": (tiff(values_of(12, 5, 10), 12, 0), f"{UNKNOWN} 12-bit .* PhotometricInterpretation 0"),
    "tiff separate 16": (tiff(RGB_16, 16, 2, planar=2), f"its 16-bit {SEPARATE}"),
    "tiff separate gray 16": (tiff(GRAY_16, 16, 1, planar=2), f"its 16-bit {SEPARATE}"),
    "tiff separate white is 0": (tiff(GRAY, 8, 0, planar=2), f"its 8-bit {SEPARATE}"),
    "tiff separate alpha": (
        tiff(values_of(8, 5, 10, 2), 8, 1, planar=2, extra=2, deflate=True), f"its 8-bit {SEPARATE}"),
    "tiff separate alpha, not declared": (
        tiff(values_of(8, 5, 10, 4), 8, 2, planar=2, deflate=True), f"its 8-bit {SEPARATE}"),
    "tiff separate L*a*b*": (tiff(values_of(8, 5, 10, 3), 8, 8, planar=2), f"its 8-bit {SEPARATE}"),
    "tiff subsampled": (tiff(values_of(8, 6, 10, 3), 8, 6, chroma=(2, 2)), "subsampled YCbCr .*. Save it as RGB"),
    "pfm": (b"Pf\n2 1\n-1.0\n" + bytes(8), f"has floating-point {NO_RANGE}"),
    "fits 16": (fits(values_of(15, 5, 9), 16), f"has signed 16-bit {NO_RANGE}"),
    "fits 32": (fits(LONG, 32), f"has signed 32-bit {NO_RANGE}"),
    "fits float": (fits(GRAY, -32), f"has floating-point {NO_RANGE}"),
    "jpeg 2000 signed": (jpeg2000(values_of(11, 7, 6) - 1024, (12,), signed=True), f"has signed 12-bit {NO_RANGE}"),
    "jpeg 2000 rgb 12": (
        bytes.fromhex(RGB_OF_12_BITS), "JPEG 2000 image with 12 bits .* largest values as 0. Save it with 8"),
    "jpeg 12": (block_jpeg((ONE,), bits=12, marker=0xC1), f"{NOT_DECODED} JPEG, .* 12-bit layers; save it with 8"),
    "jpeg of 2 channels": (block_jpeg((ONE, ONE)), f"{NOT_DECODED} JPEG, cannot handle 2-layer images"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(40), f"{NOT_DECODED} cannot find loader for this HDF5 file"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_decoded_correctly_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    data, reason = REFUSED[name]
    path = tmp_path / "x"
    path.write_bytes(data)
    for channels in (1, 3):
        with pytest.raises(ImageError, match=reason) as caught:
            Preprocess(8, 8, channels).decode(path)
        assert str(caught.value).startswith(f"'{path}' ")
        with pytest.raises(ImageError, match=reason):
            Preprocess(8, 8, channels).decode(data, crop=(0, 0, 2, 2))
    try:
        opened = Image.open(path)
    except (OSError, SyntaxError):
        return
    with opened, pytest.raises(DataError, match=reason):
        to_encoded_bytes(opened, "x")


def test_a_transparent_16_bit_colour_that_pillow_has_cut_to_8_bits_is_refused() -> None:
    rgb = values_of(16, 4, 6, 3)
    loaded = Image.open(io.BytesIO(png(rgb, 16, 2, (b"tRNS", struct.pack(">3H", *rgb[1, 1].tolist())))))
    loaded.load()
    with pytest.raises(ImageError, match=r"^x had 16-bit colours, one of which.* Pass the file"):
        Preprocess(4, 6, 3).decode(loaded, "x")


# --- images that Pillow has opened


def tga(values: Values, depth: int, attributes: int) -> bytes:
    """Uncompressed TGA, from the top: gray [H,W], or channels [H,W,C] in Pillow's order of red, green, blue, fourth."""
    height, width = values.shape[:2]
    kind = 3 if values.ndim == 2 else 2
    head = struct.pack("<BBBHHBHHHHBB", 0, 0, kind, 0, 0, 0, 0, 0, width, height, depth, 0x20 | attributes)
    order = values if values.ndim == 2 else values[..., [2, 1, 0, 3]]
    return head + order.astype(np.uint8).tobytes()


@pytest.mark.parametrize("fourth", [0, 255, 77])
def test_a_tga_without_alpha_is_opaque_for_any_fourth_byte(fourth: int) -> None:
    rgb = values_of(8, 5, 7, 3)
    rgba = np.concatenate([rgb, np.full((5, 7, 1), fourth)], -1)
    assert np.array_equal(Preprocess(5, 7, 3).decode(tga(rgba, 32, 0)).transpose(1, 2, 0), rgb)
    shown = over(rgb, np.array(fourth / 255))
    decoded = Preprocess(5, 7, 3, background=BACKGROUND).decode(tga(rgba, 32, 8)).transpose(1, 2, 0)
    assert np.abs(decoded - shown).max() <= 1.5


def test_a_palette_with_alpha_keeps_its_8_bit_colours() -> None:
    index, colours = values_of(4, 5, 7), values_of(8, 256, 3, seed=5)
    alpha = np.full((5, 7), 255)
    data = tiff(np.stack([index, alpha], -1), 8, 3, extra=2, colours=colours.T.ravel().tolist())
    assert np.array_equal(Preprocess(5, 7, 3).decode(data).transpose(1, 2, 0), colours[index])


def test_jpeg_2000_in_a_box_of_a_long_length_is_decoded() -> None:
    gray = values_of(8, 9, 8)
    data = jpeg2000(gray, (8,))
    if b"jp2c" not in data:
        stream = io.BytesIO()
        Image.fromarray(gray.astype(np.uint8)).save(stream, "JPEG2000", irreversible=False)
        data = stream.getvalue()
    at = data.index(b"jp2c")
    content = data[at + 4 :]
    long = data[: at - 4] + struct.pack(">I4sQ", 1, b"jp2c", 16 + len(content)) + content
    assert np.array_equal(Preprocess(9, 8, 1).decode(long)[0], gray)


TWICE = {
    "png gray 4 with value 1 transparent", "png rgb 16 with a transparent colour", "tiff raw gray 12 photometric 1",
    "jpeg 2000 gray 4", "bmp palette 8 black and white", "png palette 4 with alpha", "png rgb 8",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(name for name in CASES if name in TWICE))
def test_an_opened_image_is_not_loaded_and_decodes_the_same_each_time(name: str) -> None:
    """Loading it would lose the information of its file about its values."""
    data = CASES[name].data
    opened = Image.open(io.BytesIO(data))
    height, width = CASES[name].expected.shape[:2]
    preprocess = Preprocess(height, width, 3, background=BACKGROUND)
    expected = preprocess.decode(data)
    for _ in range(2):
        assert np.array_equal(preprocess.decode(opened), expected)
    assert opened.tile, "it was loaded"
    with ThreadPoolExecutor(4) as threads:
        for decoded in threads.map(lambda _: preprocess.decode(opened), range(40)):
            assert np.array_equal(decoded, expected)


def test_the_frame_that_the_caller_selected_is_decoded() -> None:
    frames = [Image.fromarray(values_of(8, 6, 8, seed=seed).astype(np.uint8)) for seed in range(3)]
    stream = io.BytesIO()
    frames[0].save(stream, "TIFF", save_all=True, append_images=frames[1:])
    opened = Image.open(stream)
    for number in (2, 0, 1):
        opened.seek(number)
        assert np.array_equal(Preprocess(6, 8, 1).decode(opened)[0], np.asarray(frames[number]))
        assert opened.tell() == number
