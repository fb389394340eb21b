"""Exact nearest neighbours among packed codes, and the order of results."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray


class Nearest(NamedTuple):
    """Rows by ascending distance, then row; -1 and a huge distance where there are too few.

    Attributes:
        distances: Hamming distances, int32 [N, k].
        rows: row numbers, int64 [N, k].
    """

    distances: NDArray[np.int32]
    rows: NDArray[np.int64]


NO_ROW = -1
FAR = np.iinfo(np.int32).max


@contextmanager
def one_thread() -> Iterator[None]:
    """Run FAISS on the calling thread alone.

    A server answers many queries at once: OpenMP teams that wait for one another on busy
    cores turn a query of 5 ms into one of 50-150 ms. The setting belongs to the calling
    thread, so each query makes it anew.
    """
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def exact(query: NDArray[np.uint8], codes: NDArray[np.uint8], k: int) -> Nearest:
    """The k nearest of codes [M, B] to each query [N, B], k <= M, ties by ascending row.

    FAISS keeps the lowest row numbers among equal distances (checked by a property test).
    """
    distances, rows = faiss.knn_hamming(np.ascontiguousarray(query), codes, k)
    return Nearest(distances, rows)


def ordered(found: Nearest, k: int) -> Nearest:
    """The first k of each query by (distance, row); misses last."""
    distances = np.where(found.rows < 0, FAR, found.distances).astype(np.int32)
    order = np.lexsort((found.rows, distances), axis=1)[:, :k]
    return Nearest(
        np.take_along_axis(distances, order, axis=1), np.take_along_axis(found.rows, order, axis=1)
    )
