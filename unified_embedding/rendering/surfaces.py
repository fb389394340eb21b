"""Procedural floors, table tops and walls: seamless textures made from noise, nothing copied.

Every maker takes a random generator and a side S in pixels, and returns display RGB in [0, 1],
float32 [S, S, 3], for a square of `Surface.metres`. Noise is filtered white noise on a torus, so
each texture tiles.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from unified_embedding.rendering.mesh import Floats, linear

SIDE: Final = 1024
"""Pixels along a texture's side unless another is asked for."""

Maker = Callable[[np.random.Generator, int], NDArray[np.float32]]
Kind = tuple[Maker, float, float, float]
"""A maker, its share, the metres its texture covers, and its gloss."""

_WOODS: Final = (
    (0.72, 0.56, 0.38),
    (0.60, 0.42, 0.26),
    (0.44, 0.29, 0.18),
    (0.80, 0.68, 0.50),
    (0.62, 0.57, 0.50),
    (0.33, 0.24, 0.18),
    (0.70, 0.50, 0.30),
)
_TILES: Final = (
    (0.86, 0.84, 0.80),
    (0.62, 0.60, 0.57),
    (0.74, 0.52, 0.40),
    (0.40, 0.42, 0.44),
    (0.80, 0.74, 0.64),
)
_CARPETS: Final = (
    (0.60, 0.56, 0.50),
    (0.42, 0.45, 0.50),
    (0.46, 0.34, 0.30),
    (0.38, 0.44, 0.38),
    (0.72, 0.68, 0.62),
)
_PAINTS: Final = (
    (0.92, 0.91, 0.88),
    (0.88, 0.85, 0.78),
    (0.80, 0.84, 0.86),
    (0.72, 0.78, 0.74),
    (0.84, 0.76, 0.70),
    (0.58, 0.66, 0.72),
    (0.78, 0.70, 0.56),
    (0.50, 0.56, 0.52),
    (0.70, 0.58, 0.56),
)
_BRICKS: Final = ((0.58, 0.32, 0.25), (0.68, 0.46, 0.35), (0.86, 0.84, 0.81), (0.50, 0.40, 0.35))
_CLOTHS: Final = (
    (0.86, 0.84, 0.79),
    (0.55, 0.62, 0.68),
    (0.70, 0.40, 0.36),
    (0.52, 0.58, 0.46),
    (0.80, 0.70, 0.48),
)


@dataclass(frozen=True)
class Surface:
    """A seamless texture with its mip levels.

    Attributes:
        levels: linear RGB, float32 [S, S, 3], [S/2, S/2, 3], ... to one pixel.
        metres: side of the square that the texture covers.
        gloss: 0 is matt, 1 a polished mirror-like coat.
    """

    levels: tuple[Floats, ...]
    metres: float
    gloss: float

    def color(self, u: Floats, v: Floats, footprint: Floats) -> Floats:
        """Linear RGB float32 [N, 3] at (u, v) metres; `footprint` is a pixel's width there."""
        texel = self.metres / len(self.levels[0])
        wanted = np.log2(np.maximum(footprint / texel, 1e-6)).round()
        level = np.clip(wanted, 0, len(self.levels) - 1).astype(np.int64)
        out = np.empty((len(u), 3), np.float32)
        for index in np.unique(level):
            at = level == index
            out[at] = _bilinear(self.levels[index], u[at] / self.metres, v[at] / self.metres)
        return out


def make_surface(
    maker: Maker, rng: np.random.Generator, metres: float, gloss: float = 0.0, side: int = SIDE
) -> Surface:
    """Paint a texture and build its mip levels, averaged in linear light."""
    levels = [linear(np.clip(maker(rng, side), 0, 1))]
    while len(levels[-1]) > 1:
        image = levels[-1]
        levels.append(
            (image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2]) / 4
        )
    return Surface(tuple(levels), metres, gloss)


