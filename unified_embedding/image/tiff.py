"""TIFF 6.0 and BigTIFF: the first directory, reduced to what its pixels need.

Pillow and libtiff get a directory of ours: known tags, checked sizes, no orientation. A layout
is read only when it is in `_LAYOUTS`, whose pixels the tests check; others are named.
"""

import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unified_embedding.errors import ImageError
from unified_embedding.image import exif, jpeg
from unified_embedding.image.colour import MAX_PROFILE_BYTES
from unified_embedding.image.container import Buffer, Container, Finish, corrupt, unread

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIPS, _ORIENTATION, _SAMPLES, _ROWS, _STRIP_BYTES, _PLANAR = 273, 274, 277, 278, 279, 284
_PREDICTOR, _COLOUR_MAP, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = (
    317,
    320,
    322,
    323,
    324,
    325,
)
_INK_SET, _EXTRA, _FORMAT, _JPEG_TABLES, _SUBSAMPLING, _PROFILE = 332, 338, 339, 347, 530, 34675
_NUMBERS: Final = (
    _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _STRIPS, _SAMPLES, _ROWS,
    _STRIP_BYTES, _PLANAR, 292, 293, _PREDICTOR, _COLOUR_MAP, _TILE_WIDTH, _TILE_HEIGHT, _TILES,
    _TILE_BYTES, _INK_SET, _EXTRA, _FORMAT, _SUBSAMPLING,
)  # fmt: skip
_LONG_TAGS: Final = {_WIDTH, _HEIGHT, _STRIPS, _ROWS, _STRIP_BYTES, _TILE_WIDTH, _TILE_HEIGHT,
                     _TILES, _TILE_BYTES, 292, 293}  # fmt: skip
_BLOCK_LISTS: Final = {_STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES}
_INTEGERS: Final = {1: "u1", 3: "u2", 4: "u4", 16: "u8"}
_BYTES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8}

_NONE, _JPEG = 1, 7
_COMPRESSIONS: Final = {
    1: "none", 2: "CCITT RLE", 3: "CCITT group 3", 4: "CCITT group 4", 5: "LZW", 7: "JPEG",
    8: "deflate", 32773: "PackBits", 32946: "deflate", 50000: "Zstandard",
}  # fmt: skip
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
_COLOURS: Final = {0: "white-is-zero grey", 1: "grey", 2: "RGB", 3: "a colour map", 5: "CMYK",
                   6: "YCbCr", 8: "CIE Lab"}  # fmt: skip
# Photometric interpretation -> bits a sample -> kinds of extra samples: 0 something else,
# 1 premultiplied alpha, 2 alpha.
_Extra = set[tuple[int, ...]]
_PLAIN: Final[_Extra] = {()}
_LAYOUTS: Final[dict[int, dict[tuple[int, ...], _Extra]]] = {
    _WHITE_IS_ZERO: {(bits,): _PLAIN for bits in (1, 2, 4, 8, 12, 16)},
    _BLACK_IS_ZERO: {(bits,): _PLAIN for bits in (1, 2, 4, 8, 12, 16)}
    | {(8, 8): {(0,), (1,), (2,)}},
    _RGB: {
        (8,) * 3: {()},
        (8,) * 4: {(), (0,), (1,), (2,), (999,)},
        (8,) * 5: {(0, 0), (1, 0), (2, 0)},
        (16,) * 3: {()},
        (16,) * 4: {(), (0,), (1,), (2,)},
    },
    _PALETTE: {(bits,): _PLAIN for bits in (1, 2, 4, 8)} | {(8, 8): {(0,), (2,)}},
    _CMYK: {(8,) * 4: {()}, (8,) * 5: {(0,)}, (16,) * 4: {()}},
    _YCBCR: {(8,) * 3: {()}},
    _LAB: {(8,) * 3: {()}},
}
_MOST_SAMPLES: Final = max(len(bits) for layouts in _LAYOUTS.values() for bits in layouts)
_MAX_ENTRIES: Final = 4096
_SMALL_AREA: Final = 4_000_000

Numbers = NDArray[np.uint64]


