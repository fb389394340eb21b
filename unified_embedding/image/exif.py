"""The orientation that EXIF or XMP state, and nothing else of them."""

import re
import struct
from collections.abc import Callable
from typing import Final

from unified_embedding.image.container import Buffer

_ORIENTATION: Final = 274  # EXIF 2.3, 4.6.4
_TYPES: Final = {1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 11: "f", 12: "d"}
_RATIONALS: Final = {5: "LL", 10: "ll"}
_MAX_ENTRIES: Final = 4096
_XMP: Final = re.compile(rb"tiff:Orientation(?:\s*=\s*[\"']|>)\s*([1-8])")
_MAX_XMP: Final = 1_000_000


def orientation(block: Buffer) -> int:
    """The number in tag 274 of the first directory of an EXIF block, 1 where there is none.

    Whatever else is in the block, sound or damaged, plays no part.
    """
    block = bytes(block[:_MAX_XMP])
    block = block.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "L", block, 4)
        (count,) = struct.unpack_from(order + "H", block, start)
        for entry in range(min(count, _MAX_ENTRIES)):
            at = start + 2 + 12 * entry
            tag, kind, values = struct.unpack_from(order + "HHL", block, at)
            if tag == _ORIENTATION:
                return upright(number(block, order, kind, values, at + 8))
    except (struct.error, OverflowError):
        pass  # A damaged block says nothing.
    return 1


def number(block: Buffer, order: str, kind: int, count: int, at: int) -> float:
    """The one number of a TIFF entry whose value field is at `at`; 1 where it is not one."""
    if count != 1:
        return 1
    if kind in _RATIONALS or kind == 12:
        (at,) = struct.unpack_from(order + "L", block, at)
    if kind in _RATIONALS:
        numerator, denominator = struct.unpack_from(order + _RATIONALS[kind], block, at)
        return numerator / denominator if denominator else 1
    if kind in _TYPES:
        return float(struct.unpack_from(order + _TYPES[kind], block, at)[0])
    return 1


def upright(value: float) -> int:
    """`value` where it is an orientation, else 1."""
    return int(value) if value in range(1, 9) else 1


def xmp_orientation(packet: Buffer) -> int:
    """The orientation that an XMP packet states, for files without one in EXIF."""
    found = _XMP.search(packet[:_MAX_XMP])
    return int(found[1]) if found else 1


def first(*readers: Callable[[], int]) -> int:
    """The first orientation other than 1, in this order."""
    return next((value for reader in readers if (value := reader()) != 1), 1)
