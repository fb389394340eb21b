"""BMP (Windows and OS/2): any header becomes BITMAPINFOHEADER, which Pillow reads rightly."""

import struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unified_embedding.image.container import Buffer, Container, Finish, corrupt, unread

_RAW, _RLE8, _RLE4, _BITFIELDS, _ALPHA_BITFIELDS = 0, 1, 2, 3, 6
_OS2: Final = 64
# Pillow follows runs in Python: longer ones would cost more than a JPEG of as many pixels.
_RUN_BYTES: Final = 65_536
_BAND: Final = 1 << 20


def parse(data: bytes) -> Container:
    """Read a BMP's headers and palette. Raises ImageError."""
    (size,) = struct.unpack_from("<I", data, 14)
    if len(data) < 14 + size:
        raise corrupt("BMP", "it ends within its header")
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression, colours = _RAW, 0
    else:
        width, height, _, bits, compression, _, _, _, colours = struct.unpack_from(
            "<iiHHIIiiI", data, 18
        )
    if width < 1 or height == 0 or bits not in (1, 4, 8, 16, 24, 32):
        raise corrupt("BMP", f"{width} x {height} pixels of {bits} bits")
    masks, masks_end = _masks(data, size, compression)
    known = compression in (_RAW, _BITFIELDS, _ALPHA_BITFIELDS) or (compression, bits) in (
        (_RLE8, 8),
        (_RLE4, 4),
    )
    if not known or (size == _OS2 and compression > _RLE4):
        raise unread("BMP", f"compression {compression} and {bits} bits")
    if bits <= 8 and compression not in (_RAW, _RLE8, _RLE4):
        raise unread("BMP", f"colour masks and {bits} bits")
    palette = _palette(data, size, bits, colours)
    start = _start(data, masks_end, size, bits, colours)
    rows = memoryview(data)[start:]
    stride = (width * bits + 31) // 32 * 4
    if compression in (_RLE8, _RLE4):
        if len(rows) > width * abs(height) // 4 + _RUN_BYTES:
            raise unread("BMP", f"RLE and {len(rows):,} bytes of runs")
    elif len(rows) < stride * abs(height):
        raise corrupt("BMP", f"{stride * abs(height) - len(rows):,} bytes are missing")
    else:
        rows = rows[: stride * abs(height)]
    finish: Finish | None = None
    if compression in (_BITFIELDS, _ALPHA_BITFIELDS):
        if bits == 24 or masks == (0, 0, 0, 0):
            raise unread("BMP", f"colour masks {masks} and {bits} bits")
        finish = _finish(rows, bits, masks, width, height)
        compression = _RAW
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression,
                         0, 0, 0, 0, 0)  # fmt: skip
    offset = 14 + len(header) + len(palette)
    head = struct.pack("<2sIII", b"BM", offset + len(rows), 0, offset)
    return Container("BMP", width, abs(height), [head, header, palette, rows], finish=finish)


def _masks(data: bytes, size: int, compression: int) -> tuple[tuple[int, ...], int]:
    """Red, green, blue and alpha masks, and where the header with them ends."""
    end = 14 + size
    if compression not in (_BITFIELDS, _ALPHA_BITFIELDS) or size == _OS2:
        return (0, 0, 0, 0), end
    # Within the header since version 2 (three) and 3 (four), behind it in version 1.
    count = 4 if size >= 56 or compression == _ALPHA_BITFIELDS else 3
    if len(data) < 54 + 4 * count:
        raise corrupt("BMP", "it ends within its header")
    masks = struct.unpack_from(f"<{count}I", data, 54)
    return (*masks, 0)[:4], max(end, 54 + 4 * count)


def _palette(data: bytes, size: int, bits: int, colours: int) -> bytes:
    if bits > 8:
        return b""
    width = 3 if size == 12 else 4
    count = min(colours or 1 << bits, 1 << bits)
    entries = [
        data[at : at + 3] + b"\0" for at in range(14 + size, 14 + size + width * count, width)
    ]
    if any(len(entry) < 4 for entry in entries):
        raise corrupt("BMP", "it ends within its palette")
    if bits == 4 and all(entry == bytes((n, n, n, 0)) for n, entry in enumerate(entries)):
        raise unread("BMP", "4 bits and a palette of nearly black greys")
    return b"".join(entries).ljust(4 << bits, b"\0")


def _start(data: bytes, masks_end: int, size: int, bits: int, colours: int) -> int:
    (stated,) = struct.unpack_from("<I", data, 10)
    table = (colours or 1 << bits) * (3 if size == 12 else 4) if bits <= 8 else 0
    if bits <= 8 and stated == 14 + size:
        return int(stated) + table  # Some writers leave the palette out of the offset.
    return int(stated) or masks_end + table


def _finish(rows: Buffer, bits: int, masks: tuple[int, ...], width: int, height: int) -> Finish:
    def finish(image: Image.Image) -> Image.Image:
        samples = np.frombuffer(rows, "<u2" if bits == 16 else "<u4").reshape(abs(height), -1)
        if height > 0:
            samples = samples[::-1]
        alpha = masks[3] and _any(samples[:, :width], masks[3])
        mode = "RGBA" if alpha else "RGB"
        picture = Image.new(mode, (width, abs(height)))
        step = max(1, _BAND // width)
        for top in range(0, abs(height), step):
            band = samples[top : top + step, :width]
            channels = [_channel(band, mask) for mask in masks[: len(mode)]]
            picture.paste(Image.fromarray(np.stack(channels, axis=-1)), (0, top))
        return picture

    return finish


def _any(samples: NDArray[np.unsignedinteger[Any]], mask: int) -> bool:
    """A picture whose alpha is 0 everywhere has none: its writer left the bits unset."""
    return any((row & samples.dtype.type(mask)).any() for row in samples)


def _channel(samples: NDArray[np.unsignedinteger[Any]], mask: int) -> NDArray[np.uint8]:
    if mask == 0:
        return np.zeros(samples.shape, np.uint8)
    shift = (mask & -mask).bit_length() - 1
    top = mask >> shift
    values = (samples & samples.dtype.type(mask)) >> samples.dtype.type(shift)
    if top == 255:
        return np.asarray(values, np.uint8)
    return np.asarray(values.astype(np.uint64) * 255 // top, np.uint8)
