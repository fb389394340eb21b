"""What is searched for what: the searches of every task of the table."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from unified_embedding.datasets.task_table import BROWSE, CAMERA, SHOP, TASKS, TaskTable
from unified_embedding.protocols.held_out import HeldOut

CAMERA_CATEGORY: Final = CAMERA.categories
CAMERA_UNSEEN: Final = CAMERA.unseen
CAMERA_EXACT: Final = CAMERA.exact
SHOP_EXACT: Final = SHOP.exact
BROWSE_PAIRS: Final = BROWSE.pairs
BROWSE_MERGED: Final = BROWSE.merged
BROWSE_UNSEEN: Final = BROWSE.unseen_pairs
ONE_INDEX: Final = "one index, "
"""Prefix of tasks that search the union of all galleries."""

MERGED_METRICS: Final = ("mAP@R",)


def in_order(tasks: TaskTable) -> list[str]:
    """Names as pages list them: searches for a category, for a thing in a gallery, by pairs."""

    def rank(name: str) -> int:
        return 0 if tasks[name].category else 2 if tasks[name].search == "pairs" else 1

    return sorted(tasks, key=rank)


MAIN: Final = {name: TASKS[name].main for name in in_order(TASKS)}
"""Each product's main figure, by which specialists and the unified embedder are compared.

A search for a category goes among things that no training picture shows. Training used the very
label that is right here, so trained things in the gallery would be found by memory; as
distractors of an exact search they are harmless.
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
        label: the label that a right answer shares with its query; see `held_out.labels_of`.
        metrics: names that `measure` knows.
        searches: a picture never answers its own query, and every query has a right answer.
        product: the task of the table.
    """

    name: str
    label: str
    metrics: tuple[str, ...]
    searches: tuple[Search, ...]
    product: str

    def queries(self) -> NDArray[np.int64]:
        """Rows of all queries, in the order of the samples."""
        return np.concatenate([search.queries for search in self.searches])


def build_tasks(pictures: HeldOut) -> list[Task]:
    """Every task for which the pictures hold queries with an answer."""
    tasks = [search for name in in_order(pictures.tasks) for search in _of_task(pictures, name)]
    return [task for task in [*tasks, *_one_index(pictures, tasks)] if task.searches]


def _of_task(pictures: HeldOut, name: str) -> Iterator[Task]:
    spec = pictures.tasks[name]
    metrics, of_category = tuple(spec.metrics), tuple(spec.category_metrics)
    if spec.category:
        key = spec.category_key
        yield Task(
            spec.unseen, key, of_category, _within(pictures, name, key, ~pictures.seen), name
        )
        yield Task(spec.categories, key, of_category, _within(pictures, name, key), name)
    if spec.search == "pairs":
        yield Task(spec.pairs, name, metrics, _pairs(pictures, name, unseen=False), name)
        yield Task(spec.merged, name, MERGED_METRICS, _merged(pictures, name), name)
        yield Task(spec.unseen_pairs, name, metrics, _pairs(pictures, name, unseen=True), name)
    else:
        yield Task(spec.exact, name, metrics, _within(pictures, name, name), name)


def _within(
    pictures: HeldOut, task: str, label: str, only: NDArray[np.bool_] | None = None
) -> tuple[Search, ...]:
    """One search of a product; `only` bool [N] keeps a part of its gallery."""
    gallery = pictures.gallery[task] if only is None else pictures.gallery[task] & only
    return _searches(pictures, label, [(pictures.query[task], gallery)])


def _merged(pictures: HeldOut, name: str) -> tuple[Search, ...]:
    """Trained designs in one gallery; pictures of never-trained designs take no part."""
    queries = pictures.query[name] & pictures.trained
    gallery = pictures.gallery[name] & pictures.trained
    return _searches(pictures, name, [(queries, gallery)])


def _pairs(pictures: HeldOut, name: str, unseen: bool) -> tuple[Search, ...]:
    """Every design searches every other; the pairs with or without a never-trained design."""
    query, gallery = pictures.query[name], pictures.gallery[name]
    trained = set(np.unique(pictures.domain[gallery & pictures.trained]).tolist())
    designs = np.unique(pictures.domain[gallery]).tolist()
    return _searches(
        pictures,
        name,
        [
            (query & (pictures.domain == source), gallery & (pictures.domain == target))
            for source, target in permutations(designs, 2)
            if unseen == bool({source, target} - trained)
        ],
    )


def _one_index(pictures: HeldOut, tasks: list[Task]) -> Iterator[Task]:
    """The main searches again, each in the union of all galleries: one embedding, one index."""
    union = np.zeros(len(pictures), dtype=np.bool_)
    for product, spec in pictures.tasks.items():
        union |= pictures.gallery[product] & (pictures.trained | (spec.search != "pairs"))
    for task in tasks:
        spec = pictures.tasks[task.product]
        if task.name in (spec.pairs, spec.unseen_pairs) or not task.searches:
            continue
        queries = np.zeros(len(pictures), dtype=np.bool_)
        queries[task.queries()] = True
        metrics = task.metrics[:1] if task.name == spec.exact else task.metrics
        seen_things = pictures.gallery[task.product] & pictures.seen
        gallery = union & ~seen_things if task.name == spec.unseen else union
        searches = _searches(pictures, task.label, [(queries, gallery)])
        yield Task(ONE_INDEX + task.name, task.label, metrics, searches, task.product)


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
