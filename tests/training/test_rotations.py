"""Random maps in front of LayerNorm: orthonormal, uniform, and measured without choosing one."""

from pathlib import Path

import numpy as np
import pytest
from made_up_shop import write_shop

from unified_embedding.datasets.manifest import read_manifest
from unified_embedding.evaluation.last_layer import normalised
from unified_embedding.evaluation.rotations import (
    Rotated,
    random_map,
    remembered_rotation,
    rotate,
    rotated_vectors,
)
from unified_embedding.protocols.held_out import HeldOut, held_out
from unified_embedding.protocols.measure import Cell, measure
from unified_embedding.protocols.tasks import build_tasks


@pytest.fixture
def pictures(tmp_path: Path) -> HeldOut:
    manifest = write_shop(tmp_path)
    return held_out(read_manifest(manifest), tmp_path)


@pytest.mark.parametrize("bits", [24, 32, 56])
def test_a_map_keeps_lengths_where_it_has_room(bits: int) -> None:
    found = random_map(32, bits, 3)
    assert found.shape == (32, bits)
    gram = found @ found.T if bits >= 32 else found.T @ found
    assert np.allclose(gram, np.eye(min(bits, 32)), atol=1e-5)
    assert not np.allclose(found, random_map(32, bits, 4))


def test_a_tall_map_changes_cosines_by_the_direction_that_layer_norm_removes_alone() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 64)).astype(np.float32)
    mapped = rows @ random_map(64, 256, 1)
    before, after = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (rows, mapped))
    assert np.allclose(before @ before.T, after @ after.T, atol=1e-5)
    assert np.allclose(rotated_vectors(rows, 256, 1), normalised(mapped), atol=1e-5)
    mean = rows.mean(axis=0)
    centred = normalised((rows - mean) @ random_map(64, 256, 1))
    assert np.allclose(rotated_vectors(rows, 256, 1, mean), centred, atol=1e-5)


def test_losses_are_those_of_each_map_and_are_remembered(pictures: HeldOut, tmp_path: Path) -> None:
    rows = np.random.default_rng(1).normal(size=(len(pictures), 40)).astype(np.float32)
    tasks = build_tasks(pictures)
    found = rotate(pictures, rows, tasks, 64, rotations=3)
    assert found.bits == 64
    cell = Cell("shop exact", "R@1", "code")
    third = measure(pictures, rotated_vectors(rows, 64, 2), tasks)
    expected = third.samples[cell].values - third.samples[Cell(*cell[:2], "float")].values
    assert np.array_equal(found.losses[cell][2].values, expected)
    assert {cell.task for cell in found.losses} == {
        "camera category, unseen", "shop exact", "browse pairs"
    }  # fmt: skip

    assert remembered_rotation(tmp_path / "cache", ["a", 64], lambda: found) is found

    def refuse() -> Rotated:
        raise AssertionError("measured already")

    again = remembered_rotation(tmp_path / "cache", ["a", 64], refuse)
    assert (again.bits, set(again.losses)) == (64, set(found.losses))
    for name, each in found.losses.items():
        assert again.mean(name) == found.mean(name)
        assert [one.values.tolist() for one in again.losses[name]] == [
            one.values.tolist() for one in each
        ]
    with pytest.raises(AssertionError, match="measured already"):
        remembered_rotation(tmp_path / "cache", ["b", 64], refuse)
