"""The renderer on made-up solids whose silhouettes and shadows are known by geometry."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("embreex", reason="the renderer needs the extra `train`")

from unified_embedding.errors import DataError
from unified_embedding.rendering.mesh import Mesh, linear, load_mesh
from unified_embedding.rendering.photograph import develop, encode, random_lens
from unified_embedding.rendering.render import Camera, Light, Rendering, Room, Stage, render
from unified_embedding.rendering.shots import camera_shot
from unified_embedding.rendering.surfaces import (
    FLOORS,
    SIDE,
    TABLE_TOPS,
    WALLS,
    make_surface,
    paint,
)

UPRIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
CUBE = """mtllib cube.mtl
v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nv 0 0 1\nv 1 0 1\nv 1 1 1\nv 0 1 1
usemtl body
f 5 6 7 8\nf 2 1 4 3\nf 6 2 3 7\nf 1 5 8 4\nf 8 7 3 4\nf 1 2 6 5
"""


def cube(folder: Path, opacity: float = 1.0, size: tuple[float, float, float] = (1, 1, 1)) -> Mesh:
    (folder / "cube.obj").write_text(CUBE)
    (folder / "cube.mtl").write_text(f"newmtl body\nKd 0.8 0.1 0.1\nd {opacity}\n")
    return load_mesh(folder / "cube.obj", size, UPRIGHT)


def front_camera(width: int, height: int) -> Camera:
    """Five metres in front of the cube's front face (z = .5), level with its middle."""
    eye = np.array([0, 0.5, 5.5], np.float32)
    return Camera(eye, np.eye(3, dtype=np.float32), 0.25, (0.0, 0.0), width, height)


def bare_room() -> Room:
    surface = make_surface(paint, np.random.default_rng(0), 1.0)
    grey = np.full(3, 0.5, np.float32)
    low, high = np.array([-4, 0, -3], np.float32), np.array([4, 3, 7], np.float32)
    return Room(low, high, surface, surface, grey, 0.1, grey)


def light_from_left() -> Light:
    one = np.ones(3, np.float32)
    return Light(
        centre=np.array([-3, 1.5, 0], np.float32),
        across=np.array([0, 0, 0.3], np.float32),
        upward=np.array([0, 0.3, 0], np.float32),
        window=60 * one,
        ambient=0.2 * one,
        sun=None,
        sunlight=one,
        panes=(1, 1),
        reach=0.5,
    )


def rendered(mesh: Mesh, width: int = 64, height: int = 48) -> Rendering:
    stage = Stage([mesh])
    camera = front_camera(width, height)
    return render(stage, bare_room(), light_from_left(), camera, np.random.default_rng(1))


def test_silhouette_of_a_cube_is_the_square_that_perspective_gives(tmp_path: Path) -> None:
    seen = rendered(cube(tmp_path))
    # The front face is 1 m wide at 5 m: 1 / (2 * 5 * tangent) of the longer side.
    side = 64 / (2 * 5 * 0.25)
    assert np.sqrt(seen.coverage.sum()) == pytest.approx(side, abs=0.6)
    rows, columns = np.nonzero(seen.owner == 0)
    assert rows.min() == pytest.approx(24 - side / 2, abs=1)
    assert columns.max() == pytest.approx(31 + side / 2, abs=1)


def test_size_is_the_catalogues(tmp_path: Path) -> None:
    low, high = cube(tmp_path, size=(0.4, 1.5, 0.7)).extent
    np.testing.assert_allclose(high - low, (0.4, 1.5, 0.7), rtol=1e-5)
    np.testing.assert_allclose(low, (-0.2, 0, -0.35), atol=1e-6)


def test_sharp_edges_stay_sharp(tmp_path: Path) -> None:
    mesh = cube(tmp_path)
    largest = np.abs(mesh.normals).max(axis=-1)
    np.testing.assert_allclose(largest, 1, atol=1e-6)


def test_shadow_falls_away_from_the_window(tmp_path: Path) -> None:
    beside = rendered(cube(tmp_path)).room.mean(axis=-1)
    away = rendered(cube(tmp_path).placed(0.0, (-3.4, 0.0, 6.4))).room.mean(axis=-1)
    spots = front_camera(64, 48).project(np.array([[-1.2, 0, 0], [1, 0, 0]], np.float32))
    (left, row), (right, _) = np.round(np.array([31.5, 23.5]) + 32 * spots * (1, -1)).astype(int)
    assert beside[row, right] < 0.5 * away[row, right]
    assert beside[row, left] > 0.9 * away[row, left]


