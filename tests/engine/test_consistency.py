"""Planted inconsistencies of engines are found, and sound engines pass."""

import numpy as np
import pytest

from unified_embedding.engine.gates import consistency


def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)


def sound(pixels: np.ndarray) -> np.ndarray:
    rows = pixels.reshape(len(pixels), -1).astype(np.float32)
    return rows - rows.mean(axis=1, keepdims=True)


def position_matters(pixels: np.ndarray) -> np.ndarray:
    return sound(pixels) + np.arange(len(pixels), dtype=np.float32)[:, None]


def batch_matters(pixels: np.ndarray) -> np.ndarray:
    """A wrong answer in the largest batch only: a bad kernel of one profile corner."""
    rows = sound(pixels)
    return rows[:, ::-1].copy() if len(pixels) == 16 else rows


def rounds_with_the_batch(pixels: np.ndarray) -> np.ndarray:
    return sound(pixels) * np.float32(1 + 1e-7 * len(pixels))


def overflows(pixels: np.ndarray) -> np.ndarray:
    rows = sound(pixels)
    return np.full_like(rows, np.nan) if len(pixels) == 2 else rows


class Stale:
    """Answers with the previous picture when a single one follows another."""

    def __init__(self) -> None:
        self.last: np.ndarray | None = None

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        previous, self.last = self.last, pixels
        late = previous is not None and len(previous) == len(pixels) == 1
        return sound(previous if late else pixels)


@pytest.mark.parametrize("exact", [True, False])
def test_a_sound_engine_has_no_problem(exact: bool) -> None:
    assert consistency.problems(sound, pictures(), 16, exact) == []


def test_identical_rows_must_agree() -> None:
    found = consistency.problems(position_matters, pictures(), 16, exact=True)
    assert found[0] == "15 of 16 identical rows of one batch got another embedding"


def test_every_corner_of_the_profile_is_run() -> None:
    (sentence,) = consistency.problems(batch_matters, pictures(), 16, exact=False)
    assert "alone and in a batch of 16" in sentence
    (sentence,) = consistency.problems(overflows, pictures(), 16, exact=False)
    assert sentence == "batch 2 holds NaN or infinity"


def test_rounding_differences_count_only_where_bits_must_be_equal() -> None:
    assert consistency.problems(rounds_with_the_batch, pictures(), 16, exact=False) == []
    found = consistency.problems(rounds_with_the_batch, pictures(), 16, exact=True)
    assert [sentence.split(" batch of ")[1].split()[0] for sentence in found] == ["2", "8", "16"]


def test_a_stale_answer_is_found() -> None:
    found = consistency.problems(Stale(), pictures(), 16, exact=False)
    assert [sentence.split("answer ")[1][0] for sentence in found] == ["2", "3", "4"]
