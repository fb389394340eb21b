"""Validation: the very figures of the evaluation, and limits that keep every label."""

from pathlib import Path

import numpy as np
import pytest
import torch
from made_up_shop import write_shop
from torch import nn

from unified_embedding.datasets.manifest import read_manifest
from unified_embedding.image import Preprocessing
from unified_embedding.protocols.held_out import held_out
from unified_embedding.protocols.measure import Cell, measure
from unified_embedding.protocols.tasks import MAIN, build_tasks
from unified_embedding.training.config import MadeUp
from unified_embedding.training.examples import (
    Examples,
    FolderReader,
    from_rows,
    made_up_rows,
    read_made_up,
)
from unified_embedding.training.validation import Score, choose, embed, validate


def test_validation_is_the_evaluation_of_unseen_pictures(tmp_path: Path) -> None:
    """The test split, given as validation rows, yields the figures that evaluation publishes."""
    manifest = write_shop(tmp_path)
    rows = [
        row
        for row in read_manifest(manifest)
        if row["split"] == "test" and row["domain"] != "outline"  # never trained on
    ]
    examples = from_rows([*rows], FolderReader(tmp_path))
    pictures = held_out(rows, tmp_path)
    model, small = _MeanColor(), Preprocessing(size=32)
    found = validate(model, examples, small, torch.device("cpu"), 1000)
    row_of = {image: row for row, image in enumerate(examples.images)}
    order = np.array([row_of[image] for image in pictures.images])
    vectors = embed(model, examples, order, small, torch.device("cpu"))
    # Without training rows evaluation takes every design for untrained: the names move.
    pictures.trained[:] = True
    measured = measure(pictures, vectors, build_tasks(pictures)).samples
    assert {task: score.metric for task, score in found.items()} == {
        task: metric for task, (_, metric) in MAIN.items()
    }
    for task, (name, metric) in MAIN.items():
        assert found[task].float_ == measured[Cell(name, metric, "float")].values.mean()
        assert found[task].code == measured[Cell(name, metric, "code")].values.mean()
        assert found[task].queries == len(measured[Cell(name, metric, "float")].values)


def test_the_products_own_catalogue_picture_alone_does_not_satisfy_camera(tmp_path: Path) -> None:
    """R@1 of the category would be 1 here; P@20 counts the category's other products."""
    rows = []
    for product in range(60):
        labels = {"task": "camera", "camera_category": f"c{product % 2}"}
        for domain in ("shot", "catalogue"):
            rows.append({"image": f"{product}:{domain}", "domain": domain, **labels})
    examples = from_rows(rows, lambda image: image.encode())
    model, cpu = _ByName(), torch.device("cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unified_embedding.training.validation.embed", model.embed)
        found = validate(model, examples, Preprocessing(size=32), cpu, 1000)
    # Each shot finds its own product first; of 59 others at one distance, 29 are right.
    assert found["camera"].metric == "P@20"
    assert found["camera"].float_ == pytest.approx((1 + 19 * 29 / 59) / 20)


class _ByName(nn.Module):
    """One direction per product, whatever the domain."""

    def embed(
        self, model: nn.Module, examples: Examples, rows: np.ndarray, *_: object
    ) -> np.ndarray:
        products = [int(examples.images[row].split(":")[0]) for row in rows]
        return np.eye(64, dtype=np.float32)[products]


def test_every_camera_category_stays_whatever_the_limit() -> None:
    """Ten categories, unequal; the old rule kept whole categories and dropped others."""
    rows = []
    for category in range(10):
        for number in range(3 + 9 * category):
            domain = "catalogue" if number < 2 + category else "shot"
            rows.append(
                {
                    "image": f"{category}-{number}",
                    "task": "camera",
                    "domain": domain,
                    "camera_category": f"c{category}",
                }
            )
    examples = from_rows(rows, lambda image: image.encode())
    whole = len(choose(examples, "camera", 10_000))
    assert whole == len(rows)
    for limit in (100, 150, 300):
        kept = choose(examples, "camera", limit)
        assert abs(len(kept) - limit) <= 10
        shots = kept[examples.domain[kept] == "shot"]
        assert len(np.unique(examples.labels["camera_category"][shots])) == 10
        assert (examples.domain[kept] == "catalogue").sum() == sum(2 + c for c in range(10))
        largest = (examples.labels["camera_category"][shots] == "c9").mean()
        in_all = (examples.domain == "shot") & (examples.labels["camera_category"] == "c9")
        assert largest == pytest.approx(in_all.sum() / (examples.domain == "shot").sum(), abs=0.05)


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
    assert all(isinstance(score, Score) and 0 <= score.code <= 1 for score in found.values())
    assert found["browse"].queries == 6
    assert model.training
    without = from_rows(rows, read_made_up, labels=["shop_class"])
    assert validate(model, without, Preprocessing(size=32), torch.device("cpu"), 100) == {}
