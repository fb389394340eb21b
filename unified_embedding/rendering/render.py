"""A small ray tracer for products in a room, on the CPU (Embree; no OpenGL, no display).

Everything is computed in linear light. Products are traced at twice the picture's resolution, the
room's soft light and shadows at half of it, which is enough because they vary slowly.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from embreex import rtcore_scene
from embreex.mesh_construction import TriangleMesh
from numpy.typing import NDArray
from PIL import Image

from unified_embedding.rendering.mesh import Floats, Ints, Material, Mesh
from unified_embedding.rendering.surfaces import Surface

SUPERSAMPLING: Final = 2
NO_PRODUCT: Final = -1

_NUDGE: Final = 1e-3  # Metres that a ray starts off the surface it leaves.
_LAYERS: Final = 6  # Transparent surfaces followed behind one another.
_ROOM_SAMPLES: Final = 12
_PRODUCT_SAMPLES: Final = 4
_FACE_EDGE: Final = 0.25  # Metres over which a room's inner edges darken.
_SOLID: Final = 0.5


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
        eye: position in metres.
        axes: its right, up and back as the rows of an orthonormal float32 [3, 3].
        tangent: half the longer side of the picture divided by the focal length.
        shift: where the optical axis meets the picture, as (x, y) in units of half the longer
            side; non-zero for a picture cut off-centre from a larger one.
        width, height: pixels.
    """

    eye: Floats
    axes: Floats
    tangent: float
    shift: tuple[float, float]
    width: int
    height: int

    def rays(self, scale: float) -> tuple[Floats, Floats]:
        """Origins and unit directions, float32 [N, 3], of a grid `scale` times the picture's."""
        rows, columns = round(self.height * scale), round(self.width * scale)
        longer = max(self.width, self.height)
        x = ((np.arange(columns) + 0.5) / columns * 2 - 1) * self.width / longer - self.shift[0]
        y = (1 - (np.arange(rows) + 0.5) / rows * 2) * self.height / longer - self.shift[1]
        grid = np.stack(np.meshgrid(x * self.tangent, y * self.tangent), axis=-1).reshape(-1, 2)
        direction = grid[:, :1] * self.axes[0] + grid[:, 1:] * self.axes[1] - self.axes[2]
        direction /= _length(direction)
        direction = direction.astype(np.float32)
        return np.broadcast_to(self.eye.astype(np.float32), direction.shape), direction

    def project(self, points: Floats) -> Floats:
        """Picture coordinates float32 [N, 2] in units of half the longer side, y upwards."""
        local = (points - self.eye) @ self.axes.T
        flat = local[:, :2] / np.maximum(-local[:, 2:], 1e-6) / self.tangent
        return np.asarray(flat + np.asarray(self.shift), np.float32)

    def pixel_angle(self, scale: float) -> float:
        """Width of one pixel of a `scale` grid at distance 1."""
        return 2 * self.tangent / (max(self.width, self.height) * scale)


@dataclass(frozen=True)
class Light:
    """A window seen as a bright rectangle, the sun through it, and the light of the room.

    Attributes:
        centre: of the window in metres.
        across, upward: half its width and half its height as vectors in metres.
        window: linear RGB power of the window.
        ambient: linear RGB that reaches every open surface.
        sun: direction towards the sun, or None for an overcast day.
        sunlight: linear RGB of a sunlit patch.
        panes: window panes across and down, which the sun's patch shows.
        reach: metres within which a neighbouring surface takes ambient light away.
    """

    centre: Floats
    across: Floats
    upward: Floats
    window: Floats
    ambient: Floats
    sun: Floats | None
    sunlight: Floats
    panes: tuple[int, int]
    reach: float


@dataclass(frozen=True)
class Room:
    """A box: floor at y = 0, walls, ceiling.

    Attributes:
        low, high: opposite corners in metres; low[1] is 0.
        floor, wall: surfaces.
        ceiling: linear RGB.
        skirting: height of the skirting board in metres; 0 for none.
        skirting_color: linear RGB.
    """

    low: Floats
    high: Floats
    floor: Surface
    wall: Surface
    ceiling: Floats
    skirting: float
    skirting_color: Floats


