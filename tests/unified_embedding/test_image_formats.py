"""Formats that are read beside the common ones, and what is said of those that are not."""

import base64
import gzip
import struct
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, features
from pixel_corpus import encoded, scene

from unified_embedding.errors import ImageError
from unified_embedding.image import FORMATS, SUFFIXES, Limits, Preprocessing, decode, load_pixels

RED, BLUE = (200, 30, 30), (20, 60, 220)
JPEG = encoded(scene(40, 30), "JPEG")
needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"\xff\x0a" + bytes(50), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b'<?xml version="1.0"?>\n<!-- x -->\n<svg/>', "an SVG drawing"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"8BPS\0\1", "a Photoshop document"),
        (b"<!DOCTYPE html><html>404", "an HTML page"),
        (b"\n <html><body>Not Found", "an HTML page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied', "an XML document"),
        (b'{"error": "not found"}', "JSON"),
        (base64.b64encode(JPEG), "base64 text"),
        (base64.b64encode(encoded(scene(9, 9), "PNG")), "base64 text"),
        (b"data:image/png;base64,iVBORw0KGgo=", "a data URL"),
        (b"https://example.org/cat.jpg", "an address"),
        (gzip.compress(JPEG), "a gzip file"),
        (b"PK\x03\x04" + bytes(40), "a ZIP archive"),
        (b"\0\0\0\x18ftypmp42" + bytes(16), "a video"),
        (b"\0\0\0\x18ftypcrx " + bytes(16), "raw file"),
        (b"\x1a\x45\xdf\xa3" + bytes(16), "WebM"),
        (b"\0\x05\x16\x07" + bytes(30), "AppleDouble"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (encoded(scene(16, 16), "ICO"), "an icon"),
        (encoded(scene(16, 16), "PPM"), "a PNM picture"),
    ],
)
def test_a_known_format_is_named(data: bytes, named: str) -> None:
    with pytest.raises(ImageError, match=f"not an image this server reads but .*{named}"):
        decode(data)


def test_the_first_bytes_of_an_unknown_file_are_shown_shortly() -> None:
    with pytest.raises(ImageError, match=r"first bytes b'hello, w'\); send JPEG, PNG, WEBP"):
        decode(b"hello, world" * 10_000)


def test_suffixes_are_small_letters_and_name_every_format() -> None:
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in SUFFIXES)
    assert {".jpg", ".jfif", ".jpe", ".avif", ".heic", ".tif"} <= set(SUFFIXES)
    assert set(FORMATS) <= {suffix[1:].upper() for suffix in SUFFIXES}


# AVIF


@needs_avif
@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_is_turned_upright(orientation: int) -> None:
    image = Image.new("RGB", (96, 64), RED)
    image.paste(BLUE, (0, 0, 48, 32))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, "AVIF", exif=exif, quality=95)
    turns = [None, None, *(Image.Transpose[name] for name in (
        "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270",
        "TRANSVERSE", "ROTATE_90"))]  # fmt: skip
    turn = turns[orientation]
    upright = np.asarray(image if turn is None else image.transpose(turn)).astype(int)
    got = np.asarray(decode(data)).astype(int)
    assert got.shape == upright.shape
    assert np.abs(got - upright)[8::16, 8::16].max() < 8


@needs_avif
def test_avif_alpha_and_animation() -> None:
    clear = Image.new("RGBA", (32, 32), (*RED, 0))
    assert (np.asarray(decode(encoded(clear, "AVIF"))) == 255).all()
    frames = [Image.new("RGB", (32, 32), colour) for colour in (RED, BLUE)]
    data = encoded(frames[0], "AVIF", save_all=True, append_images=frames[1:])
    assert np.abs(np.asarray(decode(data)).astype(int) - RED).max() < 6


