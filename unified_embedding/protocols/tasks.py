"""What is searched for what: the retrieval tasks of the paper's three products."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from unified_embedding.datasets.manifest import TASKS
from unified_embedding.protocols.held_out import HeldOut

CAMERA_CATEGORY: Final = "camera category"
CAMERA_UNSEEN: Final = "camera category, unseen"
CAMERA_EXACT: Final = "camera exact"
SHOP_EXACT: Final = "shop exact"
BROWSE_PAIRS: Final = "browse pairs"
BROWSE_MERGED: Final = "browse merged"
BROWSE_UNSEEN: Final = "browse unseen"
ONE_INDEX: Final = "one index, "
"""Prefix of tasks that search the union of all galleries."""

EXACT_METRICS: Final = ("R@1", "R@5", "R@10", "MRR")
CATEGORY_METRICS: Final = ("P@20",)
MERGED_METRICS: Final = ("mAP@R",)

MAIN: Final = {
    "camera": (CAMERA_UNSEEN, "P@20"),
    "shop": (SHOP_EXACT, "R@1"),
    "browse": (BROWSE_PAIRS, "R@1"),
}
"""Each product's main figure, by which specialists and the unified embedder are compared.

camera searches products that no training picture shows. Training used the very category label
that is right here, so trained products in the gallery would be found by memory; as distractors
of an exact search they are harmless.
"""


@dataclass(frozen=True, eq=False)
class Search:
    """Queries int64 [Q] and gallery int64 [M], as rows of a `HeldOut`."""

    queries: NDArray[np.int64]
    gallery: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Task:
    """One or several searches that are scored together, a sample per query and search.

    Attributes:
        name: for instance "camera exact".
        label: the label that a right answer shares with its query; see `held_out.LABELS`.
        metrics: names that `measure` knows.
        searches: a picture never answers its own query, and every query has a right answer.
    """

    name: str
    label: str
    metrics: tuple[str, ...]
    searches: tuple[Search, ...]

    def queries(self) -> NDArray[np.int64]:
        """Rows of all queries, in the order of the samples."""
        return np.concatenate([search.queries for search in self.searches])


def build_tasks(pictures: HeldOut) -> list[Task]:
    """Every task for which the pictures hold queries with an answer."""
    category = _within(pictures, "camera", "category")
    unseen = _within(pictures, "camera", "category", ~pictures.seen)
    tasks = [
        Task(CAMERA_UNSEEN, "category", CATEGORY_METRICS, unseen),
        Task(CAMERA_CATEGORY, "category", CATEGORY_METRICS, category),
        Task(CAMERA_EXACT, "camera", EXACT_METRICS, _within(pictures, "camera", "camera")),
        Task(SHOP_EXACT, "shop", EXACT_METRICS, _within(pictures, "shop", "shop")),
        Task(BROWSE_PAIRS, "browse", EXACT_METRICS, _pairs(pictures, unseen=False)),
        Task(BROWSE_MERGED, "browse", MERGED_METRICS, _merged(pictures)),
        Task(BROWSE_UNSEEN, "browse", EXACT_METRICS, _pairs(pictures, unseen=True)),
    ]
    return [task for task in [*tasks, *_one_index(pictures, tasks)] if task.searches]


def _within(
    pictures: HeldOut, task: str, label: str, only: NDArray[np.bool_] | None = None
) -> tuple[Search, ...]:
    """One search of a product; `only` bool [N] keeps a part of its gallery."""
    gallery = pictures.gallery[task] if only is None else pictures.gallery[task] & only
    return _searches(pictures, label, [(pictures.query[task], gallery)])


def _merged(pictures: HeldOut) -> tuple[Search, ...]:
    """Trained designs in one gallery; pictures of never-trained designs take no part."""
    queries = pictures.query["browse"] & pictures.trained
    gallery = pictures.gallery["browse"] & pictures.trained
    return _searches(pictures, "browse", [(queries, gallery)])


def _pairs(pictures: HeldOut, unseen: bool) -> tuple[Search, ...]:
    """Every design searches every other; the pairs with or without a never-trained design."""
    query, gallery = pictures.query["browse"], pictures.gallery["browse"]
    trained = set(np.unique(pictures.domain[gallery & pictures.trained]).tolist())
    designs = np.unique(pictures.domain[gallery]).tolist()
    return _searches(
        pictures,
        "browse",
        [
            (query & (pictures.domain == source), gallery & (pictures.domain == target))
            for source, target in permutations(designs, 2)
            if unseen == bool({source, target} - trained)
        ],
    )


def _one_index(pictures: HeldOut, tasks: list[Task]) -> Iterator[Task]:
    """The main searches again, each in the union of all galleries: one embedding, one index."""
    union = np.zeros(len(pictures), dtype=np.bool_)
    for product in TASKS:
        union |= pictures.gallery[product] & (pictures.trained | (product != "browse"))
    for task in tasks:
        if task.name in (BROWSE_PAIRS, BROWSE_UNSEEN) or not task.searches:
            continue
        queries = np.zeros(len(pictures), dtype=np.bool_)
        queries[task.queries()] = True
        metrics = ("R@1",) if task.metrics == EXACT_METRICS else task.metrics
        seen_products = pictures.gallery["camera"] & pictures.seen
        gallery = union & ~seen_products if task.name == CAMERA_UNSEEN else union
        searches = _searches(pictures, task.label, [(queries, gallery)])
        yield Task(ONE_INDEX + task.name, task.label, metrics, searches)


def _searches(
    pictures: HeldOut, label: str, pairs: list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]
) -> tuple[Search, ...]:
    found = []
    for queries, gallery in pairs:
        answerable = queries & _has_answer(pictures, label, gallery)
        if answerable.any():
            found.append(Search(np.flatnonzero(answerable), np.flatnonzero(gallery)))
    return tuple(found)


def _has_answer(pictures: HeldOut, label: str, gallery: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """bool [N]: the gallery holds another picture with this one's label."""
    names, numbers = np.unique(pictures.labels[label], return_inverse=True)
    counts = np.bincount(numbers[gallery], minlength=len(names))[numbers]
    labelled = pictures.labels[label] != ""
    found: NDArray[np.bool_] = labelled & (counts - gallery > 0)
    return found
