"""Malformed inputs from good ones: every input is a function of a seed and a number.

Bytes changed at random rarely get past a checksum or a magic number. So besides them the parts
that the formats have are changed: chunks with their CRC made right again, segments and their
lengths, directory entries, EXIF tags of every type.
"""

import struct
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Final

EDGES: Final = (0, 1, 2, 3, 7, 8, 15, 16, 64, 127, 128, 255, 256, 1000, 4096, 0x7FFF, 0x8000,
                0xFFFF, 0x10000, 26_000, 100_000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)  # fmt: skip
_PNG: Final = b"\x89PNG\r\n\x1a\n"
# Of TIFF and EXIF: sizes, layouts, offsets, colour, orientation, sub-directories, GPS.
_TAGS: Final = (254, 256, 257, 258, 259, 262, 266, 270, 271, 273, 274, 277, 278, 279, 282, 284, 296,
                306, 317, 320, 322, 323, 324, 325, 330, 338, 339, 347, 700, 33723, 34377, 34665,
                34675, 34853, 36864, 37500, 37510, 40965, 0, 1, 2, 4, 5, 6, 7, 16, 29)  # fmt: skip
Mutation = Callable[[bytes, Random], bytes]


def picture(seeds: Sequence[bytes], random: Random) -> bytes:
    """A picture file with one to four faults."""
    data = random.choice(seeds)
    for _ in range(random.choice((1, 1, 1, 2, 2, 4))):
        if random.random() < 0.65:
            data = _by_format(data)(data, random)
        else:
            data = damaged(data, seeds, random)
    return data


