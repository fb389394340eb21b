"""Public benchmarks under their published protocol: split, metrics, picture size.

| name | queries | gallery | metrics |
|---|---|---|---|
| sop | every test picture | the other test pictures | R@1, 10, 100, 1000 |
| in-shop | query pictures | gallery pictures | R@1, 10, 20, 30 |
| cub, cars | every test picture | the other test pictures | R@1, 2, 4, 8 and mAP@R |
| gldv2 | query pictures | index pictures | mAP@100, private and public queries |

R@K of the first four is that of Song et al., CVPR 2016, and Liu et al., CVPR 2016: the share of
queries with a right answer among the nearest K.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unified_embedding.datasets.importers import PUBLIC
from unified_embedding.datasets.landmarks import USAGES, read_landmarks
from unified_embedding.datasets.manifest import check_rows
from unified_embedding.errors import CodeError, DataError
from unified_embedding.protocols.measure import Cell, Measurement, Samples, score
from unified_embedding.retrieval import COMPARISONS, Comparison, scorer

_CELLS: Final = 1 << 24
"""Pairs of query and gallery picture that are scored at once: 64 MiB of scores."""
_TEST: Final = ""
"""The only part of a benchmark that has no parts."""


@dataclass(frozen=True, eq=False)
class Copy:
    """Queries and gallery of the user's copy of a data set.

    Attributes:
        folder: where the pictures are.
        images: paths below `folder`, each once.
        queries: int64 [Q], places in `images`.
        gallery: int64 [M], likewise. A picture never answers its own query.
        answers: each query's right answers, places in `gallery`, itself left out.
        clusters: str [Q]; queries that succeed or fail together.
        part: str [Q]; figures are reported by part.
    """

    folder: Path
    images: tuple[str, ...]
    queries: NDArray[np.int64]
    gallery: NDArray[np.int64]
    answers: tuple[NDArray[np.int64], ...]
    clusters: NDArray[np.str_]
    part: NDArray[np.str_]

    def read(self, row: int) -> bytes:
        """Encoded bytes of one picture. Raises DataError when its file is gone."""
        path = self.folder / self.images[row]
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(
                f"{path} cannot be read ({error.strerror}); unpack the data set again"
            ) from error


@dataclass(frozen=True)
class Published:
    """A published row.

    Attributes:
        name: method, network and width.
        source: where its figures stand.
        figures: name of a figure -> percent.
        by: how it compares; figures of "code" are by Hamming distance of sign bits.
    """

    name: str
    source: str
    figures: Mapping[str, float]
    by: Comparison = "float"


@dataclass(frozen=True)
class Benchmark:
    """One public benchmark.

    Attributes:
        title: name and paper.
        open: folder -> `Copy`; raises DataError that names what is missing or damaged.
        metrics: names that `retrieval.figures` knows.
        cropped: whether published rows see the central 7/8 of the picture resized by its shorter
            side (256 to 224 pixels); else there is no published size.
        queries: of the published set, for each part.
        gallery: pictures of the published gallery.
        published: rows to compare with.
    """

    title: str
    open: Callable[[Path], Copy]
    metrics: tuple[str, ...]
    cropped: bool
    queries: Mapping[str, int]
    gallery: int
    published: tuple[Published, ...] = ()

    def columns(self) -> dict[str, tuple[str, str]]:
        """Name of every figure, for instance "R@1" or "private mAP@100" -> part and metric."""
        pairs = [(part, metric) for part in self.queries for metric in self.metrics]
        return {f"{part} {metric}".strip(): (part, metric) for part, metric in pairs}

    def incomplete(self, copy: Copy) -> list[str]:
        """How the copy's counts differ from the published ones; such figures do not compare."""
        parts = {part: int((copy.part == part).sum()) for part in self.queries}
        counts = [
            *((f"{part} queries".strip(), parts[part], self.queries[part]) for part in parts),
            ("gallery pictures", len(copy.gallery), self.gallery),
        ]
        return [
            f"{found:,} {name}, the published set has {wanted:,}"
            for name, found, wanted in counts
            if found != wanted
        ]


