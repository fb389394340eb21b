import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unified_embedding.engine.gates import gates
from unified_embedding.gallery import Gallery, GalleryError


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    rows = ["image,product,role"]
    for index in range(20):
        for role in ("catalogue", "shot"):
            Image.new("RGB", (8, 8)).save(tmp_path / f"{role}{index}.png")
            rows.append(f"{role}{index}.png,p{index},{role}")
    (tmp_path / "gallery.csv").write_text("\n".join(rows))
    return Gallery.load(tmp_path)


@pytest.fixture
def reference(gallery: Gallery) -> np.ndarray:
    """Shots lie near their catalogue picture, as a good embedder puts them."""
    rng = np.random.default_rng(0)
    products = rng.normal(size=(20, 256))
    rows = [products[i // 2] + 0.3 * rng.normal(size=256) for i in range(40)]
    return np.array(rows, dtype=np.float32)


def test_the_reference_passes_every_gate(reference: np.ndarray, gallery: Gallery) -> None:
    figures = gates.measure(reference, reference.copy(), gallery, repeatable=True)
    assert figures.cosine_worst == pytest.approx(1)
    assert (figures.flips_mean, figures.flip_at, figures.neighbours) == (0, 0, 1)
    assert figures.recall == figures.recall_reference
    assert figures.recall["float"] == 1
    for limits in gates.TOLERANCES.values():
        assert gates.failures(figures, limits) == []
    json.dumps(figures.as_dict())


def test_figures_against_their_definitions(reference: np.ndarray, gallery: Gallery) -> None:
    rng = np.random.default_rng(1)
    candidate = reference + 0.2 * rng.normal(size=reference.shape).astype(np.float32)
    figures = gates.measure(reference, candidate, gallery, repeatable=True)
    flipped = (reference > 0) != (candidate > 0)
    cosines = [
        float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        for a, b in zip(reference, candidate, strict=True)
    ]
    assert figures.cosine_worst == pytest.approx(min(cosines), abs=1e-6)
    assert figures.cosine_mean == pytest.approx(np.mean(cosines), abs=1e-6)
    assert figures.flips_mean == pytest.approx(flipped.mean())
    assert figures.flips_worst == pytest.approx(flipped.mean(axis=1).max())
    assert figures.flip_at == pytest.approx(np.abs(reference[flipped]).max())


def test_pictures_without_labels_are_gated_by_all_but_recall(
    tmp_path: Path, gallery: Gallery, reference: np.ndarray
) -> None:
    (tmp_path / "gallery.csv").unlink()
    unlabelled = Gallery.unlabelled(tmp_path)
    assert {picture.path for picture in unlabelled.pictures} == {
        picture.path for picture in gallery.pictures
    }
    same = gates.measure(reference, reference.copy(), unlabelled, repeatable=True)
    assert (same.images, same.queries, same.recall) == (40, 0, {})
    wrong = gates.measure(reference, reference[::-1].copy(), unlabelled, repeatable=True)
    for limits in gates.TOLERANCES.values():
        assert gates.failures(same, limits) == []
        assert any("flipped bits" in sentence for sentence in gates.failures(wrong, limits))
    (tmp_path / "shot0.png").unlink()
    for name in range(10):
        (tmp_path / f"catalogue{name}.png").unlink()
    with pytest.raises(GalleryError, match=r"holds 29 pictures .* at least 32"):
        Gallery.unlabelled(tmp_path)


@pytest.mark.parametrize("precision", gates.TOLERANCES)
def test_every_gate_can_fail(precision: str, reference: np.ndarray, gallery: Gallery) -> None:
    good = gates.measure(reference, reference.copy(), gallery, repeatable=True)
    limits = gates.TOLERANCES[precision]
    worse = {
        "finite": False,
        "repeatable": False,
        "flips_mean": limits.flips_mean + 0.001,
        "flips_worst": limits.flips_worst + 0.001,
        "neighbours": limits.neighbours - 0.001,
        "recall": {**good.recall, "code": 0.8},
    }
    optional = {"cosine_worst": -0.001, "cosine_mean": -0.001, "flip_at": 0.001}
    for name, step in optional.items():
        limit = getattr(limits, name)
        if limit is not None:
            worse[name] = limit + step
    for name, value in worse.items():
        assert len(gates.failures(replace(good, **{name: value}), limits)) == 1, name


def test_nan_is_reported_not_hidden(reference: np.ndarray, gallery: Gallery) -> None:
    candidate = reference.copy()
    candidate[3, 5] = np.nan
    figures = gates.measure(reference, candidate, gallery, repeatable=True)
    assert not figures.finite
    assert "NaN" in gates.failures(figures, gates.TOLERANCES["bf16"])[0]


def test_fp32_allows_one_query_either_way(reference: np.ndarray, gallery: Gallery) -> None:
    good = gates.measure(reference, reference.copy(), gallery, repeatable=True)
    one = replace(good, recall={**good.recall, "float": 1 - 1 / 20})
    two = replace(good, recall={**good.recall, "float": 1 - 2 / 20})
    assert gates.failures(one, gates.TOLERANCES["fp32"]) == []
    assert len(gates.failures(two, gates.TOLERANCES["fp32"])) == 1
