"""Gates: an engine is installed only if it agrees with the fp32 ONNX on real pictures."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unified_embedding.codes import pack, unpack
from unified_embedding.gallery import CATALOGUE, SHOT, Gallery, relevance
from unified_embedding.retrieval import COMPARISONS, Comparison, recall_at, scores

NEIGHBOURS: Final = 10


@dataclass(frozen=True)
class Tolerances:
    """What one precision may cost. None means reported, not limited.

    Attributes:
        cosine_worst, cosine_mean: least cosine of an image's embedding with its reference.
        flips_mean, flips_worst: largest share of flipped sign bits, mean and single image.
        flip_at: largest |reference| at which a bit may flip.
        neighbours: least overlap of the float top-10 of each picture among all others.
        recall_loss: largest loss of R@1 (float, code), in queries where `in_queries`, else share.
    """

    cosine_worst: float | None
    cosine_mean: float | None
    flips_mean: float
    flips_worst: float
    flip_at: float | None
    neighbours: float
    recall_loss: float
    in_queries: bool = False


TOLERANCES: Final[Mapping[str, Tolerances]] = MappingProxyType(
    {
        "fp32": Tolerances(0.99999, None, 0.0001, 0.002, 0.01, 0.999, 1, in_queries=True),
        "fp16": Tolerances(0.9995, 0.9999, 0.003, 0.015, 0.1, 0.98, 0.01),
        "bf16": Tolerances(0.93, 0.996, 0.02, 0.08, None, 0.92, 0.03),
        "int8": Tolerances(0.97, 0.996, 0.025, 0.08, None, 0.92, 0.03),
    }
)


@dataclass(frozen=True)
class Figures:
    """What an engine does to embeddings and codes, over all pictures of a gallery.

    Shares are in [0, 1]. `recall` and `recall_reference` hold R@1 of shots against the
    catalogue by "float", "asymmetric" and "code"; they are empty without shots.
    """

    images: int
    queries: int
    finite: bool
    repeatable: bool
    cosine_worst: float
    cosine_mean: float
    flips_mean: float
    flips_worst: float
    flip_at: float
    neighbours: float
    recall: dict[str, float]
    recall_reference: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """The figures as JSON-ready values."""
        return asdict(self)


def measure(
    reference: NDArray[np.float32],
    candidate: NDArray[np.float32],
    gallery: Gallery,
    repeatable: bool,
) -> Figures:
    """Compare embeddings [N, D] of an engine with the fp32 reference, row by picture.

    `repeatable` states whether identical rows of one batch gave identical embeddings.
    """
    finite = bool(np.isfinite(candidate).all())
    if not finite:
        candidate = np.nan_to_num(candidate)
    cosine = _cosine(reference, candidate)
    flipped = unpack(pack(reference)) != unpack(pack(candidate))
    shares = flipped.mean(axis=1)
    queries = len(gallery.role(SHOT))
    compared = COMPARISONS if queries else ()
    recall, known = (
        {str(name): float(first_hits(rows, gallery, name).mean()) for name in compared}
        for rows in (candidate, reference)
    )
    return Figures(
        images=len(reference),
        queries=queries,
        finite=finite,
        repeatable=repeatable,
        cosine_worst=float(cosine.min()),
        cosine_mean=float(cosine.mean()),
        flips_mean=float(shares.mean()),
        flips_worst=float(shares.max()),
        flip_at=float(np.abs(reference[flipped]).max(initial=0.0)),
        neighbours=_neighbour_overlap(reference, candidate),
        recall=recall,
        recall_reference=known,
    )


def failures(figures: Figures, limits: Tolerances) -> list[str]:
    """One sentence with the figure and its limit for every gate that does not hold."""
    found = []
    if not figures.finite:
        found.append("an embedding holds NaN or infinity")
    if not figures.repeatable:
        found.append("identical pictures of one batch got different embeddings")
    least = {"cosine_worst": "worst cosine", "cosine_mean": "mean cosine"}
    most = {"flips_mean": "mean share of flipped bits", "flips_worst": "worst image's flipped bits"}
    for name, text in {**least, "neighbours": "float top-10 overlap"}.items():
        limit = getattr(limits, name)
        if limit is not None and getattr(figures, name) < limit:
            found.append(f"{text} {getattr(figures, name):.6f} is below {limit:g}")
    for name, text in {**most, "flip_at": "a bit flipped at |x| ="}.items():
        limit = getattr(limits, name)
        if limit is not None and getattr(figures, name) > limit:
            found.append(f"{text} {getattr(figures, name):.6f} is above {limit:g}")
    if not figures.queries:
        return found
    allowed = limits.recall_loss / figures.queries if limits.in_queries else limits.recall_loss
    for name in ("float", "code"):
        loss = figures.recall_reference[name] - figures.recall[name]
        change = abs(loss) if limits.in_queries else loss
        if change > allowed + 1e-9:
            found.append(f"R@1 by {name} moved by {-loss:+.4f}; {allowed:.4f} is allowed")
    return found


def similarity(
    rows: NDArray[np.float32], gallery: Gallery, comparison: Comparison
) -> NDArray[np.float32]:
    """Scores [shots, catalogue pictures] of the gallery's embeddings [N, D]."""
    roles = np.array([picture.role for picture in gallery.pictures])
    return scores(rows[roles == SHOT], rows[roles == CATALOGUE], comparison)


def first_hits(
    rows: NDArray[np.float32], gallery: Gallery, comparison: Comparison
) -> NDArray[np.float64]:
    """R@1 of each shot among the catalogue pictures."""
    relevant = relevance(gallery.role(SHOT), gallery.role(CATALOGUE))
    return recall_at(similarity(rows, gallery, comparison), relevant, 1)


def _cosine(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
    a, b = left.astype(np.float64), right.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine: NDArray[np.float64] = (a * b).sum(axis=1) / np.maximum(lengths, 1e-30)
    return cosine


def _neighbour_overlap(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    tops = []
    for rows in (left, right):
        similarity = scores(rows, rows, "float")
        np.fill_diagonal(similarity, -np.inf)
        tops.append(np.argsort(-similarity, axis=1, kind="stable")[:, :NEIGHBOURS])
    shared = [len(set(a) & set(b)) for a, b in zip(*tops, strict=True)]
    return float(np.mean(shared)) / min(NEIGHBOURS, len(left) - 1)
