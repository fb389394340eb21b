"""AVIF and HEIC (ISO/IEC 23008-12): the primary still picture, and how large its coded parts are.

What a decoder allocates follows from the coded pictures, not from the size that the file states:
the sequence headers (AV1, 5.5; HEVC, 7.3.2.2) are read before it gets them.
"""

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from unified_embedding.errors import ImageError
from unified_embedding.image.colour import MAX_PROFILE_BYTES
from unified_embedding.image.container import Container, corrupt, unread

_MAX_BOXES: Final = 20_000
_SMALL_AREA: Final = 1_000_000
_METADATA: Final = {b"Exif", b"mime", b"uri "}
_ALPHA: Final = (b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0", b"urn:mpeg:hevc:2015:auxid:1\0")
_HEADER_BYTES: Final = 4096
_SPS: Final = 33


class _Box(NamedTuple):
    kind: bytes
    start: int  # of the payload
    end: int


def parse_avif(data: bytes) -> Container:
    """Read an AVIF's boxes. Raises ImageError."""
    return _Reader(data, "AVIF").container()


def parse_heic(data: bytes) -> Container:
    """Read a HEIC's boxes. Raises ImageError."""
    return _Reader(data, "HEIC").container()


class _Reader:
    def __init__(self, data: bytes, kind: str) -> None:
        self.data, self.kind, self.boxes = data, kind, 0
        self.clean = bytearray(data)
        self.types: dict[int, bytes] = {}
        self.extents: dict[int, list[tuple[int, int]]] = {}
        self.properties: list[_Box] = []
        self.associated: dict[int, list[int]] = {}
        self.references: list[tuple[bytes, int, list[int]]] = []
        self.primary = -1

    def container(self) -> Container:
        for box in self._walk(0, len(self.data)):
            # An animation: its still picture is enough, and no decoder needs to know of more.
            if box.kind == b"ftyp":
                for at in range(box.start, box.end - 3, 4):
                    if self.data[at : at + 4] == b"avis":
                        self.clean[at : at + 4] = b"avif"
            if box.kind == b"moov":
                self.clean[box.start - 4 : box.start] = b"free"
            if box.kind == b"meta" and self.primary < 0:
                self._meta(box)
        if self.primary < 0:
            raise unread(self.kind, "no still picture")
        width, height = self._size(self.primary)
        shown = self._shown()
        coded = self._coded(shown)
        areas = {item: self._area(item) for item in set(coded)}
        area = sum(areas[item] for item in coded)
        stored = sum(size for item in set(coded) for _, size in self.extents.get(item, []))
        if area > 3 * width * height + _SMALL_AREA or stored > len(self.data):
            raise ImageError(
                f"the {self.kind} image has coded parts of {area:,} pixels and {stored:,} bytes "
                f"for a picture of {width} x {height}"
            )
        return Container(
            self.kind,
            width,
            height,
            [bytes(self.clean) if self.clean != self.data else self.data],
            orientation=self._orientation() if self.kind == "AVIF" else 1,
            profile=self._profile(),
            planes=2 if any(self._is_alpha(item) for item in shown[1:]) else 1,
        )

    def _walk(self, start: int, end: int) -> Iterator[_Box]:
        while start + 8 <= end:
            self._spend(1)
            size, kind = struct.unpack_from(">I4s", self.data, start)
            head = 8
            if size == 1:
                (size,) = struct.unpack_from(">Q", self.data, start + 8)
                head = 16
            stop = end if size == 0 else start + size
            if stop > end or stop < start + head:
                if kind == b"mdat":
                    return
                raise corrupt(self.kind, "it ends within its header")
            yield _Box(kind, start + head, stop)
            start = stop

    def _spend(self, count: int) -> None:
        """Every loop over what the file lists is counted."""
        self.boxes += count
        if self.boxes > _MAX_BOXES:
            raise corrupt(self.kind, f"more than {_MAX_BOXES:,} boxes, parts and references")

    def _meta(self, meta: _Box) -> None:
        for box in self._walk(meta.start + 4, meta.end):
            version = self.data[box.start]
            at = box.start + 4
            if box.kind == b"pitm":
                self.primary = self._number(at, 4 if version else 2)
            elif box.kind == b"iinf":
                for entry in self._walk(at + (4 if version else 2), box.end):
                    self._item(entry)
            elif box.kind == b"iloc":
                self._locations(box, version)
            elif box.kind == b"iref":
                wide = 4 if version else 2
                for reference in self._walk(at, box.end):
                    at = reference.start + wide
                    count = self._number(at, 2)
                    self._spend(count)
                    targets = [self._number(at + 2 + wide * n, wide) for n in range(count)]
                    source = self._number(reference.start, wide)
                    self.references.append((reference.kind, source, targets))
            elif box.kind == b"iprp":
                for part in self._walk(box.start, box.end):
                    if part.kind == b"ipco":
                        self.properties += self._walk(part.start, part.end)
                    elif part.kind == b"ipma":
                        self._associations(part)

    def _number(self, at: int, size: int) -> int:
        if at + size > len(self.data):
            raise corrupt(self.kind, "it ends within its header")
        return int.from_bytes(self.data[at : at + size], "big")

    def _item(self, entry: _Box) -> None:
        version = self.data[entry.start]
        if entry.kind != b"infe" or version < 2:
            return
        wide = 4 if version == 3 else 2
        place = entry.start + 4 + wide + 2
        kind = self.data[place : place + 4]
        self.types[self._number(entry.start + 4, wide)] = kind
        if kind in _METADATA:  # Decoders parse it, and fail with it.
            self.clean[place : place + 4] = b"skip"

    def _locations(self, box: _Box, version: int) -> None:
        sizes = self._number(box.start + 4, 2)
        offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
        index_size = sizes & 15 if version else 0
        wide = 4 if version == 2 else 2
        at = box.start + 6
        count = self._number(at, wide)
        at += wide
        for _ in range(min(count, _MAX_BOXES)):
            self._spend(1)
            item = self._number(at, wide)
            at += wide
            method = 0
            if version:
                method = self._number(at, 2) & 15
                at += 2
            at += 2
            base = self._number(at, base_size)
            at += base_size
            extents = []
            number = self._number(at, 2)
            at += 2
            self._spend(number)
            for _ in range(number):
                at += index_size
                offset = base + self._number(at, offset_size)
                length = self._number(at + offset_size, length_size)
                at += offset_size + length_size
                extents.append((offset, length or len(self.data)))
            if method == 0:
                self.extents[item] = extents

    def _associations(self, box: _Box) -> None:
        version, flags = self.data[box.start], self.data[box.start + 3]
        wide = 4 if version else 2
        at = box.start + 8
        for _ in range(min(self._number(box.start + 4, 4), _MAX_BOXES)):
            item = self._number(at, wide)
            count = self._number(at + wide, 1)
            at += wide + 1
            self._spend(1 + count)
            size = 2 if flags & 1 else 1
            mask = 0x7FFF if flags & 1 else 0x7F
            found = [self._number(at + size * n, size) & mask for n in range(count)]
            self.associated[item] = found
            at += size * count

    def _property(self, item: int, kind: bytes) -> _Box | None:
        for number in self.associated.get(item, []):
            if 0 < number <= len(self.properties) and self.properties[number - 1].kind == kind:
                return self.properties[number - 1]
        return None

    def _size(self, item: int) -> tuple[int, int]:
        box = self._property(item, b"ispe")
        if box is None:
            raise corrupt(self.kind, "it states no size")
        return self._number(box.start + 4, 4), self._number(box.start + 8, 4)

    def _orientation(self) -> int:
        """As EXIF counts, from quarter turns (irot) and mirror (imir); libheif turns by itself."""
        turn, mirror = self._property(self.primary, b"irot"), self._property(self.primary, b"imir")
        angle = self.data[turn.start] & 3 if turn else 0
        if mirror is None:
            return (1, 8, 3, 6)[angle]
        return ((4, 5, 2, 7), (2, 7, 4, 5))[self.data[mirror.start] & 1][angle]

    def _profile(self) -> bytes:
        box = self._property(self.primary, b"colr")
        if box is None or self.data[box.start : box.start + 4] not in (b"prof", b"rICC"):
            return b""
        profile = self.data[box.start + 4 : box.end]
        return profile if len(profile) <= MAX_PROFILE_BYTES else b""

    def _shown(self) -> list[int]:
        """The primary item, and what goes with it: transparency, depth, a gain map."""
        return [self.primary] + [
            source
            for kind, source, targets in self.references
            if kind == b"auxl" and self.primary in targets
        ]

    def _is_alpha(self, item: int) -> bool:
        kind = self._property(item, b"auxC")
        return kind is not None and self.data[kind.start + 4 : kind.end].startswith(_ALPHA)

    def _coded(self, shown: list[int]) -> list[int]:
        """The coded items of `shown`: itself or its tiles."""
        tiles = {source: targets for kind, source, targets in self.references if kind == b"dimg"}
        return [part for item in shown for part in tiles.get(item, [item])]

    def _area(self, item: int) -> int:
        kind = self.types.get(item, b"")
        if kind == b"av01":
            return _av1_area(self._bytes(item, _HEADER_BYTES))
        if kind == b"hvc1":
            configuration = self._property(item, b"hvcC")
            if configuration is None:
                raise corrupt(self.kind, "its decoder configuration is missing")
            self._refuse_inner_headers(item)
            return _hevc_area(self.data[configuration.start : configuration.end])
        shown = kind.decode("latin-1").strip() or "unknown"
        raise unread(self.kind, f"parts of the kind {shown!r}")

    def _bytes(self, item: int, limit: int) -> bytes:
        found = b""
        for start, size in self.extents.get(item, []):
            found += self.data[start : start + min(size, limit - len(found))]
        return found

    def _refuse_inner_headers(self, item: int) -> None:
        """A sequence header among the picture's own units would override the checked one."""
        for start, size in self.extents.get(item, []):
            at, end = start, min(start + size, len(self.data))
            while at + 6 <= end:
                self._spend(1)
                if self.data[at + 4] >> 1 & 63 == _SPS:
                    raise unread(self.kind, "a sequence header within its picture")
                at += 4 + self._number(at, 4)


class _Bits:
    """Bits of a header, most significant first."""

    def __init__(self, data: bytes) -> None:
        self.value, self.left = int.from_bytes(data, "big"), 8 * len(data)

    def read(self, count: int) -> int:
        self.left -= count
        if self.left < 0:
            raise IndexError("the header ends early")
        return self.value >> self.left & (1 << count) - 1

    def golomb(self) -> int:
        zeros = 0
        while self.read(1) == 0:
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)


