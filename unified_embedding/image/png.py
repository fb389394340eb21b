"""PNG (W3C Recommendation, third edition): the chunks that pixels need."""

import struct
import zlib
from typing import Final

import numpy as np
from PIL import Image

from unified_embedding.errors import ImageError
from unified_embedding.image import exif
from unified_embedding.image.colour import MAX_PROFILE_BYTES
from unified_embedding.image.container import Buffer, Container, Finish, corrupt, unread

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_MAX_TEXT: Final = 1_000_000
_MAX_SIDE: Final = 1_000_000  # libpng's own limit


def parse(data: bytes) -> Container:
    """Read a PNG's chunks. Raises ImageError."""
    view = memoryview(data)
    if data[12:16] != b"IHDR" or len(data) < 33:
        raise corrupt("PNG", "its header chunk is missing")
    width, height, bits, colour, _, _, _ = struct.unpack_from(">IIBBBBB", data, 16)
    if colour not in _CHANNELS or bits not in (1, 2, 4, 8, 16):
        raise corrupt("PNG", f"colour type {colour} with {bits} bits")
    if max(width, height) > _MAX_SIDE:
        raise ImageError(f"the image has {width} x {height} pixels; a side may have {_MAX_SIDE:,}")
    raw = height * (1 + (width * bits * _CHANNELS[colour] + 7) // 8)
    head: list[Buffer] = []
    pixels: list[Buffer] = []
    transparency = b""
    orientations = {"exif": 1, "raw": 1, "xmp": 1}
    profile = b""
    at = 8
    for _ in range(1_000 + width * height // 64):
        kind = data[at + 4 : at + 8]
        size = int.from_bytes(view[at : at + 4], "big")
        body = view[at + 8 : at + 8 + size]
        if kind == b"IEND" or len(kind) < 4:
            break
        if kind == b"IDAT":
            pixels.append(body)
        elif pixels and kind in (b"IHDR", b"PLTE"):
            raise corrupt("PNG", "its chunks are out of order")
        elif kind in (b"IHDR", b"PLTE", b"tRNS"):
            head.append(view[at : at + 12 + size])
            if len(body) > 65_536:
                raise corrupt("PNG", f"a {kind.decode()} chunk of {size:,} bytes")
            transparency = bytes(body) if kind == b"tRNS" else transparency
        elif kind == b"eXIf":
            orientations["exif"] = exif.orientation(body)
        elif kind == b"iCCP":
            profile = _profile(body)
        elif kind in (b"zTXt", b"tEXt") and bytes(body[:22]) == b"Raw profile type exif\0":
            orientations["raw"] = _raw_profile(kind, body)
        elif kind == b"iTXt" and bytes(body[:18]) == b"XML:com.adobe.xmp\0":
            orientations["xmp"] = exif.xmp_orientation(_international(body))
        at += 12 + size
    else:
        raise corrupt("PNG", "it is cut into more chunks than any picture needs")
    size = sum(len(body) for body in pixels)
    if not pixels:
        raise corrupt("PNG", "it has no pixel data")
    if size > 2 * raw + 1_000_000:
        raise corrupt("PNG", f"{size:,} bytes of compressed data for {raw:,} bytes of pixels")
    # One chunk of pixels; nobody checks its CRC. Pillow does not either.
    joined: list[Buffer] = [struct.pack(">I4s", size, b"IDAT"), *pixels, b"\0\0\0\0"]
    return Container(
        "PNG",
        width,
        height,
        [_SIGNATURE, *head, *joined, struct.pack(">I4sI", 0, b"IEND", 0xAE426082)],
        orientation=exif.first(*(lambda value=value: value for value in orientations.values())),
        profile=profile,
        finish=_finish(bits, colour, transparency),
    )


def _finish(bits: int, colour: int, transparency: bytes) -> Finish | None:
    if not transparency or colour not in (0, 2):
        return None
    if len(transparency) < (2 if colour == 0 else 6):
        raise corrupt("PNG", "its transparency chunk is too short")
    samples = struct.unpack_from(">H" if colour == 0 else ">HHH", transparency)
    key = tuple(sample & (1 << bits) - 1 for sample in samples)
    if colour == 2 and bits == 16:
        raise unread("PNG", "16 bits a channel and a transparent colour")

    def transparent(image: Image.Image) -> Image.Image:
        image.info.pop("transparency", None)
        if colour == 2:
            return _keyed(image, key)
        if bits < 16:
            return _keyed(image.convert("L"), (key[0] * 255 // ((1 << bits) - 1),))
        return _keyed_16(image, key[0])

    return transparent


def _keyed(image: Image.Image, key: tuple[int, ...]) -> Image.Image:
    """`image` ("L" or "RGB") with white where it has the colour `key`."""
    mask = np.asarray(image.getchannel(0)) == key[0]
    for channel, value in enumerate(key[1:], start=1):
        mask &= np.asarray(image.getchannel(channel)) == value
    image.paste((255,) * len(key) if len(key) > 1 else 255, mask=Image.fromarray(mask))
    return image


def _keyed_16(image: Image.Image, key: int) -> Image.Image:
    grey = np.asarray(image)
    high = (grey >> 8).astype(np.uint8)
    high[grey == key] = 255
    return Image.fromarray(high)


def _profile(body: Buffer) -> bytes:
    name_end = bytes(body[:80]).find(b"\0")
    return _inflate(body[name_end + 2 :], MAX_PROFILE_BYTES) if name_end > 0 else b""


def _inflate(packed: Buffer, limit: int) -> bytes:
    """At most `limit` bytes; nothing where the stream is damaged or longer."""
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(packed[:limit], limit + 1)
    except zlib.error:
        return b""
    return text if len(text) <= limit else b""


def _raw_profile(kind: bytes, body: Buffer) -> int:
    """EXIF as ImageMagick writes it: hexadecimal text under a heading of three lines."""
    text = bytes(body[22:]) if kind == b"tEXt" else _inflate(body[23:], _MAX_TEXT)
    try:
        return exif.orientation(bytes.fromhex("".join(text.decode("latin-1").split("\n")[3:])))
    except ValueError:
        return 1


def _international(body: Buffer) -> bytes:
    parts = bytes(body[20:_MAX_TEXT]).split(b"\0", 2)
    if len(parts) < 3:
        return b""
    return _inflate(parts[2], _MAX_TEXT) if body[18] else parts[2]