class _Directory:
    """The first directory of a file: its entries, bounds checked."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.order = "<" if data[:2] == b"II" else ">"
        big = 43 in data[2:4]
        try:
            if big:
                (start,) = struct.unpack_from(self.order + "Q", data, 8)
                (count,) = struct.unpack_from(self.order + "Q", data, start)
                entry, first, field = "HHQ", start + 8, 12
            else:
                (start,) = struct.unpack_from(self.order + "L", data, 4)
                (count,) = struct.unpack_from(self.order + "H", data, start)
                entry, first, field = "HHL", start + 2, 8
            self._entries: dict[int, tuple[int, int, int]] = {}
            if count > _MAX_ENTRIES:
                raise corrupt("TIFF", f"a directory of {count:,} entries")
            width = 20 if big else 12
            for at in range(first, first + count * width, width):
                tag, kind, values = struct.unpack_from(self.order + entry, data, at)
                size = _BYTES.get(kind, 0) * values
                place = at + field
                if size > width - field:
                    (place,) = struct.unpack_from(self.order + ("Q" if big else "L"), data, place)
                self._entries.setdefault(tag, (kind, values, place))
        except (struct.error, OverflowError):
            raise corrupt("TIFF", "it ends within its directory") from None

    def numbers(self, tag: int, most: int = 1024) -> Numbers | None:
        """The first `most` whole numbers of a tag. Raises ImageError."""
        if tag not in self._entries:
            return None
        kind, count, place = self._entries[tag]
        if kind not in _INTEGERS or count < 1 or place + _BYTES[kind] * count > len(self.data):
            raise corrupt("TIFF", f"tag {tag}")
        count = min(count, most)
        found = np.frombuffer(self.data, self.order + _INTEGERS[kind], count, place)
        return found.astype(np.uint64)

    def raw(self, tag: int) -> bytes:
        """The bytes of a tag of type BYTE or UNDEFINED, empty where there are none."""
        kind, count, place = self._entries.get(tag, (0, 0, 0))
        return self.data[place : place + count] if kind in (1, 7) and count < 1 << 20 else b""

    def orientation(self) -> int:
        """1 to 8, 1 where the tag is missing or damaged."""
        if _ORIENTATION not in self._entries:
            return 1
        kind, count, place = self._entries[_ORIENTATION]
        try:
            if kind in (5, 10, 12):  # eight bytes, which only BigTIFF holds in place
                return 1
            return exif.upright(exif.number(self.data, self.order, kind, count, place))
        except (struct.error, OverflowError):
            return 1


def parse(data: bytes) -> Container:
    """Read a TIFF's first directory. Raises ImageError."""
    directory = _Directory(data)
    sides = directory.numbers(_WIDTH), directory.numbers(_HEIGHT)
    if sides[0] is None or sides[1] is None:
        raise corrupt("TIFF", "it states no size")
    width, height = int(sides[0][0]), int(sides[1][0])
    if min(width, height) < 1 or max(width, height) > 1 << 24:
        raise ImageError(f"the image has {width} x {height} pixels")
    tags: dict[int, Numbers] = {}
    for tag in _NUMBERS:
        most = 8 * _most_blocks(width, height) if tag in _BLOCK_LISTS else 1024
        values = directory.numbers(tag, most)
        if values is not None:
            tags[tag] = values
    layout = _Layout(tags)
    _check_blocks(tags, layout, width, height, data)
    finish: Finish | None = None
    order = directory.order
    if layout.bits == (16,) and layout.photometric == _WHITE_IS_ZERO:
        tags[_PHOTOMETRIC] = np.array([_BLACK_IS_ZERO], np.uint64)
        finish = _inverted_16
    elif layout.bits == (12,):
        # Packed bits have no byte order; Pillow knows them in little-endian files only.
        order = "<"
        finish = _high_12 if layout.photometric == _BLACK_IS_ZERO else _inverted_12
        tags[_PHOTOMETRIC] = np.array([_BLACK_IS_ZERO], np.uint64)
    if layout.photometric == _PALETTE:
        tags[_COLOUR_MAP] = _colour_map(tags, layout.bits[0])
    tables = directory.raw(_JPEG_TABLES) if layout.compression == _JPEG else b""
    base = len(data) + (len(data) & 1)
    body, start = _written(order, tags, tables, base)
    mark = b"II\x2a\0" if order == "<" else b"MM\0\x2a"
    head = mark + struct.pack(order + "L", start)
    profile = directory.raw(_PROFILE)
    return Container(
        "TIFF",
        width,
        height,
        [head, memoryview(data)[8:], b"\0" * (base - len(data)), body],
        orientation=directory.orientation(),
        profile=profile if len(profile) <= MAX_PROFILE_BYTES else b"",
        finish=finish,
    )


