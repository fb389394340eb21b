"""The geometry of the input: crops in fractions, and the square that an embedder takes."""

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from PIL import Image

from unified_embedding.errors import ImageError, shown
from unified_embedding.image.colour import Convert

_WHITE: Final = (255, 255, 255)
_RESAMPLING: Final = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


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
        raise ImageError(f"crop {shown(text)} is not four numbers x0,y0,x1,y1") from None
    return Box(x0, y0, x1, y1)


def short_side(preprocessing: Preprocessing) -> int:
    """Pixels of the shorter side before "center_crop" cuts the square out."""
    return math.ceil(preprocessing.size / preprocessing.crop_pct)


def resized(
    image: Image.Image, preprocessing: Preprocessing, convert: Convert | None
) -> Image.Image:
    """`image` ("L" or "RGB") as the embedder's square input, its colours through `convert`."""
    way = _letterbox if preprocessing.resize == "letterbox" else _center_crop
    return way(image, preprocessing, convert)


def _letterbox(
    image: Image.Image, preprocessing: Preprocessing, convert: Convert | None
) -> Image.Image:
    size = preprocessing.size
    width, height = image.size
    scale = size / max(width, height)
    fitted = (
        min(size, max(1, round(width * scale))),
        min(size, max(1, round(height * scale))),
    )
    if image.size != fitted:
        image = image.resize(fitted, _RESAMPLING[preprocessing.interpolation])
    image = _converted(image, convert)
    if fitted == (size, size):
        return image
    canvas = Image.new("RGB", (size, size), _WHITE)
    canvas.paste(image, ((size - fitted[0]) // 2, (size - fitted[1]) // 2))
    return canvas


def _center_crop(
    image: Image.Image, preprocessing: Preprocessing, convert: Convert | None
) -> Image.Image:
    size, short = preprocessing.size, short_side(preprocessing)
    width, height = image.size
    # Cropping before resizing keeps a 10,000 x 1 panorama from growing to a 2,560,000 x 256 one.
    span = min(width, height) * size / short
    left, top = (width - span) / 2, (height - span) / 2
    box = (left, top, left + span, top + span)
    image = image.resize((size, size), _RESAMPLING[preprocessing.interpolation], box=box)
    return _converted(image, convert)


def _converted(image: Image.Image, convert: Convert | None) -> Image.Image:
    # Few pixels are left after the resize: converting these costs almost nothing.
    if image.mode == "L":
        return image.convert("RGB")
    if convert is None:
        return image
    return Image.fromarray(convert(np.asarray(image)))


def _span(low: float, high: float, extent: int) -> tuple[int, int]:
    start = min(round(low * extent), extent - 1)
    return start, max(start + 1, min(round(high * extent), extent))
