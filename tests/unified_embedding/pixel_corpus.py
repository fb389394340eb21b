"""Pictures that have always been read rightly, and the digests of their pixels.

`python tests/unified_embedding/pixel_corpus.py` writes the digests anew. Do that only when pixels
change on purpose, which raises PREPROCESSING_REVISION, or when the pinned Pillow changes.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from unified_embedding.image import Box, Preprocessing, load_pixels

ROOT: Final = Path(__file__).resolve().parent.parent.parent
DIGESTS: Final = Path(__file__).with_name("pixel_digests.json")
_WAYS: Final = (
    ("letterbox", Preprocessing(), None),
    ("center_crop", Preprocessing(resize="center_crop", interpolation="bicubic"), None),
    ("crop", Preprocessing(), Box(0.1, 0.2, 0.45, 0.6)),
)


def scene(width: int = 601, height: int = 407) -> Image.Image:
    """A smooth coloured scene, the same everywhere."""
    rng = np.random.default_rng(7)
    small = rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """`image` as bytes of the format `kind`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def synthetic() -> Iterator[tuple[str, bytes]]:
    """Name and bytes of a picture of every format, mode and option that Pillow writes."""
    rgb = scene()
    alpha = rgb.copy()
    alpha.putalpha(rgb.convert("L"))
    wide = Image.fromarray((np.arange(601 * 407) * 7 % 65536).astype(np.uint16).reshape(407, 601))
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        image = (alpha if "A" in mode else rgb).convert(mode)
        yield f"png-{mode}", encoded(image, "PNG")
    yield "png-16", encoded(wide, "PNG")
    yield "png-P-transparent", encoded(rgb.convert("P"), "PNG", transparency=7)
    yield "png-P-alphas", encoded(rgb.convert("P"), "PNG", transparency=bytes(range(256)))
    yield "png-L-transparent", encoded(rgb.convert("L"), "PNG", transparency=100)
    yield "png-RGB-transparent", encoded(rgb, "PNG", transparency=rgb.getpixel((9, 9)))
    for bits in (1, 2, 4):
        yield f"png-P{bits}", encoded(rgb.quantize(2**bits), "PNG", bits=bits)
    yield "apng", encoded(rgb, "PNG", save_all=True, append_images=[alpha.convert("RGB")])
    for mode in ("L", "RGB", "CMYK"):
        for progressive in (False, True):
            yield (
                f"jpeg-{mode}-{progressive}",
                encoded(rgb.convert(mode), "JPEG", progressive=progressive),
            )
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        yield f"jpeg-{subsampling}", encoded(rgb, "JPEG", subsampling=subsampling, quality=92)
    yield "jpeg-restarts", encoded(rgb, "JPEG", restart_marker_rows=1)
    yield "jpeg-large", encoded(scene(2003, 1507), "JPEG", quality=90)
    yield "jpeg-large-progressive", encoded(scene(2003, 1507), "JPEG", progressive=True)
    yield "mpo", encoded(rgb, "MPO", save_all=True, append_images=[rgb])
    yield "webp", encoded(rgb, "WEBP")
    yield "webp-alpha", encoded(alpha, "WEBP")
    yield "webp-lossless", encoded(rgb, "WEBP", lossless=True)
    yield "webp-lossless-alpha", encoded(alpha, "WEBP", lossless=True)
    yield "webp-animated", encoded(alpha, "WEBP", save_all=True, append_images=[rgb])
    yield "gif", encoded(rgb.quantize(200), "GIF")
    yield "gif-L", encoded(rgb.convert("L"), "GIF")
    yield "gif-transparent", encoded(rgb.quantize(200), "GIF", transparency=3)
    yield "gif-animated", encoded(rgb, "GIF", save_all=True, append_images=[alpha.convert("RGB")])
    for mode in ("1", "L", "P", "RGB"):
        yield f"bmp-{mode}", encoded(rgb.convert(mode), "BMP")
    yield "bmp-RGBA", encoded(alpha, "BMP")
    for compression in ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "zstd"):
        for mode in ("L", "LA", "P", "RGB", "RGBA", "CMYK"):
            image = (alpha if "A" in mode else rgb).convert(mode)
            yield f"tiff-{compression}-{mode}", encoded(image, "TIFF", compression=compression)
        yield f"tiff-{compression}-16", encoded(wide, "TIFF", compression=compression)
    for compression in ("raw", "group3", "group4", "tiff_lzw"):
        bilevel = encoded(rgb.convert("1"), "TIFF", compression=compression)
        yield f"tiff-{compression}-1", bilevel
    yield "tiff-jpeg-L", encoded(rgb.convert("L"), "TIFF", compression="jpeg")
    yield "tiff-jpeg-RGB", encoded(rgb, "TIFF", compression="jpeg")
    yield "tiff-YCbCr", encoded(rgb.convert("YCbCr"), "TIFF")
    yield "tiff-LAB", encoded(rgb.convert("LAB"), "TIFF")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
            lossless = {"lossless": True} if kind == "WEBP" else {}
            yield f"{kind}-turned-{orientation}", encoded(rgb, kind, exif=exif, **lossless)


def demo() -> Iterator[tuple[str, bytes]]:
    """The demo's pictures."""
    for path in sorted((ROOT / "demo").glob("*/*")):
        yield f"{path.parent.name}/{path.name}", path.read_bytes()


def digests() -> dict[str, str]:
    """Name of the picture -> digest of its pixels, every way they are prepared."""
    found = {}
    for name, data in (*synthetic(), *demo()):
        pixels = [load_pixels(data, preprocessing, crop) for _, preprocessing, crop in _WAYS]
        found[name] = hashlib.sha256(np.stack(pixels).tobytes()).hexdigest()[:12]
    return found


if __name__ == "__main__":
    DIGESTS.write_text(json.dumps(digests(), indent=0) + "\n")