class _Layout:
    """How the samples of a pixel are laid out; only layouts that are read exist."""

    def __init__(self, tags: dict[int, Numbers]) -> None:
        def first(tag: int, default: int) -> int:
            return int(tags[tag][0]) if tag in tags else default

        self.compression = first(_COMPRESSION, 1)
        self.photometric = first(_PHOTOMETRIC, 0)
        self.planar = first(_PLANAR, 1) == 2
        samples = first(_SAMPLES, 1)
        if samples > _MOST_SAMPLES:
            raise unread("TIFF", f"{samples:,} samples a pixel")
        bits = tuple(int(value) for value in tags.get(_BITS, [1])[: samples or 1])
        self.bits = bits * samples if len(bits) == 1 else bits
        extra = tuple(int(value) for value in tags.get(_EXTRA, []))
        formats = {int(value) for value in tags.get(_FORMAT, [1])[: samples or 1]}
        self.subsampled = [int(v) for v in tags.get(_SUBSAMPLING, [2, 2])] != [1, 1]
        name = _COLOURS.get(self.photometric, f"photometric interpretation {self.photometric}")
        said = f"{name}, {'+'.join(map(str, self.bits[:8]))} bits"
        if self.compression not in _COMPRESSIONS:
            raise unread("TIFF", f"compression {self.compression}")
        if formats != {1}:
            kinds = {2: "signed", 3: "floating-point"}
            raise unread("TIFF", f"{kinds.get(max(formats), 'complex or void')} samples ({said})")
        if extra not in _LAYOUTS.get(self.photometric, {}).get(self.bits, ()):
            raise unread("TIFF", said + (f" and extra samples {extra}" if extra else ""))
        compressed = self.compression != _NONE
        if (
            self.planar
            and len(self.bits) > 1
            and (max(self.bits) > 8 or extra or self.photometric not in (_RGB, _CMYK))
        ):
            raise unread("TIFF", f"planes apart ({said})")
        if self.bits == (12,) and compressed:
            raise unread("TIFF", f"{_COMPRESSIONS[self.compression]} compression ({said})")
        if self.photometric == _YCBCR and not compressed and self.subsampled:
            raise unread("TIFF", f"subsampled colour without compression ({said})")
        if self.photometric == _CMYK and first(_INK_SET, 1) != 1:
            raise unread("TIFF", "inks other than CMYK")
        if first(_PREDICTOR, 1) not in (1, 2):
            raise unread("TIFF", "the floating-point predictor")
        if first(_FILL_ORDER, 1) == 2 and max(self.bits) > 8:
            raise unread("TIFF", f"reversed bits ({said})")


def _most_blocks(width: int, height: int) -> int:
    """Strips or tiles of a picture: each costs some Python and a start of the decoder."""
    return 5_000 + min(width * height, 1 << 28) // 512


