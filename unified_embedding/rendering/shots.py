"""Simulated photographs: a product, or several, in a generated room seen by a roaming camera."""

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from unified_embedding.rendering.mesh import Floats, Ints, Mesh, yaw_matrix
from unified_embedding.rendering.photograph import develop, encode, random_lens
from unified_embedding.rendering.render import Camera, Light, Room, Stage, render
from unified_embedding.rendering.surfaces import EVERY, Decor

# Ranges of the camera, set once for what a person walking round a product would take.
AZIMUTH: Final = np.radians(70)
ELEVATION: Final = (np.radians(5), np.radians(35))
FIELD_OF_VIEW: Final = (np.radians(32), np.radians(62))
FILL: Final = (0.42, 0.9)
SCENE_FILL: Final = (0.85, 0.97)
ROLL: Final = np.radians(2)

SIZES: Final = (
    (320, 240),
    (240, 320),
    (360, 270),
    (270, 360),
    (400, 300),
    (384, 256),
    (256, 384),
    (320, 320),
    (400, 225),
)
"""Width and height of shots in pixels."""
SCENE_SIZE: Final = (512, 320)

_TABLE: Final = 0.5  # A product smaller than this many metres is shown on a table top.
_HANDS_BREADTH: Final = 0.05
_ORIGIN: Final = (0.0, 0.0, 0.0)
# A product in a scene counts as seen from so many pixels, and so long a shorter side, on.
_MIN_PIXELS: Final = 300
_MIN_SIDE: Final = 20
_SKIRTINGS: Final = (0.0, 0.07, 0.1, 0.14)


@dataclass(frozen=True)
class View:
    """Where the camera stands relative to a product's front, in radians."""

    azimuth: float
    elevation: float


def seeded(*parts: object) -> np.random.Generator:
    """A generator that depends on `parts` alone, whatever else is drawn."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def camera_shot(
    mesh: Mesh,
    elevation: float,
    rng: np.random.Generator,
    size: tuple[int, int] | None = None,
    decor: Decor = EVERY,
) -> bytes:
    """One simulated photograph of a product as JPEG bytes.

    Args:
        mesh: the product in metres, standing on y = 0.
        elevation: metres above the floor at which it hangs; above 0 it hangs on a wall.
        rng: the only source of chance.
        size: width and height in pixels; drawn from `SIZES` when None.
        decor: what the room is made of.
    """
    width, height = size if size is not None else SIZES[int(rng.integers(len(SIZES)))]
    on_wall = elevation > _HANDS_BREADTH
    turn = 0.0 if on_wall or rng.random() < 0.4 else float(rng.uniform(-0.5, 0.5))
    placed = mesh.placed(turn, (0.0, elevation, 0.0))
    view = View(float(rng.uniform(-AZIMUTH, AZIMUTH)), float(rng.uniform(*ELEVATION)))
    if on_wall:
        view = View(view.azimuth * 0.75, float(rng.uniform(-0.15, 0.2)))
    # The camera's azimuth counts from the product's front, not from the room's.
    azimuth = float(np.clip(view.azimuth + turn, -1.35, 1.35))
    camera = _aimed([placed], azimuth, view.elevation, FILL, width, height, rng)
    jpeg, _ = _photographed([placed], camera, on_wall, decor, rng)
    return jpeg


@dataclass(frozen=True)
class Scene:
    """A photograph of several products.

    Attributes:
        jpeg: the picture.
        size: its width and height in pixels.
        boxes: (left, top, right, bottom) in pixels of each product's visible part, or None
            where too little of it is seen.
    """

    jpeg: bytes
    size: tuple[int, int]
    boxes: tuple[tuple[int, int, int, int] | None, ...]


def scene_shot(
    meshes: list[Mesh],
    elevations: list[float],
    rng: np.random.Generator,
    decor: Decor = EVERY,
    size: tuple[int, int] = SCENE_SIZE,
) -> Scene:
    """One simulated photograph of several products side by side in one room.

    Args:
        meshes: the products in metres, each standing on y = 0.
        elevations: metres above the floor at which each hangs on the wall; 0 stands.
        rng: the only source of chance.
        decor: what the room is made of.
        size: width and height in pixels.
    """
    placed = _arranged(meshes, elevations, rng)
    azimuth, elevation = rng.uniform(-0.6, 0.6), rng.uniform(0.1, 0.5)
    camera = _aimed(placed, float(azimuth), float(elevation), SCENE_FILL, *size, rng)
    on_wall = max(elevations) > _HANDS_BREADTH
    jpeg, owner = _photographed(placed, camera, on_wall, decor, rng)
    boxes = tuple(
        _visible_box(owner == index, camera.project(_outline(mesh)))
        for index, mesh in enumerate(placed)
    )
    return Scene(jpeg, size, boxes)


def jittered(
    box: tuple[int, int, int, int], size: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Move every edge of a box by 5 to 12 % of its extent, in or out, as a hand would draw it."""
    left, top, right, bottom = box
    reach = np.array([right - left, bottom - top, right - left, bottom - top])
    moved = np.array(box) + rng.choice([-1, 1], 4) * rng.uniform(0.05, 0.12, 4) * reach
    x0, y0, x1, y1 = np.round(moved).astype(int)
    return max(0, x0), max(0, y0), min(size[0], x1), min(size[1], y1)