def planks(rng: np.random.Generator, side: int = SIDE) -> Floats:
    """Wooden boards with grain, staggered joints and dark gaps."""
    rows = int(rng.integers(8, 15))
    base = _pick(_WOODS, rng)
    row, joint, board = _boards(rows, rng, side)
    grain = _noise((0.4, SIDE / 24), rng, side) + 0.5 * _noise((0.3, SIDE / 8), rng, side)
    rings = np.sin(18 * _noise((SIDE / 90, SIDE / 5), rng, side))
    shift = rng.integers(0, side, board.max() + 1)[board]
    line = np.arange(side)[:, None], (np.arange(side)[None, :] + shift) % side
    tone = 1 + 0.10 * rng.standard_normal(board.max() + 1)[board]
    tone = tone * (1 + 0.06 * grain[line] + 0.035 * rings[line])
    gap = np.minimum(row, joint)
    tone = tone * np.clip(0.35 + gap / 4, 0.35, 1)
    warmth = 1 + 0.03 * rng.standard_normal(board.max() + 1)[board]
    return _tinted(base, tone, warmth)


def table_wood(rng: np.random.Generator, side: int = SIDE) -> Floats:
    """One wide wooden surface with long grain."""
    base = _pick(_WOODS, rng)
    grain = _noise((0.5, SIDE / 12), rng, side) + 0.6 * _noise((1.5, SIDE / 4), rng, side)
    rings = np.sin(14 * _noise((SIDE / 40, SIDE / 2.5), rng, side))
    return _tinted(base, 1 + 0.05 * grain + 0.06 * rings, np.ones((side, side), np.float32))


def tiles(rng: np.random.Generator, side: int = SIDE) -> Floats:
    """Square or oblong ceramic tiles with grout, slightly uneven in tone."""
    across, down = int(rng.choice([3, 4, 6])), int(rng.choice([3, 4, 6, 8]))
    return _grid(across, down, 0.0, _pick(_TILES, rng), (0.74, 0.72, 0.69), 2.5, 0.035, rng, side)


def checkered(rng: np.random.Generator, side: int = SIDE) -> Floats:
    """Two-coloured floor tiles in a chequerboard."""
    count = int(rng.choice([4, 6]))
    light, dark = np.array((0.88, 0.86, 0.82)), np.array(_pick(_TILES, rng)) * 0.55
    cell = np.arange(side) * count // side
    odd = ((cell[:, None] + cell[None, :]) % 2)[..., None]
    tone = 1 + 0.03 * _noise((3, 3), rng, side) + 0.02 * _noise((30, 30), rng, side)
    edge = _cell_edge(count, side)
    seam = np.clip(np.minimum(edge[:, None], edge[None, :]) / 3, 0.75, 1)
    return np.asarray(np.where(odd, dark, light) * (tone * seam)[..., None], np.float32)


def carpet(rng: np.random.Generator, side: int = SIDE) -> Floats:
    """Short pile: fine speckle over broad wear."""
    tone = 1 + 0.13 * _noise((0.9, 0.9), rng, side) + 0.05 * _noise((40, 40), rng, side)
    return _tinted(_pick(_CARPETS, rng), tone, 1 + 0.02 * _noise((1.5, 1.5), rng, side))


def concrete(rng: np.random.Generator, side: int = SIDE) -> Floats:
    """Smoothed concrete with clouds, pores and a hair crack or two."""
    clouds = sum(
        weight * _noise((s, s), rng, side) for s, weight in ((90, 0.07), (25, 0.04), (6, 0.02))
    )
    pores = np.clip(_noise((1.6, 1.6), rng, side) - 2.4, 0, 1)
    crack = np.exp(-np.abs(_noise((60, 60), rng, side)) / 0.006)
    tone = 1 + clouds + 0.03 * _noise((0.7, 0.7), rng, side) - 0.5 * pores - 0.12 * crack
    grey = float(rng.uniform(0.5, 0.68))
    return _tinted((grey, grey * 0.985, grey * 0.96), tone, np.ones((side, side), np.float32))