def _av1_area(data: bytes) -> int:
    """Pixels of the largest frame that the first sequence header allows."""
    at = 0
    while at < len(data):
        header = data[at]
        at += 2 if header & 4 else 1
        size, shift = len(data) - at, 0
        if header & 2:
            size = 0
            while True:
                byte = data[at]
                at += 1
                size |= (byte & 127) << shift
                shift += 7
                if byte < 128 or shift > 56:
                    break
        if header >> 3 & 15 == 1:
            return _av1_sequence(data[at : at + size])
        at += size
    raise corrupt("AVIF", "its sequence header is missing")


def _av1_sequence(data: bytes) -> int:
    bits = _Bits(data)
    bits.read(3)
    bits.read(1)
    if bits.read(1):  # reduced_still_picture_header
        bits.read(5)
    else:
        decoder_model = 0
        if bits.read(1):  # timing_info_present_flag
            bits.read(64)
            if bits.read(1):
                bits.golomb()
            decoder_model = bits.read(1)
            delay = bits.read(5) + 1 if decoder_model else 0
            bits.read(42 if decoder_model else 0)
        initial_delay = bits.read(1)
        for _ in range(bits.read(5) + 1):
            bits.read(12)
            if bits.read(5) > 7:
                bits.read(1)
            if decoder_model and bits.read(1):
                bits.read(2 * delay + 1)
            if initial_delay and bits.read(1):
                bits.read(4)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    return (bits.read(width_bits) + 1) * (bits.read(height_bits) + 1)


