"""Right pixels, or a plain refusal: layouts built by hand, with the pixels known beforehand."""

import contextlib
import io
import json
import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pixel_corpus import DIGESTS, digests, encoded, scene

from unified_embedding.errors import ImageError
from unified_embedding.image import decode

RED, BLUE, WHITE = (200, 30, 30), (20, 60, 220), (255, 255, 255)


def halves(width: int = 40, height: int = 6) -> NDArray[np.uint8]:
    pixels = np.full((height, width, 3), RED, np.uint8)
    pixels[:, width // 2 :] = BLUE
    return pixels


def decoded(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(decode(data))


def test_pictures_that_were_read_rightly_keep_their_exact_pixels() -> None:
    """Against the digests of the code before revision 2."""
    assert digests() == json.loads(DIGESTS.read_text())


# TIFF


def tiff(
    pixels: bytes, width: int, height: int, order: str = "<", **tags: tuple[int, list[int]]
) -> bytes:
    """One uncompressed strip; `tags` are t258=(type, values) and so on."""
    fields: dict[int, tuple[int, list[int]]] = {
        256: (4, [width]), 257: (4, [height]), 259: (3, [1]), 273: (4, [8]), 277: (3, [1]),
        278: (4, [height]), 279: (4, [len(pixels)]),
    }  # fmt: skip
    fields |= {int(name[1:]): field for name, field in tags.items()}
    body = bytearray(pixels + b"\0" * (len(pixels) & 1))
    entries = b""
    for tag in sorted(fields):
        kind, values = fields[tag]
        value = struct.pack(order + str(len(values)) + {3: "H", 4: "L", 2: "B"}[kind], *values)
        if len(value) > 4:
            place = struct.pack(order + "L", 8 + len(body))
            body += value + b"\0" * (len(value) & 1)
        else:
            place = value.ljust(4, b"\0")
        entries += struct.pack(order + "HHL", tag, kind, len(values)) + place
    mark = b"II*\0" if order == "<" else b"MM\0*"
    start = 8 + len(body)
    directory = struct.pack(order + "H", len(fields)) + entries + b"\0" * 4
    return mark + struct.pack(order + "L", start) + bytes(body) + directory


def packed(values: NDArray[np.int64], bits: int) -> bytes:
    """Samples of `bits` bits, most significant first, rows padded to a byte."""
    planes = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(planes.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
@pytest.mark.parametrize("photometric", [0, 1])
def test_tiff_grey_of_any_depth(order: str, bits: int, photometric: int) -> None:
    top = (1 << bits) - 1
    values = np.linspace(0, top, 40).round().astype(np.int64)[None].repeat(6, axis=0)
    data = values.astype(order + "u2").tobytes() if bits == 16 else packed(values, bits)
    file = tiff(data, 40, 6, order, t258=(3, [bits]), t262=(3, [photometric]))
    grey = values >> bits - 8 if bits >= 8 else values * 255 // top
    expected = grey if photometric else 255 - grey
    assert np.array_equal(decoded(file)[..., 1], expected)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("scale", [1, 257])
def test_tiff_colour_maps_of_8_and_16_bits(order: str, scale: int) -> None:
    indices = np.repeat([[0] * 20 + [1] * 20], 6, axis=0).astype(np.uint8)
    colours = [channel for pair in zip(RED, BLUE, strict=True) for channel in (*pair, *[0] * 254)]
    file = tiff(indices.tobytes(), 40, 6, order, t258=(3, [8]), t262=(3, [3]),
                t320=(3, [value * scale for value in colours]))  # fmt: skip
    assert np.array_equal(decoded(file), halves())


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("bits", [8, 16])
def test_tiff_rgb_in_one_plane_or_three(order: str, planar: int, bits: int) -> None:
    samples = halves().astype(order + f"u{bits // 8}") * (257 if bits == 16 else 1)
    if planar == 1:
        data, strips = samples.tobytes(), [8]
    else:
        data = samples.transpose(2, 0, 1).tobytes()
        strips = [8 + number * len(data) // 3 for number in range(3)]
    sizes = [len(data) // len(strips)] * len(strips)
    file = tiff(data, 40, 6, order, t258=(3, [bits] * 3), t262=(3, [2]), t277=(3, [3]),
                t273=(4, strips), t279=(4, sizes), t284=(3, [planar]))  # fmt: skip
    if planar == 2 and bits == 16:
        with pytest.raises(ImageError, match=r"planes apart \(RGB, 16\+16\+16 bits\)"):
            decode(file)
        return
    assert np.array_equal(decoded(file), halves())


@pytest.mark.parametrize(
    ("format", "bits", "dtype", "named"),
    [
        (1, 32, "<u4", "grey, 32 bits"),
        (2, 32, "<i4", "signed samples"),
        (2, 16, "<i2", "signed samples"),
        (2, 8, "i1", "signed samples"),
        (3, 32, "<f4", "floating-point samples"),
        (3, 64, "<f8", "floating-point samples"),
        (4, 8, "u1", "void samples"),
    ],
)
def test_tiff_samples_that_are_not_plain_numbers_are_named(
    format: int, bits: int, dtype: str, named: str
) -> None:
    data = np.full((6, 40), 20).astype(dtype).tobytes()
    file = tiff(data, 40, 6, t258=(3, [bits]), t262=(3, [1]), t339=(3, [format]))
    with pytest.raises(ImageError, match=named):
        decode(file)


def test_tiff_layouts_that_are_not_read_are_named() -> None:
    grey = bytes(240)
    eight = {"t258": (3, [8])}
    cases = {
        "compression 34712": {**eight, "t262": (3, [1]), "t259": (3, [34712])},
        "old-style|compression 6": {**eight, "t262": (3, [6]), "t259": (3, [6])},
        "photometric interpretation 32803": {**eight, "t262": (3, [32803])},
        "subsampled colour": {"t258": (3, [8, 8, 8]), "t262": (3, [6]), "t277": (3, [3])},
        "inks other than CMYK": {
            "t258": (3, [8] * 4), "t262": (3, [5]), "t277": (3, [4]), "t332": (3, [2])
        },
        "RGB, 5.6.5 bits": {"t258": (3, [5, 6, 5]), "t262": (3, [2]), "t277": (3, [3])},
    }  # fmt: skip
    for named, tags in cases.items():
        with pytest.raises(ImageError, match=named):
            decode(tiff(grey * 4, 40, 6, **tags))  # type: ignore[arg-type]


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_tiff_alpha_of_every_kind(extra: int) -> None:
    """Unspecified, premultiplied and plain: half transparent red is pink over white."""
    alpha = 128
    colour = [channel * alpha // 255 if extra == 1 else channel for channel in RED]
    file = tiff(bytes([*colour, alpha]) * 240, 40, 6, t258=(3, [8] * 4), t262=(3, [2]),
                t277=(3, [4]), t338=(3, [extra]))  # fmt: skip
    over_white = [channel * alpha / 255 + 255 - alpha for channel in RED]
    expected = np.array(RED if extra == 0 else over_white)
    assert np.abs(decoded(file)[0, 0] - expected).max() <= 2


# PNG


def png(samples: NDArray[np.int64], bits: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Unfiltered rows of samples [height, width, channels]."""
    height, width, _ = samples.shape
    rows = packed(samples.reshape(height, -1), bits)
    size = len(rows) // height
    raw = b"".join(b"\0" + rows[at : at + size] for at in range(0, len(rows), size))
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("high", [0, 1])
def test_png_grey_is_white_where_trns_says_so(bits: int, high: int) -> None:
    """`high` sets bits of the key beyond the depth, which count for nothing (11.3.2.1)."""
    top = (1 << bits) - 1
    key = min(top, 0x1234)
    near = key - 1 if bits > 1 else 0
    values = np.array([[key] * 4 + [near] * 4] * 4)[..., None]
    stated = key | (high << bits if bits < 16 else 0)
    got = decoded(png(values, bits, 0, (b"tRNS", struct.pack(">H", stated))))
    assert (got[:, :4] == 255).all()
    assert (got[:, 4:] == (near >> 8 if bits == 16 else near * 255 // top)).all()


def test_png_rgb_is_white_where_trns_says_so() -> None:
    samples = halves(8, 4).astype(np.int64)
    got = decoded(png(samples, 8, 2, (b"tRNS", struct.pack(">HHH", *RED))))
    expected = halves(8, 4)
    expected[:, :4] = WHITE
    assert np.array_equal(got, expected)
    nobody = decoded(png(samples, 8, 2, (b"tRNS", struct.pack(">HHH", RED[0], RED[1], 31))))
    assert np.array_equal(nobody, halves(8, 4))


def test_png_rgb_of_16_bits_with_trns_is_refused_by_name() -> None:
    samples = halves(8, 4).astype(np.int64) * 257
    with pytest.raises(ImageError, match="16 bits a channel and a transparent colour"):
        decode(png(samples, 16, 2, (b"tRNS", struct.pack(">HHH", 1, 2, 3))))
    assert np.array_equal(decoded(png(samples, 16, 2)), halves(8, 4))


@pytest.mark.parametrize(
    "chunk",
    [
        (b"zTXt", b"note\0\0" + zlib.compress(b"a" * 2_000_000)),
        (b"iTXt", b"note\0\1\0\0\0" + zlib.compress(b"a" * 2_000_000)),
        (b"tEXt", b"note\0" + b"a" * 2_000_000),
        (b"iCCP", b"p\0\0" + zlib.compress(bytes(5_000_000))),
        (b"iCCP", b"no end"),
        (b"eXIf", b"\xff" * 100),
        (b"acTL", b""),
        (b"fcTL", b"\xff" * 26),
        (b"gAMA", b""),
        (b"pHYs", b"\0"),
        (b"quUx", b"anything"),
    ],
    ids=lambda chunk: chunk[0].decode(),
)
@pytest.mark.parametrize("crc", [True, False])
def test_png_chunks_beside_the_pixels_cost_and_damage_nothing(
    chunk: tuple[bytes, bytes], crc: bool
) -> None:
    data = bytearray(png(halves().astype(np.int64), 8, 2, chunk))
    if not crc:
        at = data.index(chunk[0]) + 4 + len(chunk[1])
        data[at] ^= 0xFF
    assert np.array_equal(decoded(bytes(data)), halves())


# GIF, BMP


def gif(frame: tuple[int, int, int, int], canvas: tuple[int, int], *, key: int | None) -> bytes:
    """A frame of colour 1 (red) at left, top, width, height; colour 0 is blue."""
    left, top, width, height = frame
    codes = [4]
    for _ in range(width * height):  # a clear code before each pixel keeps the code size
        codes += [1, 4]
    codes += [5]
    bits = "".join(f"{code:03b}"[::-1] for code in codes)
    data = int(bits[::-1], 2).to_bytes((len(bits) + 7) // 8, "little")
    blocks = b"".join(
        bytes([len(data[at : at + 255])]) + data[at : at + 255] for at in range(0, len(data), 255)
    )
    control = b"" if key is None else b"!\xf9\x04\x01\0\0" + bytes([key]) + b"\0"
    return (
        b"GIF89a" + struct.pack("<HHBBB", *canvas, 0x80, 0, 0) + bytes([*BLUE, *RED])
        + control + b"," + struct.pack("<4HB", left, top, width, height, 0)
        + b"\x02" + blocks + b"\0;"
    )  # fmt: skip


@pytest.mark.parametrize("key", [None, 0, 1])
def test_gif_is_white_around_a_first_frame_that_covers_a_part(key: int | None) -> None:
    expected = np.full((16, 16, 3), WHITE, np.uint8)
    if key != 1:
        expected[4:10, 3:9] = RED
    assert np.array_equal(decoded(gif((3, 4, 6, 6), (16, 16), key=key)), expected)


def bmp(
    rows: bytes, width: int, height: int, bits: int, masks: tuple[int, ...] = (), header: int = 40
) -> bytes:
    fields = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, 3 if masks else 0,
                         len(rows), 0, 0, 0, 0)  # fmt: skip
    fields = (fields + struct.pack(f"<{len(masks)}I", *masks)).ljust(header, b"\0")
    start = 14 + len(fields)
    return struct.pack("<2sIII", b"BM", start + len(rows), 0, start) + fields + rows


@pytest.mark.parametrize("down", [True, False])
@pytest.mark.parametrize("header", [56, 108, 124])
@pytest.mark.parametrize("alphas", [(0, 0), (255, 255), (255, 0), (128, 255)])
def test_bmp_alpha_counts_unless_it_is_nought_everywhere(
    down: bool, header: int, alphas: tuple[int, int]
) -> None:
    row = bytes([*RED[::-1], alphas[0], *BLUE[::-1], alphas[1]])
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    got = decoded(bmp(row * 2, 2, -2 if down else 2, 32, masks, header))
    opaque = alphas == (0, 0)
    for column, (colour, alpha) in enumerate(zip((RED, BLUE), alphas, strict=True)):
        part = 1 if opaque else alpha / 255
        expected = np.array(colour) * part + 255 * (1 - part)
        assert np.abs(got[0, column] - expected).max() <= 1


@pytest.mark.parametrize(
    ("bits", "masks"),
    [
        (16, (0x7C00, 0x3E0, 0x1F)),
        (16, (0xF800, 0x7E0, 0x1F)),
        (16, (0xF00, 0xF0, 0xF, 0xF000)),
        (16, (0x7C00, 0x3E0, 0x1F, 0x8000)),
        (32, (0xFF0000, 0xFF00, 0xFF)),
        (32, (0xFF, 0xFF00, 0xFF0000, 0xFF000000)),
        (32, (0x3FF00000, 0xFFC00, 0x3FF)),
        (32, (0xFF000000, 0xFF0000, 0xFF00, 0xFF)),
    ],
)
def test_bmp_of_any_colour_masks(bits: int, masks: tuple[int, ...]) -> None:
    def sample(colour: tuple[int, int, int]) -> int:
        value = 0
        for channel, mask in zip((*colour, 255), masks, strict=False):
            shift = (mask & -mask).bit_length() - 1
            value |= round(channel * (mask >> shift) / 255) << shift
        return value

    row = b"".join(sample(colour).to_bytes(bits // 8, "little") for colour in (RED, BLUE))
    got = decoded(bmp(row, 2, 1, bits, masks, 124))
    coarsest = max(255 // (mask >> (mask & -mask).bit_length() - 1) for mask in masks[:3])
    assert np.abs(got[0].astype(int) - [RED, BLUE]).max() <= coarsest // 2 + 1


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("os2", [True, False])
def test_bmp_with_a_short_palette_of_black_and_white(bits: int, os2: bool) -> None:
    """Two greys in 4 or 8 bits are not a bilevel picture."""
    row = packed(np.array([[0, 1, 1, 0, 1, 0, 0, 1]]), bits)
    row = row.ljust(-(-len(row) // 4) * 4, b"\0")
    colours = [(0, 0, 0), (255, 255, 255)]
    if os2:
        header = struct.pack("<IHHHH", 12, 8, 1, 1, bits)
        palette = b"".join(bytes(colour) for colour in colours) + bytes(3 * (2**bits - 2))
    else:
        header = struct.pack("<IiiHHIIiiII", 40, 8, 1, 1, bits, 0, 0, 0, 0, 2, 0)
        palette = b"".join(bytes((*colour, 0)) for colour in colours)
    start = 14 + len(header) + len(palette)
    data = struct.pack("<2sIII", b"BM", start + len(row), 0, start) + header + palette + row
    assert decoded(data)[0, :, 0].tolist() == [0, 255, 255, 0, 255, 0, 0, 255]


def test_bmp_runs() -> None:
    palette = b"".join(bytes((*colour[::-1], 0)) for colour in (RED, BLUE)) + bytes(4 * 254)
    runs = b"\x14\0\x14\1\0\0" * 5 + b"\x14\0\0\4\1\1\1\1\x10\1\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, 40, 6, 1, 8, 1, len(runs), 0, 0, 0, 0)
    start = 14 + len(header) + len(palette)
    data = struct.pack("<2sIII", b"BM", start + len(runs), 0, start) + header + palette + runs
    assert np.array_equal(decoded(data), halves())
    long = data + b"\1\0" * 100_000
    with pytest.raises(ImageError, match="RLE"):
        decode(long)


# JPEG


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_jpeg_without_an_end_marker_has_all_its_pixels_or_is_truncated(
    options: dict[str, int], subsampling: str
) -> None:
    whole = encoded(scene(61, 43), "JPEG", quality=92, subsampling=subsampling, **options)
    assert whole.endswith(b"\xff\xd9")
    expected = decoded(whole)
    for end in (len(whole) - 1, len(whole) - 2):
        assert np.array_equal(decoded(whole[:end]), expected)
    # A shorter file is refused, but for a byte of padding or of a block that is nought anyway.
    read = 0
    for end in range(len(whole) - 3, len(whole) - 60, -1):
        with contextlib.suppress(ImageError):
            assert np.array_equal(decoded(whole[:end]), expected), end
            read += 1
    assert read <= 2


def test_jpeg_of_cmyk_is_inverted_as_adobe_writes_it() -> None:
    data = encoded(Image.fromarray(halves(64, 48)).convert("CMYK"), "JPEG", quality=98)
    assert b"Adobe" in data
    assert np.abs(decoded(data)[::8, ::8].astype(int) - halves(64, 48)[::8, ::8]).max() < 30


def test_what_stands_beside_a_jpeg_s_pixels_costs_and_damages_nothing() -> None:
    plain = encoded(scene(61, 43), "JPEG")
    junk = b"".join(
        struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body
        for marker, body in (
            (0xE1, b"Exif\0\0" + b"\xff" * 99),
            (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x>"),
            (0xE2, b"ICC_PROFILE\0\1\1" + b"\0" * 50),
            (0xE2, b"MPF\0" + b"\xff" * 40),
            (0xED, b"Photoshop 3.0\0" + b"8BIM" + b"\xff" * 9),
            (0xEE, b"Adobe"),
            (0xFE, b"\xff\xd9" * 100),
            (0xE0, b"JFIF\0"),
        )
    )
    assert np.array_equal(decoded(plain[:2] + junk + plain[2:]), decoded(plain))


# WebP


def test_webp_animation_gives_its_first_frame_over_white() -> None:
    first = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    first.paste((*RED, 255), (4, 4, 10, 10))
    second = Image.new("RGBA", (16, 16), (*BLUE, 255))
    buffer = io.BytesIO()
    first.save(buffer, "WEBP", save_all=True, append_images=[second], lossless=True)
    expected = np.full((16, 16, 3), WHITE, np.uint8)
    expected[4:10, 4:10] = RED
    assert np.array_equal(decoded(buffer.getvalue()), expected)
