"""Encoded bytes to the uint8 pixels an embedder takes: the one preprocessing.

Serving, training, gates and tests all call `load_pixels`; there is no second path.
"""

import io
import math
import struct
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from unified_embedding.errors import ImageError
from unified_embedding.image.limits import DEFAULT_LIMITS, Limits

_FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# Part of the embedder's version: raise it whenever this file yields other pixels than before.
PREPROCESSING_REVISION: Final = 1

_ORIENTATION: Final = 0x0112  # EXIF 2.3, tag 274
_WHITE: Final = (255, 255, 255)
_RESAMPLING: Final = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
# What Pillow's decoders raise on damaged files; anything else is a bug of ours and must surface.
_DECODER_ERRORS: Final = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    ZeroDivisionError,
    struct.error,
)


@dataclass(frozen=True)
class Box:
    """A crop in fractions of the upright picture: 0 <= x0 < x1 <= 1, 0 <= y0 < y1 <= 1."""

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        values = (self.x0, self.y0, self.x1, self.y1)
        inside = all(math.isfinite(v) and 0 <= v <= 1 for v in values)
        if not inside or self.x0 >= self.x1 or self.y0 >= self.y1:
            raise ImageError(
                f"crop {self} is not a box: give x0,y0,x1,y1 as fractions of the upright "
                "picture with 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1"
            )

    def __str__(self) -> str:
        """The box as it travels: each number in the fewest digits that name exactly it."""
        return ",".join(
            repr(float(value)).removesuffix(".0") for value in (self.x0, self.y0, self.x1, self.y1)
        )

    def pixels(self, width: int, height: int) -> tuple[int, int, int, int]:
        """The box in whole pixels (left, top, right, bottom), at least one pixel each way."""
        left, right = _span(self.x0, self.x1, width)
        top, bottom = _span(self.y0, self.y1, height)
        return left, top, right, bottom


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes pixels. Travels with the weights in spec.json.

    Attributes:
        size: side of the square input in pixels.
        resize: "letterbox" (longer side to `size`, the rest white) or "center_crop"
            (shorter side to `size / crop_pct`, then the central square).
        interpolation: "bilinear" or "bicubic", antialiased.
        crop_pct: share of the shorter side that "center_crop" keeps.
    """

    size: int = 224
    resize: Literal["letterbox", "center_crop"] = "letterbox"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    crop_pct: float = 0.875

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ImageError(f"size {self.size} is not a side in pixels")
        if self.resize not in ("letterbox", "center_crop"):
            raise ImageError(f"resize {self.resize!r} is neither 'letterbox' nor 'center_crop'")
        if self.interpolation not in _RESAMPLING:
            raise ImageError(
                f"interpolation {self.interpolation!r} is not one of {list(_RESAMPLING)}"
            )
        if not 0 < self.crop_pct <= 1:
            raise ImageError(f"crop_pct {self.crop_pct} is not in (0, 1]")


def load_pixels(
    data: bytes,
    preprocessing: Preprocessing,
    crop: Box | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> NDArray[np.uint8]:
    """Decode one encoded picture and bring it to the embedder's input.

    Honours EXIF orientation, takes the first frame, lays transparency over white and
    reads CMYK, grey, palette and 16-bit pictures as RGB (ICC profiles are ignored).

    Returns:
        uint8 [size, size, 3], RGB, C-contiguous.

    Raises:
        ImageError: empty, too large, not one of `FORMATS`, truncated or corrupt.
    """
    image = decode(data, crop, limits, _wanted_side(preprocessing))
    resized = _letterbox if preprocessing.resize == "letterbox" else _center_crop
    return np.ascontiguousarray(np.asarray(resized(image, preprocessing), dtype=np.uint8))


def decode(
    data: bytes,
    crop: Box | None = None,
    limits: Limits = DEFAULT_LIMITS,
    side: tuple[Literal["longer", "shorter"], int] | None = None,
) -> Image.Image:
    """Decode one encoded picture to an upright RGB image, cropped when asked.

    `side` allows a JPEG to be decoded at a reduced scale (libjpeg's DCT scaling, Pillow's
    draft mode), as long as the longer or shorter side of the cropped region keeps at
    least that many pixels.

    Raises:
        ImageError: see `load_pixels`.
    """
    if not data:
        raise ImageError("the image is empty (0 bytes)")
    if len(data) > limits.max_bytes:
        raise ImageError(f"the image has {len(data):,} bytes; the limit is {limits.max_bytes:,}")
    image = _open(data, limits)
    try:
        if side is not None and image.format in ("JPEG", "MPO"):
            _draft(image, crop, *side)
        image.load()
        if image.format != "TIFF":  # Pillow turns TIFF upright by itself on load.
            image = _upright(image)
        if crop is not None:
            image = image.crop(crop.pixels(*image.size))
        return _rgb(image)
    except ImageError:
        raise
    except _DECODER_ERRORS as error:
        raise ImageError(f"the {image.format} image is truncated or corrupt ({error})") from error


def measure(
    data: bytes,
    preprocessing: Preprocessing,
    crop: Box | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> int:
    """What `load_pixels` of the same arguments will cost, in pixels, from the header alone.

    One unit is a pixel that is decoded in full; a pixel of a JPEG that is decoded at a reduced
    scale costs a part of it. A request's budget is a sum of these.

    Raises:
        ImageError: the header is not one that `load_pixels` would decode.
    """
    if not data:
        raise ImageError("the image is empty (0 bytes)")
    if len(data) > limits.max_bytes:
        raise ImageError(f"the image has {len(data):,} bytes; the limit is {limits.max_bytes:,}")
    image = _open(data, limits)
    width, height = image.size
    return width * height


def parse_crops(text: str, count: int) -> list[Box | None]:
    """Parse the request parameter `crop` for `count` pictures.

    One "x0,y0,x1,y1" serves every picture; `count` boxes are joined by ";", and an empty
    place among them leaves that picture whole.

    Raises:
        ImageError: not four numbers, not a box, or another number of boxes than pictures.
    """
    parts = text.split(";")
    if len(parts) == 1:
        return [_parse_box(parts[0])] * count
    if len(parts) != count:
        raise ImageError(
            f"crop holds {len(parts)} boxes for {count} pictures; give one box for all or one each"
        )
    return [_parse_box(part) if part.strip() else None for part in parts]


def _parse_box(text: str) -> Box:
    try:
        x0, y0, x1, y1 = (float(value) for value in text.split(","))
    except ValueError:
        raise ImageError(f"crop {text!r} is not four numbers x0,y0,x1,y1") from None
    return Box(x0, y0, x1, y1)


def _open(data: bytes, limits: Limits) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        start = bytes(data[:8])
        raise ImageError(
            f"not an image this server reads (first bytes {start!r}); send {', '.join(_FORMATS)}"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(
            f"the image has more pixels than the limit of {limits.max_pixels:,}"
        ) from None
    except _DECODER_ERRORS as error:
        raise ImageError(f"the image header is corrupt ({error})") from error
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"the image has no pixels ({width} x {height})")
    if width * height > limits.max_pixels:
        raise ImageError(
            f"the image has {width} x {height} = {width * height:,} pixels; "
            f"the limit is {limits.max_pixels:,}"
        )
    return image


def _wanted_side(preprocessing: Preprocessing) -> tuple[Literal["longer", "shorter"], int]:
    if preprocessing.resize == "letterbox":
        return "longer", preprocessing.size
    return "shorter", _short_side(preprocessing)


def _short_side(preprocessing: Preprocessing) -> int:
    return math.ceil(preprocessing.size / preprocessing.crop_pct)


def _draft(image: Image.Image, crop: Box | None, side: str, pixels: int) -> None:
    width, height = image.size
    region = (width, height)
    if crop is not None:
        # Upright or not, the region's share of the stored picture is bounded by the crop's
        # larger share, so the draft never falls below the pixels that are needed.
        share = min(crop.x1 - crop.x0, crop.y1 - crop.y0)
        region = (max(1, int(width * share)), max(1, int(height * share)))
    extent = max(region) if side == "longer" else min(region)
    scale = pixels / extent
    if scale <= 0.5:
        image.draft(None, (math.ceil(width * scale), math.ceil(height * scale)))


def _upright(image: Image.Image) -> Image.Image:
    if "exif" not in image.info and image.format not in ("PNG", "WEBP"):
        return image
    try:
        turned = image.getexif().get(_ORIENTATION, 1) not in (0, 1)
    except _DECODER_ERRORS:
        return image  # A damaged EXIF block does not make the picture unreadable.
    if not turned:
        return image
    upright = ImageOps.exif_transpose(image)
    return image if upright is None else upright


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        over_white = Image.new("RGB", rgba.size, _WHITE)
        over_white.paste(rgba, mask=rgba.getchannel("A"))
        return over_white
    if image.mode in ("1", "L", "P", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"):
        return image.convert("RGB")
    raise ImageError(
        f"{image.format} images of mode {image.mode} are not read; save with 8 or 16 bits a channel"
    )


def _from_16_bit(image: Image.Image) -> Image.Image:
    grey = np.asarray(image).astype(np.int64)
    if grey.min() < 0 or grey.max() > 0xFFFF:
        raise ImageError("the image has more than 16 bits a channel; save it with 8 or 16")
    return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")


def _letterbox(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    size = preprocessing.size
    width, height = image.size
    scale = size / max(width, height)
    fitted = (
        min(size, max(1, round(width * scale))),
        min(size, max(1, round(height * scale))),
    )
    if image.size != fitted:
        image = image.resize(fitted, _RESAMPLING[preprocessing.interpolation])
    if fitted == (size, size):
        return image
    canvas = Image.new("RGB", (size, size), _WHITE)
    canvas.paste(image, ((size - fitted[0]) // 2, (size - fitted[1]) // 2))
    return canvas


def _center_crop(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    size, short = preprocessing.size, _short_side(preprocessing)
    width, height = image.size
    # Cropping before resizing keeps a 10,000 x 1 panorama from growing to a 2,560,000 x 256 one.
    span = min(width, height) * size / short
    left, top = (width - span) / 2, (height - span) / 2
    box = (left, top, left + span, top + span)
    return image.resize((size, size), _RESAMPLING[preprocessing.interpolation], box=box)


def _span(low: float, high: float, extent: int) -> tuple[int, int]:
    start = min(round(low * extent), extent - 1)
    return start, max(start + 1, min(round(high * extent), extent))
