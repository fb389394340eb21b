"""Triangle meshes of products: loaded from OBJ, brought to real size, placed in a room."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import trimesh
from numpy.typing import NDArray
from PIL import Image

from unified_embedding.errors import DataError

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

_TEXTURE_SIDE: Final = 1024
_GREY: Final = (0.7, 0.7, 0.7)
# Fully transparent parts (a catalogue's invisible helpers) are not geometry.
_INVISIBLE: Final = 0.05
# Cosine of the angle between a triangle and its smoothed normal beyond which an edge is sharp.
_CREASE: Final = 0.77


@dataclass(frozen=True)
class Material:
    """How a surface looks.

    Attributes:
        color: linear RGB, float32 [3].
        opacity: 1 is solid.
        texture: linear RGB and alpha, float32 [H, W, 4], or None.
        specular: strength of the highlight in [0, 1].
        shininess: exponent of the highlight.
    """

    color: Floats
    opacity: float = 1.0
    texture: Floats | None = None
    specular: float = 0.04
    shininess: float = 30.0


@dataclass(frozen=True)
class Mesh:
    """Triangles with normals, texture coordinates and one material each.

    Attributes:
        vertices: metres, float32 [V, 3]; y points up, z towards the front.
        normals: one per corner of each triangle, float32 [F, 3, 3].
        uv: float32 [V, 2].
        faces: indices of vertices, int64 [F, 3].
        material: index of the material, int64 [F].
        materials: the materials.
    """

    vertices: Floats
    normals: Floats
    uv: Floats
    faces: Ints
    material: Ints
    materials: tuple[Material, ...]

    @property
    def extent(self) -> tuple[Floats, Floats]:
        """Lowest and highest corner of the bounding box in metres."""
        return self.vertices.min(axis=0), self.vertices.max(axis=0)

    def placed(self, yaw: float, offset: tuple[float, float, float]) -> "Mesh":
        """The mesh turned by `yaw` radians about the vertical and moved by `offset` metres."""
        turn = yaw_matrix(yaw)
        return replace(
            self,
            vertices=self.vertices @ turn.T + np.asarray(offset, np.float32),
            normals=self.normals @ turn.T,
        )


def yaw_matrix(yaw: float) -> Floats:
    """Rotation about the vertical axis, float32 [3, 3]; a positive yaw turns z towards x."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]], np.float32)


def linear(srgb: NDArray[Any]) -> Floats:
    """Display values in [0, 1] to linear light (IEC 61966-2-1)."""
    values = np.asarray(srgb, np.float32)
    return np.where(
        values <= 0.04045, values / 12.92, ((np.maximum(values, 0.04045) + 0.055) / 1.055) ** 2.4
    ).astype(np.float32)