def damaged(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """`data` with a fault that needs no knowledge of its format."""
    if not data:
        return random.randbytes(random.randrange(64))
    place = random.randrange(len(data))
    kind = random.randrange(9)
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + bytes([data[place] ^ (1 << random.randrange(8))]) + data[place + 1 :]
    if kind == 2:
        return put(data, place, number(random))
    if kind == 3:
        return data[:place] + random.randbytes(random.randrange(1, 64)) + data[place:]
    if kind == 4:
        return data[:place] + data[place + random.randrange(1, 64) :]
    if kind == 5:
        end = min(len(data), place + random.randrange(1, 400))
        return data[:end] + data[place:end] * random.choice((1, 2, 30)) + data[end:]
    if kind == 6:
        other = random.choice(others)
        return data[:place] + other[random.randrange(len(other) + 1) :]
    if kind == 7:
        return data + random.randbytes(random.randrange(200))
    return data[:place] + bytes(min(200, len(data) - place)) + data[place + 200 :]


def text(seeds: Sequence[str], random: Random) -> str:
    """A parameter's text: numbers, separators and letters in odd places."""
    value = random.choice(seeds)
    odd = ("", ",", ";", " ", "-", "e", ".", "0", "1", "9" * 400, "nan", "inf", "1e400", "\x00",
           "²", "١", "\u202e", "é" * 90, "1_0", "0x1p3", "\n", "'", "\\", "%s", "{}")  # fmt: skip
    for _ in range(random.randrange(1, 5)):
        place = random.randrange(len(value) + 1)
        end = place + random.choice((0, 0, 1, 3))
        value = value[:place] + random.choice(odd) + value[end:]
    return value * random.choice((1, 1, 1, 1, 17, 2000))


def number(random: Random) -> bytes:
    """A number at a border of what two or four bytes hold, in either order."""
    width, order = random.choice("HI"), random.choice("<>")
    return struct.pack(order + width, random.choice(EDGES) & (0xFFFF if width == "H" else -1))


def put(data: bytes, place: int, value: bytes) -> bytes:
    """`data` with `value` written over it at `place`."""
    return data[:place] + value + data[place + len(value) :]


def _by_format(data: bytes) -> Mutation:
    if data.startswith(_PNG):
        return _png
    if data.startswith(b"\xff\xd8"):
        return _jpeg
    if data[:4] == b"RIFF":
        return _riff
    if data[:4] in (b"II*\0", b"MM\0*"):
        return _tiff
    return _header


def _header(data: bytes, random: Random) -> bytes:
    """GIF, BMP and the boxes of AVIF: a number at a border among the first bytes."""
    return put(data, random.randrange(max(1, min(len(data), 400))), number(random))


def _png(data: bytes, random: Random) -> bytes:
    chunks, place = [], len(_PNG)
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    if not chunks:
        return damaged(data, [data], random)
    at = random.randrange(len(chunks))
    name, body = chunks[at]
    kind = random.randrange(8)
    if kind == 0:
        chunks[at] = (b"IHDR", put(body, random.randrange(8), number(random))[:13])
    elif kind == 1 and name == b"IDAT":
        chunks[at] = (name, _deflated(body, random))
    elif kind == 2:
        chunks.insert(random.randrange(len(chunks) + 1), chunks[at])
    elif kind == 3:
        del chunks[at]
    elif kind == 4:
        chunks.insert(random.randrange(1, len(chunks) + 1), (b"eXIf", exif(random)))
    elif kind == 5:
        extra = random.choice(
            (b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"iTXt", b"acTL", b"gAMA", b"sBIT")
        )
        content = b"x\0\0" + zlib.compress(bytes(random.choice((10, 3_000_000))))
        chunks.insert(1, (extra, random.choice((content, random.randbytes(6), b""))))
    elif kind == 6:
        # The header's own fields: depth, colour type, compression, filter, interlace.
        chunks[0] = (b"IHDR", put(chunks[0][1], random.randrange(8, 13), random.randbytes(1)))
    else:
        chunks[at] = (name, damaged(body, [data], random))
    return _PNG + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def _deflated(body: bytes, random: Random) -> bytes:
    try:
        raw = zlib.decompress(body)
    except zlib.error:
        return body
    return zlib.compress(damaged(raw, [raw], random) * random.choice((1, 1, 50)))


def _jpeg(data: bytes, random: Random) -> bytes:
    segments, place = [], 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", data, place + 2)
        segments.append((data[place + 1], data[place + 4 : place + 2 + length]))
        place += 2 + max(length, 2)
    scans = data[place:]
    kind = random.randrange(6)
    lie = 0
    at = random.randrange(len(segments)) if segments else -1
    if kind == 0 and segments:
        marker, body = segments[at]
        segments[at] = (marker, damaged(body, [data], random)[:65533])
    elif kind == 1 and segments:
        segments.insert(random.randrange(len(segments) + 1), segments[at])
    elif kind == 2 and segments:
        del segments[at]
    elif kind == 3:
        segments.insert(0, (0xE1, (b"Exif\0\0" + exif(random))[:65533]))
    elif kind == 4:
        scans = scans[: random.randrange(len(scans) + 1)] * random.choice((1, 2, 40))
    else:
        lie = random.choice((-2, -1, 1, 2, 300, 65000))
    written = []
    for index, (marker, body) in enumerate(segments):
        length = (len(body) + 2 + (lie if index == at else 0)) & 0xFFFF
        written.append(struct.pack(">BBH", 0xFF, marker, length) + body)
    return b"\xff\xd8" + b"".join(written) + scans


def _riff(data: bytes, random: Random) -> bytes:
    chunks, place = [], 12
    while place + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, place + 4)
        chunks.append((data[place : place + 4], data[place + 8 : place + 8 + length]))
        place += 8 + length + length % 2
    if not chunks:
        return damaged(data, [data], random)
    at = random.randrange(len(chunks))
    kind = random.randrange(5)
    if kind == 0:
        chunks[at] = (chunks[at][0], damaged(chunks[at][1], [data], random))
    elif kind == 1:
        chunks.insert(random.randrange(len(chunks) + 1), chunks[at])
    elif kind == 2:
        flags = bytes([random.randrange(256), 0, 0, 0]) + random.randbytes(6)
        chunks.insert(0, (b"VP8X", flags))
    elif kind == 3:
        chunks.append((b"EXIF", exif(random)))
    else:
        body = chunks[at][1]
        chunks[at] = (chunks[at][0], put(body, random.randrange(len(body) + 1), number(random)))
    body = b"WEBP" + b"".join(
        name + struct.pack("<I", len(part)) + part + b"\0" * (len(part) % 2)
        for name, part in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _tiff(data: bytes, random: Random) -> bytes:
    order = "<" if data[:2] == b"II" else ">"
    if len(data) < 8:
        return data
    (place,) = struct.unpack_from(order + "I", data, 4)
    if place + 2 > len(data):
        return damaged(data, [data], random)
    (count,) = struct.unpack_from(order + "H", data, place)
    entry = place + 2 + 12 * random.randrange(max(1, count))
    if entry + 12 > len(data):
        return damaged(data, [data], random)
    tag, kind, many, value = struct.unpack_from(order + "HHII", data, entry)
    change = random.randrange(4)
    if change == 0:
        tag = random.choice(_TAGS)
    elif change == 1:
        kind = random.randrange(20)
    elif change == 2:
        many = random.choice(EDGES)
    else:
        value = random.choice(EDGES)
    return put(data, entry, struct.pack(order + "HHII", tag, kind, many, value))


def exif(random: Random) -> bytes:
    """A TIFF structure of tags of every type, that point anywhere, into loops too."""
    order, magic = random.choice((("<", b"II*\0"), (">", b"MM\0*")))
    entries = [(0x0112, 3, 1, random.randrange(10) * (1 if order == "<" else 0x10000))]
    for _ in range(random.randrange(6)):
        kind = random.randrange(14)
        many = random.choice((0, 1, 2, 3, 8, 100, 0xFFFFFFFF))
        value = random.choice((*EDGES, 8, 8, 26, 38))
        entries.append((random.choice(_TAGS), kind, many, value))
    random.shuffle(entries)
    body = struct.pack(order + "H", len(entries))
    body += b"".join(struct.pack(order + "HHII", *entry) for entry in entries)
    body += struct.pack(order + "I", random.choice((0, 0, 8, 0xFFFF)))
    return magic + struct.pack(order + "I", 8) + body + random.randbytes(random.randrange(60))


def archive(members: Sequence[tuple[bytes, bytes]], random: Random) -> bytes:
    """A tar file with odd names, sizes, kinds and links, every header's checksum right."""
    blocks = []
    names = [name for name, _ in members]
    for name, body in members:
        kind = random.choice((*[b"0"] * 5, *(bytes([sign]) for sign in b"1235 67LxgS\0")))
        size = random.choice((len(body),) * 6 + (0, len(body) + 1, 8 << 30, 100_000))
        link = random.choice((*names, b"", b"../../etc/passwd", b"\xff\xfe"))
        header = bytearray(512)
        header[0 : min(100, len(name))] = name[:100]
        header[100:108] = b"0000644\0"
        header[124:136] = b"%011o\0" % size
        header[136:148] = b"%011o\0" % random.choice((0, 1, 8**11 - 1))
        header[148:156] = b" " * 8
        header[156:157] = kind
        header[157 : 157 + min(100, len(link))] = link[:100]
        header[257:265] = random.choice((b"ustar\x0000", b"ustar  \0", bytes(8)))
        header[148:156] = b"%06o\0 " % sum(header)
        blocks.append(bytes(header) + body + bytes(-len(body) % 512))
    return b"".join(blocks) + bytes(1024)
