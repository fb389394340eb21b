"""The number in the orientation tag turns the picture, whatever else EXIF holds."""

import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import ExifTags, Image
from pixel_corpus import encoded

from unified_embedding.image import decode

STORED = Image.new("RGB", (12, 8), (200, 30, 30))
STORED.paste((20, 60, 220), (0, 0, 12, 4))
# Upright by orientation 6 (a quarter turn clockwise): the upper half becomes the right one.
TURNED = np.asarray(STORED.transpose(Image.Transpose.ROTATE_270))

SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    0: 1,
    99: 1,
}
FILLS = (b"\0", b"\xff", b"N\0W1", b"\x01\x00\x00\x00")


def exif(order: str, orientation: int, ifd: str, tag: int, kind: int, fill: bytes) -> bytes:
    """IFD0 with the orientation and `tag`, or a pointer to the directory that holds it."""
    count = 3
    payload = (fill * 24)[: SIZES[kind] * count]
    mark = b"II*\0" if order == "<" else b"MM\0*"
    own = ifd == "IFD0"
    pointer = {"IFD0": 0, "Exif": 0x8769, "GPSInfo": 0x8825}[ifd]
    start = 8 + 2 + 24 + 4  # behind IFD0
    if own:
        data_at, inner = start, b""
    else:
        data_at = start + 2 + 12 + 4
    place = payload.ljust(4, b"\0") if len(payload) <= 4 else struct.pack(order + "L", data_at)
    entry = struct.pack(order + "HHL", tag, kind, count) + place
    turn = struct.pack(order + "HHLHH", 274, 3, 1, orientation, 0)
    if own:
        first = sorted([turn, entry], key=lambda e: struct.unpack(order + "H", e[:2]))
    else:
        inner = struct.pack(order + "H", 1) + entry + b"\0" * 4
        first = [turn, struct.pack(order + "HHLL", pointer, 4, 1, start)]
    directory = struct.pack(order + "H", 2) + b"".join(first) + b"\0" * 4
    return mark + struct.pack(order + "L", 8) + directory + inner + payload + b"\0" * 8


JPEG = encoded(STORED, "JPEG", quality=98, subsampling=0)
PNG = encoded(STORED, "PNG")
LOSSLESS = encoded(STORED, "WEBP", lossless=True)


def jpeg(block: bytes) -> bytes:
    segment = b"Exif\0\0" + block
    return JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + JPEG[2:]


def png(block: bytes) -> bytes:
    chunk = b"eXIf" + block
    return (
        PNG[:33] + struct.pack(">I", len(block)) + chunk
        + struct.pack(">I", zlib.crc32(chunk)) + PNG[33:]
    )  # fmt: skip


def webp(block: bytes) -> bytes:
    size = b"".join(struct.pack("<I", side - 1)[:3] for side in STORED.size)
    extended = b"VP8X" + struct.pack("<I", 10) + b"\x08\0\0\0" + size
    chunk = b"EXIF" + struct.pack("<I", len(block)) + block + b"\0" * (len(block) & 1)
    body = b"WEBP" + extended + LOSSLESS[12:] + chunk
    return b"RIFF" + struct.pack("<I", len(body)) + body


FORMATS = {"JPEG": jpeg, "PNG": png, "WEBP": webp}


def assert_turned(data: bytes, exact: bool, what: object) -> None:
    pixels = np.asarray(decode(data))
    assert pixels.shape == TURNED.shape, what
    assert np.abs(pixels.astype(int) - TURNED).max() <= (0 if exact else 60), what


@pytest.mark.parametrize("ifd", ["IFD0", "Exif", "GPSInfo"])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_tag_of_every_type_beside_the_orientation(kind: str, ifd: str) -> None:
    tags = set(ExifTags.GPSTAGS if ifd == "GPSInfo" else ExifTags.TAGS) - {274}
    wrap: Callable[[bytes], bytes] = FORMATS[kind]
    for tag in sorted(tags):
        for number, type_ in enumerate(SIZES):
            order = "<>"[(tag + number) % 2]
            fill = FILLS[(tag + number) % len(FILLS)]
            block = exif(order, 6, ifd, tag, type_, fill)
            assert_turned(wrap(block), kind != "JPEG", (ifd, tag, type_, order, fill))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("order", ["<", ">"])
def test_the_number_counts_whatever_its_type(kind: str, order: str) -> None:
    """A byte, a long, a rational or a double of 6 is 6; text or two numbers are not."""
    values = {
        1: b"\x06\0\0\0", 3: struct.pack(order + "HH", 6, 0), 4: struct.pack(order + "L", 6),
        8: struct.pack(order + "hh", 6, 0), 9: struct.pack(order + "l", 6),
        11: struct.pack(order + "f", 6), 5: struct.pack(order + "LL", 6, 1),
        10: struct.pack(order + "ll", 12, 2), 12: struct.pack(order + "d", 6),
    }  # fmt: skip
    mark = b"II*\0" if order == "<" else b"MM\0*"
    for type_, value in values.items():
        place, rest = (value, b"") if len(value) == 4 else (struct.pack(order + "L", 26), value)
        entry = struct.pack(order + "HHL", 274, type_, 1) + place
        block = mark + struct.pack(order + "LH", 8, 1) + entry + b"\0" * 4 + rest
        assert_turned(FORMATS[kind](block), kind != "JPEG", type_)
    for type_, count in ((2, 1), (7, 1), (3, 2), (3, 0)):
        entry = struct.pack(order + "HHL", 274, type_, count) + b"6\0\x06\0"
        block = mark + struct.pack(order + "LH", 8, 1) + entry + b"\0" * 4
        assert decode(FORMATS[kind](block)).size == STORED.size, (type_, count)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_block_leaves_the_picture_as_it_is_stored(kind: str) -> None:
    good = exif("<", 6, "IFD0", 305, 2, b"a")
    for block in (b"", b"II", b"II*\0\xff\xff\xff\xff", b"\0" * 40, good[:9], b"xx" + good[2:]):
        assert decode(FORMATS[kind](block)).size == STORED.size, block
    for orientation in (0, 9, 65535):
        block = exif("<", orientation, "IFD0", 305, 2, b"a")
        assert decode(FORMATS[kind](block)).size == STORED.size, orientation


def test_orientation_of_xmp_and_of_imagemagick_s_text_chunk() -> None:
    packet = b'<x:xmpmeta tiff:Orientation="6"/>'
    plain = b"XML:com.adobe.xmp\0\0\0\0\0" + packet
    packed = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(packet)
    block = exif("<", 6, "IFD0", 305, 2, b"a")
    raw = b"\nexif\n" + f"{len(block):8}\n".encode() + block.hex().encode() + b"\n"
    chunks = [
        b"iTXt" + plain,
        b"iTXt" + packed,
        b"zTXtRaw profile type exif\0\0" + zlib.compress(raw),
        b"tEXtRaw profile type exif\0" + raw,
    ]
    for chunk in chunks:
        data = PNG[:33] + struct.pack(">I", len(chunk) - 4) + chunk + b"\0" * 4 + PNG[33:]
        assert_turned(data, True, chunk[:20])
