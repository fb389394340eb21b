"""A small drawing surface for charts: smooth lines and text with Pillow alone."""

import itertools
from collections.abc import Sequence
from typing import Final, Literal

from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]
Point = tuple[float, float]

INK: Final[Color] = (34, 36, 40)
FAINT: Final[Color] = (120, 124, 130)
GRID: Final[Color] = (228, 228, 224)
PAPER: Final[Color] = (255, 255, 255)
BLUE: Final[Color] = (24, 100, 171)
ORANGE: Final[Color] = (201, 95, 14)
GREEN: Final[Color] = (22, 140, 76)
GREY: Final[Color] = (134, 138, 144)

_DRAWN: Final = 4
_KEPT: Final = 2
"""Drawn at four times the nominal size and reduced to twice: smooth edges, sharp on any screen."""


class Canvas:
    """A white page of `width` x `height` nominal pixels; y grows downwards."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._image = Image.new("RGB", (width * _DRAWN, height * _DRAWN), PAPER)
        self._pen = ImageDraw.Draw(self._image)

    def image(self) -> Image.Image:
        """The page, RGB, at twice the nominal size."""
        size = self.width * _KEPT, self.height * _KEPT
        return self._image.resize(size, Image.Resampling.BOX)

    def text(
        self,
        at: Point,
        text: str,
        size: int = 13,
        color: Color = INK,
        align: Literal["left", "middle", "right"] = "left",
    ) -> None:
        """Text whose middle line is at `at`."""
        anchor = {"left": "lm", "middle": "mm", "right": "rm"}[align]
        self._pen.text(_scaled(at), text, color, _font(size), anchor=anchor)

    def text_width(self, text: str, size: int = 13) -> float:
        """Width of a line of text."""
        return self._pen.textlength(text, _font(size)) / _DRAWN

    def line(
        self, points: Sequence[Point], color: Color, width: float = 1.5, dashed: bool = False
    ) -> None:
        """A line through points."""
        scaled = [_scaled(point) for point in points]
        if not dashed:
            self._pen.line(scaled, color, round(width * _DRAWN), joint="curve")
            return
        for start, end in itertools.pairwise(scaled):
            self._dashes(start, end, color, width)

    def dot(self, at: Point, radius: float, color: Color, filled: bool = True) -> None:
        """A disc, or a ring when not filled."""
        box = _scaled((at[0] - radius, at[1] - radius)), _scaled((at[0] + radius, at[1] + radius))
        fill = color if filled else PAPER
        self._pen.ellipse([*box[0], *box[1]], fill, color, round(1.6 * _DRAWN))

    def tick(self, at: Point, half: float, color: Color, width: float = 2.0) -> None:
        """A short upright stroke."""
        self.line([(at[0], at[1] - half), (at[0], at[1] + half)], color, width)

    def _dashes(self, start: Point, end: Point, color: Color, width: float) -> None:
        dx, dy = end[0] - start[0], end[1] - start[1]
        length = max((dx * dx + dy * dy) ** 0.5, 1.0)
        dash = 5.0 * _DRAWN
        for number in range(0, int(length // dash) + 1, 2):
            near, far = number * dash / length, min((number + 1) * dash / length, 1.0)
            ends = [(start[0] + dx * t, start[1] + dy * t) for t in (near, far)]
            self._pen.line(ends, color, round(width * _DRAWN))


def _scaled(point: Point) -> Point:
    return point[0] * _DRAWN, point[1] * _DRAWN


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * _DRAWN)
