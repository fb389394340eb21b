"""A contact sheet: queries at the left, their best answers beside them, right ones framed."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont, ImageOps

from unified_embedding.errors import ImageError
from unified_embedding.image import decode

CELL: Final = 132
GAP: Final = 10
CAPTION: Final = 22
MARGIN: Final = 28
RIGHT: Final = (22, 140, 76)
INK: Final = (34, 36, 40)
FAINT: Final = (120, 124, 130)
PAPER: Final = (250, 250, 248)
EDGE: Final = (224, 224, 220)


@dataclass(frozen=True)
class Tile:
    """One answer of the sheet: the picture, what to write under it, and whether it is right."""

    picture: Path
    caption: str
    right: bool


@dataclass(frozen=True)
class SheetRow:
    """One query with its answers in several columns, for instance by float and by code."""

    query: Path
    caption: str
    answers: Sequence[Sequence[Tile]]


def draw(
    title: str, subtitle: str, columns: Sequence[str], rows: Sequence[SheetRow]
) -> Image.Image:
    """The whole sheet, RGB. `columns` names the answer groups of every row."""
    wide = len(rows[0].answers[0])
    group = wide * CELL + (wide - 1) * GAP
    left = MARGIN + CELL + 3 * GAP
    size = (
        left + len(columns) * group + (len(columns) - 1) * 3 * GAP + MARGIN,
        MARGIN + 92 + len(rows) * (CELL + CAPTION + GAP) + MARGIN,
    )
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN), title, INK, _font(26))
    pen.text((MARGIN, MARGIN + 34), subtitle, FAINT, _font(15))
    heads = [left + index * (group + 3 * GAP) for index in range(len(columns))]
    top = MARGIN + 68
    pen.text((MARGIN, top), "query", INK, _font(15))
    for x, name in zip(heads, columns, strict=True):
        pen.text((x, top), name, INK, _font(15))
    for index, row in enumerate(rows):
        y = MARGIN + 92 + index * (CELL + CAPTION + GAP)
        _cell(sheet, pen, (MARGIN, y), row.query, row.caption, framed=False)
        for x, hits in zip(heads, row.answers, strict=True):
            for place, hit in enumerate(hits):
                at = (x + place * (CELL + GAP), y)
                _cell(sheet, pen, at, hit.picture, hit.caption, framed=hit.right)
    return sheet


def _cell(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    at: tuple[int, int],
    picture: Path,
    caption: str,
    framed: bool,
) -> None:
    x, y = at
    pen.rectangle((x, y, x + CELL - 1, y + CELL - 1), fill=(255, 255, 255), outline=EDGE)
    # A picture that cannot be read any more leaves its cell empty.
    with contextlib.suppress(ImageError, OSError):
        opened = decode(picture.read_bytes(), side=("longer", CELL))
        image = ImageOps.contain(opened, (CELL - 8, CELL - 8))
        sheet.paste(image, (x + (CELL - image.width) // 2, y + (CELL - image.height) // 2))
    if framed:
        pen.rectangle((x, y, x + CELL - 1, y + CELL - 1), outline=RIGHT, width=4)
    pen.text((x + 2, y + CELL + 3), _fitted(pen, caption), RIGHT if framed else FAINT, _font(12))


def _fitted(pen: ImageDraw.ImageDraw, text: str) -> str:
    if pen.textlength(text, _font(12)) <= CELL - 4:
        return text
    while pen.textlength(text + "...", _font(12)) > CELL - 4:
        text = text[:-1]
    return text.rstrip() + "..."


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
