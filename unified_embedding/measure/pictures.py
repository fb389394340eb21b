"""Encoded pictures to send: those of a folder, or a generated mix of sizes and formats."""

import io
from functools import cache
from pathlib import Path
from typing import Final, Literal

import numpy as np
from PIL import Image

from unified_embedding.errors import PicturesError

SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp")
MIX: Final = "mix"
# Width and height of a photograph in a feed, about: 38 kB as a JPEG of the demo's shots.
PHOTOGRAPH: Final = (640, 480)
_QUALITY: Final = 88
# (width, height, format, how many of each 20): thumbnails, web pictures, a few photographs as
# cameras write them.
_SIZES: Final = (
    (320, 240, "JPEG", 3),
    (640, 480, "JPEG", 7),
    (768, 1024, "JPEG", 4),
    (1600, 1200, "JPEG", 2),
    (4032, 3024, "JPEG", 1),
    (500, 500, "PNG", 1),
    (800, 600, "WEBP", 2),
)


def load(source: str, seed: int) -> tuple[bytes, ...]:
    """The pictures of a folder, sorted by name; or, for "mix", twenty generated ones.

    Raises:
        PicturesError: the folder holds no picture.
    """
    return generated_mix(seed) if source == MIX else folder(source)


@cache
def folder(path: str) -> tuple[bytes, ...]:
    """The pictures of a folder, sorted by name. Raises PicturesError."""
    files = sorted(file for file in Path(path).glob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise PicturesError(f"{path} holds no picture ({', '.join(SUFFIXES)})")
    return tuple(file.read_bytes() for file in files)


@cache
def generated_mix(seed: int) -> tuple[bytes, ...]:
    """Twenty pictures of many sizes and three formats, the same for the same seed."""
    draw = np.random.default_rng(seed)
    return tuple(
        _encode(_scene(width, height, draw), kind)
        for width, height, kind, count in _SIZES
        for _ in range(count)
    )


@cache
def scaled(path: str, width: int, height: int) -> tuple[bytes, ...]:
    """The pictures of a folder as JPEGs that fill `width` x `height`. Raises PicturesError."""
    pictures = (Image.open(io.BytesIO(data)).convert("RGB") for data in folder(path))
    return tuple(
        _encode(picture.resize((width, height), Image.Resampling.BICUBIC), "JPEG")
        for picture in pictures
    )


def square(path: str, side: int, kind: Literal["JPEG", "PNG"]) -> bytes:
    """The first photograph of a folder as a square: repeated to fill it, or scaled down.

    So its detail does not depend on `side`, as that of an enlarged picture would.

    Raises:
        PicturesError: the folder holds no picture.
    """
    width, height = PHOTOGRAPH
    photograph = Image.open(io.BytesIO(scaled(path, width, height)[0]))
    if side <= height:
        filled = photograph.resize((side, side), Image.Resampling.BICUBIC)
    else:
        tiles = (-(-side // height), -(-side // width), 1)
        filled = Image.fromarray(np.tile(np.asarray(photograph), tiles)[:side, :side])
    file = io.BytesIO()
    filled.save(file, kind, quality=_QUALITY, compress_level=1)
    return file.getvalue()


def _scene(width: int, height: int, draw: np.random.Generator) -> Image.Image:
    """Soft shapes with edges and grain: it compresses about as a photograph does."""
    coarse = draw.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    base = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    blocks = draw.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    edges = Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)
    mixed = np.asarray(Image.blend(base, edges, 0.25), dtype=np.int16)
    grain = draw.integers(-6, 7, (height, width, 1), dtype=np.int16)
    return Image.fromarray(np.clip(mixed + grain, 0, 255).astype(np.uint8))


def _encode(picture: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, quality=_QUALITY)
    return file.getvalue()
