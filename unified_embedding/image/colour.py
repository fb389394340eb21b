"""Wide colour spaces to sRGB: matrix profiles (ICC.1:2022), such as Display P3 and Adobe RGB.

Written out instead of Pillow's ImageCms: a picture's pixels then follow from this file alone,
whatever version of Little CMS is installed, and no untrusted profile reaches its parser.
Profiles with tables (LUT), of grey and of CMYK pictures are left aside.
"""

import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

MAX_PROFILE_BYTES: Final = 200_000
"""Longer profiles are left aside; a matrix profile has a few kB."""

_MAX_TAGS: Final = 200
# IEC 61966-2-1 primaries, adapted to the white of ICC profiles (D50) by Bradford.
_SRGB_TO_XYZ: Final = np.array(
    [
        [0.4360747, 0.3850649, 0.1430804],
        [0.2225045, 0.7168786, 0.0606169],
        [0.0139322, 0.0971045, 0.7141733],
    ]
)
_CHANNELS: Final = ((b"rXYZ", b"rTRC"), (b"gXYZ", b"gTRC"), (b"bXYZ", b"bTRC"))
# A profile that moves no colour further than this says sRGB in other words.
_SAME: Final = 3
_STEPS: Final = 65535

Convert = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


@lru_cache(maxsize=32)
def to_srgb(profile: bytes) -> Convert | None:
    """The conversion of RGB pixels uint8 [..., 3] from `profile` to sRGB.

    None where there is nothing to convert: sRGB itself, a kind that is left aside, or a
    damaged profile (which never makes a picture unreadable).
    """
    try:
        curves, matrix = _read(profile)
    except (ValueError, struct.error, OverflowError):
        return None
    encode = _encoding()

    def convert(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        light = np.stack([curve[pixels[..., c]] for c, curve in enumerate(curves)], axis=-1)
        srgb = np.clip(light @ matrix.T, 0, 1)
        return np.asarray(encode[(srgb * _STEPS + 0.5).astype(np.uint16)], np.uint8)

    levels = np.arange(0, 256, 15, dtype=np.uint8)
    probe = np.stack(np.meshgrid(levels, levels, levels), axis=-1)
    moved = np.abs(convert(probe).astype(int) - probe).max()
    return convert if moved > _SAME else None


def _read(profile: bytes) -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
    """Linear light of each 8-bit level, a channel each, and the matrix to linear sRGB."""
    if len(profile) > MAX_PROFILE_BYTES or profile[36:40] != b"acsp":
        raise ValueError("not a profile")
    if profile[16:24] != b"RGB XYZ ":
        raise ValueError("not of RGB pixels, or not relative to XYZ")
    (count,) = struct.unpack_from(">I", profile, 128)
    if count > _MAX_TAGS:
        raise ValueError("too many tags")
    tags = {}
    for entry in range(count):
        name, start, size = struct.unpack_from(">4sII", profile, 132 + 12 * entry)
        tags[name] = profile[start : start + size]
    if any(name not in tags for pair in _CHANNELS for name in pair):
        raise ValueError("not a matrix profile")
    columns = [_xyz(tags[colorant]) for colorant, _ in _CHANNELS]
    matrix = np.linalg.inv(_SRGB_TO_XYZ) @ np.stack(columns, axis=1)
    curves = [_curve(tags[curve]) for _, curve in _CHANNELS]
    if not (np.isfinite(matrix).all() and all(np.isfinite(curve).all() for curve in curves)):
        raise ValueError("not finite")
    return curves, matrix.astype(np.float32)


def _xyz(tag: bytes) -> NDArray[np.float64]:
    kind, *values = struct.unpack_from(">4s4x3i", tag)
    if kind != b"XYZ ":
        raise ValueError("not a colorant")
    return np.array(values) / 65536


def _curve(tag: bytes) -> NDArray[np.float32]:
    x = np.arange(256) / 255
    kind = tag[:4]
    if kind == b"curv":
        (count,) = struct.unpack_from(">I", tag, 8)
        if count == 0:
            y = x
        elif count == 1:
            y = x ** (struct.unpack_from(">H", tag, 12)[0] / 256)
        else:
            table = np.frombuffer(tag, ">u2", count, 12) / 65535
            y = np.interp(x, np.linspace(0, 1, count), table)
    elif kind == b"para":
        y = _parametric(x, tag)
    else:
        raise ValueError("not a curve")
    return np.clip(y, 0, 1).astype(np.float32)


def _parametric(x: NDArray[np.float64], tag: bytes) -> NDArray[np.float64]:
    """ICC.1:2022, 10.18: Y = (aX + b)^g + c from d on, eX + f below."""
    (kind,) = struct.unpack_from(">H", tag, 8)
    names = ("g", "gab", "gabc", "gabcd", "gabcdef")
    if kind >= len(names):
        raise ValueError("not a function")
    given = struct.unpack_from(f">{len(names[kind])}i", tag, 12)
    p = dict.fromkeys("abcdefg", 0.0) | {"a": 1.0}
    # Kind 4 writes its offsets in another order than its letters: g a b c d e f, where c is the
    # slope below d, e the offset above and f the one below.
    p |= {name: value / 65536 for name, value in zip(names[kind], given, strict=True)}
    with np.errstate(all="ignore"):
        curved = np.maximum(p["a"] * x + p["b"], 0) ** p["g"]
    if kind == 0:
        return curved
    if kind in (1, 2):
        start = -p["b"] / p["a"] if p["a"] else 0.0
        return np.where(x >= start, curved + p["c"], p["c"])
    return np.where(x >= p["d"], curved + p["e"], p["c"] * x + p["f"])


@lru_cache(maxsize=1)
def _encoding() -> NDArray[np.uint8]:
    """sRGB levels of linear light in 65,536 steps (IEC 61966-2-1)."""
    light = np.arange(_STEPS + 1) / _STEPS
    level = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.asarray(np.round(255 * level), np.uint8)