def load_mesh(path: Path, size: tuple[float, float, float], rotation: tuple[float, ...]) -> Mesh:
    """Load an OBJ file and bring it to `size` (width, height, depth in metres).

    The mesh is centred on the vertical axis and stands on y = 0.

    Raises:
        DataError: the file holds no visible triangle.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Missing textures are common; the plain colour serves.
        scene = trimesh.load_scene(path, group_material=True, split_object=False, process=False)
    parts = [part for part in scene.geometry.values() if isinstance(part, trimesh.Trimesh)]
    visible = [(part, _material(part)) for part in parts if len(part.faces)]
    visible = [(part, material) for part, material in visible if material.opacity >= _INVISIBLE]
    if not visible:
        raise DataError(f"{path} holds no visible triangle")
    return _resized(_joined(visible), size, rotation)


def _joined(parts: list[tuple[Any, Material]]) -> Mesh:
    counts = [len(part.vertices) for part, _ in parts]
    starts = np.cumsum([0, *counts[:-1]])
    return Mesh(
        vertices=np.concatenate([part.vertices for part, _ in parts]).astype(np.float32),
        normals=np.concatenate([_corner_normals(part) for part, _ in parts]),
        uv=np.concatenate([_uv(part) for part, _ in parts]),
        faces=np.concatenate([part.faces + s for (part, _), s in zip(parts, starts, strict=True)]),
        material=np.concatenate([np.full(len(p.faces), i) for i, (p, _) in enumerate(parts)]),
        materials=tuple(material for _, material in parts),
    )


def _resized(mesh: Mesh, size: tuple[float, float, float], rotation: tuple[float, ...]) -> Mesh:
    turn = np.asarray(rotation, np.float32).reshape(3, 3)
    vertices = mesh.vertices @ turn.T
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    span = high - low
    scale = np.where(span > 1e-9, np.asarray(size, np.float32) / np.maximum(span, 1e-9), 1)
    vertices = (vertices - (low + high) / 2) * scale
    vertices[:, 1] -= vertices[:, 1].min()
    # Normals transform with the inverse of an uneven scale.
    normals = _normalised(mesh.normals @ turn.T / np.maximum(scale, 1e-9))
    return replace(mesh, vertices=vertices.astype(np.float32), normals=normals)


def _corner_normals(part: trimesh.Trimesh) -> Floats:
    """Normals per corner, float32 [F, 3, 3]: the file's own, or smooth up to a crease."""
    if "vertex_normals" in part._cache:  # trimesh's only record that the file gave them.
        return np.asarray(part.vertex_normals[part.faces], np.float32)
    flat = np.repeat(_normalised(_face_normals(part.vertices[part.faces]))[:, None], 3, axis=1)
    # A file repeats a vertex for each texture coordinate; smoothing must see one vertex.
    _, merged = np.unique(np.round(part.vertices, 6), axis=0, return_inverse=True)
    vertex = merged.reshape(-1)[part.faces]
    total = np.zeros((int(vertex.max()) + 1, 3))
    # Weighted by angle, how a face is cut into triangles does not matter.
    weighted = flat * _corner_angles(part.vertices[part.faces])[..., None]
    np.add.at(total, vertex.reshape(-1), weighted.reshape(-1, 3))
    smooth = _normalised(total[vertex])
    sharp = (smooth * flat).sum(axis=-1, keepdims=True) < _CREASE
    return np.where(sharp, flat, smooth).astype(np.float32)


def _face_normals(corners: NDArray[Any]) -> NDArray[Any]:
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return np.asarray(cross)


def _corner_angles(corners: NDArray[Any]) -> NDArray[Any]:
    """Angles of triangles [F, 3, 3] at their corners in radians, [F, 3]."""
    onward = _normalised(np.roll(corners, -1, axis=1) - corners)
    cosine = (onward * -np.roll(onward, 1, axis=1)).sum(axis=-1)
    return np.asarray(np.arccos(np.clip(cosine, -1, 1)))


def _normalised(vectors: NDArray[Any]) -> Floats:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-30), np.float32)


def _uv(part: Any) -> Floats:
    uv = getattr(part.visual, "uv", None)
    if uv is None or len(uv) != len(part.vertices):
        return np.zeros((len(part.vertices), 2), np.float32)
    return np.nan_to_num(np.asarray(uv, np.float32)[:, :2])


def _material(part: Any) -> Material:
    material = getattr(part.visual, "material", None)
    kwargs = getattr(material, "kwargs", None) or {}
    color = np.asarray(getattr(material, "diffuse", (*_GREY, 1)), np.float32)[:3]
    if color.max() > 1:
        color = color / 255
    return Material(
        color=linear(color),
        opacity=_number(kwargs.get("d"), 1.0),
        texture=_texture(getattr(material, "image", None)),
        specular=min(1.0, float(np.mean(np.asarray(kwargs.get("ks", 0.1), float)))),
        shininess=float(np.clip(_number(kwargs.get("ns"), 30.0), 5, 200)),
    )


def _number(value: Any, default: float) -> float:
    if value is None:
        return default
    try:
        number = float(np.ravel(np.asarray(value, float))[0])
    except (ValueError, IndexError):
        return default
    return number if np.isfinite(number) else default


def _texture(image: Image.Image | None) -> Floats | None:
    if image is None:
        return None
    try:
        rgba = image.convert("RGBA")
    except OSError:
        return None  # A damaged texture file: the plain colour serves.
    if max(rgba.size) > _TEXTURE_SIDE:
        rgba.thumbnail((_TEXTURE_SIDE, _TEXTURE_SIDE), Image.Resampling.BOX)
    pixels = np.asarray(rgba, np.float32) / 255
    return np.concatenate([linear(pixels[..., :3]), pixels[..., 3:]], axis=-1, dtype=np.float32)