def _hevc_area(configuration: bytes) -> int:
    """Pixels of the largest picture among the sequence parameter sets of an hvcC box."""
    area, at = 0, 23
    for _ in range(configuration[22]):
        kind = configuration[at] & 63
        count = int.from_bytes(configuration[at + 1 : at + 3], "big")
        at += 3
        for _ in range(min(count, 64)):
            size = int.from_bytes(configuration[at : at + 2], "big")
            if kind == _SPS:
                area = max(area, _hevc_sequence(configuration[at + 2 : at + 2 + size]))
            at += 2 + size
    if area == 0:
        raise corrupt("HEIC", "its sequence header is missing")
    return area


def _hevc_sequence(unit: bytes) -> int:
    bits = _Bits(unit[2:].replace(b"\0\0\3", b"\0\0"))
    bits.read(4)
    layers = bits.read(3)
    bits.read(1)
    bits.read(96)  # profile, tier and level
    present = [bits.read(2) for _ in range(layers)]
    if layers:
        bits.read(2 * (8 - layers))
    for flags in present:
        bits.read((88 if flags & 2 else 0) + (8 if flags & 1 else 0))
    bits.golomb()
    if bits.golomb() == 3:  # chroma_format_idc
        bits.read(1)
    return bits.golomb() * bits.golomb()