@needs_avif
def test_damaged_metadata_of_an_avif_does_not_hide_the_picture() -> None:
    good = encoded(scene(64, 48), "AVIF", exif=b"Exif\0\0II*\0\x08\0\0\0" + bytes(30))
    damaged = good.replace(b"II*\0\x08\0\0\0", b"II*\0\xff\xff\xff\xff")
    assert damaged != good
    assert np.array_equal(np.asarray(decode(damaged)), np.asarray(decode(good)))


# HEIC: written by pillow-heif 1.4 (x265), since the library installed here decodes only. Left half
# red, right half blue; TURNED is stored lying; ALPHA is half transparent.

HALVES = base64.b64decode(
    "AAAAHGZ0eXBoZWl4AAAAAG1pZjFoZWl4bWlhZgAAAX5tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAA"
    "AAAAAAAAAAACJpbG9jAAAAAERAAAEAAQAAAAABogABAAAAAAAAAM4AAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAAB"
    "AABodmMxAAAAAA5waXRtAAAAAAABAAAA/mlwcnAAAADeaXBjbwAAAHdodmNDAQQIAAAAnjgAAAAAHvAA/P/4+AAADw"
    "NgAAEAF0ABDAH//wQIAAADAJ44AAADAAAeugJAYQABACpCAQEECAAAAwCeOAAAAwAAHpAGECCy3VyU1zcBDQYEAAAD"
    "AGQAAAMABCBiAAEACEQBwXMYMBiQAAAAE2NvbHJuY2x4AAEADQAGgAAAABRpc3BlAAAAAAAAAGAAAABAAAAAKGNsYX"
    "AAAABgAAAAAQAAADAAAAABAAAAAAAAAAL////wAAAAAgAAABBwaXhpAAAAAAMICAgAAAAYaXBtYQAAAAAAAAABAAEF"
    "gQIDBYQAAADWbWRhdAAAAMooAa8GNHsQiS58L/XzX///g0/2X9qoh8Dt6IX1GzyP6qLv/+zh4o1TFryaXxu52+zdHR"
    "KXWp/+BsZflQNuLej/964wVBUjwVVnFSoH/zhUh+H7K5Zv7/ZndNVYYc7aiXpdlHoEbLXAoh5Hr9VYumrUf+9cYKgq"
    "QWiah/3HPlxFpND7I+RZf6Tc4t7nc00o3+L53PbJuqVWN/mq8QADF4Pn1Uih/iB9bRzBsXks/4S4EfU497xknOH/A2"
    "MvyoF3b9n/RfGtKdhfs5Bg"
)
TURNED = base64.b64decode(
    "AAAAHGZ0eXBoZWl4AAAAAG1pZjFoZWl4bWlhZgAAAcltZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAA"
    "AAAAAAAAAAADRpbG9jAAAAAERAAAIAAQAAAAAB7QABAAAAAAAAAM4AAgAAAAACuwABAAAAAAAAACQAAAA4aWluZgAA"
    "AAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAAABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABCGlwcn"
    "AAAADnaXBjbwAAAHdodmNDAQQIAAAAnjgAAAAAHvAA/P/4+AAADwNgAAEAF0ABDAH//wQIAAADAJ44AAADAAAeugJA"
    "YQABACpCAQEECAAAAwCeOAAAAwAAHpAGECCy3VyU1zcBDQYEAAADAGQAAAMABCBiAAEACEQBwXMYMBiQAAAAE2NvbH"
    "JuY2x4AAEADQAGgAAAABRpc3BlAAAAAAAAAGAAAABAAAAAKGNsYXAAAABgAAAAAQAAADAAAAABAAAAAAAAAAL////w"
    "AAAAAgAAABBwaXhpAAAAAAMICAgAAAAJaXJvdAMAAAAZaXBtYQAAAAAAAAABAAEGgQIDBYSGAAAAGmlyZWYAAAAAAA"
    "AADmNkc2MAAgABAAEAAAD6bWRhdAAAAMooAa8GNHsQiS58L/XzX///g0/2X9qoh8Dt6IX1GzyP6qLv/+zh4o1TFrya"
    "Xxu52+zdHRKXWp/+BsZflQNuLej/964wVBUjwVVnFSoH/zhUh+H7K5Zv7/ZndNVYYc7aiXpdlHoEbLXAoh5Hr9VYum"
    "rUf+9cYKgqQWiah/3HPlxFpND7I+RZf6Tc4t7nc00o3+L53PbJuqVWN/mq8QADF4Pn1Uih/iB9bRzBsXks/4S4EfU4"
    "97xknOH/A2MvyoF3b9n/RfGtKdhfs5BgAAAABkV4aWYAAE1NACoAAAAIAAEBEgADAAAAAQAGAAAAAAAA"
)
ALPHA = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAmttZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAA"
    "AAAAAAAAAAADRpbG9jAAAAAERAAAIAAQAAAAACjwABAAAAAAAAAGAAAgAAAAAC7wABAAAAAAAAABIAAAA4aWluZgAA"
    "AAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAAABVpbmZlAgAAAAACAABodmMxAAAAAA5waXRtAAAAAAABAAABqmlwcn"
    "AAAAGCaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroC"
    "QGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoDCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwYkAAAATY29scm"
    "5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAYAAAAEAAAAAoY2xhcAAAAGAAAAABAAAAMAAAAAEAAAAAAAAAAv////AA"
    "AAACAAAAEHBpeGkAAAAAAwgICAAAAHBodmNDAQQIAAAAn/gAAAAAHvAA/Pz4+AAADwNgAAEAF0ABDAH//wQIAAADAJ"
    "/4AAADAAAeugJAYQABACVCAQEECAAAAwCf+AAAAwAAHsDCBBZbq5Ka5sCAAAAMgAAAAwCEYgABAAZEAcFzwYkAAAAO"
    "cGl4aQAAAAABCAAAACdhdXhDAAAAAHVybjptcGVnOmhldmM6MjAxNTphdXhpZDoxAAAAACBpcG1hAAAAAAAAAAIAAQ"
    "WBAgMFhAACBYYDB4iEAAAAGmlyZWYAAAAAAAAADmF1eGwAAgABAAEAAAB6bWRhdAAAAFwoAa8J0eJAOSMkv//6Mb//"
    "+EaeQ/a49EySkhT/76XPv4amP/72DV1IR4DwpSK8bkJXgfk+IsRAunoIW/sh+1FYmzbnYcLinDhepdX6s904JY9Rk0"
    "npPrMs1Vhb8AAAAA4oAa4TpuBzdKe0T7S6GA=="
)


