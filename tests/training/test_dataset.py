"""Training pixels: seeded per image, through the one preprocessing."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unified_embedding.errors import DataError
from unified_embedding.image import Preprocessing, load_pixels
from unified_embedding.training.config import DataConfig, MadeUp
from unified_embedding.training.dataset import (
    TrainingImages,
    change_color,
    random_box,
    training_pixels,
)
from unified_embedding.training.examples import Examples, load_rows, select
from unified_embedding.training.plan import Plan

SIZE = Preprocessing(size=32)


def made_up(**fields: object) -> DataConfig:
    return DataConfig.model_validate({"made_up": MadeUp(), **fields})


@pytest.fixture(scope="module")
def examples() -> Examples:
    return select(*load_rows(made_up()), made_up(), "train")


def test_without_augmentation_the_pixels_are_those_of_serving(examples: Examples) -> None:
    data = made_up(crop_area=1, flip=False, color=0)
    images = TrainingImages(examples, SIZE, data, seed=0)
    expected = load_pixels(examples.read(examples.images[5]), SIZE)
    np.testing.assert_array_equal(images[5, 3, 1].numpy(), expected)


def test_a_flip_mirrors_about_half_of_the_pictures(examples: Examples) -> None:
    images = TrainingImages(examples, SIZE, made_up(crop_area=1, color=0), seed=0)
    plain = load_pixels(examples.read(examples.images[5]), SIZE)
    mirrored = 0
    for step in range(60):
        found = images[5, step, 0].numpy()
        same, flipped = (found == plain).all(), (found == plain[:, ::-1]).all()
        assert same != flipped
        mirrored += int(flipped)
    assert 15 < mirrored < 45


def test_the_same_key_gives_the_same_pixels_and_another_slot_others(examples: Examples) -> None:
    images = TrainingImages(examples, SIZE, made_up(), seed=0)
    again = TrainingImages(examples, SIZE, made_up(), seed=0)
    assert torch.equal(images[5, 3, 1], again[5, 3, 1])
    assert not torch.equal(images[5, 3, 1], images[5, 3, 2])
    assert not torch.equal(images[5, 3, 1], images[5, 4, 1])
    assert not torch.equal(images[5, 3, 1], TrainingImages(examples, SIZE, made_up(), 1)[5, 3, 1])


def test_workers_change_nothing(examples: Examples) -> None:
    rows = {task: examples.rows_of(task) for task in ("browse", "camera", "shop")}
    plan = Plan(rows, 6, seed=0)
    found = []
    for workers in (0, 2):
        images = TrainingImages(examples, SIZE, made_up(workers=workers), seed=0)
        state = torch.random.get_rng_state()
        found.append(torch.stack(list(training_pixels(images, plan, 2, 5, plan.slots(0, 1)))))
        assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(found[0], found[1])
    assert found[0].shape == (3, 6, 32, 32, 3)


@given(st.integers(0, 10_000), st.floats(0.05, 1))
def test_random_boxes_keep_the_asked_area_and_shape(seed: int, smallest: float) -> None:
    box = random_box(np.random.default_rng(seed), smallest)
    width, height = box.x1 - box.x0, box.y1 - box.y0
    assert width * height >= smallest - 1e-9
    assert 3 / 4 - 1e-6 <= width / height <= 4 / 3 + 1e-6


def test_color_changes_each_channel_by_one_factor() -> None:
    pixels = np.full((4, 4, 3), 100, np.uint8)
    changed = change_color(pixels, np.random.default_rng(1), 0.2)
    assert len(np.unique(changed.reshape(-1, 3), axis=0)) == 1
    assert 80 <= changed.min() <= changed.max() <= 120
    assert len(np.unique(changed[0, 0])) > 1
    white = change_color(np.full((4, 4, 3), 255, np.uint8), np.random.default_rng(2), 0.2)
    assert white.dtype == np.uint8  # clipped, not wrapped around


def test_a_bad_picture_is_named(tmp_path: Path, examples: Examples) -> None:
    broken = Examples(
        images=["good.png", "bad.png"],
        task=np.array(["shop"] * 2),
        domain=np.array(["web"] * 2),
        labels={},
        read=lambda name: (tmp_path / name).read_bytes(),
    )
    out = io.BytesIO()
    Image.new("RGB", (40, 40)).save(out, "PNG")
    (tmp_path / "good.png").write_bytes(out.getvalue())
    (tmp_path / "bad.png").write_bytes(out.getvalue()[:60])
    images = TrainingImages(broken, SIZE, made_up(), seed=0)
    assert images[0, 0, 0].shape == (32, 32, 3)
    with pytest.raises(DataError, match=r"picture bad\.png cannot be used"):
        images[1, 0, 0]


def test_strong_augmentation_depends_on_row_step_and_slot_alone(examples: Examples) -> None:
    strong = TrainingImages(examples, SIZE, made_up(augment="strong"), seed=1)
    before = torch.random.get_rng_state()
    first = strong[0, 3, 1]
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(7)
    assert torch.equal(strong[0, 3, 1], first)
    assert (first.shape, first.dtype) == ((32, 32, 3), torch.uint8)
    light = TrainingImages(examples, SIZE, made_up(), seed=1)
    assert any(not torch.equal(strong[0, s, 1], light[0, s, 1]) for s in range(3, 9))
