"""Validation recall: across domains, ties shared, limits by identity."""

import numpy as np
import pytest
import torch
from torch import nn

from unified_embedding.image import Preprocessing
from unified_embedding.training.config import MadeUp
from unified_embedding.training.examples import from_rows, made_up_rows, read_made_up
from unified_embedding.training.validation import Recall, choose, recall_among, validate

WEB, SHOT = "web", "shot"


def brute_force(embedding: np.ndarray, labels: np.ndarray, domain: np.ndarray) -> float:
    hits = []
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    for q in range(len(labels)):
        others = [
            i
            for i in range(len(labels))
            if i != q and (len(set(domain)) == 1 or domain[i] != domain[q])
        ]
        if not any(labels[i] == labels[q] for i in others):
            continue
        best = max(others, key=lambda i: float(unit[i] @ unit[q]))
        hits.append(labels[best] == labels[q])
    return float(np.mean(hits))


@pytest.mark.parametrize("domains", [1, 2, 3])
def test_recall_equals_brute_force(domains: int) -> None:
    rng = np.random.default_rng(domains)
    labels = np.array([f"l{i}" for i in rng.integers(0, 12, 40)])
    domain = np.array([f"d{i}" for i in rng.integers(0, domains, 40)])
    centres = {label: rng.standard_normal(16) for label in np.unique(labels)}
    embedding = np.stack([centres[label] for label in labels]) + rng.standard_normal((40, 16))
    found = recall_among(embedding.astype(np.float32), labels, domain)
    assert found is not None
    assert found.float_ == pytest.approx(brute_force(embedding, labels, domain))


def test_a_picture_of_the_same_domain_does_not_count() -> None:
    embedding = np.eye(8, dtype=np.float32)[[0, 0, 1, 2]] - 0.1
    labels = np.array(["a", "a", "a", "b"])
    domain = np.array([WEB, WEB, SHOT, SHOT])
    # Each web "a" meets both shots at the same distance: half a point. The shot "a" meets
    # only web "a"s; the shot "b" has no partner and asks nothing.
    found = recall_among(embedding, labels, domain)
    assert found is not None
    assert found.queries == 3
    assert found.float_ == pytest.approx((0.5 + 0.5 + 1) / 3)


def test_nothing_to_retrieve_gives_no_figure() -> None:
    embedding = np.eye(8, dtype=np.float32)[:2] - 0.1
    assert recall_among(embedding, np.array(["a", "b"]), np.array([WEB, SHOT])) is None


def test_limits_keep_whole_identities_spread_over_the_labels() -> None:
    rows = made_up_rows(MadeUp(browse_class=20, per_class=4))
    examples = from_rows([r for r in rows if r["split"] == "train"], read_made_up)
    assert len(choose(examples, "browse", 1000)) == 80
    kept = choose(examples, "browse", 24)
    labels, counts = np.unique(examples.labels["browse_class"][kept], return_counts=True)
    assert counts.tolist() == [4] * 6
    assert labels.tolist() != sorted(np.unique(examples.labels["browse_class"]))[:6]


class _MeanColor(nn.Module):
    """Embeds the mean colour, spread over eight dimensions of both signs."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        color = pixels.float().mean((1, 2))
        return torch.cat([color, -color, color[:, :2] - 100], dim=1)


def test_validate_reports_the_tasks_that_have_pairs_and_restores_the_mode() -> None:
    rows = made_up_rows(MadeUp(per_class=2, camera_category=0))
    rows = [row for row in rows if row["split"] == "validation"]
    examples = from_rows(rows, read_made_up)
    model = _MeanColor().train()
    found = validate(model, examples, Preprocessing(size=32), torch.device("cpu"), 100)
    assert set(found) == {"browse", "shop"}
    assert all(isinstance(recall, Recall) and 0 <= recall.code <= 1 for recall in found.values())
    assert found["browse"].queries == 6
    assert model.training
    without = from_rows(rows, read_made_up, labels=["shop_class"])
    assert validate(model, without, Preprocessing(size=32), torch.device("cpu"), 100) == {}