def _check_blocks(
    tags: dict[int, Numbers], layout: _Layout, width: int, height: int, data: bytes
) -> None:
    """Strips or tiles: no larger, no more and of no more bytes than the picture needs."""
    tiled = _TILES in tags and _STRIPS not in tags
    if tiled:
        if _TILE_WIDTH not in tags or _TILE_HEIGHT not in tags:
            raise corrupt("TIFF", "its tiles have no size")
        across, down = int(tags[_TILE_WIDTH][0]), int(tags[_TILE_HEIGHT][0])
    elif _STRIPS in tags:
        across, down = width, min(height, int(tags.get(_ROWS, [height])[0]))
        tags[_ROWS] = np.array([down], np.uint64)
    else:
        raise corrupt("TIFF", "it has neither strips nor tiles")
    if min(across, down) < 1:
        raise corrupt("TIFF", f"blocks of {across} x {down} pixels")
    count = -(-width // across) * -(-height // down)
    area = count * across * down
    if area > 2 * width * height + _SMALL_AREA:
        raise ImageError(
            f"the TIFF image has blocks of {across} x {down} = {across * down:,} pixels, "
            f"{count:,} of them, for a picture of {width} x {height}"
        )
    if count > _most_blocks(width, height):
        raise ImageError(
            f"the TIFF image is cut into {count:,} blocks for {width} x {height} pixels"
        )
    blocks = count * (len(layout.bits) if layout.planar else 1)
    offsets, sizes = (_TILES, _TILE_BYTES) if tiled else (_STRIPS, _STRIP_BYTES)
    if len(tags[offsets]) < blocks:
        raise corrupt("TIFF", f"{len(tags[offsets]):,} of its {blocks:,} blocks are there")
    tags[offsets] = tags[offsets][:blocks]
    for tag in (
        (_STRIPS, _STRIP_BYTES) if tiled else (_TILES, _TILE_BYTES, _TILE_WIDTH, _TILE_HEIGHT)
    ):
        tags.pop(tag, None)
    if sizes in tags:
        tags[sizes] = tags[sizes][:blocks]
        if len(tags[sizes]) < blocks or int(tags[sizes].sum()) > len(data) + 65_536:
            raise corrupt("TIFF", "its blocks state more bytes than it has")
    elif layout.compression != _NONE:
        raise corrupt("TIFF", "its compressed blocks have no size")
    if int(tags[offsets].max()) >= len(data):
        raise corrupt("TIFF", "its blocks lie behind its end")
    if layout.compression == _JPEG:
        for start, size in zip(tags[offsets].tolist(), tags[sizes].tolist(), strict=True):
            frame = jpeg.frame(data[start : start + size])
            if frame.progressive:
                raise unread("TIFF", "progressive JPEG compression")


def _colour_map(tags: dict[int, Numbers], bits: int) -> Numbers:
    colours = tags.get(_COLOUR_MAP)
    if colours is None or len(colours) < 3 << bits:
        raise corrupt("TIFF", "its colour map is too short")
    colours = colours[: 3 << bits]
    # TIFF 6.0 asks for 16 bits; a map whose every value fits 8 was written with 8 (libtiff
    # decides the same way).
    return colours * np.uint64(257) if colours.max() < 256 else colours


def _inverted_16(image: Image.Image) -> Image.Image:
    return Image.fromarray(255 - (np.asarray(image) >> 8).astype(np.uint8))


def _high_12(image: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(image) >> 4).astype(np.uint8))


def _inverted_12(image: Image.Image) -> Image.Image:
    return Image.fromarray(255 - (np.asarray(image) >> 4).astype(np.uint8))


def _written(order: str, tags: dict[int, Numbers], tables: bytes, base: int) -> tuple[Buffer, int]:
    """A directory with its values, to be put at `base`, and where the directory starts."""
    fields: dict[int, tuple[int, int, bytes]] = {}
    for tag, values in tags.items():
        kind, name = (4, "u4") if tag in _LONG_TAGS else (3, "u2")
        if values.max() >= 1 << (32 if kind == 4 else 16):
            raise corrupt("TIFF", f"tag {tag}")
        fields[tag] = (kind, len(values), values.astype(order + name).tobytes())
    if tables:
        fields[_JPEG_TABLES] = (7, len(tables), tables)
    body, entries = bytearray(), bytearray()
    for tag in sorted(fields):
        kind, count, payload = fields[tag]
        if len(payload) > 4:
            place = struct.pack(order + "L", base + len(body))
            body += payload + b"\0" * (len(payload) & 1)
        else:
            place = payload.ljust(4, b"\0")
        entries += struct.pack(order + "HHL", tag, kind, count) + place
    start = base + len(body)
    body += struct.pack(order + "H", len(fields)) + entries + b"\0\0\0\0"
    return bytes(body), start
