"""From light to a JPEG file: what a hand-held camera does to a scene."""

import io
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unified_embedding.rendering.mesh import Floats
from unified_embedding.rendering.render import Rendering, blur

_CONTRAST: Final = 0.03


@dataclass(frozen=True)
class Lens:
    """Camera settings of one shot.

    Attributes:
        exposure: stops above (or below) the light meter.
        tint: white balance error per channel, about 1.
        vignetting: share of light lost in the corners.
        softness: blur of the whole picture in pixels (sigma).
        aperture: blur of surfaces far from the focus in pixels (sigma).
        focus: metres to the sharp plane.
        noise: standard deviation of the noise at mid grey, in display units.
        quality: JPEG quality, 1 to 95.
    """

    exposure: float
    tint: tuple[float, float, float]
    vignetting: float
    softness: float
    aperture: float
    focus: float
    noise: float
    quality: int


def random_lens(focus: float, rng: np.random.Generator) -> Lens:
    """Settings of an ordinary snapshot, focused at `focus` metres."""
    red, green, blue = rng.uniform(0.9, 1.05, 3)
    return Lens(
        exposure=float(rng.normal(0, 0.35)),
        tint=(float(red), float(green), float(blue)),
        vignetting=float(rng.uniform(0.02, 0.3)),
        softness=float(rng.uniform(0.2, 1.0)),
        aperture=float(rng.uniform(0.0, 2.2)),
        focus=focus,
        noise=float(rng.uniform(0.002, 0.018)),
        quality=int(rng.integers(60, 91)),
    )


def develop(rendering: Rendering, lens: Lens, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Expose a rendering; display RGB uint8 [H, W, 3]."""
    room = _defocused(rendering.room, rendering.depth, lens)
    light = room * (1 - rendering.coverage[..., None]) + rendering.products
    light = blur(light, lens.softness) * _vignette(light.shape[:2], lens.vignetting)[..., None]
    light = light * np.asarray(lens.tint, np.float32) * _gain(light) * 2**lens.exposure
    shown = _tone(light)
    # Photon noise: the darker a pixel, the less noise in light, the more after the tone curve.
    grain = blur(rng.standard_normal(shown.shape).astype(np.float32), 0.45)
    grain = 0.6 * grain + 0.8 * grain.mean(axis=-1, keepdims=True)
    noisy = shown + lens.noise * 2 * grain * np.sqrt(np.clip(1.1 - shown, 0.05, 1))
    return np.asarray(np.clip(noisy, 0, 1) * 255 + 0.5, np.uint8)


def encode(pixels: NDArray[np.uint8], quality: int) -> bytes:
    """JPEG bytes of display RGB uint8 [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def _defocused(room: Floats, depth: Floats, lens: Lens) -> Floats:
    """Blur the room by its distance from the plane of focus (thin lens: |1/focus - 1/depth|)."""
    amount = np.abs(1 - lens.focus / np.maximum(depth, 1e-3)) * 3
    weight = np.clip(amount - 0.1, 0, 1)[..., None]
    if lens.aperture < 0.2:
        return room
    return np.asarray(room * (1 - weight) + blur(room, lens.aperture) * weight, np.float32)


def _vignette(shape: tuple[int, ...], loss: float) -> Floats:
    rows = np.linspace(-1, 1, shape[0])[:, None]
    columns = np.linspace(-1, 1, shape[1])[None, :]
    return np.asarray(1 - loss * (rows**2 + columns**2) / 2, np.float32)


def _gain(light: Floats) -> float:
    """The light meter: brings the centre-weighted mean to mid grey."""
    weight = _vignette(light.shape[:2], 0.7)
    metered = float((light.mean(axis=-1) * weight).sum() / weight.sum())
    return 0.33 / max(metered, 1e-6)


def _tone(light: Floats) -> Floats:
    """Linear light to display values: a soft shoulder, the sRGB curve, a touch of contrast."""
    knee = 0.7
    over = np.maximum(light - knee, 0)
    rolled = np.minimum(light, knee) + (1 - knee) * (1 - np.exp(-over / (1 - knee)))
    encoded = np.where(
        rolled <= 0.0031308, 12.92 * rolled, 1.055 * np.maximum(rolled, 1e-6) ** (1 / 2.4) - 0.055
    )
    return np.asarray(encoded + _CONTRAST * np.sin(2 * np.pi * (encoded - 0.5)), np.float32)
