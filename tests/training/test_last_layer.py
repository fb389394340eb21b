"""The last layers on fixed features: they learn, repeat, and match the embedder's LayerNorm."""

from pathlib import Path

import numpy as np
import pytest
import torch

from unified_embedding.evaluation.last_layer import (
    Setting,
    embed,
    fit,
    normalised,
    remembered,
)
from unified_embedding.retrieval import recall_at, scores
from unified_embedding.training.examples import Examples, from_rows

CLASSES, PER_CLASS, SIGNAL, NOISE = 40, 6, 16, 48
SETTING = Setting(dim=16, share=100, seed=0, steps=150, batch=24, rate=0.02, proxy_rate=0.05)


def unread(image: str) -> bytes:
    raise AssertionError(f"{image}: features are given, no picture is read")


def data(classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features whose classes show in few directions, under noise in many; all above zero."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(9).normal(size=(SIGNAL, SIGNAL + NOISE))
    labels = np.repeat(np.arange(classes), PER_CLASS)
    centres = rng.normal(size=(classes, SIGNAL)) @ directions
    rows = centres[labels] + 4 * rng.normal(size=(len(labels), SIGNAL + NOISE))
    return (rows - rows.min()).astype(np.float32), labels


def examples(labels: np.ndarray) -> Examples:
    rows = []
    for number, label in enumerate(labels):
        task = ("browse", "shop")[number % 2]
        column = {"browse": "browse_class", "shop": "shop_instance"}[task]
        rows.append({"image": str(number), "task": task, "domain": "web", column: f"{label:03}"})
    return from_rows([*rows], unread)


def recall(vectors: np.ndarray, labels: np.ndarray) -> float:
    similarity = scores(vectors, vectors, "float")
    np.fill_diagonal(similarity, -np.inf)
    relevant = labels[:, None] == labels[None, :]
    np.fill_diagonal(relevant, False)
    return float(recall_at(similarity, relevant, 1).mean())


@pytest.mark.parametrize("share", [100, 60])
def test_a_trained_map_finds_unseen_classes_better(share: int) -> None:
    features, labels = data(CLASSES, 0)
    setting = Setting(**{**vars(SETTING), "share": share})
    weights = fit(features, examples(labels), setting)
    assert weights.shape == (SIGNAL + NOISE, 16)
    unseen, their_labels = data(CLASSES, 1)
    start = fit(features, examples(labels), Setting(**{**vars(setting), "steps": 1, "rate": 1e-9}))
    before = recall(embed(unseen, start), their_labels)
    after = recall(embed(unseen, weights), their_labels)
    assert after > before + 0.1


def test_the_same_setting_gives_the_same_map_and_another_seed_another() -> None:
    features, labels = data(CLASSES, 0)
    short = Setting(**{**vars(SETTING), "steps": 5, "share": 60})
    first, second = (fit(features, examples(labels), short) for _ in range(2))
    assert np.array_equal(first, second)
    other = fit(features, examples(labels), Setting(**{**vars(short), "seed": 1}))
    assert not np.allclose(first, other)


def test_the_scale_of_features_does_not_matter() -> None:
    features, labels = data(CLASSES, 0)
    short = Setting(**{**vars(SETTING), "steps": 5})
    one = embed(features, fit(features, examples(labels), short))
    other = embed(100 * features, fit(100 * features, examples(labels), short))
    assert np.allclose(one, other, atol=1e-3)


def test_normalised_is_the_layer_norm_of_torch() -> None:
    features, _ = data(4, 2)
    norm = torch.nn.LayerNorm(features.shape[1], elementwise_affine=False)
    assert np.allclose(normalised(features), norm(torch.from_numpy(features)).numpy(), atol=1e-5)


def test_a_map_is_trained_once(tmp_path: Path) -> None:
    calls = []

    def train() -> np.ndarray:
        calls.append(1)
        return np.full((2, 2), len(calls), dtype=np.float32)

    first = remembered(tmp_path, "features", SETTING, train)
    assert np.array_equal(remembered(tmp_path, "features", SETTING, train), first)
    assert len(calls) == 1
    remembered(tmp_path, "other features", SETTING, train)
    remembered(tmp_path, "features", Setting(**{**vars(SETTING), "seed": 1}), train)
    assert len(calls) == 3