def measure_copy(
    copy: Copy,
    vectors: NDArray[np.floating[Any]],
    metrics: Iterable[str],
    comparisons: Iterable[Comparison] = COMPARISONS,
    advance: Callable[[int], object] = lambda queries: None,
) -> Measurement:
    """Search the gallery with every query, by every comparison.

    Args:
        copy: of N pictures.
        vectors: float [N, D], row by row.
        metrics: names that `retrieval.figures` knows.
        comparisons: float, asymmetric, code.
        advance: told the number of queries that were searched.

    Returns:
        Cells are named by the part of the queries; `first` covers all parts in order.

    Raises:
        CodeError: not a vector for every picture.
    """
    if vectors.ndim != 2 or len(vectors) != len(copy.images):
        raise CodeError(f"{len(copy.images)} pictures need as many vectors, got {vectors.shape}")
    names = list(metrics)
    samples: dict[Cell, Samples] = {}
    first: dict[tuple[str, Comparison], NDArray[np.int64]] = {}
    step = max(1, _CELLS // len(copy.gallery))
    for comparison in comparisons:
        similar = scorer(vectors[copy.gallery], comparison)
        best, values = [], {name: np.empty(len(copy.queries)) for name in names}
        for start in range(0, len(copy.queries), step):
            rows = copy.queries[start : start + step]
            relevant = np.zeros((len(rows), len(copy.gallery)), dtype=np.bool_)
            for place, answers in enumerate(copy.answers[start : start + step]):
                relevant[place, answers] = True
            same = rows[:, None] == copy.gallery[None, :]
            found, figures = score(similar(vectors[rows]), relevant, same, names)
            best.append(copy.gallery[found])
            for name in names:
                values[name][start : start + step] = figures[name]
            advance(len(rows))
        first[_TEST, comparison] = np.concatenate(best)
        for part in np.unique(copy.part).tolist():
            inside = copy.part == part
            for name in names:
                cell = Cell(part, name, comparison)
                samples[cell] = Samples(values[name][inside], copy.clusters[inside])
    return Measurement(samples, first)


def _of_rows(name: str) -> Callable[[Path], Copy]:
    """Queries and gallery of the published test half, by label."""

    def open_copy(root: Path) -> Copy:
        rows = [row for row in PUBLIC[name](root) if row["split"] == "test"]
        check_rows(rows, str(root), root)
        labels = np.array([row["identity"] for row in rows], dtype=np.str_)
        domain = np.array([row["domain"] for row in rows], dtype=np.str_)
        by_domain = set(domain.tolist()) == {"query", "gallery"}
        queries = np.flatnonzero(domain == "query") if by_domain else np.arange(len(rows))
        gallery = np.flatnonzero(domain == "gallery") if by_domain else np.arange(len(rows))
        members: dict[str, list[int]] = {}
        for place, row in enumerate(gallery.tolist()):
            members.setdefault(str(labels[row]), []).append(place)
        answers = []
        for query in queries.tolist():
            right = np.array(members.get(str(labels[query]), []), dtype=np.int64)
            answers.append(right[gallery[right] != query])
            if not len(answers[-1]):
                raise DataError(
                    f"{root}: {rows[query]['image']!r} has no other picture of its class "
                    f"{rows[query]['identity']!r} to find; the lists are not complete"
                )
        return Copy(
            folder=root,
            images=tuple(row["image"] for row in rows),
            queries=queries,
            gallery=gallery,
            answers=tuple(answers),
            clusters=labels[queries],
            part=np.full(len(queries), _TEST),
        )

    return open_copy


def _open_landmarks(root: Path) -> Copy:
    found = read_landmarks(root)
    if not found.queries:
        raise DataError(f"{root}: the solution names no query with an answer")
    images = [*found.queries, *found.index]
    for image in images:
        if not (root / image).is_file():
            raise DataError(
                f"{root / image} is not there; unpack the tar files of test into {root / 'test'} "
                f"and those of index into {root / 'index'}"
            )
    count = len(found.queries)
    return Copy(
        folder=root,
        images=tuple(images),
        queries=np.arange(count),
        gallery=np.arange(count, len(images)),
        answers=tuple(np.array(places, dtype=np.int64) for places in found.answers),
        clusters=np.array(found.queries, dtype=np.str_),
        part=np.array([usage.lower() for usage in found.usage], dtype=np.str_),
    )


def _at(*ks: int) -> tuple[str, ...]:
    return tuple(f"R@{k}" for k in ks)


def _rows(
    metrics: tuple[str, ...], *rows: tuple[str, str, Comparison, list[float]]
) -> tuple[Published, ...]:
    return tuple(
        Published(name, source, dict(zip(metrics, figures, strict=False)), by)
        for name, source, by, figures in rows
    )


_ZHAI: Final = (
    "Zhai and Wu, BMVC 2019: README of azgo14/classification_metric_learning, Reproduction"
)
_NORM: Final = "normalised softmax, ResNet-50, 2048-d"
_ANCHOR: Final = "Kim et al., CVPR 2020: README of tjddus9597/Proxy-Anchor-CVPR2020"
_UNICOM: Final = "An et al., ICLR 2023: README of deepglint/unicom"
_SUPERVISED: Final = f"{_UNICOM}, Result of Supervised Image Retrieval"
_ZERO_SHOT: Final = f"{_UNICOM}, Result of Zero-Shot Image Retrieval"
_LANDMARK: Final = f"{_UNICOM}, GoogleLandmark Dataset Performance"

BENCHMARKS: Final[Mapping[str, Benchmark]] = {
    "sop": Benchmark(
        title="Stanford Online Products (Song et al., CVPR 2016)",
        open=_of_rows("sop"),
        metrics=_at(1, 10, 100, 1000),
        cropped=True,
        queries={_TEST: 60_502},
        gallery=60_502,
        published=_rows(
            _at(1, 10, 100, 1000),
            (_NORM, _ZHAI, "float", [79.55, 91.54, 96.66, 98.95]),
            (_NORM, _ZHAI, "code", [78.03, 90.71, 96.24, 98.72]),
            ("Proxy-Anchor, Inception-BN, 512-d", _ANCHOR, "float", [79.2, 90.7, 96.2, 98.6]),
            ("UNICOM, ViT-B/32, zero-shot", _ZERO_SHOT, "float", [70.0]),
            ("UNICOM, ViT-L/14@336px, fine-tuned", _SUPERVISED, "float", [91.2]),
        ),
    ),
    "in-shop": Benchmark(
        title="In-Shop Clothes Retrieval (Liu et al., CVPR 2016)",
        open=_of_rows("in-shop"),
        metrics=_at(1, 10, 20, 30),
        cropped=True,
        queries={_TEST: 14_218},
        gallery=12_612,
        published=_rows(
            _at(1, 10, 20, 30),
            (_NORM, _ZHAI, "float", [89.35, 97.81, 98.61, 98.87]),
            (_NORM, _ZHAI, "code", [88.76, 97.65, 98.47, 98.73]),
            ("Proxy-Anchor, Inception-BN, 512-d", _ANCHOR, "float", [91.9, 98.1, 98.7, 99.0]),
            ("UNICOM, ViT-B/32, zero-shot", _ZERO_SHOT, "float", [72.8]),
            ("UNICOM, ViT-L/14@336px, fine-tuned", _SUPERVISED, "float", [96.7]),
        ),
    ),
    "cub": Benchmark(
        title="CUB-200-2011 (Wah et al., 2011)",
        open=_of_rows("cub"),
        metrics=(*_at(1, 2, 4, 8), "mAP@R"),
        cropped=True,
        queries={_TEST: 5_924},
        gallery=5_924,
        published=_rows(
            _at(1, 2, 4, 8),
            (_NORM, _ZHAI, "float", [65.36, 76.76, 85.42, 91.51]),
            (_NORM, _ZHAI, "code", [63.67, 75.37, 84.54, 90.99]),
            ("Proxy-Anchor, ResNet-50, 512-d", _ANCHOR, "float", [69.9, 79.6, 86.6, 91.4]),
            ("UNICOM, ViT-B/32, zero-shot", _ZERO_SHOT, "float", [83.7]),
        ),
    ),
    "cars": Benchmark(
        title="Cars196 (Krause et al., 2013)",
        open=_of_rows("cars"),
        metrics=(*_at(1, 2, 4, 8), "mAP@R"),
        cropped=True,
        queries={_TEST: 8_131},
        gallery=8_131,
        published=_rows(
            _at(1, 2, 4, 8),
            (_NORM, _ZHAI, "float", [89.50, 94.18, 96.84, 98.41]),
            (_NORM, _ZHAI, "code", [89.29, 93.95, 96.61, 98.14]),
            ("Proxy-Anchor, ResNet-50, 512-d", _ANCHOR, "float", [87.7, 92.7, 95.5, 97.3]),
            ("UNICOM, ViT-B/32, zero-shot", _ZERO_SHOT, "float", [95.9]),
        ),
    ),
    "gldv2": Benchmark(
        title="Google Landmarks Dataset v2, retrieval (Weyand et al., CVPR 2020)",
        open=_open_landmarks,
        metrics=("mAP@100",),
        cropped=False,
        queries={usage.lower(): count for usage, count in zip(USAGES, (750, 379), strict=True)},
        gallery=761_757,
        published=(
            Published(
                "UNICOM, ViT-B/16@512px",
                _LANDMARK,
                {"private mAP@100": 35.7, "public mAP@100": 32.4},
            ),
        ),
    ),
}
