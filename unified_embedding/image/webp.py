"""WebP (RFC 9649): the still picture or the first frame of an animation."""

import struct
from typing import Final

from unified_embedding.image import exif
from unified_embedding.image.container import Buffer, Container, corrupt

_MAX_CHUNKS: Final = 10_000
_ALPHA: Final = 0x10
_ANIMATED: Final = 0x02


def parse(data: bytes) -> Container:
    """Read a WebP's chunks. Raises ImageError."""
    view = memoryview(data)
    kept: list[Buffer] = []
    canvas: tuple[int, int] | None = None
    extended: int | None = None
    profile, exif_block, xmp = b"", b"", b""
    at = 12
    for _ in range(_MAX_CHUNKS):
        kind = data[at : at + 4]
        size = int.from_bytes(view[at + 4 : at + 8], "little")
        body = view[at + 8 : at + 8 + size]
        if len(kind) < 4:
            break
        chunk = view[at : at + 8 + size + (size & 1)]
        if kind == b"VP8X" and len(body) >= 10 and canvas is None:
            extended = body[0] & (_ALPHA | _ANIMATED)
            canvas = _u24(body, 4) + 1, _u24(body, 7) + 1
        elif kind in (b"VP8 ", b"VP8L", b"ANMF"):
            if canvas is None:
                canvas = _size(kind, body)
            if kind != b"ANMF" or not any(bytes(part[:4]) == b"ANMF" for part in kept):
                kept.append(chunk)
            if kind == b"ANMF" and extended is not None and not _covers(body, canvas):
                extended |= _ALPHA  # What the frame leaves uncovered is transparent.
        elif kind in (b"ALPH", b"ANIM"):
            kept.append(chunk)
        elif kind == b"ICCP":
            profile = bytes(body)
        elif kind == b"EXIF":
            exif_block = bytes(body)
        elif kind == b"XMP ":
            xmp = bytes(body)
        at += 8 + size + (size & 1)
    else:
        raise corrupt("WEBP", f"more than {_MAX_CHUNKS:,} chunks")
    if canvas is None:
        raise corrupt("WEBP", "it holds no picture")
    if extended is not None:
        sides = b"".join((side - 1).to_bytes(3, "little") for side in canvas)
        kept.insert(0, struct.pack("<4sIB3x", b"VP8X", 10, extended) + sides)
    total = 4 + sum(len(part) for part in kept)
    parts: list[Buffer] = [struct.pack("<4sI4s", b"RIFF", total, b"WEBP"), *kept]
    if len(data) == total + 8:
        parts = [data]  # There is nothing to leave out.
    return Container(
        "WEBP",
        *canvas,
        parts,
        orientation=exif.first(
            lambda: exif.orientation(exif_block), lambda: exif.xmp_orientation(xmp)
        ),
        profile=profile,
    )


def _u24(body: Buffer, at: int) -> int:
    return int.from_bytes(body[at : at + 3], "little")


def _size(kind: bytes, body: memoryview) -> tuple[int, int]:
    if kind == b"VP8 " and len(body) >= 10:
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and len(body) >= 5:
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise corrupt("WEBP", "its first frame has no size")


def _covers(body: Buffer, canvas: tuple[int, int]) -> bool:
    size = _u24(body, 6) + 1, _u24(body, 9) + 1
    return len(body) < 16 or size == canvas