def _photographed(
    placed: list[Mesh], camera: Camera, on_wall: bool, decor: Decor, rng: np.random.Generator
) -> tuple[bytes, Ints]:
    """JPEG of products at their places, and the index of the product that each pixel shows."""
    room = _room(placed, camera, on_wall, decor, rng)
    light = _light(placed, rng)
    low, high = _bounds(placed)
    focus = float(np.linalg.norm((low + high) / 2 - camera.eye))
    rendering = render(Stage(placed), room, light, camera, rng)
    lens = random_lens(focus, rng)
    return encode(develop(rendering, lens, rng), lens.quality), rendering.owner


def _arranged(meshes: list[Mesh], elevations: list[float], rng: np.random.Generator) -> list[Mesh]:
    """Products in a row along the wall, turned and moved about; those that hang, on the wall."""
    extents = [float(np.ptp(mesh.vertices, axis=0).max()) for mesh in meshes]
    placed: dict[int, Mesh] = {}
    cursor, unit = 0.0, float(np.median(extents))
    for index in rng.permutation(len(meshes)):
        hangs = elevations[index] > _HANDS_BREADTH
        turned = meshes[index].placed(0.0 if hangs else float(rng.uniform(-0.9, 0.9)), _ORIGIN)
        low, high = turned.extent
        depth = 0.0 if hangs else float(rng.uniform(-0.3, 0.3)) * unit
        x = cursor - float(low[0])
        # Among small things a lamp hangs low, so that all of them stay large in the picture.
        height = min(elevations[index], 1.2 * max(extents)) if hangs else 0.0
        placed[index] = turned.placed(0.0, (x, height, depth))
        cursor += float(high[0] - low[0]) + float(rng.uniform(0.05, 0.35)) * unit
    wall = min(float(mesh.extent[0][2]) for mesh in placed.values())
    for index, mesh in placed.items():
        if elevations[index] > _HANDS_BREADTH:
            placed[index] = mesh.placed(0.0, (0.0, 0.0, wall - float(mesh.extent[0][2])))
    return [placed[index] for index in range(len(meshes))]


def _visible_box(seen: NDArray[np.bool_], outline: Floats) -> tuple[int, int, int, int] | None:
    """Box of a product's pixels, unless few are seen or others hide half of its extent."""
    if seen.sum() < _MIN_PIXELS:
        return None
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    width, height = box[2] - box[0], box[3] - box[1]
    # Picture coordinates are in units of half the longer side.
    whole = np.ptp(outline, axis=0).prod() * (max(seen.shape) / 2) ** 2
    hidden = width * height < 0.5 * whole
    return None if hidden or min(width, height) < _MIN_SIDE else box


def _aimed(
    meshes: list[Mesh],
    azimuth: float,
    elevation: float,
    filling: tuple[float, float],
    width: int,
    height: int,
    rng: np.random.Generator,
) -> Camera:
    """A camera that sees all of `meshes`, filling a random part of the picture, off-centre."""
    points = np.concatenate([_outline(mesh) for mesh in meshes])
    centre = (points.min(axis=0) + points.max(axis=0)) / 2
    axes = _axes(azimuth, elevation, float(rng.normal(0, ROLL / 2)))
    tangent = float(np.tan(rng.uniform(*FIELD_OF_VIEW) / 2))
    frame = np.array([width, height]) / max(width, height)
    fill = float(rng.uniform(*filling))
    low, high = 0.05, 60.0 * float(np.ptp(points, axis=0).max())
    for _ in range(40):  # Bisection: the nearest distance at which the product fills its part.
        far = (low + high) / 2
        camera = Camera(centre + axes[2] * far, axes, tangent, (0.0, 0.0), width, height)
        inside = ((points - camera.eye) @ axes[2] < -1e-3).all()
        seen = camera.project(points)
        if inside and (np.ptp(seen, axis=0) <= 2 * frame * fill).all():
            high = far
        else:
            low = far
    camera = Camera(centre + axes[2] * high, axes, tangent, (0.0, 0.0), width, height)
    return _shifted(camera, camera.project(points), frame, rng)


def _shifted(camera: Camera, seen: Floats, frame: Floats, rng: np.random.Generator) -> Camera:
    """Move the frame so that the product lies off-centre but stays inside."""
    low, high = seen.min(axis=0), seen.max(axis=0)
    slack = np.maximum(frame - (high - low) / 2, 0)
    offset = rng.uniform(-0.7, 0.7, 2) * slack - (low + high) / 2
    shift = (float(offset[0]), float(offset[1]))
    return Camera(camera.eye, camera.axes, camera.tangent, shift, camera.width, camera.height)


