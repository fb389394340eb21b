"""JPEG (ITU-T T.81): the header and the scans, without Pillow."""

import re
import struct
from typing import Final, NamedTuple

from unified_embedding.image import exif
from unified_embedding.image.container import Buffer, Container, corrupt, unread

MAX_SCANS: Final = 30
"""Of a progressive JPEG; encoders write ten or so, and each is a pass over all coefficients."""

_MAX_SEGMENTS: Final = 10_000
_MAX_TABLES: Final = 65_536
_MAX_EXIF_SEGMENTS: Final = 16
_MAX_SEGMENTS_WITHIN: Final = 32
_MARKER: Final = re.compile(rb"\xff([\x01-\xfe])")
_AFTER_A_SCAN: Final = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_RESTART: Final = re.compile(rb"\xff([\xd0-\xd7])")
_BARE: Final = {0x01, *range(0xD0, 0xD9)}
_SOS: Final = 0xDA
_EOI: Final = 0xD9
_FRAMES: Final = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_HIERARCHICAL: Final = {0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF}
_PROGRESSIVE: Final = {0xC2, 0xCA}
_SCALABLE: Final = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
_TABLES: Final = {0xC4, 0xCC, 0xDB, 0xDD}


class Frame(NamedTuple):
    """What SOF and the first SOS say."""

    marker: int
    width: int
    height: int
    components: tuple[int, ...]
    in_first_scan: int
    scan: int  # offset of the first SOS marker

    @property
    def progressive(self) -> bool:
        """All coefficients are held until the last scan."""
        return self.marker in _PROGRESSIVE or self.in_first_scan < len(self.components)


class _Header(NamedTuple):
    frame: Frame
    tables: list[Buffer]
    exif: bytes
    xmp: Buffer
    profile: bytes


def parse(data: bytes) -> Container:
    """Read a JPEG's header. Raises ImageError."""
    header = _read(data)
    frame = header.frame
    tails: list[bytes] = []
    if frame.progressive:
        complete, ended = _scans(data, frame)
        if complete and not ended:
            tails = _tails(data)
    elif not data[-4096:].rstrip(b"\0").endswith(b"\xff\xd9"):
        tails = _tails(data)
    end = len(data)
    while tails and data[end - 1] == 0xFF:  # the first half of a marker, or of a stuffed byte
        end -= 1
    return Container(
        "JPEG",
        frame.width,
        frame.height,
        [b"\xff\xd8", *header.tables, memoryview(data)[frame.scan : end]],
        orientation=exif.first(
            lambda: exif.orientation(header.exif), lambda: exif.xmp_orientation(header.xmp)
        ),
        profile=header.profile,
        scalable=frame.marker in _SCALABLE,
        progressive=frame.progressive,
        tails=tails,
    )


def frame(data: bytes) -> Frame:
    """The frame of a JPEG stream within another file. Raises ImageError."""
    return _read(data, _MAX_SEGMENTS_WITHIN).frame


def _read(data: bytes, most: int = _MAX_SEGMENTS) -> _Header:
    view = memoryview(data)
    frame: Frame | None = None
    tables: list[Buffer] = []
    exif_parts: list[bytes] = []
    xmp: Buffer = b""
    profile: dict[int, bytes] = {}
    at = 2
    for _ in range(most):
        found = _MARKER.search(data, at)
        if found is None:
            raise corrupt("JPEG", "no picture follows its header")
        marker, at = found[1][0], found.end()
        if marker in _BARE:
            continue
        if marker == _EOI:
            raise corrupt("JPEG", "it ends before its picture")
        size = int.from_bytes(view[at : at + 2], "big")
        segment = view[at + 2 : at + size]
        if size < 2 or at + size > len(data):
            raise corrupt("JPEG", "it ends within its header")
        if marker == _SOS:
            if frame is None or not segment:
                raise corrupt("JPEG", "its frame header is missing")
            frame = frame._replace(in_first_scan=segment[0], scan=found.start())
            ordered = b"".join(profile[number] for number in sorted(profile))
            return _Header(frame, tables, b"".join(exif_parts), xmp, ordered)
        if marker in _FRAMES:
            if frame is not None:
                raise corrupt("JPEG", "it has two frame headers")
            frame = _frame(marker, segment)
        if marker in _FRAMES or marker in _TABLES:
            tables.append(view[found.start() : at + size])
        elif marker == 0xE0 and bytes(segment[:5]) == b"JFIF\0":
            tables.append(b"\xff\xe0\x00\x10" + bytes(segment[:14]).ljust(14, b"\0"))
        elif marker == 0xEE and bytes(segment[:5]) == b"Adobe" and len(segment) >= 12:
            tables.append(b"\xff\xee\x00\x0e" + segment[:12])
        elif marker == 0xE1 and bytes(segment[:6]) == b"Exif\0\0":
            exif_parts += [bytes(segment[6:])] if len(exif_parts) < _MAX_EXIF_SEGMENTS else []
        elif marker == 0xE1 and bytes(segment[:28]) == b"http://ns.adobe.com/xap/1.0/":
            xmp = segment
        elif marker == 0xE2 and bytes(segment[:12]) == b"ICC_PROFILE\0" and len(segment) > 14:
            profile[segment[12]] = bytes(segment[14:])
        if sum(len(table) for table in tables) > _MAX_TABLES or len(tables) > 100:
            raise corrupt("JPEG", "its tables are larger than any picture needs")
        at += size
    raise corrupt("JPEG", f"more than {most:,} segments before its picture")