@pytest.mark.parametrize(
    ("data", "size", "first", "last"),
    [
        (HALVES, (96, 48), RED, BLUE),
        (TURNED, (48, 96), RED, BLUE),
        (ALPHA, (96, 48), (227, 142, 142), (137, 157, 237)),
    ],
)
def test_heic(
    data: bytes, size: tuple[int, int], first: tuple[int, ...], last: tuple[int, ...]
) -> None:
    image = decode(data)
    assert image.size == size
    pixels = np.asarray(image).astype(int)
    assert np.abs(pixels[8, 8] - first).max() <= 4
    assert np.abs(pixels[-8, -8] - last).max() <= 4


def test_heic_without_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    with pytest.raises(ImageError, match=r"extra heic.*pip install 'unified-embedding\[heic\]'"):
        decode(HALVES)


def test_heic_is_under_the_same_limits() -> None:
    # As stored, in whole coding units: the box clap cuts 16 rows off.
    with pytest.raises(ImageError, match="96 x 64 = 6,144 pixels; the limit is 6,143"):
        decode(HALVES, limits=Limits(max_pixels=6143))
    at = HALVES.index(b"ispe") + 8
    lying = HALVES[:at] + struct.pack(">II", 1, 1) + HALVES[at + 8 :]
    with pytest.raises(ImageError):
        decode(lying)


# Colour profiles