def _axes(azimuth: float, elevation: float, roll: float) -> Floats:
    back = np.array(
        [
            np.cos(elevation) * np.sin(azimuth),
            np.sin(elevation),
            np.cos(elevation) * np.cos(azimuth),
        ]
    )
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right)
    up = np.cross(back, right)
    c, s = np.cos(roll), np.sin(roll)
    return np.asarray(np.stack([c * right + s * up, c * up - s * right, back]).astype(np.float32))


def _outline(mesh: Mesh) -> Floats:
    """Enough vertices to frame the mesh by."""
    step = max(1, len(mesh.vertices) // 4000)
    extremes = np.concatenate([mesh.vertices.argmin(axis=0), mesh.vertices.argmax(axis=0)])
    return np.concatenate([mesh.vertices[::step], mesh.vertices[extremes]])


def _bounds(meshes: list[Mesh]) -> tuple[Floats, Floats]:
    low = np.min([mesh.extent[0] for mesh in meshes], axis=0)
    high = np.max([mesh.extent[1] for mesh in meshes], axis=0)
    return low, high


def _room(
    meshes: list[Mesh], camera: Camera, on_wall: bool, decor: Decor, rng: np.random.Generator
) -> Room:
    """A room that holds the products and the camera, of a kind that fits the products' size."""
    low, high = _bounds(meshes)
    extent = float((high - low).max())
    table = extent < _TABLE and not on_wall
    gap = 0.005 if on_wall else _gap_to_wall(table, rng)
    side = rng.uniform(0.5, 2.5, 2)
    ceiling = max(2.5, float(high[1]) * 1.15, float(camera.eye[1]) + 0.4)
    corner = np.array([low[0] - side[0], 0, low[2] - gap])
    opposite = np.array([high[0] + side[1], ceiling, high[2] + 3])
    margin = np.array([0.4, 0, 0.4])
    surface = decor.ground(table, rng)
    white = np.full(3, rng.uniform(0.6, 0.8), np.float32)
    return Room(
        low=np.minimum(corner, np.where([1, 0, 1], camera.eye - margin, 0)).astype(np.float32),
        high=np.maximum(opposite, camera.eye + margin).astype(np.float32),
        floor=surface,
        wall=decor.wall(rng),
        ceiling=white,
        skirting=0.0 if table else float(rng.choice(_SKIRTINGS)),
        skirting_color=white * float(rng.choice([1.0, 1.0, 0.35])),
    )


def _gap_to_wall(table: bool, rng: np.random.Generator) -> float:
    """Metres between a product and the wall behind it."""
    if table:
        return float(rng.uniform(0.15, 0.9))
    return float(rng.uniform(0.05, 0.4) if rng.random() < 0.5 else rng.uniform(0.4, 2))


def _light(meshes: list[Mesh], rng: np.random.Generator) -> Light:
    """A window at one side of the products, sometimes with the sun in it."""
    low, high = _bounds(meshes)
    centre, extent = (low + high) / 2, float((high - low).max())
    near = max(extent, 0.25)
    azimuth = float(rng.choice([-1, 1]) * rng.uniform(0.5, 1.5))
    height = float(rng.uniform(0.35, 0.9))
    way = np.array([np.sin(azimuth), height, np.cos(azimuth)], np.float32)
    way /= np.linalg.norm(way)
    far = near * float(rng.uniform(1.6, 2.6))
    across = yaw_matrix(azimuth) @ np.array([1, 0, 0], np.float32)
    upward = np.cross(way, across)
    half = far * rng.uniform(0.25, 0.5, 2)
    warm = float(rng.uniform(-1, 1))
    hue = np.array([1 + 0.06 * warm, 1, 1 - 0.08 * warm], np.float32)
    fill = np.array([1 - 0.04 * warm, 1, 1 + 0.05 * warm], np.float32)
    # The power that gives about 1 on a surface that faces the window's centre.
    power = far**2 / (4 * half[0] * half[1])
    sunny = rng.random() < 0.3
    return Light(
        centre=(centre + way * far).astype(np.float32),
        across=(across * half[0]).astype(np.float32),
        upward=(upward * half[1]).astype(np.float32),
        window=hue * np.float32(power * rng.uniform(0.7, 1.0)),
        ambient=fill * np.float32(rng.uniform(0.26, 0.46)),
        sun=(way + rng.normal(0, 0.1, 3)).astype(np.float32) if sunny else None,
        sunlight=np.array([1.0, 0.92, 0.8], np.float32) * np.float32(rng.uniform(0.8, 1.6)),
        panes=(int(rng.integers(1, 4)), int(rng.integers(1, 4))),
        reach=0.5 * near,
    )
