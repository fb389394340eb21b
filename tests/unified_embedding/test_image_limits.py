"""What a picture may cost is known before it is decoded, and bounded."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features
from pixel_corpus import encoded, scene
from test_image_pixels import bmp, png, tiff

from unified_embedding.errors import ImageError
from unified_embedding.image import (
    DEFAULT_LIMITS,
    SETTINGS,
    Box,
    Limits,
    Preprocessing,
    decode,
    load_pixels,
    measure,
)

LETTERBOX = Preprocessing()


def test_limits_from_settings() -> None:
    assert Limits.from_settings({}) == DEFAULT_LIMITS == Limits()
    parameters = {"max_image_bytes": "1_000", "max_image_pixels": "5", "image_formats": "png, jpeg"}
    environment = {"UNIFIED_EMBEDDING_MAX_IMAGE_BYTES": "2000", "PATH": "x"}
    limits = Limits.from_settings(parameters, environment)
    assert limits == Limits(max_bytes=2000, max_pixels=5, formats=("PNG", "JPEG"))
    for name, field in SETTINGS.items():
        value = "PNG" if field == "formats" else "17"
        assert getattr(Limits.from_settings({name: value}), field) in (17, ("PNG",))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"UNIFIED_EMBEDDING_MAX_IMAGE_BYTES": "64 MB"}, "UNIFIED_EMBEDDING_MAX_IMAGE_BYTES"),
        ({"max_request_pixels": "many"}, "max_request_pixels"),
        ({"max_image_pixels": "0"}, "UNIFIED_EMBEDDING_MAX_IMAGE_PIXELS"),
        ({"max_image_pixels": "-3"}, "UNIFIED_EMBEDDING_MAX_IMAGE_PIXELS"),
        ({"image_formats": "PNG,SVG"}, r"UNIFIED_EMBEDDING_IMAGE_FORMATS names \['SVG'\]"),
        ({"image_formats": ","}, "UNIFIED_EMBEDDING_IMAGE_FORMATS names nothing"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, str], named: str) -> None:
    with pytest.raises(ImageError, match=named):
        Limits.from_settings(settings)


def test_every_refusal_names_its_setting() -> None:
    small = scene(80, 60)
    jpeg, slow = encoded(small, "JPEG"), encoded(small, "JPEG", progressive=True)
    other = encoded(small, "PNG")
    cases = [
        (other, Limits(max_bytes=len(other) - 1), "MAX_IMAGE_BYTES"),
        (other, Limits(max_pixels=4799), "MAX_IMAGE_PIXELS"),
        (jpeg, Limits(max_jpeg_pixels=4799), "MAX_JPEG_PIXELS"),
        (slow, Limits(max_progressive_pixels=4799), "MAX_PROGRESSIVE_JPEG_PIXELS"),
        (jpeg, Limits(formats=("PNG",)), "IMAGE_FORMATS"),
    ]
    for data, limits, name in cases:
        for refused in (load_pixels, measure):
            with pytest.raises(ImageError, match=f"UNIFIED_EMBEDDING_{name}"):
                refused(data, LETTERBOX, limits=limits)
    load_pixels(other, LETTERBOX, limits=Limits(max_pixels=4800, max_bytes=len(other)))
    with pytest.raises(ImageError, match="MAX_REQUEST_BYTES"):
        Limits(max_request_bytes=9).check_request(10, 0)
    with pytest.raises(ImageError, match="MAX_REQUEST_PIXELS"):
        Limits(max_request_pixels=9).check_request(0, 10)
    DEFAULT_LIMITS.check_request(64_000_000, 100_000_000)


def test_measure_counts_what_a_decode_costs() -> None:
    image = scene(1600, 1200)
    full = 1600 * 1200
    assert measure(encoded(image, "PNG"), LETTERBOX) == full
    assert measure(encoded(image, "JPEG", progressive=True), LETTERBOX) == full
    baseline = encoded(image, "JPEG")
    assert measure(baseline, LETTERBOX) == 400 * 300 + full // 4
    assert measure(baseline, LETTERBOX, Box(0, 0, 0.1, 0.1)) == full
    # Sixteen of these are a request that a budget per picture would let pass.
    wide = Image.new("1", (7000, 7000))
    assert measure(encoded(wide, "PNG"), LETTERBOX) == 49_000_000


def test_a_jpeg_beyond_the_limit_of_pixels_is_decoded_at_a_reduced_scale() -> None:
    """Small limits stand for 50 and 200 megapixels."""
    data = encoded(scene(1600, 1200), "JPEG", quality=92)
    limits = Limits(max_pixels=500_000, max_jpeg_pixels=2_000_000)
    assert np.array_equal(load_pixels(data, LETTERBOX, limits=limits), load_pixels(data, LETTERBOX))
    assert decode(data, limits=limits).size == (800, 600)
    # Thin, but long: a reduced scale keeps enough of its longer side.
    thin = Box(0, 0.4, 1, 0.45)
    close = load_pixels(data, LETTERBOX, thin, limits).astype(int)
    assert np.abs(close - load_pixels(data, LETTERBOX, thin)).mean() < 3
    with pytest.raises(
        ImageError, match=r"so small a crop of a JPEG image of 1600 x 1200.*IMAGE_PIXELS"
    ):
        load_pixels(data, LETTERBOX, Box(0, 0, 0.1, 0.1), limits)


def chunks(data: bytes, extra: bytes) -> bytes:
    return data[:33] + extra + data[33:]


def tile_bomb() -> bytes:
    return tiff(b"\0" * 8, 64, 64, t258=(3, [8]), t262=(3, [1]), t259=(3, [8]),
                t322=(4, [26_000]), t323=(4, [26_000]), t324=(4, [8]), t325=(4, [8])
                ).replace(struct.pack("<H", 273), struct.pack("<H", 272))  # fmt: skip


def scans(count: int) -> bytes:
    data = encoded(scene(64, 64), "JPEG", progressive=True)
    first = data.index(b"\xff\xda")
    second = data.index(b"\xff", first + 2)
    while data[second + 1] in (0, *range(0xD0, 0xD8)):
        second = data.index(b"\xff", second + 2)
    return data[:-2] + data[first:second] * count + data[-2:]


def lying_avif() -> bytes:
    data = encoded(Image.new("RGB", (2048, 2048)), "AVIF", speed=10, quality=10)
    at = data.index(b"ispe") + 8
    return data[:at] + struct.pack(">II", 16, 16) + data[at + 8 :]


PLAIN = png(np.zeros((4, 4, 1), np.int64), 8, 0)
BOMBS = {
    "TIFF tile": (tile_bomb, "blocks of 26000 x 26000"),
    "TIFF strips of one place": (
        lambda: tiff(b"\0" * 4096, 64, 64, t258=(3, [8]), t262=(3, [1]), t259=(3, [8]),
                     t278=(4, [1]), t273=(4, [8] * 64), t279=(4, [4096] * 64)),
        "more bytes than it has",
    ),
    "TIFF cut small": (
        lambda: tiff(bytes(9000), 1, 9000, t258=(3, [8]), t262=(3, [1]), t278=(4, [1]),
                     t273=(4, [8] * 9000), t279=(4, [1] * 9000)),
        "cut into 9,000 blocks",
    ),
    "TIFF directory": (
        lambda: b"II*\0\x08\0\0\0" + struct.pack("<H", 60_000) + bytes(12 * 60_000),
        "60,000 entries",
    ),
    "TIFF samples": (
        lambda: tiff(bytes(4096), 64, 64, t258=(3, [8]), t262=(3, [1]), t277=(4, [4_000_000_000])),
        "4,000,000,000 samples a pixel",
    ),
    "JPEG scans": (lambda: scans(100), "more than 30 scans"),
    "JPEG segments": (
        lambda: b"\xff\xd8" + b"\xff\xfe\0\2" * 20_000 + encoded(scene(64, 64), "JPEG")[2:],
        "more than 10,000 segments",
    ),
    "JPEG tables": (
        lambda: b"\xff\xd8" + (b"\xff\xdb\0\x43" + bytes(65)) * 200
        + encoded(scene(64, 64), "JPEG")[2:],
        "tables are larger",
    ),
    "PNG chunks": (lambda: chunks(PLAIN, (bytes(4) + b"tEXt" + bytes(4)) * 5000), "more chunks"),
    "PNG data": (
        lambda: PLAIN.replace(b"IEND", b"IDAT", 1)[:-12]
        + struct.pack(">I", 2_000_000) + b"IDAT" + bytes(2_000_004),
        "bytes of compressed data for 20 bytes of pixels",
    ),
    "GIF blocks": (
        lambda: b"GIF89a\4\0\4\0\0\0\0" + b"!\xfe\1a\0" * 200_000 + b",",
        "blocks before its first frame",
    ),
    "GIF canvas": (
        lambda: b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\1\0\1\0\0\2\0\0\0;", "4,294,836,225 pixels"
    ),
    "WebP canvas": (
        lambda: b"RIFF\x24\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\xff\x3f\0\xff\x3f\0ANMF" + bytes(24),
        "268,435,456 pixels",
    ),
    "BMP runs": (lambda: rle(200_000), "bytes of runs"),
    "AVIF within": (lying_avif, "coded parts of 4,194,304 pixels"),
}  # fmt: skip


def rle(count: int) -> bytes:
    data = bytearray(bmp(b"\1\0" * count, 400, 400, 8))
    data[30] = 1
    return bytes(data)


@pytest.mark.parametrize("name", BOMBS)
def test_work_beyond_the_picture_is_refused_by_its_header(name: str) -> None:
    """`measure` decodes nothing: what it refuses was refused before any work."""
    if name.startswith("AVIF") and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    build, reason = BOMBS[name]
    with pytest.raises(ImageError, match=reason):
        measure(build(), LETTERBOX)


_COST = """
import json, sys, time
from PIL import Image
from unified_embedding.image import decode
def peak():  # not ru_maxrss, which a child inherits from pytest's process
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
base = open(sys.argv[1], "rb").read()
data = open(sys.argv[2], "rb").read()
decode(open(sys.argv[3], "rb").read())  # imports and tables
before = peak()
decode(data)
grown = peak() - before
def cpu(what):
    began = time.process_time()
    decode(what)
    return time.process_time() - began