def test_glass_shows_the_room_behind_it(tmp_path: Path) -> None:
    solid, glass = rendered(cube(tmp_path)), rendered(cube(tmp_path, opacity=0.3))
    middle = (24, 32)
    assert solid.coverage[middle] == pytest.approx(1)
    # Two faces of the cube, each letting .7 through.
    assert glass.coverage[middle] == pytest.approx(1 - 0.7**2, abs=0.01)


def test_two_products_own_their_pixels(tmp_path: Path) -> None:
    left = cube(tmp_path).placed(0.0, (-0.7, 0.0, 0.0))
    right = cube(tmp_path).placed(0.3, (0.7, 0.0, 0.0))
    stage = Stage([left, right])
    camera = front_camera(64, 48)
    seen = render(stage, bare_room(), light_from_left(), camera, np.random.default_rng(1))
    assert set(np.unique(seen.owner[:, :31])) == {-1, 0}
    assert set(np.unique(seen.owner[:, 34:])) == {-1, 1}


def test_points_far_outside_the_room_leave_the_picture_finite(tmp_path: Path) -> None:
    room = bare_room()
    # Its upper corner lies behind the camera and far below the floor.
    strange = replace(room, high=room.high - np.float32(2000))
    camera, rng = front_camera(16, 12), np.random.default_rng(1)
    found = render(Stage([cube(tmp_path)]), strange, light_from_left(), camera, rng)
    assert np.isfinite(found.room).all()


def test_equal_seeds_give_equal_photographs(tmp_path: Path) -> None:
    mesh = cube(tmp_path)
    one, two, other = (
        camera_shot(mesh, 0.0, np.random.default_rng(seed), (96, 64)) for seed in (5, 5, 6)
    )
    assert one == two != other


@pytest.mark.parametrize("elevation", [0.0, 1.2])
@pytest.mark.parametrize("size", [(80, 60), (60, 80), (64, 64)])
def test_shot_has_the_size_that_was_asked_for(
    tmp_path: Path, elevation: float, size: tuple[int, int]
) -> None:
    jpeg = camera_shot(cube(tmp_path), elevation, np.random.default_rng(3), size)
    image = Image.open(io.BytesIO(jpeg))
    assert image.size == size
    assert np.asarray(image).std() > 10


def test_project_inverts_rays() -> None:
    camera = Camera(
        np.array([1, 2, 3], np.float32), np.eye(3, dtype=np.float32), 0.4, (0.2, -0.1), 40, 30
    )
    origin, direction = camera.rays(1)
    seen = camera.project(origin + 2 * direction)
    columns = ((np.arange(40) + 0.5) / 40 * 2 - 1)[None].repeat(30, 0).ravel()
    np.testing.assert_allclose(seen[:, 0], columns, atol=1e-5)


@pytest.mark.parametrize("kind", [*FLOORS, *TABLE_TOPS, *WALLS], ids=lambda kind: kind[0].__name__)
def test_surfaces_tile_and_stay_in_range(kind) -> None:  # type: ignore[no-untyped-def]
    maker, _, metres, gloss = kind
    surface = make_surface(maker, np.random.default_rng(2), metres, gloss)
    assert surface.levels[0].shape == (SIDE, SIDE, 3)
    assert surface.levels[-1].shape == (1, 1, 3)
    for level in surface.levels:
        assert level.min() >= 0
        assert level.max() <= 1
    np.testing.assert_allclose(
        surface.levels[-1][0, 0], surface.levels[0].mean(axis=(0, 1), dtype=float), rtol=1e-3
    )
    u = np.array([0.3, 0.3 + metres], np.float32)
    colors = surface.color(u, np.zeros(2, np.float32), np.full(2, 1e-3, np.float32))
    np.testing.assert_allclose(colors[0], colors[1], atol=0.02)


def test_brighter_light_is_metered_away(tmp_path: Path) -> None:
    seen = rendered(cube(tmp_path))
    bright = Rendering(4 * seen.room, seen.depth, 4 * seen.products, seen.coverage, seen.owner)
    lens = random_lens(5.0, np.random.default_rng(0))
    one, two = (develop(r, lens, np.random.default_rng(0)) for r in (seen, bright))
    assert np.abs(one.astype(int) - two.astype(int)).max() <= 1
    assert Image.open(io.BytesIO(encode(one, 80))).format == "JPEG"


def test_srgb_curve() -> None:
    np.testing.assert_allclose(linear(np.array([0, 0.5, 1])), (0, 0.21404, 1), atol=1e-4)


def test_model_without_triangles_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no visible triangle"):
        cube(tmp_path, opacity=0.0)
