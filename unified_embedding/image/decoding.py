"""Encoded bytes to pixels: a header is read and checked, then Pillow decodes what it needs."""

import contextlib
import math
import struct
from collections.abc import Callable
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unified_embedding.errors import ImageError
from unified_embedding.image import bmp, gif, isobmff, jpeg, png, tiff, webp
from unified_embedding.image.colour import MAX_PROFILE_BYTES, to_srgb
from unified_embedding.image.container import Container, corrupt, unread
from unified_embedding.image.decoders import opened
from unified_embedding.image.formats import identify
from unified_embedding.image.geometry import Box, Preprocessing, resized, short_side
from unified_embedding.image.limits import DEFAULT_LIMITS, Limits, setting

# Part of the embedder's version: raise it whenever this package yields other pixels than before.
PREPROCESSING_REVISION: Final = 2

Side = tuple[Literal["longer", "shorter"], int]

_PARSERS: Final[dict[str, Callable[[bytes], Container]]] = {
    "JPEG": jpeg.parse,
    "PNG": png.parse,
    "WEBP": webp.parse,
    "GIF": gif.parse,
    "BMP": bmp.parse,
    "TIFF": tiff.parse,
    "AVIF": isobmff.parse_avif,
    "HEIC": isobmff.parse_heic,
}
# EXIF 2.3, tag 274: what turns the stored picture upright.
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BAND: Final = 1 << 20


def load_pixels(
    data: bytes,
    preprocessing: Preprocessing,
    crop: Box | None = None,
    limits: Limits = DEFAULT_LIMITS,
    on_decoded: Callable[[], object] | None = None,
) -> NDArray[np.uint8]:
    """Decode one encoded picture and bring it to the embedder's input.

    Takes the first frame, turns it upright by the number in its orientation tag, lays
    transparency over white, reads CMYK, grey, palette and 16-bit pictures as RGB and
    converts colours with a matrix profile (Display P3, Adobe RGB) to sRGB. Calls `on_decoded`
    when only the resize is left to do.

    Returns:
        uint8 [size, size, 3], RGB, C-contiguous.

    Raises:
        ImageError: empty, beyond `limits`, not one of `limits.formats`, of a layout that is
            not read, truncated or corrupt.
    """
    container = _inspect(data, limits)
    image = _decoded(container, crop, limits, _wanted_side(preprocessing))
    if on_decoded is not None:
        on_decoded()
    known = 0 < len(container.profile) <= MAX_PROFILE_BYTES
    convert = to_srgb(container.profile) if known else None
    return np.ascontiguousarray(np.asarray(resized(image, preprocessing, convert), np.uint8))


def decode(
    data: bytes,
    crop: Box | None = None,
    limits: Limits = DEFAULT_LIMITS,
    side: Side | None = None,
) -> Image.Image:
    """Decode one encoded picture to an upright RGB image, cropped when asked.

    `side` allows a JPEG to be decoded at a reduced scale (libjpeg's DCT scaling, Pillow's
    draft mode), as long as the longer or shorter side of the cropped region keeps at
    least that many pixels. Colours stay in the picture's own space.

    Raises:
        ImageError: see `load_pixels`.
    """
    image = _decoded(_inspect(data, limits), crop, limits, side)
    return image if image.mode == "RGB" else image.convert("RGB")