def stone(rng: np.random.Generator, side: int = SIDE) -> Floats:
    """A polished worktop: pale marble with veins, or dark granite."""
    veins = np.exp(-np.abs(_noise((70, 70), rng, side) + 0.25 * _noise((12, 12), rng, side)) / 0.07)
    speckle = _noise((1.2, 1.2), rng, side)
    if rng.random() < 0.6:
        tone = 1 + 0.03 * _noise((60, 60), rng, side) - 0.16 * veins
        return _tinted((0.88, 0.87, 0.85), tone, np.ones((side, side), np.float32))
    tone = 1 + 0.22 * speckle + 0.2 * np.clip(_noise((2.5, 2.5), rng, side) - 1.2, 0, 2)
    return _tinted((0.30, 0.29, 0.28), tone, np.ones((side, side), np.float32))


def cloth(rng: np.random.Generator, side: int = SIDE) -> Floats:
    """A woven tablecloth, plain, checked or striped."""
    weave = np.sin(np.arange(side) * np.pi / 2)
    base = np.array(_pick(_CLOTHS, rng))
    count = int(rng.choice([8, 12, 16]))
    band = (np.arange(side) * count // side % 2).astype(np.float32)
    pattern = rng.choice(["plain", "checked", "striped"], p=[0.4, 0.4, 0.2])
    if pattern == "checked":
        mix = (band[:, None] + band[None, :]) / 2
    else:
        mix = np.broadcast_to(band[None, :] * (pattern == "striped"), (side, side))
    tone = 1 + 0.025 * (weave[:, None] + weave[None, :]) + 0.03 * _noise((20, 20), rng, side)
    white = np.array((0.92, 0.91, 0.88))
    mixed = base * (1 - mix[..., None]) + white * mix[..., None]
    return np.asarray(mixed * tone[..., None], np.float32)


def paint(rng: np.random.Generator, side: int = SIDE) -> Floats:
    """Rolled wall paint, nearly even."""
    tone = 1 + 0.012 * _noise((1.5, 1.5), rng, side) + 0.012 * _noise((60, 60), rng, side)
    return _tinted(_pick(_PAINTS, rng), tone, np.ones((side, side), np.float32))


def stripes(rng: np.random.Generator, side: int = SIDE) -> Floats:
    """Wallpaper with upright stripes in two neighbouring tones."""
    count = int(rng.choice([8, 12, 16, 24]))
    base = np.array(_pick(_PAINTS, rng))
    other = np.clip(base * rng.uniform(0.78, 0.92, 3), 0, 1)
    phase = np.arange(side) * count / side % 1
    mix = (np.clip(np.abs(phase - 0.5) * 40 - 10, 0, 1))[None, :, None]
    tone = 1 + 0.012 * _noise((2, 2), rng, side)
    return np.asarray((base * (1 - mix) + other * mix) * tone[..., None], np.float32)


def motif(rng: np.random.Generator, side: int = SIDE) -> Floats:
    """Wallpaper with a small leaf-like figure on a half-drop repeat."""
    count = int(rng.choice([8, 10, 12]))
    base = np.array(_pick(_PAINTS, rng))
    other = np.clip(base * rng.uniform(0.7, 0.9, 3), 0, 1)
    y, x = np.mgrid[0:side, 0:side] / side * count
    y = y + 0.5 * (np.floor(x) % 2)
    a, b = x % 1 - 0.5, y % 1 - 0.5
    radius, angle = np.hypot(a, b), np.arctan2(b, a)
    petals = int(rng.choice([3, 4, 5, 6]))
    figure = np.clip((0.3 * np.abs(np.cos(petals * angle / 2)) - radius) * 40, 0, 1)[..., None]
    tone = 1 + 0.012 * _noise((2, 2), rng, side)
    return np.asarray((base * (1 - figure) + other * figure) * tone[..., None], np.float32)


def bricks(rng: np.random.Generator, side: int = SIDE) -> Floats:
    """Running bond with rough mortar."""
    base = _pick(_BRICKS, rng)
    mortar = (0.72, 0.70, 0.66) if base[0] < 0.8 else (0.78, 0.77, 0.75)
    return _grid(8, 24, 0.5, base, mortar, 4.0, 0.11, rng, side)


def panelling(rng: np.random.Generator, side: int = SIDE) -> Floats:
    """Upright painted boards with a shadow line between them."""
    count = int(rng.choice([12, 16, 20]))
    edge = _cell_edge(count, side)
    groove = np.clip(0.6 + edge / 8, 0.6, 1)[None, :]
    tone = groove * (1 + 0.012 * _noise((2, 30), rng, side).T)
    return _tinted(_pick(_PAINTS, rng), tone, np.ones((side, side), np.float32))


def parquet(rng: np.random.Generator, side: int = SIDE) -> Floats:
    """Wooden blocks in a herringbone."""
    count, length = 24, 4  # Cells across the texture, a multiple of 2 * length; cells per block.
    position = np.arange(side) * count / side
    row, column = np.meshgrid(position, position, indexing="ij")
    j, i = row.astype(np.int64), column.astype(np.int64)
    place = (i - j) % (2 * length)
    lying = place < length
    start = np.where(lying, i - place, j - (j - i - 1) % (2 * length)) % count
    block = np.where(lying, j * count + start, count * count + i * count + start)
    along = np.where(lying, column - i + place, row - j + (j - i - 1) % (2 * length))
    across = np.where(lying, row % 1, column % 1)
    edge = np.minimum(np.minimum(across, 1 - across), np.minimum(along, length - along))
    grain = _noise((0.5, SIDE / 30), rng, side)
    tone = 1 + 0.09 * rng.standard_normal(2 * count * count)[block]
    tone = tone * (1 + 0.05 * np.where(lying, grain, grain.T))
    tone = tone * np.clip(0.5 + edge * SIDE / count / 4, 0.5, 1)
    return _tinted(_pick(_WOODS, rng), tone, np.ones((side, side), np.float32))


def terrazzo(rng: np.random.Generator, side: int = SIDE) -> Floats:
    """Stone chips of several colours in a pale binder."""
    ground = np.array(_pick(_TILES, rng)) * 0.4 + 0.5
    image = ground * (1 + 0.02 * _noise((8, 8), rng, side))[..., None]
    for color in (*_TILES[1:4], (0.30, 0.28, 0.26)):
        chip = np.clip((_noise((5, 5), rng, side) - 1.5) * 8, 0, 1)[..., None]
        image = image * (1 - chip) + np.array(color) * chip
    return np.asarray(image, np.float32)


def plaster(rng: np.random.Generator, side: int = SIDE) -> Floats:
    """Limewash: broad strokes over a rough ground."""
    strokes = _noise((14, 50), rng, side) + _noise((50, 14), rng, side)
    tone = 1 + 0.03 * strokes + 0.025 * _noise((2.5, 2.5), rng, side)
    return _tinted(_pick(_PAINTS, rng), tone, 1 + 0.01 * _noise((80, 80), rng, side))


class Decor(Protocol):
    """Where a room's surfaces come from."""

    def ground(self, table: bool, rng: np.random.Generator) -> Surface:
        """A table top, or a floor."""

    def wall(self, rng: np.random.Generator) -> Surface:
        """A wall."""


@dataclass(frozen=True)
class Kinds:
    """Which surfaces rooms are made of: (maker, share, metres, gloss) each.

    Attributes:
        floors: under furniture.
        table_tops: under small things.
        walls: behind everything.
        side: pixels along a texture's side, a power of two.
    """

    floors: tuple[Kind, ...]
    table_tops: tuple[Kind, ...]
    walls: tuple[Kind, ...]
    side: int = SIDE

    def ground(self, table: bool, rng: np.random.Generator) -> Surface:
        """A new table top, or a new floor."""
        return choose(self.table_tops if table else self.floors, rng, self.side)

    def wall(self, rng: np.random.Generator) -> Surface:
        """A new wall."""
        return choose(self.walls, rng, self.side)

    @property
    def names(self) -> frozenset[str]:
        """Names of all makers."""
        return frozenset(
            maker.__name__ for maker, *_ in (*self.floors, *self.table_tops, *self.walls)
        )


FLOORS: Final[tuple[Kind, ...]] = (
    (planks, 0.5, 1.8, 0.5),
    (tiles, 0.15, 1.8, 0.6),
    (checkered, 0.05, 1.6, 0.6),
    (carpet, 0.16, 1.2, 0.0),
    (concrete, 0.14, 3.0, 0.2),
)
TABLE_TOPS: Final[tuple[Kind, ...]] = (
    (table_wood, 0.4, 0.9, 0.4),
    (planks, 0.15, 0.8, 0.3),
    (stone, 0.2, 0.9, 0.7),
    (cloth, 0.25, 0.5, 0.0),
)
WALLS: Final[tuple[Kind, ...]] = (
    (paint, 0.5, 1.5, 0.0),
    (stripes, 0.13, 1.6, 0.0),
    (motif, 0.12, 1.5, 0.0),
    (bricks, 0.13, 1.9, 0.0),
    (panelling, 0.12, 1.8, 0.0),
)
EVERY: Final = Kinds(FLOORS, TABLE_TOPS, WALLS)

# Kinds of surfaces that training rooms and test rooms are made of have none in common, so that
# no test picture is recognised by its room.
TRAINING: Final = Kinds(
    # Half the detail: enough for the smaller training shots, and four times faster to paint.
    side=SIDE // 2,
    floors=((planks, 0.5, 1.8, 0.5), (carpet, 0.25, 1.2, 0.0), (concrete, 0.25, 3.0, 0.2)),
    table_tops=((table_wood, 0.6, 0.9, 0.4), (cloth, 0.4, 0.5, 0.0)),
    walls=((paint, 0.6, 1.5, 0.0), (stripes, 0.2, 1.6, 0.0), (bricks, 0.2, 1.9, 0.0)),
)
TESTING: Final = Kinds(
    floors=(
        (parquet, 0.4, 1.4, 0.5),
        (tiles, 0.3, 1.8, 0.6),
        (terrazzo, 0.2, 1.2, 0.5),
        (checkered, 0.1, 1.6, 0.6),
    ),
    table_tops=((stone, 0.5, 0.9, 0.7), (parquet, 0.25, 0.7, 0.4), (terrazzo, 0.25, 0.6, 0.6)),
    walls=((plaster, 0.6, 2.0, 0.0), (motif, 0.2, 1.5, 0.0), (panelling, 0.2, 1.8, 0.0)),
)


class OneRoom:
    """The surfaces of one room for several pictures; they do not depend on the pictures."""

    def __init__(self, kinds: Kinds, rng: np.random.Generator) -> None:
        self._kinds = kinds
        self._ground_rng, self._wall_rng = rng.spawn(2)
        self._ground: dict[bool, Surface] = {}
        self._wall: Surface | None = None

    def ground(self, table: bool, rng: np.random.Generator) -> Surface:
        """The room's table top, or its floor; `rng` is left alone."""
        if table not in self._ground:
            self._ground[table] = self._kinds.ground(table, self._ground_rng)
        return self._ground[table]

    def wall(self, rng: np.random.Generator) -> Surface:
        """The room's wall; `rng` is left alone."""
        if self._wall is None:
            self._wall = self._kinds.wall(self._wall_rng)
        return self._wall


def choose(kinds: tuple[Kind, ...], rng: np.random.Generator, side: int = SIDE) -> Surface:
    """Draw one kind of surface by its share and make it."""
    shares = np.array([share for _, share, _, _ in kinds])
    maker, _, metres, gloss = kinds[int(rng.choice(len(kinds), p=shares / shares.sum()))]
    return make_surface(maker, rng, metres, gloss, side)


def _noise(scale: tuple[float, float], rng: np.random.Generator, side: int) -> Floats:
    """White noise on a torus, mean 0, deviation 1, smoothed by `scale` (rows, columns).

    Like every length here, `scale` counts pixels of a texture of `SIDE`.
    """
    spectrum = np.fft.rfft2(rng.standard_normal((side, side)).astype(np.float32))
    rows = np.exp(-2 * (np.pi * scale[0] * side / SIDE * np.fft.fftfreq(side)) ** 2)
    columns = np.exp(-2 * (np.pi * scale[1] * side / SIDE * np.fft.rfftfreq(side)) ** 2)
    smooth = np.fft.irfft2(spectrum * rows[:, None] * columns[None, :], (side, side))
    smooth -= smooth.mean()
    return np.asarray(smooth / max(float(smooth.std()), 1e-9), np.float32)


def _boards(
    rows: int, rng: np.random.Generator, side: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Distances in pixels to the nearest long gap and joint, and the board's number."""
    position = np.arange(side) * rows / side
    row = position.astype(np.int64)
    row_edge = np.minimum(position % 1, 1 - position % 1) * SIDE / rows
    start = rng.random(rows)[row]
    along = (np.arange(side)[None, :] / side * 2 + 2 * start[:, None]) % 2
    joint = np.minimum(along % 1, 1 - along % 1) * SIDE / 2
    board = row[:, None] * 2 + along.astype(np.int64)
    return np.broadcast_to(row_edge[:, None], (side, side)), joint, board


def _cell_edge(count: int, side: int) -> NDArray[np.float64]:
    """Distance in pixels of each pixel to the nearest border of `count` equal cells."""
    phase = np.arange(side) * count / side % 1
    return np.minimum(phase, 1 - phase) * SIDE / count


def _grid(
    across: int,
    down: int,
    stagger: float,
    base: tuple[float, float, float],
    grout: tuple[float, float, float],
    width: float,
    spread: float,
    rng: np.random.Generator,
    side: int,
) -> Floats:
    """Cells of `base` between lines of `grout`; every other row is moved by `stagger` cells."""
    y = np.arange(side)[:, None] * down / side
    x = np.arange(side)[None, :] * across / side + stagger * (np.floor(y) % 2)
    cell = np.floor(y).astype(np.int64) * across + np.floor(x).astype(np.int64) % across
    tone = 1 + spread * rng.standard_normal(across * down)[cell]
    tone = tone + 0.02 * _noise((12, 12), rng, side) + 0.25 * spread * _noise((1.2, 1.2), rng, side)
    edge_x = np.minimum(x % 1, 1 - x % 1) * SIDE / across
    edge_y = np.minimum(y % 1, 1 - y % 1) * SIDE / down
    ragged = np.minimum(edge_x, edge_y) + 4 * spread * _noise((3, 3), rng, side)
    mix = np.clip(width - ragged, 0, 1)[..., None]
    body = np.array(base) * tone[..., None]
    line = np.array(grout) * (1 + 0.03 * _noise((1, 1), rng, side))[..., None]
    return np.asarray(body * (1 - mix) + line * mix, np.float32)


def _tinted(
    base: tuple[float, float, float],
    tone: NDArray[np.floating[Any]],
    warmth: NDArray[np.floating[Any]],
) -> Floats:
    color = np.stack([base[0] * tone * warmth, base[1] * tone, base[2] * tone / warmth], axis=-1)
    return np.asarray(color, np.float32)


def _pick(
    palette: tuple[tuple[float, float, float], ...], rng: np.random.Generator
) -> tuple[float, float, float]:
    """A colour of the palette, moved a little."""
    red, green, blue = palette[int(rng.integers(len(palette)))] * rng.uniform(0.94, 1.05, 3)
    return float(red), float(green), float(blue)


def _bilinear(image: Floats, u: Floats, v: Floats) -> Floats:
    side = len(image)
    x, y = (u * side - 0.5), (v * side - 0.5)
    x0, y0 = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]
    x0, y0, x1, y1 = x0 % side, y0 % side, (x0 + 1) % side, (y0 + 1) % side
    top = image[y0, x0] * (1 - fx) + image[y0, x1] * fx
    bottom = image[y1, x0] * (1 - fx) + image[y1, x1] * fx
    return np.asarray(top * (1 - fy) + bottom * fy, np.float32)