pairs = []
def dear():  # Neighbours on the machine make times longer, never shorter.
    return min(other for _, other in pairs) > float(sys.argv[4]) * min(one for one, _ in pairs)
while len(pairs) < 3 or (len(pairs) < 15 and dear()):
    pairs.append((cpu(base), cpu(data)))
print(json.dumps([grown, min(one for one, _ in pairs), min(other for _, other in pairs)]))
"""


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_transparency_that_is_a_second_coded_picture_counts_as_one() -> None:
    picture = Image.new("RGBA", (640, 480), (200, 100, 50, 120))
    clear, opaque = encoded(picture, "AVIF"), encoded(picture.convert("RGB"), "AVIF")
    assert measure(clear, LETTERBOX) == 2 * measure(opaque, LETTERBOX) == 2 * 640 * 480
    measure(opaque, LETTERBOX, limits=Limits(max_pixels=640 * 480))
    with pytest.raises(ImageError, match=r"640 x 480 x 2, for its transparency, = 614,400 pixels"):
        measure(clear, LETTERBOX, limits=Limits(max_pixels=640 * 480))


def _noisy(width: int, height: int) -> Image.Image:
    smooth = np.asarray(scene(width, height)).astype(np.int16)
    noise = np.random.default_rng(0).integers(-6, 7, (height, width, 1), dtype=np.int16)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


def test_no_format_costs_three_times_the_memory_or_five_times_the_cpu_of_a_baseline_jpeg(
    tmp_path: Path,
) -> None:
    """Each decoded in full, four megapixels; the CPU times of a pair are taken in turns."""
    image = _noisy(2400, 1700)
    alpha = image.copy()
    alpha.putalpha(image.convert("L"))
    palette = image.quantize(256, method=Image.Quantize.FASTOCTREE)
    grey16 = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    base = encoded(image, "JPEG", quality=95, subsampling="4:4:4")
    turned = Image.Exif()
    turned[0x0112] = 6
    files = {
        "baseline": base,
        "turned": encoded(image, "JPEG", quality=95, subsampling="4:4:4", exif=turned),
        "progressive": encoded(image, "JPEG", quality=95, subsampling="4:4:4", progressive=True),
        "without end": base[:-2],
        "CMYK": encoded(image.convert("CMYK"), "JPEG", quality=90),
        "PNG": encoded(image, "PNG", compress_level=1),
        "PNG alpha": encoded(alpha, "PNG", compress_level=1),
        "PNG palette": encoded(palette, "PNG", compress_level=1, transparency=bytes(range(256))),
        "PNG key": encoded(image, "PNG", compress_level=1, transparency=(1, 2, 3)),
        "PNG 16": encoded(grey16, "PNG", compress_level=1),
        "WebP": encoded(image, "WEBP", quality=85, method=0),
        "WebP alpha": encoded(alpha, "WEBP", quality=85, method=0),
        "WebP lossless": encoded(alpha, "WEBP", lossless=True, quality=0, method=0),
        "GIF": encoded(palette, "GIF"),
        "BMP": encoded(image, "BMP"),
        "TIFF LZW": encoded(image, "TIFF", compression="tiff_lzw"),
        "TIFF deflate": encoded(alpha, "TIFF", compression="tiff_adobe_deflate"),
        "TIFF JPEG": encoded(image, "TIFF", compression="jpeg"),
    }
    if features.check("avif"):
        files["AVIF"] = encoded(image, "AVIF", speed=10, quality=70)
        files["AVIF alpha"] = encoded(alpha, "AVIF", speed=10, quality=70)
    tiny, yardstick, other = tmp_path / "tiny", tmp_path / "base", tmp_path / "other"
    tiny.write_bytes(encoded(scene(8, 8), "JPEG"))
    yardstick.write_bytes(base)
    costs, allowed = {}, {}
    for name, data in files.items():
        other.write_bytes(data)
        as_many = max(1, measure(data, LETTERBOX) / (image.width * image.height))
        allowed[name] = 5 * as_many
        command = [sys.executable, "-c", _COST, str(yardstick), str(other), str(tiny)]
        command.append(str(allowed[name]))
        result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
        costs[name] = json.loads(result.stdout)
    memory = costs["baseline"][0]
    assert 3 * image.width * image.height < memory < 6 * image.width * image.height
    for name, (grown, ours, theirs) in costs.items():
        # A file is copied once, without what its pixels do not need.
        assert grown <= 3 * memory + 2 * len(files[name]), (name, costs)
        assert theirs <= allowed[name] * ours, (name, costs)