def measure(
    data: bytes,
    preprocessing: Preprocessing,
    crop: Box | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> int:
    """What `load_pixels` of the same arguments will cost, in pixels, from the header alone.

    One unit is a pixel that is decoded in full. A pixel of a JPEG that is decoded at a reduced
    scale costs a quarter (its entropy coding), and each that is kept one more. A request's
    budget is a sum of these.

    Raises:
        ImageError: the header is not one that `load_pixels` would decode.
    """
    container = _inspect(data, limits)
    _, kept = _draft(container, crop, limits, _wanted_side(preprocessing))
    if kept == container.pixels or container.progressive:
        return container.pixels
    return kept + container.pixels // 4


def _inspect(data: bytes, limits: Limits) -> Container:
    """The header, checked against the limits. Raises ImageError."""
    if not data:
        raise ImageError("the image is empty (0 bytes)")
    if len(data) > limits.max_bytes:
        raise ImageError(
            f"the image has {len(data):,} bytes; the limit is {limits.max_bytes:,} "
            f"({setting('max_bytes')})"
        )
    kind = identify(data, limits.formats)
    try:
        container = _PARSERS[kind](data)
    except (struct.error, IndexError, OverflowError):
        raise corrupt(kind, "it ends within its header") from None
    except ImageError:
        raise
    # Whatever a reader trips over in one picture is that picture's fault, and costs it alone.
    except Exception as error:
        raise corrupt(kind, str(error)[:80] or type(error).__name__) from error
    if container.width < 1 or container.height < 1:
        raise ImageError(f"the image has no pixels ({container.width} x {container.height})")
    if container.progressive:
        field, what = "max_progressive_pixels", "progressive JPEG image"
    elif container.scalable:
        field, what = "max_jpeg_pixels", "JPEG image"
    else:
        field, what = "max_pixels", f"{kind} image"
    limit = getattr(limits, field)
    if container.pixels > limit:
        twice = " x 2, for its transparency," if container.planes == 2 else ""
        raise ImageError(
            f"the {what} has {container.width} x {container.height}{twice} = {container.pixels:,} "
            f"pixels; the limit is {limit:,} ({setting(field)})"
        )
    return container


def _decoded(
    container: Container, crop: Box | None, limits: Limits, side: Side | None
) -> Image.Image:
    """The picture upright, cropped and without transparency, in mode "L" or "RGB"."""
    draft, _ = _draft(container, crop, limits, side)
    try:
        image = _loaded(container, draft)
        if container.finish is not None:
            image = container.finish(image)
        if container.orientation in _TURNS:
            image = image.transpose(_TURNS[container.orientation])
        if crop is not None:
            image = image.crop(crop.pixels(*image.size))
        return _opaque(image, container.format)
    except ImageError:
        raise
    # Whatever a decoder trips over in one picture is that picture's fault, and costs it alone.
    except Exception as error:
        raise corrupt(container.format, str(error)[:80] or type(error).__name__) from error


def _loaded(container: Container, draft: tuple[int, int] | None) -> Image.Image:
    """What is stored, as Pillow decodes it. A file without an end marker is tried with several."""
    data = container.file()
    if not container.tails:
        return opened(container, data, draft)
    if b"\xff\xd9" in data:  # An end marker, and something behind it.
        with contextlib.suppress(OSError):
            return opened(container, data, draft)
    first = opened(container, data + container.tails[0], draft)
    for tail in container.tails[1:]:
        if not _same(first, opened(container, data + tail, draft)):
            raise corrupt(container.format, "it ends within its pixels")
    return first


def _same(one: Image.Image, other: Image.Image) -> bool:
    step = max(1, _BAND // one.width)
    bands = ((0, top, one.width, min(one.height, top + step)) for top in range(0, one.height, step))
    return all(one.crop(band).tobytes() == other.crop(band).tobytes() for band in bands)


def _wanted_side(preprocessing: Preprocessing) -> Side:
    if preprocessing.resize == "letterbox":
        return "longer", preprocessing.size
    return "shorter", short_side(preprocessing)


def _draft(
    container: Container, crop: Box | None, limits: Limits, side: Side | None
) -> tuple[tuple[int, int] | None, int]:
    """The size to ask a JPEG decoder for, None for the full one, and the pixels that it keeps.

    Raises:
        ImageError: the crop needs more pixels at a time than `limits.max_pixels`.
    """
    if not container.scalable:
        return None, container.pixels
    shares = (1.0, 1.0)
    if crop is not None:
        shares = (crop.x1 - crop.x0, crop.y1 - crop.y0)
        if container.orientation >= 5:
            shares = shares[::-1]
    # Upright or not, the region's share of the stored picture is bounded by the crop's smaller
    # share, so the draft never falls below the pixels that are needed.
    careful = _draft_size(container, (min(shares), min(shares)), side)
    if _kept(container, careful) <= limits.max_pixels:
        return careful, _kept(container, careful)
    exact = _draft_size(container, shares, side)
    if side is None:
        while _kept(container, exact) > limits.max_pixels:
            width, height = exact or (container.width, container.height)
            exact = math.ceil(width / 2), math.ceil(height / 2)
    if _kept(container, exact) > limits.max_pixels:
        raise ImageError(
            f"so small a crop of a JPEG image of {container.width} x {container.height} needs "
            f"{_kept(container, exact):,} pixels decoded; the limit is {limits.max_pixels:,} "
            f"({setting('max_pixels')}); send the region itself, or a larger crop"
        )
    return exact, _kept(container, exact)


def _draft_size(
    container: Container, shares: tuple[float, float], side: Side | None
) -> tuple[int, int] | None:
    if side is None:
        return None
    width, height = container.width, container.height
    region = (max(1, int(width * shares[0])), max(1, int(height * shares[1])))
    which, pixels = side
    scale = pixels / (max(region) if which == "longer" else min(region))
    return (math.ceil(width * scale), math.ceil(height * scale)) if scale <= 0.5 else None


def _kept(container: Container, draft: tuple[int, int] | None) -> int:
    """Pixels of the scale that libjpeg takes for `draft`: 1, 1/2, 1/4 or 1/8."""
    if draft is None:
        return container.pixels
    factor = min(container.width // draft[0], container.height // draft[1])
    scale = next((scale for scale in (8, 4, 2) if factor >= scale), 1)
    return math.ceil(container.width / scale) * math.ceil(container.height / scale)


def _opaque(image: Image.Image, kind: str) -> Image.Image:
    """Over white, in mode "L" (grey, a third of the work) or "RGB"."""
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("LA", "La"):
        grey = image if image.mode == "LA" else image.convert("LA")
        white = Image.new("L", grey.size, 255)
        white.paste(grey.getchannel("L"), mask=grey.getchannel("A"))
        return white
    if image.mode in ("RGBA", "RGBa", "PA") or "transparency" in image.info:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", rgba.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("P", "CMYK", "YCbCr", "LAB", "RGBX"):
        return image.convert("RGB")
    if image.mode in ("L", "RGB"):
        return image
    raise unread(kind, f"mode {image.mode}")