def profile(primaries: list[list[float]], curve: bytes) -> bytes:
    """A matrix profile: XYZ (D50) of red, green and blue as columns, one curve for all."""
    tags = [
        b"XYZ " + struct.pack(">4x3i", *(round(row[c] * 65536) for row in primaries))
        for c in range(3)
    ] + [curve.ljust(-(-len(curve) // 4) * 4, b"\0")] * 3
    starts = [132 + 12 * 6]
    for tag in tags:
        starts.append(starts[-1] + len(tag))
    names = (b"rXYZ", b"gXYZ", b"bXYZ", b"rTRC", b"gTRC", b"bTRC")
    table = b"".join(
        name + struct.pack(">II", start, end - start)
        for name, (start, end) in zip(names, pairwise(starts), strict=True)
    )
    head = struct.pack(
        ">I4xI4s4s4s12x4s", starts[-1], 0x04300000, b"mntr", b"RGB ", b"XYZ ", b"acsp"
    )
    return head.ljust(128, b"\0") + struct.pack(">I", 6) + table + b"".join(tags)


P3 = [[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]]
SRGB = [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]
# sRGB's curve as a parametric one, kind 3 (ICC.1:2022, 10.18).
CURVE = b"para" + struct.pack(
    ">4xHxx5i", 3, *(round(v * 65536) for v in (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))
)
SMALL = Preprocessing(16)


def flat(colour: tuple[int, int, int], kind: str, icc: bytes) -> np.ndarray:
    lossless = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    data = encoded(Image.new("RGB", (32, 32), colour), kind, icc_profile=icc, **lossless)
    return load_pixels(data, SMALL)[8, 8].astype(int)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_display_p3_is_converted_to_srgb(kind: str) -> None:
    """The same light, written in the primaries of P3 (D50) and of sRGB."""
    level = np.array([180, 90, 60]) / 255
    light = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    wide = np.linalg.inv(P3) @ np.array(SRGB) @ light
    stored = np.where(wide <= 0.0031308, 12.92 * wide, 1.055 * wide ** (1 / 2.4) - 0.055)
    colour = tuple(int(v) for v in np.round(255 * stored))
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    got = flat(colour, kind, profile(P3, CURVE))
    assert np.abs(got - [180, 90, 60]).max() <= (3 if kind in ("JPEG", "AVIF") else 1)
    assert np.abs(got - colour).max() > 8


@pytest.mark.parametrize(
    "icc",
    [
        profile(SRGB, CURVE),
        b"",
        b"damaged",
        profile(P3, CURVE)[:200],
        profile(P3, b"curv" + struct.pack(">4xI", 10**9)),
        profile(P3, b"para" + struct.pack(">4xHxx", 9)),
        profile([[0.0] * 3] * 3, CURVE).replace(b"RGB XYZ ", b"CMYKLab "),
        profile(P3, CURVE) + bytes(300_000),
    ],
    ids=["sRGB", "none", "damaged", "short", "curve", "function", "CMYK", "long"],
)
def test_a_profile_of_srgb_and_a_damaged_one_leave_the_pixels_alone(icc: bytes) -> None:
    assert flat((180, 90, 60), "PNG", icc).tolist() == [180, 90, 60]


def test_a_grey_picture_keeps_its_levels_whatever_the_profile() -> None:
    data = encoded(Image.new("L", (32, 32), 77), "PNG", icc_profile=profile(P3, CURVE))
    assert (load_pixels(data, SMALL) == 77).all()


def test_a_damaged_tiff_writes_nothing_to_stderr() -> None:
    """libtiff's own messages would let a caller fill the server's log."""
    program = """
import io
from PIL import Image
from unified_embedding.errors import ImageError
from unified_embedding.image import decode
buffer = io.BytesIO()
Image.radial_gradient("L").save(buffer, "TIFF", compression="tiff_lzw")
data = bytearray(buffer.getvalue())
data[500:600] = b"\\xff" * 100
try:
    decode(bytes(data))
except ImageError as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=True
    )
    assert "truncated or corrupt" in result.stdout
    assert result.stderr == ""