def _frame(marker: int, segment: memoryview) -> Frame:
    if marker in _HIERARCHICAL:
        raise unread("JPEG", "hierarchical coding")
    if len(segment) < 6 or len(segment) < 6 + 3 * segment[5]:
        raise corrupt("JPEG", "its frame header is too short")
    precision, height, width, count = struct.unpack_from(">BHHB", segment)
    if precision != 8:
        raise unread("JPEG", f"{precision} bits a channel")
    if count not in (1, 3, 4):
        raise unread("JPEG", f"{count} channels")
    if width == 0 or height == 0:
        raise unread("JPEG", f"a stated size of {width} x {height} (DNL)")
    components = tuple(segment[6 + 3 * number] for number in range(count))
    return Frame(marker, width, height, components, 0, 0)


def _scans(data: bytes, frame: Frame) -> tuple[bool, bool]:
    """Are all coefficients there to the last bit, and is there an end marker?

    Raises ImageError for more scans than `MAX_SCANS`.
    """
    # What is known of each coefficient: the bit down to which it was sent, 13 for nothing.
    known = {component: [13] * 64 for component in frame.components}
    at, scans, segments = frame.scan, 0, 0
    while True:
        found = _AFTER_A_SCAN.search(data, at)
        if found is None or found[1][0] == _EOI:
            sequential = frame.marker not in _PROGRESSIVE
            left = [max(bits[:1] if sequential else bits) for bits in known.values()]
            return max(left) == 0, found is not None
        marker, at = found[1][0], found.end()
        if marker in _BARE:
            continue
        segments += 1
        if segments > _MAX_SEGMENTS:
            raise corrupt("JPEG", f"more than {_MAX_SEGMENTS:,} segments")
        size = int.from_bytes(data[at : at + 2], "big")
        if marker == _SOS:
            scans += 1
            if scans > MAX_SCANS:
                raise corrupt("JPEG", f"more than {MAX_SCANS} scans")
            _note(data[at + 2 : at + size], known)
        at += max(size, 2)


def _note(header: bytes, known: dict[int, list[int]]) -> None:
    count = header[0] if header else 0
    if len(header) < 4 + 2 * count:
        return
    start, end, approximation = header[1 + 2 * count : 4 + 2 * count]
    for number in range(count):
        bits = known.get(header[1 + 2 * number])
        if bits is not None:
            for coefficient in range(start, min(end, 63) + 1):
                bits[coefficient] = approximation & 15


def _tails(data: bytes) -> list[bytes]:
    """Two endings for a file without an end marker: nonsense, its complement, the marker.

    A picture that is the same with both does not depend on what is missing: all its pixels
    are there. The nonsense brings the restart markers that would come next, or the decoder
    would skip it.
    """
    last = None
    for found in _RESTART.finditer(data, max(0, len(data) - 1_000_000)):
        last = found[1][0] & 7
    following = 0 if last is None else (last + 1) % 8
    tails = []
    for nonsense in (b"\x2b\x91\x5c\xe3\x07\x78", b"\xd4\x6e\xa3\x1c\xf8\x87"):
        markers = (0xD0 + (following + step) % 8 for step in range(8))
        body = b"".join(nonsense * 8 + bytes((0xFF, marker)) for marker in markers)
        tails.append(nonsense * 8 + body + b"\xff\xd9")
    return tails
