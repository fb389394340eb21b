"""Rendered training pictures: seeds, rooms, crops."""

import io
from pathlib import Path

import numpy as np
import pytest
from made_up_furniture import libraries
from PIL import Image

pytest.importorskip("embreex", reason="the renderer needs the extra `train`")

from unified_embedding.datasets import pictures
from unified_embedding.rendering.furniture import Product, read_products, unpack
from unified_embedding.rendering.mesh import load_mesh
from unified_embedding.rendering.shots import jittered, scene_shot, seeded
from unified_embedding.rendering.surfaces import TRAINING, OneRoom


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("libraries")
    unpack(libraries(folder / "sh3f", 4), folder)
    return folder


@pytest.fixture(scope="module")
def products(unpacked: Path) -> list[Product]:
    return read_products(unpacked)[:4]


def test_shots_come_in_rounds_and_share_rooms_in_training_only(products: list[Product]) -> None:
    train = pictures.shot_tasks(products, "train", 5)
    assert [(t.first, t.count) for t in train] == [(0, 3)] * 4 + [(3, 2)] * 4
    test = pictures.shot_tasks(products, "test", 2)
    assert [(t.first, t.count) for t in test] == [(0, 1)] * 4 + [(1, 1)] * 4
    paths = [path for task in [*train, *test] for path in task.paths]
    assert len(set(paths)) == 4 * 5 + 4 * 2


def test_shots_can_be_made_again(products: list[Product], unpacked: Path) -> None:
    task = pictures.shot_tasks(products, "train", 2)[1]
    first, second = task.render(unpacked), task.render(unpacked)
    assert first == second
    assert list(first) == task.paths
    assert len(set(first.values())) == 2


def test_room_is_the_same_for_all_its_pictures() -> None:
    room = OneRoom(TRAINING, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    before = rng.bit_generator.state
    assert room.wall(rng) is room.wall(rng)
    assert room.ground(False, rng) is room.ground(False, rng)
    assert rng.bit_generator.state == before
    other_order = OneRoom(TRAINING, np.random.default_rng(0))
    ground = other_order.ground(False, rng)
    np.testing.assert_array_equal(ground.levels[0], room.ground(False, rng).levels[0])
    np.testing.assert_array_equal(other_order.wall(rng).levels[0], room.wall(rng).levels[0])


def test_scene_lists_its_crops(products: list[Product], unpacked: Path) -> None:
    task = pictures.scene_tasks(products, "test", 1)[0]
    files = task.render(unpacked)
    assert files == task.render(unpacked)
    crops = pictures.crops_of(files[task.paths[1]])
    assert crops
    assert {crop["product"] for crop in crops} <= {product.id for product in task.products}
    assert set(files) == {*task.paths, *(crop["path"] for crop in crops)}
    assert Image.open(io.BytesIO(files[task.paths[0]])).size == (512, 320)


def test_every_product_leads_a_scene(products: list[Product]) -> None:
    tasks = pictures.scene_tasks(products, "train", len(products))
    assert {task.products[0].id for task in tasks} == {product.id for product in products}
    for task in tasks:
        assert len({product.id for product in task.products}) == len(task.products)


def test_box_surrounds_the_product(products: list[Product], unpacked: Path) -> None:
    """Each made-up product has its own colour, so its pixels say where it is."""
    meshes = [load_mesh(unpacked / p.model, p.size, p.rotation) for p in products[:2]]
    scene = scene_shot(meshes, [0.0, 0.0], np.random.default_rng(11), TRAINING)
    image = np.asarray(Image.open(io.BytesIO(scene.jpeg)).convert("HSV")).astype(int)
    hues = []
    for box in scene.boxes:
        assert box is not None
        left, top, right, bottom = box
        assert 0 <= left < right <= 512
        assert 0 <= top < bottom <= 320
        middle = image[(top + bottom) // 2, (left + right) // 2]
        hues.append(middle[0])
        assert middle[1] > 60, "the middle of a box shows its strongly coloured product"
    first, second = scene.boxes
    assert first is not None
    assert second is not None
    assert min(first[2], second[2]) - max(first[0], second[0]) < 40


@pytest.mark.parametrize("seed", range(20))
def test_jitter_stays_small_and_inside(seed: int) -> None:
    box, size = (100, 50, 200, 150), (512, 320)
    moved = jittered(box, size, np.random.default_rng(seed))
    shift = np.abs(np.array(moved) - box)
    assert shift.min() >= 5
    assert shift.max() <= 12
    at_edge = jittered((0, 0, 512, 320), size, np.random.default_rng(seed))
    assert min(at_edge) >= 0
    assert at_edge[2] <= 512
    assert at_edge[3] <= 320


def test_seeds_depend_on_their_name_alone() -> None:
    assert seeded("a", 1).random() == seeded("a", 1).random()
    assert seeded("a", 1).random() != seeded("a", 2).random()