@dataclass(frozen=True)
class Rendering:
    """What the camera sees.

    Attributes:
        room: linear RGB of the room without products but with their shadows, float32 [H, W, 3].
        depth: metres to the room's surfaces, float32 [H, W].
        products: linear RGB of products times their coverage, float32 [H, W, 3].
        coverage: share of each pixel that products cover, float32 [H, W].
        owner: index of the product in front or NO_PRODUCT, int64 [H, W].
    """

    room: Floats
    depth: Floats
    products: Floats
    coverage: Floats
    owner: Ints


@dataclass(frozen=True)
class _Hits:
    """Where rays meet triangles: the rows of the rays that do, and the surface there."""

    row: Ints
    point: Floats
    distance: Floats
    normal: Floats
    plane: Floats  # The triangle's own normal; `normal` is the smoothed one.
    albedo: Floats
    alpha: Floats
    specular: Floats
    shininess: Floats
    product: Ints


class Stage:
    """Products at their places, ready to be traced."""

    def __init__(self, meshes: list[Mesh]) -> None:
        vertex_starts = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes[:-1]])
        material_starts = np.cumsum([0] + [len(mesh.materials) for mesh in meshes[:-1]])
        self._vertices = np.concatenate([mesh.vertices for mesh in meshes])
        self._normals = np.concatenate([mesh.normals for mesh in meshes])
        self._uv = np.concatenate([mesh.uv for mesh in meshes])
        self._faces = np.concatenate(
            [mesh.faces + start for mesh, start in zip(meshes, vertex_starts, strict=True)]
        )
        self._material = np.concatenate(
            [mesh.material + start for mesh, start in zip(meshes, material_starts, strict=True)]
        )
        self._product = np.concatenate([np.full(len(m.faces), i) for i, m in enumerate(meshes)])
        self._materials: list[Material] = [m for mesh in meshes for m in mesh.materials]
        triangles = self._vertices[self._faces]
        solid = np.array([material.opacity >= _SOLID for material in self._materials])
        self._all = _embree(triangles)
        self._solid = _embree(triangles[solid[self._material]])

    def surfaces(self, origin: Floats, direction: Floats) -> _Hits:
        """The nearest surface of every ray that meets one."""
        found = self._all.run(_contiguous(origin), _contiguous(direction), output=True)
        row = np.flatnonzero(found["primID"] >= 0)
        face, u, v = found["primID"][row], found["u"][row], found["v"][row]
        weight = np.stack([1 - u - v, u, v], axis=1)[..., None]
        corner = self._faces[face]
        normal, plane = (self._normals[face] * weight).sum(axis=1), found["Ng"][row]
        albedo, alpha, specular, shininess = self._look(face, (self._uv[corner] * weight).sum(1))
        distance = found["tfar"][row]
        return _Hits(
            row=row,
            point=origin[row] + direction[row] * distance[:, None],
            distance=distance,
            normal=_facing(_unit(normal), direction[row]),
            plane=_facing(_unit(plane), direction[row]),
            albedo=albedo,
            alpha=alpha,
            specular=specular,
            shininess=shininess,
            product=self._product[face],
        )

    def open(self, origin: Floats, direction: Floats, reach: Floats) -> NDArray[np.bool_]:
        """Whether each ray travels `reach` metres without meeting a solid surface."""
        blocked = self._solid.run(
            _contiguous(origin), _contiguous(direction), _contiguous(reach), query="OCCLUDED"
        )
        return np.asarray(blocked < 0)

    def _look(self, face: Ints, uv: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        material = self._material[face]
        albedo = np.empty((len(face), 3), np.float32)
        alpha, specular, shininess = (np.empty(len(face), np.float32) for _ in range(3))
        for index in np.unique(material):
            at = material == index
            look = self._materials[index]
            albedo[at], alpha[at] = look.color, look.opacity
            specular[at], shininess[at] = look.specular, look.shininess
            if look.texture is not None:
                sampled = _sample(look.texture, uv[at])
                albedo[at] = sampled[:, :3]
                alpha[at] = sampled[:, 3] * look.opacity
        return albedo, alpha, specular, shininess


def render(
    stage: Stage, room: Room, light: Light, camera: Camera, rng: np.random.Generator
) -> Rendering:
    """Trace products and room. Equal arguments and generator state give equal pictures."""
    origin, direction = camera.rays(SUPERSAMPLING)
    shape = (camera.height * SUPERSAMPLING, camera.width * SUPERSAMPLING)
    albedo, depth = _room_albedo(room, camera, origin, direction)
    lit = _room_light(stage, room, light, camera, rng)
    pixels = albedo.reshape(*shape, 3) * _resized(lit, shape)
    glossy = _floor_reflection(stage, room, light, camera, rng)
    share = _resized(glossy[..., 3:], shape)
    pixels = pixels * (1 - share) + _resized(glossy[..., :3], shape)
    color, alpha, owner = _products(stage, light, origin, direction, rng)
    return Rendering(
        room=_pooled(pixels),
        depth=_pooled(depth.reshape(*shape, 1))[..., 0],
        products=_pooled(color.reshape(*shape, 3)),
        coverage=_pooled(alpha.reshape(*shape, 1))[..., 0],
        owner=owner.reshape(shape)[::SUPERSAMPLING, ::SUPERSAMPLING],
    )


def _products(
    stage: Stage, light: Light, origin: Floats, direction: Floats, rng: np.random.Generator
) -> tuple[Floats, Floats, Ints]:
    """Colour times coverage, coverage, and the product in front, per ray.

    Rays go on behind transparent surfaces, so that glass and cut-out leaves show what stands
    behind them.
    """
    color = np.zeros((len(direction), 3), np.float32)
    left = np.ones(len(direction), np.float32)
    owner = np.full(len(direction), NO_PRODUCT)
    rows, start = np.arange(len(direction)), origin
    for _ in range(_LAYERS):
        hits = stage.surfaces(start, direction[rows])
        rows = rows[hits.row]
        if not len(rows):
            break
        shade = _shaded(stage, light, hits, direction[rows], rng)
        color[rows] += (left[rows] * hits.alpha)[:, None] * shade
        front = (owner[rows] == NO_PRODUCT) & (hits.alpha > 0.1)
        owner[rows[front]] = hits.product[front]
        left[rows] *= 1 - hits.alpha
        on = left[rows] > 0.02
        rows = rows[on]
        start = hits.point[on] + direction[rows] * _NUDGE
    return color, 1 - left, owner


def _shaded(
    stage: Stage, light: Light, hits: _Hits, direction: Floats, rng: np.random.Generator
) -> Floats:
    point = hits.point + hits.plane * _NUDGE
    lit = _irradiance(stage, light, point, hits.normal, hits.plane, _PRODUCT_SAMPLES, rng)
    color = hits.albedo * lit
    towards = _unit(light.centre - point)
    half = _unit(towards - direction)
    cosine = np.maximum(_dot(half, hits.normal), 0)
    strength = hits.specular * cosine**hits.shininess * (hits.shininess + 8) / 60
    facing = np.maximum(_dot(towards, hits.normal), 0)
    return np.asarray(color + (strength * facing)[:, None] * light.window * 0.25, np.float32)


def _irradiance(
    stage: Stage,
    light: Light,
    point: Floats,
    normal: Floats,
    plane: Floats,
    samples: int,
    rng: np.random.Generator,
) -> Floats:
    """Linear RGB float32 [N, 3] that arrives at points with normals, averaged over samples."""
    total = np.zeros((len(point), 3), np.float32)
    reach = np.full(len(point), light.reach, np.float32)
    for index in range(samples):
        share = _window_share(stage, light, point, normal, index, samples, rng)
        total += share[:, None] * light.window / samples
        way = _cosine_directions(normal, index, samples, rng)
        # A smoothed normal leans over its triangle; light comes from the outer side only.
        inward = np.minimum(_dot(way, plane)[:, None], 0)
        free = stage.open(point, way - 2 * inward * plane, reach)
        total += (0.12 + 0.88 * free)[:, None] * light.ambient / samples
    if light.sun is not None:
        total += _sunlit(stage, light, point, normal)[:, None] * light.sunlight
    return total


def _window_share(
    stage: Stage,
    light: Light,
    point: Floats,
    normal: Floats,
    index: int,
    count: int,
    rng: np.random.Generator,
) -> Floats:
    """Light from one random spot of the window: cosine law at both ends, inverse square."""
    slot = (index + rng.random((len(point), 1))) / count
    spread = rng.random((len(point), 1))
    spot = light.centre + (2 * slot - 1) * light.across + (2 * spread - 1) * light.upward
    way = (spot - point).astype(np.float32)
    far = _length(way)[:, 0]
    way /= np.maximum(far, 1e-6)[:, None]
    facing = _unit(np.cross(light.across, light.upward)[None])
    arriving = np.maximum(_dot(way, normal), 0)
    leaving = np.abs(_dot(way, facing))
    area = 4 * np.linalg.norm(light.across) * np.linalg.norm(light.upward)
    share = arriving * leaving * area / np.maximum(far, 0.2) ** 2
    seen = share > 0
    share[seen] *= stage.open(point[seen], way[seen], far[seen])
    return np.asarray(share, np.float32)


def _cosine_directions(normal: Floats, index: int, count: int, rng: np.random.Generator) -> Floats:
    """Random directions about normals, dense where the cosine is large; strata in azimuth."""
    height = 2 * rng.random(len(normal)) - 1
    turn = 2 * np.pi * (index + rng.random(len(normal))) / count
    flat = np.sqrt(1 - height**2)
    sphere = np.stack([flat * np.cos(turn), height, flat * np.sin(turn)], axis=1)
    return _unit((normal * 1.001 + sphere).astype(np.float32))


def _sunlit(stage: Stage, light: Light, point: Floats, normal: Floats) -> Floats:
    """Cosine of the sun where its rays through the window's panes arrive, else 0."""
    assert light.sun is not None
    facing = np.cross(light.across, light.upward)
    along = float(light.sun @ facing)
    far = (light.centre - point) @ facing / (along if abs(along) > 1e-6 else 1e-6)
    spot = point + far[:, None] * light.sun - light.centre
    x = spot @ light.across / (light.across @ light.across)
    y = spot @ light.upward / (light.upward @ light.upward)
    inside = (far > 0) & (np.abs(x) < 1) & (np.abs(y) < 1)
    for position, count in ((x, light.panes[0]), (y, light.panes[1])):
        phase = (position + 1) / 2 * count % 1
        inside &= np.minimum(phase, 1 - phase) > 0.06
    out = np.where(inside, np.maximum(normal @ light.sun, 0), 0).astype(np.float32)
    lit = np.flatnonzero(out)
    way = np.broadcast_to(light.sun, (len(lit), 3)).astype(np.float32)
    out[lit] *= stage.open(point[lit], way, np.full(len(lit), 50, np.float32))
    return out


def _room_hit(room: Room, origin: Floats, direction: Floats) -> tuple[Floats, Ints]:
    """Distance to the box's inner side, and the axis of that side: 0 x, 1 y, 2 z."""
    safe = np.where(np.abs(direction) < 1e-9, 1e-9, direction)
    exits = (np.where(safe > 0, room.high, room.low) - origin) / safe
    axis = exits.argmin(axis=1)
    return np.take_along_axis(exits, axis[:, None], axis=1)[:, 0].astype(np.float32), axis


def _room_normal(direction: Floats, axis: Ints) -> Floats:
    normal = np.zeros_like(direction)
    rows = np.arange(len(axis))
    normal[rows, axis] = -np.sign(direction[rows, axis])
    return normal


def _room_albedo(
    room: Room, camera: Camera, origin: Floats, direction: Floats
) -> tuple[Floats, Floats]:
    far, axis = _room_hit(room, origin, direction)
    point = origin + direction * far[:, None]
    rows = np.arange(len(axis))
    tilt = np.maximum(np.abs(direction[rows, axis]), 0.05)
    footprint = (far * camera.pixel_angle(SUPERSAMPLING) / np.sqrt(tilt)).astype(np.float32)
    albedo = np.empty_like(direction)
    floor = (axis == 1) & (direction[:, 1] < 0)
    albedo[(axis == 1) & ~floor] = room.ceiling
    albedo[floor] = room.floor.color(point[floor, 0], point[floor, 2], footprint[floor])
    wall = axis != 1
    across = np.where(axis == 2, point[:, 0], point[:, 2])
    # Texture rows run downwards, so that upright patterns stand upright.
    albedo[wall] = room.wall.color(across[wall], -point[wall, 1], footprint[wall])
    board = wall & (point[:, 1] < room.skirting)
    rim = np.where(point[:, 1] > room.skirting * 0.88, 0.75, 1.0)
    albedo[board] = room.skirting_color * rim[board, None]
    return albedo, far


def _room_light(
    stage: Stage, room: Room, light: Light, camera: Camera, rng: np.random.Generator
) -> Floats:
    """Light on the room's surfaces, with the shadows of products, at half the resolution."""
    origin, direction = camera.rays(0.5)
    far, axis = _room_hit(room, origin, direction)
    normal = _room_normal(direction, axis)
    point = origin + direction * far[:, None] + normal * _NUDGE
    soft = replace(light, sun=None)
    lit = _irradiance(stage, soft, point, normal, normal, _ROOM_SAMPLES, rng)
    lit *= _inner_edges(room, point, axis)[:, None]
    smooth = blur(lit.reshape(round(camera.height * 0.5), -1, 3), 0.8)
    if light.sun is None:
        return smooth
    origin, direction = camera.rays(1)
    far, axis = _room_hit(room, origin, direction)
    normal = _room_normal(direction, axis)
    patch = _sunlit(stage, light, origin + direction * far[:, None] + normal * _NUDGE, normal)
    shape = (camera.height, camera.width)
    sun = blur(patch.reshape(*shape, 1) * light.sunlight, 0.7)
    return np.asarray(_resized(smooth, shape) + sun, np.float32)


def _inner_edges(room: Room, point: Floats, axis: Ints) -> Floats:
    """Darkening near the edges where walls, floor and ceiling meet."""
    # A point far outside (one ray of one picture in 4,000) must not overflow: blur would spread it.
    gap = np.maximum(np.minimum(point - room.low, room.high - point), 0)
    gap[np.arange(len(axis)), axis] = np.inf
    return np.asarray((1 - 0.3 * np.exp(-gap / _FACE_EDGE)).prod(axis=1), np.float32)


def _floor_reflection(
    stage: Stage, room: Room, light: Light, camera: Camera, rng: np.random.Generator
) -> Floats:
    """Mirror image of products and window in a glossy floor; RGB and share at half resolution."""
    origin, direction = camera.rays(0.5)
    rows = round(camera.height * 0.5)
    out = np.zeros((len(direction), 4), np.float32)
    far, axis = _room_hit(room, origin, direction)
    floor = np.flatnonzero((axis == 1) & (direction[:, 1] < 0))
    if room.floor.gloss > 0 and len(floor):
        down = direction[floor]
        point = origin[floor] + down * far[floor, None]
        point[:, 1] = _NUDGE
        mirrored = down * np.array((1, -1, 1), np.float32)
        fresnel = room.floor.gloss * (0.04 + 0.96 * (1 - mirrored[:, 1]) ** 5)
        hits = stage.surfaces(point, mirrored)
        shade = _shaded(stage, light, hits, mirrored[hits.row], rng)
        share = fresnel[hits.row] * hits.alpha
        out[floor[hits.row], :3] = share[:, None] * shade
        out[floor[hits.row], 3] = share
        free = np.setdiff1d(np.arange(len(floor)), hits.row)
        bright = _towards_window(light, point[free], mirrored[free])
        out[floor[free], :3] = (fresnel[free] * bright)[:, None] * light.window * 0.6
    return blur(out.reshape(rows, -1, 4), 0.6 + 1.6 * (1 - room.floor.gloss))


def _towards_window(light: Light, point: Floats, direction: Floats) -> Floats:
    """1 where a ray meets the window's rectangle, fading over its border, else 0."""
    facing = np.cross(light.across, light.upward)
    slope = direction @ facing
    far = (light.centre - point) @ facing / np.where(np.abs(slope) < 1e-6, 1e-6, slope)
    spot = point + far[:, None] * direction - light.centre
    x = np.abs(spot @ light.across / (light.across @ light.across))
    y = np.abs(spot @ light.upward / (light.upward @ light.upward))
    inside = np.clip((1.1 - x) / 0.2, 0, 1) * np.clip((1.1 - y) / 0.2, 0, 1) * (far > 0)
    return np.asarray(inside, np.float32)


def _facing(normal: Floats, direction: Floats) -> Floats:
    """Normals turned towards where the rays come from."""
    away = _dot(normal, direction)[:, None] > 0
    return np.where(away, -normal, normal)


def _embree(triangles: Floats) -> Any:
    scene = rtcore_scene.EmbreeScene()
    if not len(triangles):
        # Embree refuses an empty scene; one far, tiny triangle is never met.
        triangles = np.full((1, 3, 3), 1e6, np.float32) + np.eye(3, dtype=np.float32)
    TriangleMesh(scene, _contiguous(triangles))
    return scene


def _sample(texture: Floats, uv: Floats) -> Floats:
    height, width = texture.shape[:2]
    turned = np.mod(uv, 1)
    column = np.minimum((turned[:, 0] * width).astype(np.int64), width - 1)
    row = np.minimum(((1 - turned[:, 1]) * height).astype(np.int64), height - 1)
    return np.asarray(texture[row, column])


def _pooled(image: Floats) -> Floats:
    rows, columns, channels = image.shape
    split = image.reshape(
        rows // SUPERSAMPLING, SUPERSAMPLING, columns // SUPERSAMPLING, SUPERSAMPLING, channels
    )
    # Slices are added one by one: numpy's mean over short axes takes four times as long.
    total = np.zeros(split[:, 0, :, 0].shape, np.float32)
    for row, column in np.ndindex(SUPERSAMPLING, SUPERSAMPLING):
        total += split[:, row, :, column]
    return total / SUPERSAMPLING**2


def _resized(image: Floats, shape: tuple[int, int]) -> Floats:
    """Bilinear enlargement of float32 [h, w, C] to [*shape, C]."""
    bands = [Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(image, -1, 0)]
    size = (shape[1], shape[0])
    resized = [np.asarray(band.resize(size, Image.Resampling.BILINEAR)) for band in bands]
    return np.stack(resized, axis=-1)


def blur(image: Floats, sigma: float) -> Floats:
    """Gaussian blur of float32 [H, W, C] by `sigma` pixels, edges repeated."""
    reach = max(1, int(np.ceil(3 * sigma)))
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-(offsets**2) / (2 * max(sigma, 1e-3) ** 2))
    kernel = (kernel / kernel.sum()).astype(np.float32)
    for axis in (0, 1):
        pad = [(0, 0)] * image.ndim
        pad[axis] = (reach, reach)
        padded = np.pad(image, pad, mode="edge")
        size = image.shape[axis]
        image = np.zeros_like(image)
        for start, weight in enumerate(kernel):
            image += weight * np.take(padded, range(start, start + size), axis=axis)
    return image


def _unit(vectors: NDArray[Any]) -> Floats:
    return np.asarray(vectors / np.maximum(_length(vectors), 1e-12), np.float32)


def _length(vectors: NDArray[Any]) -> NDArray[Any]:
    """Lengths [N, 1] of vectors [N, 3]."""
    return np.asarray(np.sqrt(_dot(vectors, vectors))[:, None])


def _dot(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    """Row-wise scalar products [N] of [N, 3]; a sum over so short an axis is slow in numpy."""
    product = one * other
    return np.asarray(product[:, 0] + product[:, 1] + product[:, 2])


def _contiguous(values: Floats) -> Floats:
    return np.ascontiguousarray(values, dtype=np.float32)
