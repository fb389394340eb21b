"""Made-up pictures with classes, for smoke runs and checks where no real pictures are."""

import colorsys

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_SHAPES = ("ellipse", "rectangle", "triangle", "ring", "cross")


def picture(label: int, variant: int, size: int = 224) -> Image.Image:
    """One RGB picture; `label` fixes shape, colours and stripes, `variant` the scene.

    The same arguments give the same pixels. Pictures of one label look alike to a person,
    and differ in place, scale, background and noise.
    """
    look = np.random.default_rng([label])
    scene = np.random.default_rng([label, variant])
    canvas = Image.fromarray(_background(scene, size))
    shape = _SHAPES[label % len(_SHAPES)]
    body, trim = _color(look.random()), _color(look.random())
    side = size * scene.uniform(0.45, 0.75)
    left, top = scene.uniform(0, size - side, size=2)
    draw = ImageDraw.Draw(canvas)
    _draw_shape(draw, shape, (left, top, left + side, top + side), body)
    for stripe in range(1 + label % 3):
        y = top + side * (0.3 + 0.2 * stripe)
        draw.line((left, y, left + side, y), fill=trim, width=max(1, size // 32))
    noisy = np.asarray(canvas, dtype=np.float64) + scene.normal(0, 6, (size, size, 3))
    return Image.fromarray(noisy.clip(0, 255).round().astype(np.uint8))


def pixels(count: int, size: int = 224) -> NDArray[np.uint8]:
    """`count` pictures of different labels, uint8 [count, size, size, 3]."""
    return np.stack([np.asarray(picture(label, 0, size)) for label in range(count)])


def _background(scene: np.random.Generator, size: int) -> NDArray[np.uint8]:
    corners = scene.uniform(60, 230, (2, 2, 3))
    across = np.linspace(0, 1, size)
    left = np.outer(1 - across, corners[0, 0]) + np.outer(across, corners[1, 0])
    right = np.outer(1 - across, corners[0, 1]) + np.outer(across, corners[1, 1])
    blend = left[:, None] * (1 - across)[None, :, None] + right[:, None] * across[None, :, None]
    ground: NDArray[np.uint8] = blend.round().astype(np.uint8)
    return ground


def _color(hue: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.8, 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


def _draw_shape(
    draw: ImageDraw.ImageDraw,
    shape: str,
    box: tuple[float, float, float, float],
    fill: tuple[int, int, int],
) -> None:
    left, top, right, bottom = box
    third = (right - left) / 3
    if shape == "ellipse":
        draw.ellipse(box, fill=fill)
    elif shape == "rectangle":
        draw.rectangle(box, fill=fill)
    elif shape == "triangle":
        draw.polygon([(left, bottom), (right, bottom), ((left + right) / 2, top)], fill=fill)
    elif shape == "ring":
        draw.ellipse(box, outline=fill, width=max(1, round(third / 2)))
    else:
        draw.rectangle((left + third, top, right - third, bottom), fill=fill)
        draw.rectangle((left, top + third, right, bottom - third), fill=fill)
